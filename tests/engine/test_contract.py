"""What port.py promises, held against the fake and a real Docker engine alike."""

import asyncio
import contextlib
import signal
from datetime import UTC, datetime, timedelta

import pytest
from ulid import ULID

from ciworker.domain.container import (
    KIND_POOL,
    LABEL_ATTEMPT,
    LABEL_BUILD,
    LABEL_ENVIRONMENT,
    LABEL_INSTANCE,
    LABEL_KIND,
    LABEL_POOL,
    LABEL_SPEC,
    State,
)
from ciworker.domain.log import FRAME, LogFrame, Stream
from ciworker.engine.docker import DockerEngine
from ciworker.engine.port import KIND_IMAGE, ContainerSpec, Engine, event_time
from ciworker.errors import (
    ContainerMissing,
    EngineRefused,
    EngineUnavailable,
    ImageInUse,
    ImageMissing,
    NameTaken,
)
from tests.engine.fake import FakeEngine
from tests.engine.lab import PATIENCE, Lab, read_all, text_of

ENGINES: tuple[type[Engine], ...] = (FakeEngine, DockerEngine)  # for the type checker
FOREVER = "while :; do sleep 0.05; done"

# -- create, inspect, list, remove -------------------------------------------------------------


async def test_a_created_container_is_found_by_id_and_by_name(lab: Lab) -> None:
    container = await lab.engine.create(lab.spec())

    found = await lab.engine.inspect(container)

    assert found is not None
    assert found == await lab.engine.inspect(f"{lab.instance}-job")
    assert (found.id, found.name) == (container, f"{lab.instance}-job")
    assert (found.state, found.job, found.attempt) == (State.CREATED, "01JOB", 2)
    assert (found.exit_code, found.started_at, found.finished_at) == (None, None, None)
    assert found.changed_at is not None
    assert abs(found.changed_at - datetime.now(UTC)) < timedelta(seconds=30)


async def test_a_name_can_be_taken_only_once(lab: Lab) -> None:
    await lab.engine.create(lab.spec())

    with pytest.raises(NameTaken, match=f"{lab.instance}-job"):
        await lab.engine.create(lab.spec())

    assert len(await lab.engine.list()) == 1


async def test_a_name_is_free_again_after_a_remove(lab: Lab) -> None:
    first = await lab.engine.create(lab.spec())
    await lab.engine.remove(first)

    assert await lab.engine.create(lab.spec()) != first


async def test_an_unknown_image_is_missing_and_cannot_be_pulled(lab: Lab) -> None:
    unknown = "localhost:1/no-such-image:1"  # a port on which nobody answers

    assert await lab.engine.image(unknown) is None
    with pytest.raises(ImageMissing):
        await lab.engine.create(lab.spec(image=unknown))
    with pytest.raises(ImageMissing, match="no-such-image"):
        await lab.engine.pull(unknown)
    assert await lab.engine.list() == []


async def test_the_image_of_the_tests_is_known(lab: Lab) -> None:
    image = await lab.engine.image(lab.image)

    assert image is not None
    assert image.id.startswith("sha256:")


async def test_the_engine_tells_its_version_and_its_clock(lab: Lab) -> None:
    info = await lab.engine.info()

    assert info.version
    assert abs(info.now - datetime.now(UTC).timestamp()) < 30
    assert lab.engine.ahead == 0.0  # as it is this machine's


async def test_calls_about_a_missing_container_say_so_or_do_nothing(lab: Lab) -> None:
    missing = f"{lab.instance}-missing"

    assert await lab.engine.inspect(missing) is None
    await lab.engine.remove(missing)
    await lab.engine.signal(missing, signal.SIGTERM)
    for call in (
        lab.engine.start(missing),
        lab.engine.attach(missing),
        lab.engine.rename(missing, f"{missing}-too"),
        lab.engine.update(missing, 256 * 2**20, 1),
        lab.log(missing),
    ):
        with pytest.raises(ContainerMissing, match=r"\w"):
            await call


async def test_only_containers_with_our_label_are_listed_and_told_of(lab: Lab) -> None:
    labels = {**lab.spec().labels, LABEL_INSTANCE: lab.stranger}
    async with lab.tape() as tape:
        foreign = await lab.engine.create(lab.spec(name="foreign", labels=labels))
        ours = await lab.engine.create(lab.spec())
        await lab.engine.start(foreign)
        await lab.engine.start(ours)
        await tape.until("die", ours)
        await lab.down(ours)  # the list may lag behind `die`, but not behind inspect
        await lab.down(foreign)
        listed = await lab.engine.list()
        await lab.engine.remove(foreign)
        await lab.engine.remove(ours)
        await tape.until("destroy", ours)

    assert [(item.id, item.state, item.exit_code) for item in listed] == [
        (ours, State.EXITED, None)
    ]
    assert [(item.job, item.attempt) for item in listed] == [("01JOB", 2)]
    assert tape.of(foreign) == []


# -- network -----------------------------------------------------------------------------------


async def test_the_network_is_made_by_the_first_container_that_needs_it(lab: Lab) -> None:
    await lab.engine.create(lab.spec(name="without"))
    assert not await lab.networks.exists()

    await asyncio.gather(*(lab.engine.create(lab.spec(name=n, network=True)) for n in "abcd"))

    assert await lab.networks.exists()


async def test_a_network_that_was_removed_is_made_again_at_a_create_and_at_a_start(
    lab: Lab,
) -> None:
    created = await lab.engine.create(lab.spec(name="before", network=True))
    await lab.networks.remove()
    await lab.engine.start(created)
    assert (await lab.down(created)).exit_code == 0

    await lab.networks.remove()
    again, _ = await lab.run(lab.spec(name="after", network=True))
    assert (await lab.down(again)).exit_code == 0


async def test_a_container_whose_network_went_away_after_its_first_start_is_refused(
    lab: Lab,
) -> None:
    container, _ = await lab.run(lab.spec(network=True))
    await lab.down(container)
    await lab.networks.remove()

    with pytest.raises(EngineRefused, match=r"cannot be started again: network \w+ not found"):
        await lab.engine.start(container)


async def test_a_network_whose_containers_reach_each_other_is_refused(lab: Lab) -> None:
    await lab.networks.make_another()

    with pytest.raises(EngineRefused, match="is not as the worker makes it"):
        await lab.engine.create(lab.spec(network=True))

    assert await lab.engine.list() == []


# -- attach ------------------------------------------------------------------------------------


async def test_output_is_complete_with_a_last_line_without_newline(lab: Lab) -> None:
    lines = 20_000
    container, output = await lab.run(lab.script(f"seq 1 {lines}; printf 'the end'; exit 3"))

    expected = b"".join(b"%d\n" % number for number in range(1, lines + 1)) + b"the end"
    assert output == {Stream.STDOUT: expected, Stream.STDERR: b""}
    assert (await lab.down(container)).exit_code == 3
    log = await lab.log(container)
    assert text_of(log, Stream.STDOUT) == expected
    assert log[-1].data == b"the end"


async def test_stdout_and_stderr_are_told_apart(lab: Lab) -> None:
    container, output = await lab.run(lab.script("echo out; echo err >&2; printf x; printf y >&2"))

    assert output == {Stream.STDOUT: b"out\nx", Stream.STDERR: b"err\ny"}
    log = await lab.log(container)
    assert {stream: text_of(log, stream) for stream in output} == output


async def test_stdin_reaches_it_by_length_and_needs_no_end(lab: Lab) -> None:
    payload = bytes(range(256)) * 4096  # 1 MiB: more than a pipe holds

    script = 'read -r n; head -c "$n" | sha256sum; exec </dev/null; echo rest; cat'
    _, output = await lab.run(lab.script(script), b"%d\n" % len(payload) + payload + b"more")

    digest = "fbbab289f7f94b25736c58be46a994c441fd02552cc6022352e3d86d2fab7c83"
    assert output[Stream.STDOUT].decode() == f"{digest}  -\nrest\n"


async def test_what_is_written_before_the_start_is_there_at_the_start(lab: Lab) -> None:
    container = await lab.engine.create(lab.script('read -r x; echo "got $x"'))
    attachment = await lab.engine.attach(container)
    await attachment.write(b"early\n")
    await lab.engine.start(container)

    assert await read_all(attachment) == {Stream.STDOUT: b"got early\n", Stream.STDERR: b""}
    await attachment.close()


async def test_with_the_attachment_closed_stdin_ends_and_the_container_runs_on(lab: Lab) -> None:
    container, attachment = await lab.attached(lab.script("echo up; cat; seq 5; printf end"))
    assert await attachment.read() == (Stream.STDOUT, b"up\n")

    await attachment.close()
    await attachment.close()

    assert (await lab.down(container)).exit_code == 0
    assert text_of(await lab.log(container), Stream.STDOUT) == b"up\n1\n2\n3\n4\n5\nend"


async def test_a_closed_attachment_reads_no_more_and_refuses_to_write(lab: Lab) -> None:
    _, attachment = await lab.attached(lab.script(FOREVER))
    reading = asyncio.create_task(attachment.read())
    await asyncio.sleep(0)  # it waits now

    await attachment.close()

    async with asyncio.timeout(PATIENCE):
        with contextlib.suppress(EngineUnavailable):
            assert await reading is None
    with pytest.raises(EngineUnavailable):
        await attachment.write(b"x")


async def test_a_reader_that_stalls_blocks_the_end_of_its_container(lab: Lab) -> None:
    """Engine-facts, rule 8: this is why an attachment is closed where nobody reads it."""
    async with lab.tape() as tape:
        container, attachment = await lab.attached(
            lab.script("exec yes $(head -c 1000 /dev/zero | tr '\\0' y)")
        )
        size = 0
        while size == 0 or len(await lab.log(container)) > size:  # until all buffers are full
            size = len(await lab.log(container))
            await asyncio.sleep(0.2)
        lab.limit_calls(0.5)
        for call in (lab.engine.signal(container, signal.SIGKILL), lab.engine.inspect(container)):
            with pytest.raises(EngineUnavailable):
                await call
        assert [item.state for item in await lab.engine.list()] == [State.RUNNING]
        assert "die" not in tape.actions(container)

        await attachment.close()
        lab.limit_calls(PATIENCE)
        await tape.until("die", container)

    assert (await lab.down(container)).exit_code == 137
    assert text_of(await lab.log(container), Stream.STDOUT).startswith(b"y" * 1000 + b"\n")


# -- start, signal, remove ---------------------------------------------------------------------


async def test_a_start_is_refused_where_the_container_cannot_be_set_up(lab: Lab) -> None:
    async with lab.tape() as tape:
        spec = lab.spec(mounts=("/etc/passwd:/usr:ro",))  # a file over a folder
        container = await lab.engine.create(spec)
        with pytest.raises(EngineRefused, match=r"(?i)not a directory"):
            await lab.engine.start(container)
        refused = await lab.engine.inspect(container)
        await lab.engine.remove(container)
        await tape.until("destroy", container)

    assert refused is not None
    assert (refused.state, refused.exit_code) == (State.CREATED, None)
    assert "directory" in refused.error
    assert tape.actions(container) == ["destroy"]  # and nothing before


async def test_a_missing_command_is_seen_by_its_init_as_127(lab: Lab) -> None:
    """With an init the start itself succeeds; without one the engine would refuse it."""
    container, output = await lab.run(lab.spec("/no/such/command"))

    assert b"No such file" in output[Stream.STDERR]
    assert (await lab.down(container)).exit_code == 127


async def test_starting_a_started_container_does_nothing(lab: Lab) -> None:
    container, attachment = await lab.attached(lab.script("echo once; read -r x"))
    before = await lab.engine.inspect(container)

    await lab.engine.start(container)

    assert await lab.engine.inspect(container) == before
    await attachment.write(b"\n")
    assert (await read_all(attachment))[Stream.STDOUT] == b"once\n"
    await attachment.close()


async def test_a_container_that_exited_can_be_started_again(lab: Lab) -> None:
    script = "read -r x; test ! -e /workspace/x && touch /workspace/x"
    container, _ = await lab.run(lab.script(script), b"\n")
    first = await lab.down(container)

    attachment = await lab.engine.attach(container)
    await lab.engine.start(container)
    await attachment.write(b"again\n")
    await attachment.close()
    second = await lab.down(container)

    assert (first.exit_code, second.exit_code) == (0, 0)  # the workspace is new each time
    assert first.started_at is not None
    assert second.started_at is not None
    assert second.started_at > first.started_at


async def test_states_and_times_follow_a_life(lab: Lab) -> None:
    container, attachment = await lab.attached(lab.script("read -r x; exit 5"))
    running = await lab.engine.inspect(container)
    await attachment.write(b"\n")
    await read_all(attachment)
    await attachment.close()
    exited = await lab.down(container)

    assert running is not None
    assert (running.state, running.exit_code, running.finished_at) == (State.RUNNING, None, None)
    assert running.changed_at == running.started_at
    assert running.started_at is not None
    assert (exited.state, exited.exit_code, exited.oom_killed) == (State.EXITED, 5, False)
    assert exited.started_at == running.started_at
    assert exited.finished_at is not None
    assert exited.changed_at == exited.finished_at
    assert running.started_at < exited.finished_at


async def test_a_signal_reaches_the_command_through_init(lab: Lab) -> None:
    script = f"trap 'echo stopping; exit 9' TERM; echo up; {FOREVER}"
    container, attachment = await lab.attached(lab.script(script))
    assert await attachment.read() == (Stream.STDOUT, b"up\n")

    await lab.engine.signal(container, signal.SIGTERM)

    assert (await read_all(attachment))[Stream.STDOUT] == b"stopping\n"
    assert (await lab.down(container)).exit_code == 9
    await lab.engine.signal(container, signal.SIGTERM)  # down by now: does nothing
    await attachment.close()


async def test_a_kill_ends_everything_inside_with_137_at_once(lab: Lab) -> None:
    script = f"trap '' TERM; (sleep 1000 & sleep 1000 &) ; echo up; {FOREVER}"
    container, attachment = await lab.attached(lab.script(script))
    await attachment.read()

    await lab.engine.signal(container, signal.SIGKILL)

    found = await lab.engine.inspect(container)
    assert found is not None
    assert (found.state, found.exit_code, found.oom_killed) == (State.EXITED, 137, False)
    await read_all(attachment)  # ends: no grandchild holds the output open
    await attachment.close()


async def test_removing_a_running_container_kills_it_and_may_be_repeated(lab: Lab) -> None:
    async with lab.tape() as tape:
        container = await lab.engine.create(lab.script(FOREVER))
        await lab.engine.start(container)

        assert await lab.engine.remove(container)
        assert not await lab.engine.remove(container)
        await tape.until("destroy", container)

    assert await lab.engine.inspect(container) is None
    assert await lab.engine.list() == []
    assert [(event.action, event.signal) for event in tape.of(container)] == [
        ("start", None),
        ("kill", signal.SIGKILL),
        ("die", None),
        ("destroy", None),
    ]


# -- images ------------------------------------------------------------------------------------


async def test_a_commit_makes_an_image_that_is_found_by_id_and_by_name(lab: Lab) -> None:
    base = await lab.engine.image(lab.image)
    labels = {LABEL_ENVIRONMENT: "key", LABEL_ATTEMPT: "9", LABEL_KIND: "setup"}
    written = lab.script("head -c 1000000 /dev/urandom >/opt/kept; true", installs=True)
    image = await lab.commit(written, labels=labels)

    found = await lab.engine.image(image)

    assert base is not None
    assert found is not None
    assert found == await lab.engine.image(lab.tag())
    assert image.startswith("sha256:")
    assert (found.id, found.names, found.volumes) == (image, (lab.tag(),), ())
    assert base.size + 1_000_000 <= found.size < base.size + 10_000_000
    expected = {**written.labels, **labels, LABEL_KIND: KIND_IMAGE}
    assert expected.items() <= found.labels.items()


async def test_a_container_of_a_committed_image_runs_as_of_any_other(lab: Lab) -> None:
    image = await lab.commit(lab.spec(installs=True))

    for name, chosen in (("by-id", image), ("by-name", lab.tag())):
        spec = lab.script("echo ran; exit 4", name=name, image=chosen)
        container, output = await lab.run(spec)
        assert output == {Stream.STDOUT: b"ran\n", Stream.STDERR: b""}
        assert (await lab.down(container)).exit_code == 4
    assert [item.job for item in await lab.engine.list()] == ["01JOB", "01JOB"]


async def test_a_container_that_is_not_there_cannot_be_committed(lab: Lab) -> None:
    with pytest.raises(ContainerMissing, match="missing"):
        await lab.engine.commit(f"{lab.instance}-missing", lab.tag(), {})

    assert await lab.engine.images({}) == []


async def test_a_container_can_be_committed_again_under_the_same_name(lab: Lab) -> None:
    """As it is when the answer to the first commit was lost."""
    container, _ = await lab.run(lab.spec(installs=True))
    await lab.down(container)
    first = await lab.engine.commit(container, lab.tag(), {})
    second = await lab.engine.commit(container, lab.tag(), {})

    assert {image.id: image.names for image in await lab.engine.images({})} == {
        first: (),
        second: (lab.tag(),),
    }


async def test_an_image_that_lost_its_name_is_told_works_and_can_be_removed(lab: Lab) -> None:
    before = await lab.commit(lab.spec(installs=True), labels={LABEL_BUILD: "1"})
    after = await lab.commit(lab.spec(installs=True), labels={LABEL_BUILD: "2"})

    images = {image.labels[LABEL_BUILD]: image for image in await lab.engine.images({})}
    container, output = await lab.run(lab.script("echo ran", image=before))
    await lab.engine.remove(container)
    await lab.engine.remove_image(before)

    assert {build: (image.id, image.names) for build, image in images.items()} == {
        "1": (before, ()),
        "2": (after, (lab.tag(),)),
    }
    assert output[Stream.STDOUT] == b"ran\n"
    assert await lab.engine.image(before) is None
    assert [image.id for image in await lab.engine.images({})] == [after]


async def test_images_are_told_by_their_labels_and_as_they_are_found_alone(lab: Lab) -> None:
    one = await lab.commit(lab.spec(), "one", {LABEL_ENVIRONMENT: "one", LABEL_BUILD: "1"})
    two = await lab.commit(lab.spec(), "two", {LABEL_ENVIRONMENT: "two", LABEL_BUILD: "1"})

    async def told(**labels: str) -> list[str]:
        return sorted(image.id for image in await lab.engine.images(labels))

    assert await told() == sorted([one, two])
    assert await told(**{LABEL_BUILD: "1"}) == sorted([one, two])
    assert await told(**{LABEL_ENVIRONMENT: "two", LABEL_BUILD: "1"}) == [two]
    assert await told(**{LABEL_ENVIRONMENT: "one", LABEL_BUILD: "2"}) == []
    assert await lab.engine.images({LABEL_ENVIRONMENT: "one"}) == [await lab.engine.image(one)]


async def test_a_container_that_somebody_starts_from_an_image_of_ours_is_none_of_ours(
    lab: Lab,
) -> None:
    """It inherits the labels, those of the container that was committed among them."""
    image = await lab.commit(lab.spec(installs=True))
    async with lab.tape() as tape:
        theirs = await lab.engine.create(lab.spec(name="theirs", image=image, labels={}))
        await lab.engine.start(theirs)
        await lab.down(theirs)
        listed = await lab.engine.list()
        await lab.engine.remove(theirs)
        ours = await lab.engine.create(lab.spec(name="ours", image=image))
        await lab.engine.remove(ours)
        await tape.until("destroy", ours)

    assert listed == []
    assert tape.of(theirs) == []


@pytest.mark.parametrize("by_name", [True, False])
async def test_an_image_is_removed_and_may_be_removed_again(lab: Lab, by_name: bool) -> None:
    image = await lab.commit(lab.spec(installs=True))
    chosen = lab.tag() if by_name else image

    await lab.engine.remove_image(chosen)
    await lab.engine.remove_image(chosen)

    assert await lab.engine.image(image) is None
    assert await lab.engine.image(lab.tag()) is None
    assert await lab.engine.images({}) == []
    assert await lab.engine.image(lab.image) is not None  # what it was built from


@pytest.mark.parametrize("by_name", [True, False])
async def test_an_image_stays_while_a_container_of_it_is_there(lab: Lab, by_name: bool) -> None:
    image = await lab.commit(lab.spec(installs=True))
    chosen = lab.tag() if by_name else image
    container = await lab.engine.create(lab.script("read -r x", image=image))

    async def assert_it_stays() -> None:
        with pytest.raises(ImageInUse, match=rf"{chosen} stays, .*container {container[:12]}"):
            await lab.engine.remove_image(chosen)
        found = await lab.engine.image(image)
        assert found is not None
        assert found.names == (lab.tag(),)

    await assert_it_stays()
    attachment = await lab.engine.attach(container)
    await lab.engine.start(container)
    await assert_it_stays()
    await attachment.write(b"\n")
    await lab.down(container)
    await assert_it_stays()
    await attachment.close()
    await lab.engine.remove(container)
    await lab.engine.remove_image(chosen)
    assert await lab.engine.image(image) is None


async def test_an_image_that_another_was_made_from_loses_only_its_name(lab: Lab) -> None:
    parent = await lab.commit(lab.spec(installs=True), "parent")
    child = await lab.commit(lab.spec(installs=True, image=parent), "child")

    with pytest.raises(ImageInUse, match="dependent child images"):
        await lab.engine.remove_image(parent)
    await lab.engine.remove_image(lab.tag("parent"))

    found = await lab.engine.image(parent)
    assert found is not None
    assert found.names == ()
    assert [image.id for image in await lab.engine.images({})] == [child]
    await lab.engine.remove_image(child)
    assert [image.id for image in await lab.engine.images({})] == [parent]


# -- log ---------------------------------------------------------------------------------------


async def test_a_long_line_is_cut_into_frames_of_16_kib(lab: Lab) -> None:
    script = (
        "head -c 40000 /dev/zero | tr '\\0' a; echo; head -c 16384 /dev/zero | tr '\\0' b; echo"
    )
    container, output = await lab.run(lab.script(script))
    await lab.down(container)

    log = await lab.log(container)

    assert output[Stream.STDOUT] == b"a" * 40_000 + b"\n" + b"b" * FRAME + b"\n"
    assert [len(frame.data) for frame in log] == [FRAME, FRAME, 40_000 - 2 * FRAME + 1, FRAME, 1]
    assert [frame.data[-1:] for frame in log] == [b"a", b"a", b"\n", b"b", b"\n"]


async def test_bytes_that_are_not_utf8_are_exact_by_attach_and_replaced_in_the_log(
    lab: Lab,
) -> None:
    script = r"printf 'a\377\376b \342\202 \360\237\230\200 \355\240\200 \0\r\nend\302'"
    container, output = await lab.run(lab.script(script))
    await lab.down(container)

    log = await lab.log(container)

    assert output[Stream.STDOUT] == (
        b"a\xff\xfeb \xe2\x82 \xf0\x9f\x98\x80 \xed\xa0\x80 \0\r\nend\xc2"
    )
    bad = "\ufffd"
    assert [frame.data.decode() for frame in log] == [
        f"a{bad}{bad}b {bad}{bad} \U0001f600 {bad}{bad}{bad} \0\r\n",
        f"end{bad}",
    ]


async def test_a_character_split_by_a_frame_is_replaced_on_both_sides(lab: Lab) -> None:
    script = "head -c 16383 /dev/zero | tr '\\0' a; printf '\\303\\251\\n'"
    container, output = await lab.run(lab.script(script))
    await lab.down(container)

    log = await lab.log(container)

    assert output[Stream.STDOUT] == b"a" * (FRAME - 1) + b"\xc3\xa9\n"
    assert [frame.data.decode() for frame in log] == ["a" * (FRAME - 1) + "\ufffd", "\ufffd\n"]


async def test_an_unfinished_line_is_not_in_the_log_while_the_container_runs(lab: Lab) -> None:
    """A mark without a newline would not be there: engine-facts."""
    container, attachment = await lab.attached(lab.script("printf 'line\\nmark'; read -r x"))
    seen = b""
    while not seen.endswith(b"mark"):
        message = await attachment.read()
        assert message is not None
        seen += message[1]

    before = await lab.log(container)
    await attachment.write(b"\n")
    await lab.down(container)
    after = await lab.log(container)

    assert [frame.data for frame in before] == [b"line\n"]
    assert [frame.data for frame in after] == [b"line\n", b"mark"]
    await attachment.close()


async def test_log_entries_carry_the_time_at_which_they_were_written(lab: Lab) -> None:
    container, _ = await lab.run(lab.script("echo 1; sleep 0.2; echo 2"))
    found = await lab.down(container)

    first, second = await lab.log(container)

    assert 180 <= second.at - first.at < 2_000
    assert found.finished_at is not None
    assert abs(found.finished_at.timestamp() * 1000 - second.at) < 5_000


async def test_following_a_container_that_was_not_started_ends_at_once(lab: Lab) -> None:
    container = await lab.engine.create(lab.spec())

    assert await lab.log(container, follow=True) == []


async def test_a_follow_brings_lines_as_they_come_and_ends_with_the_container(lab: Lab) -> None:
    container, attachment = await lab.attached(
        lab.script("echo one; read -r x; echo two; printf three")
    )
    frames: list[LogFrame] = []
    async with asyncio.timeout(PATIENCE):
        async for batch in lab.engine.log(container, follow=True):
            if not frames:
                await attachment.write(b"\n")  # the first line came while it ran
            frames += batch
    await lab.down(container)
    whole = await lab.log(container)
    await attachment.close()

    assert [frame.data for frame in whole] == [b"one\n", b"two\n", b"three"]
    assert frames[0].data == b"one\n"
    assert frames == whole[: len(frames)]  # its end may be missing: engine-facts, rule 8


async def test_a_follow_that_is_left_early_lets_go(lab: Lab) -> None:
    container = await lab.engine.create(lab.script(f"echo up; {FOREVER}"))
    await lab.engine.start(container)

    stream = lab.engine.log(container, follow=True)
    async with asyncio.timeout(PATIENCE):
        first = await anext(stream)
    await stream.aclose()

    assert [frame.data for frame in first] == [b"up\n"]


# -- members of a pool -------------------------------------------------------------------------


def member(lab: Lab, script: str) -> ContainerSpec:
    labels = {
        LABEL_INSTANCE: lab.instance,
        LABEL_KIND: KIND_POOL,
        LABEL_POOL: "tea",
        LABEL_SPEC: "a hash",
    }
    return lab.script(script, name="member", labels=labels)


def job_name() -> tuple[str, str]:
    """An id of a job that no other test has, and the name of its second attempt's container."""
    job = str(ULID())
    return job, f"ci-{job.lower()}-2"


async def test_a_renamed_container_is_found_by_its_new_name_and_id_alone(lab: Lab) -> None:
    old, new = lab.spec().name, lab.spec(name="other").name
    container = await lab.engine.create(lab.spec())
    third = await lab.engine.create(lab.spec(name="third"))
    await lab.engine.rename(container, new)
    found = await lab.engine.inspect(new)
    assert found is not None
    assert (found.id, found.name) == (container, new)
    assert await lab.engine.inspect(old) is None
    with pytest.raises(NameTaken, match=r"\w"):
        await lab.engine.rename(third, new)


async def test_a_member_of_a_pool_is_the_job_s_from_when_it_has_its_name(lab: Lab) -> None:
    job, name = job_name()
    async with lab.tape() as tape:
        spec = member(lab, "read -r x; exit 3")
        container, attachment = await lab.attached(spec)
        before, (listed,) = await lab.engine.inspect(container), await lab.engine.list()
        image = await lab.engine.image(spec.image)
        await lab.engine.rename(container, name)
        after = await lab.engine.inspect(container)
        await attachment.write(b"go\n")
        await tape.until("die", container)
        await attachment.close()
        await lab.engine.remove(container)
        await tape.until("destroy", container)

    assert before is not None
    assert after is not None
    assert image is not None
    for seen in (before, listed):
        assert (seen.job, seen.attempt, seen.name, seen.parked) == ("", 0, spec.name, True)
        assert (seen.instance, seen.kind, seen.spec) == (lab.instance, KIND_POOL, "a hash")
        assert seen.image == image.id
    assert (after.job, after.attempt, after.name, after.parked) == (job, 2, name, False)
    assert [(e.action, e.job, e.attempt, e.member) for e in tape.of(container)] == [
        ("start", "", 0, spec.name),
        ("die", job, 2, ""),
        ("destroy", job, 2, ""),
    ]


async def test_limits_of_a_container_that_runs_can_be_raised_and_lowered(lab: Lab) -> None:
    container, attachment = await lab.attached(lab.script("read -r x"))
    for memory, cpus in ((512 * 2**20, 1.5), (128 * 2**20, 0.25)):
        await lab.engine.update(container, memory, cpus)
        found = await lab.engine.inspect(container)
        assert found is not None
        assert (found.memory, found.cpus, found.state) == (memory, cpus, State.RUNNING)
    await attachment.close()


async def test_an_attachment_knows_when_its_connection_is_over(lab: Lab) -> None:
    container, attachment = await lab.attached(lab.script("read -r x"))
    other, closed = await lab.attached(lab.script("read -r x", name="other"))
    assert attachment.open
    assert closed.open
    await closed.close()
    assert not closed.open
    await lab.engine.signal(container, signal.SIGKILL)
    async with asyncio.timeout(PATIENCE):
        while attachment.open:
            await asyncio.sleep(0.01)
    await lab.down(other)
    await attachment.close()


# -- events ------------------------------------------------------------------------------------


async def test_events_tell_a_life_in_order_with_job_and_attempt(lab: Lab) -> None:
    async with lab.tape() as tape:
        container = await lab.engine.create(lab.script(f"trap 'exit 0' TERM; echo up; {FOREVER}"))
        attachment = await lab.engine.attach(container)
        await lab.engine.start(container)
        await attachment.read()
        await lab.engine.signal(container, signal.SIGTERM)
        await tape.until("die", container)
        found = await lab.engine.inspect(container)
        await attachment.close()
        await lab.engine.remove(container)
        await tape.until("destroy", container)

    events = tape.of(container)
    assert [(event.action, event.signal) for event in events] == [
        ("start", None),
        ("kill", signal.SIGTERM),
        ("die", None),
        ("destroy", None),
    ]
    assert {(event.job, event.attempt) for event in events} == {("01JOB", 2)}
    assert [event.at for event in events] == sorted(event.at for event in events)
    assert found is not None
    assert (found.state, found.exit_code) == (State.EXITED, 0)  # as soon as `die` was told
    assert found.finished_at is not None
    assert abs(found.finished_at.timestamp() - events[2].at / 1e9) < 5


async def test_the_log_is_complete_when_die_was_told(lab: Lab) -> None:
    async with lab.tape() as tape:
        container = await lab.engine.create(lab.script("seq 5000; printf end"))
        await lab.engine.start(container)
        await tape.until("die", container)
        log = await lab.log(container)

    assert len(log) == 5001
    assert log[-1].data == b"end"


async def test_a_replay_starts_with_the_very_event_of_since(lab: Lab) -> None:
    async with lab.tape() as tape:
        container = await lab.engine.create(lab.spec())
        await lab.engine.start(container)
        await tape.until("die", container)
    start, die = tape.of(container)

    async with lab.tape(since=event_time(die)) as again:
        await again.until("die", container)
    async with lab.tape(since=event_time(start)) as all_again:
        await all_again.until("die", container)

    assert again.events == [die]
    assert all_again.events == [start, die]


async def test_an_engine_that_replays_an_event_was_not_restarted_since(lab: Lab) -> None:
    async with lab.tape() as tape:
        container = await lab.engine.create(lab.spec())
        await lab.engine.start(container)
        die = await tape.until("die", container)

    assert not await lab.engine.restarted_since(die)


async def test_an_event_pushed_out_by_256_others_is_no_proof_of_a_restart(lab: Lab) -> None:
    async with lab.tape() as tape:
        container = await lab.engine.create(lab.script(FOREVER))
        await lab.engine.start(container)
        start = await tape.until("start", container)
        for _ in range(256):
            await lab.engine.signal(container, signal.SIGCONT)

    async with lab.tape(since="0.0") as again:
        await again.until("kill", container)
    assert "start" not in again.actions(container), "it is replayed no more"
    assert not await lab.engine.restarted_since(start)
