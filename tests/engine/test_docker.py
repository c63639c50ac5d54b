"""What only a real engine can show: the sandbox, and what it does when it is not there."""

import asyncio
import json
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ciworker.domain.log import LogFrame, Stream
from ciworker.engine.docker import DockerEngine
from ciworker.errors import EngineFailed, EngineRefused, EngineUnavailable
from tests.engine.lab import PATIENCE, Lab


@pytest.fixture
def lab(docker_lab: Lab) -> Lab:
    return docker_lab


def _docker_inspect(container: str) -> Mapping[str, Any]:
    described: Mapping[str, Any] = json.loads(_docker("inspect", container))[0]
    return described


def _docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


async def _said(lab: Lab, script: str, **changes: Any) -> str:
    """What a script in the sandbox says, with the errors."""
    _, output = await lab.run(lab.script(f"exec 2>&1\n{script}", **changes))
    return output[Stream.STDOUT].decode()


async def test_the_engine_confirms_every_limit_of_the_sandbox(lab: Lab) -> None:
    spec = lab.spec(memory=64 * 2**20, cpus=0.5, pids=33, volumes=("/var/lib/thing",))
    described = _docker_inspect(await lab.engine.create(spec))
    config, host = described["Config"], described["HostConfig"]

    assert config["User"] == "1000:1000"
    assert not config["Entrypoint"]
    assert config["Cmd"] == ["true"]
    assert config["Healthcheck"] == {"Test": ["NONE"]}
    assert (config["OpenStdin"], config["StdinOnce"], config["Tty"]) == (True, True, False)
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert (host["ReadonlyRootfs"], host["Privileged"], host["Init"]) == (True, False, True)
    assert (host["Memory"], host["MemorySwap"]) == (64 * 2**20, 64 * 2**20)
    assert (host["NanoCpus"], host["PidsLimit"]) == (500_000_000, 33)
    assert host["NetworkMode"] == "none"
    assert not host["Binds"]
    assert sorted(host["Tmpfs"]) == ["/tmp", "/var/lib/thing", "/workspace"]
    assert all(f"size={16 * 2**20}" in options for options in host["Tmpfs"].values())
    assert host["LogConfig"]["Type"] == "json-file"
    assert host["LogConfig"]["Config"]["max-size"] == str(64 * 2**20)
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["AutoRemove"] is False


async def test_with_network_it_is_on_the_bridge(lab: Lab) -> None:
    described = _docker_inspect(await lab.engine.create(lab.spec(network=True)))

    assert described["HostConfig"]["NetworkMode"] == "bridge"


async def test_inside_it_is_an_ordinary_user_without_any_capability(lab: Lab) -> None:
    said = await _said(lab, "id -u; id -g; id -G; grep -E '^(Cap|NoNewPrivs)' /proc/self/status")

    assert said.split("\n")[:3] == ["1000", "1000", "1000"]
    status = dict(line.split(":\t") for line in said.split("\n")[3:] if line)
    assert status == {
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), "0" * 16),
        "NoNewPrivs": "1",
    }


async def test_inside_nothing_of_the_image_can_be_written(lab: Lab) -> None:
    said = await _said(
        lab, "for f in /usr/x /etc/passwd /x /var/x /root/x; do touch $f; done; ls /x"
    )

    assert said.count("Read-only file system") + said.count("Permission denied") == 5
    assert "cannot access '/x'" in said


async def test_inside_workspace_and_tmp_are_small_and_executable(lab: Lab) -> None:
    said = await _said(
        lab,
        "for d in /workspace /tmp; do"
        " printf '#!/bin/sh\\necho ran' >$d/run; chmod +x $d/run; $d/run; stat -c %a $d;"
        " head -c 32M /dev/zero >$d/large; stat -c %s $d/large;"
        "done",
    )

    assert said.count("ran\n") == 2
    assert said.count("No space left on device") == 2
    sizes = [int(line) for line in said.split() if line.isdigit()]
    assert sizes[0] == 700
    assert sizes[2] == 1777
    assert max(sizes[1], sizes[3]) < 16 * 2**20


async def test_inside_there_is_no_network(lab: Lab) -> None:
    said = await _said(
        lab,
        "ls /sys/class/net; python3 -c 'import socket;"
        ' socket.create_connection(("192.0.2.1", 80), 5)\'',
    )

    assert said.startswith("lo\n")
    assert "Network is unreachable" in said


async def test_processes_are_limited(lab: Lab) -> None:
    said = await _said(lab, "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; echo all", pids=6)

    assert "Cannot fork" in said
    assert "all" not in said


async def test_a_main_process_out_of_memory_dies_of_137_and_says_so(lab: Lab) -> None:
    async with lab.tape() as tape:
        container, _ = await lab.run(lab.spec("tail", "/dev/zero", memory=32 * 2**20))
        found = await lab.down(container)
        await tape.until("die", container)

    assert (found.exit_code, found.oom_killed) == (137, True)
    assert tape.actions(container) == ["start", "oom", "die"]


async def test_a_child_out_of_memory_does_not_change_the_exit_code(lab: Lab) -> None:
    container, output = await lab.run(
        lab.script("tail /dev/zero; echo $?; exit 0", memory=32 * 2**20)
    )
    found = await lab.down(container)

    assert output[Stream.STDOUT] == b"137\n"
    assert (found.exit_code, found.oom_killed) == (0, True)


AWKWARD = {
    "Entrypoint": ["echo", "swallowed"],
    "Volumes": {"/var/lib/thing": {}},
    "Healthcheck": {"Test": ["CMD", "false"], "Interval": 10**9},
    "StopSignal": "SIGINT",
    "WorkingDir": "/var",
    "User": "root",
}


@pytest.fixture
async def awkward(lab: Lab) -> AsyncIterator[str]:
    """An image that brings along what an image can bring along."""
    container = await lab.engine.create(lab.spec(name="model"))
    assert isinstance(lab.engine, DockerEngine)
    committed = await lab.engine._json(
        "commit", "POST", params={"container": container}, data=AWKWARD
    )
    await lab.engine.remove(container)
    yield committed["Id"]
    _docker("rmi", "--force", committed["Id"])


async def test_what_an_image_brings_along_changes_nothing(lab: Lab, awkward: str) -> None:
    image = await lab.engine.image(awkward)
    assert image is not None
    assert list(image.volumes) == ["/var/lib/thing"]
    brought = json.loads(_docker("image", "inspect", awkward))[0]["Config"]
    assert {key: brought[key] for key in AWKWARD} == AWKWARD

    script = "pwd; id -u; stat -f -c %T /var/lib/thing"
    spec = lab.script(script, image=awkward, volumes=image.volumes)
    container, output = await lab.run(spec)
    described = _docker_inspect(container)
    await lab.engine.remove(container)

    assert output == {Stream.STDOUT: b"/\n1000\ntmpfs\n", Stream.STDERR: b""}
    assert described["Config"]["StopSignal"] == "SIGTERM"
    assert described["Mounts"] == []
    assert "Health" not in described["State"]


async def test_a_mount_is_there_and_read_only(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("certificate\n")
    tmp_path.chmod(0o755)
    mount = f"{tmp_path}/ca.pem:/etc/ca.pem:ro"

    said = await _said(lab, "cat /etc/ca.pem; echo x >>/etc/ca.pem", mounts=[mount])

    assert said.startswith("certificate\n")
    assert (tmp_path / "ca.pem").read_text() == "certificate\n"


async def test_impossible_limits_are_refused_for_good(lab: Lab) -> None:
    with pytest.raises(EngineRefused, match="memory"):
        await lab.engine.create(lab.spec(memory=2**20))


async def test_a_start_that_the_engine_answers_with_500_has_failed_and_is_not_refused(
    lab: Lab,
) -> None:
    """Docker 20.10 gives some impossible mounts a 500: nothing tells it from a passing trouble."""
    container = await lab.engine.create(lab.spec(mounts=["/tmp:/proc/x"]))

    with pytest.raises(EngineFailed, match="inside /proc"):
        await lab.engine.start(container)


@pytest.mark.parametrize("address", ["unix:///nonexistent/docker.sock", "tcp://127.0.0.1:1"])
async def test_an_engine_that_is_not_there_is_unavailable_quickly(address: str) -> None:
    before = time.monotonic()
    async with DockerEngine(address, "test") as engine:
        with pytest.raises(EngineUnavailable, match=address.rpartition("/")[2]):
            await engine.list()
        with pytest.raises(EngineUnavailable):
            await anext(engine.events("0.0"))
        with pytest.raises(EngineUnavailable):
            await anext(engine.log("x", follow=True))
        with pytest.raises(EngineUnavailable):
            await engine.attach("x")
    assert time.monotonic() - before < 2


async def test_an_engine_that_is_frozen_holds_up_no_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It accepts the connection and says nothing; streams are bounded until they are open."""
    monkeypatch.setattr("ciworker.engine.docker.CALL_TIMEOUT", 0.1)
    path = tmp_path / "docker.sock"
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(path))
        frozen.listen()
        async with DockerEngine(f"unix://{path}", "test") as engine:
            for call in (
                engine.info(),
                engine.attach("x"),
                anext(engine.events("0.0")),
                anext(engine.log("x", follow=True)),
            ):
                with pytest.raises(EngineUnavailable, match="in time"):
                    await asyncio.wait_for(call, PATIENCE)


def test_a_host_of_a_kind_that_is_not_supported_is_refused() -> None:
    with pytest.raises(EngineRefused, match="ssh://build"):
        DockerEngine("ssh://build", "test")


async def test_streams_that_are_left_early_leave_no_connection_behind(lab: Lab) -> None:
    """Left to the garbage collector it would be one that nobody reads: the daemon slows down."""
    container = await lab.engine.create(lab.script("echo up; while :; do sleep 1; done"))
    await lab.engine.start(container)
    assert isinstance(lab.engine, DockerEngine)
    connections = lab.engine._streams.connector
    follow, events = lab.engine.log(container, follow=True), lab.engine.events("0.0")
    await anext(follow)
    await anext(events)
    assert len(connections._acquired) == 2

    await follow.aclose()  # type: ignore[attr-defined] # an async generator
    await events.aclose()  # type: ignore[attr-defined]

    assert len(connections._acquired) == 0


def _entry(stream: int, payload: bytes) -> bytes:
    return struct.pack(">BxxxL", stream, len(payload)) + payload


ENTRY = _entry(1, b"2026-11-21T02:13:42.802512951Z one\n")


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        # as Docker 20.10 answers after a power cut in the middle of an entry
        (ENTRY + _entry(3, b"Error grabbing logs: unexpected EOF\n"), EngineRefused, "damaged"),
        (ENTRY + ENTRY[:-3], EngineUnavailable, "broke off"),
    ],
)
async def test_a_log_is_read_up_to_its_damage(
    tmp_path: Path, body: bytes, error: type[Exception], message: str
) -> None:
    async def answer(request: web.Request) -> web.Response:
        if request.path == "/version":
            return web.json_response({"ApiVersion": "1.41"})
        return web.Response(body=body)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(tmp_path / "docker.sock")).start()
    frames: list[LogFrame] = []
    try:
        async with DockerEngine(f"unix://{tmp_path}/docker.sock", "test") as engine:
            with pytest.raises(error, match=message):  # noqa: PT012 # what came before counts
                async for batch in engine.log("x", follow=False):
                    frames += batch
    finally:
        await runner.cleanup()

    assert frames == [LogFrame(Stream.STDOUT, 1795227222802, b"one\n")]
