"""The fake's own promises: its containers are closed in, its knobs do what they say."""

import asyncio
import os
import signal
import subprocess

import pytest

from ciworker.domain.container import State
from ciworker.domain.log import Stream
from ciworker.errors import (
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    ImageInUse,
    ImageMissing,
)
from tests.engine.fake import BUFFER, FakeEngine, FakeNetworks
from tests.engine.lab import Lab, children, read_all

FOREVER = "while :; do sleep 0.05; done"


@pytest.fixture
def lab(fake_lab: Lab) -> Lab:
    return fake_lab


@pytest.fixture
def engine(lab: Lab) -> FakeEngine:
    assert isinstance(lab.engine, FakeEngine)
    return lab.engine


async def test_a_signal_to_every_process_stays_inside(lab: Lab) -> None:
    """The shim sends it; outside of a PID namespace it would end the machine."""
    with subprocess.Popen(["sleep", "1000"], user=1000 if os.geteuid() == 0 else None) as witness:
        try:
            script = "sleep 1000 & kill -KILL -1; wait $!; echo $?; echo $$"
            _, output = await lab.run(lab.script(script))
            assert witness.poll() is None
        finally:
            witness.kill()

    assert output[Stream.STDOUT] == b"137\n2\n"


async def test_every_container_has_an_empty_workspace_of_its_own(lab: Lab) -> None:
    script = "cd /workspace && pwd && ls -A && touch mine /tmp/mine && ls"
    _, first = await lab.run(lab.script(script, name="one"))
    _, second = await lab.run(lab.script(script, name="two"))

    assert first[Stream.STDOUT] == b"/workspace\nmine\n"
    assert second == first


async def test_no_process_is_left_when_it_closes() -> None:
    before = children()
    engine = FakeEngine("own")
    lab = Lab(engine, "fake", "own", "fake", lambda _seconds: None, FakeNetworks(engine))
    container, attachment = await lab.attached(lab.script(f"trap '' TERM; echo up; {FOREVER}"))
    assert await attachment.read() == (Stream.STDOUT, b"up\n")
    assert children() > before

    await engine.aclose()

    assert await attachment.read() is None
    with pytest.raises(EngineUnavailable):
        await engine.inspect(container)
    assert children() <= before


async def test_a_caller_that_goes_away_does_not_stop_a_start(lab: Lab, engine: FakeEngine) -> None:
    container = await engine.create(lab.script(FOREVER))
    starting = asyncio.create_task(engine.start(container))
    await asyncio.sleep(0)
    starting.cancel()
    await asyncio.wait([starting])

    await engine.start(container)  # joins the one that is under way

    found = await engine.inspect(container)
    assert found is not None
    assert found.state is State.RUNNING
    async with lab.tape(since="0.0") as tape:
        await tape.until("start", container)
    assert tape.actions(container) == ["start"]


async def test_a_fault_strikes_as_often_as_it_is_told(lab: Lab, engine: FakeEngine) -> None:
    engine.fail("create", EngineUnavailable("no"), times=2)

    for _ in range(2):
        with pytest.raises(EngineUnavailable):
            await engine.create(lab.spec())
    await engine.create(lab.spec())

    assert [name for name, _ in engine.calls] == ["create"] * 3


async def test_an_answer_can_be_lost_after_the_call_was_carried_out(
    lab: Lab, engine: FakeEngine
) -> None:
    engine.fail("create", EngineUnavailable("the answer is lost"), after=True)

    with pytest.raises(EngineUnavailable):
        await engine.create(lab.spec())

    assert len(await engine.list()) == 1


async def test_a_write_and_a_read_can_fail_too(lab: Lab, engine: FakeEngine) -> None:
    _, attachment = await lab.attached(lab.script("read -r x; echo $x"))
    engine.fail("write", EngineUnavailable("cut"))
    engine.fail("read", EngineRefused("no"))

    with pytest.raises(EngineUnavailable):
        await attachment.write(b"x\n")
    with pytest.raises(EngineRefused):
        await attachment.read()
    await attachment.write(b"y\n")
    assert (await read_all(attachment))[Stream.STDOUT] == b"y\n"
    await attachment.close()


async def test_a_write_blocks_while_nobody_reads_it_inside(lab: Lab, engine: FakeEngine) -> None:
    container, attachment = await lab.attached(lab.spec("sleep", "1000"))
    writing = asyncio.create_task(attachment.write(b"x" * BUFFER * 8))
    await asyncio.sleep(0.1)
    assert not writing.done()

    await engine.signal(container, signal.SIGKILL)

    with pytest.raises(EngineUnavailable):
        await writing
    await attachment.close()


async def test_a_held_call_waits_until_it_is_let_go(lab: Lab, engine: FakeEngine) -> None:
    gate = engine.hold("list")
    listing = asyncio.create_task(engine.list())
    await asyncio.sleep(0)
    assert not listing.done()

    gate.set()

    assert await listing == []


async def test_paused_events_come_later_and_dropped_ones_never(
    lab: Lab, engine: FakeEngine
) -> None:
    engine.drop_events = lambda event: event.action == "start"
    async with lab.tape() as tape:
        engine.events_paused = True
        container, _ = await lab.run(lab.spec())
        await lab.down(container)
        assert tape.events == []
        engine.events_paused = False
        await tape.until("die", container)

    assert tape.actions(container) == ["die"]


async def test_a_restart_kills_without_an_event_and_forgets(lab: Lab, engine: FakeEngine) -> None:
    async with lab.tape() as tape:
        container, attachment = await lab.attached(lab.script(FOREVER))
        start = await tape.until("start", container)
    await engine.crash()
    with pytest.raises(EngineUnavailable):
        await engine.info()
    engine.boot()

    found = await engine.inspect(container)
    assert found is not None
    assert (found.state, found.exit_code) == (State.EXITED, 137)
    assert await attachment.read() is None
    assert await engine.restarted_since(start)
    async with lab.tape(since="0.0") as again:
        await engine.remove(container)
        await again.until("destroy", container)
    assert again.actions(container) == ["destroy"]


async def test_with_live_restore_containers_outlive_a_restart(lab: Lab, engine: FakeEngine) -> None:
    container, _ = await lab.attached(lab.script(FOREVER))

    await engine.restart(live_restore=True)

    found = await engine.inspect(container)
    assert found is not None
    assert found.state is State.RUNNING
    await engine.signal(container, signal.SIGTERM)
    assert (await lab.down(container)).exit_code == 143


async def test_an_attachment_that_is_cut_breaks_and_the_container_runs_on(lab: Lab) -> None:
    container, attachment = await lab.attached(lab.script("cat; echo end"))

    await attachment.cut()  # type: ignore[attr-defined] # the fake's own

    with pytest.raises(EngineUnavailable):
        await attachment.read()
    assert (await lab.down(container)).exit_code == 0
    assert [frame.data for frame in await lab.log(container)] == [b"end\n"]


@pytest.mark.parametrize(("whole", "code"), [(True, 137), (False, 0)])
async def test_out_of_memory_of_all_or_of_a_child(
    lab: Lab, engine: FakeEngine, whole: bool, code: int
) -> None:
    async with lab.tape() as tape:
        container, attachment = await lab.attached(lab.script("read -r x"))
        await engine.oom(container, whole=whole)
        await attachment.close()
        await tape.until("die", container)
        found = await lab.down(container)

    assert found.oom_killed
    assert found.exit_code == (code if whole else 1)  # read meets the end of its stdin
    assert tape.actions(container) == ["start", "oom", "die"]


async def test_an_image_of_the_registry_can_be_pulled(engine: FakeEngine) -> None:
    engine.registry.add("python:3")

    assert await engine.image("python:3") is None
    await engine.pull("python:3")
    assert await engine.image("python:3") is not None
    with pytest.raises(ImageMissing):
        await engine.pull("python:4")


async def test_a_commit_can_be_held_fail_and_lose_its_answer(lab: Lab, engine: FakeEngine) -> None:
    container, _ = await lab.run(lab.spec())
    engine.fail("commit", EngineFailed("no space left on device"))
    engine.fail("commit", EngineUnavailable("the answer is lost"), after=True)
    gate = engine.hold("commit")
    committing = asyncio.create_task(engine.commit(container, lab.tag(), {}))
    await asyncio.sleep(0)
    assert not committing.done()

    gate.set()

    with pytest.raises(EngineFailed):
        await committing
    assert await engine.images({}) == []
    with pytest.raises(EngineUnavailable):
        await engine.commit(container, lab.tag(), {})
    assert len(await engine.images({})) == 1


async def test_an_image_of_several_names_goes_with_the_last(lab: Lab, engine: FakeEngine) -> None:
    image = await lab.commit(lab.spec())
    engine.images_by_name["copy:1"] = engine.images_by_name[lab.tag()]

    with pytest.raises(ImageInUse, match="multiple repositories"):
        await engine.remove_image(image)
    await engine.remove_image(lab.tag())
    assert await engine.images({}) == []  # the copy is its maker's
    assert await engine.image(image) is not None
    await engine.remove_image("copy:1")
    assert await engine.image(image) is None


async def test_a_follow_loses_the_last_line_without_newline(lab: Lab) -> None:
    """As the real engine does in most runs: nobody may rely on the end of a follow."""
    container, attachment = await lab.attached(lab.script("read -r x; echo one; printf two"))
    following = asyncio.create_task(lab.log(container, follow=True))
    await asyncio.sleep(0)
    await attachment.write(b"\n")

    assert [frame.data for frame in await following] == [b"one\n"]
    assert [frame.data for frame in await lab.log(container)] == [b"one\n", b"two"]
    await attachment.close()


async def test_a_container_whose_init_is_gone_at_once_ends_as_any_other(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(_pid: int) -> int:
        raise ProcessLookupError

    monkeypatch.setattr("os.pidfd_open", gone)
    container, output = await lab.run(lab.script("echo out; exit 3"))

    assert (await lab.down(container)).exit_code == 3
    assert output[Stream.STDOUT] == b"out\n"
