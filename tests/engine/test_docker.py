"""What only a real engine can show: the sandbox, and what it does when it is not there."""

import asyncio
import contextlib
import json
import signal
import socket
import struct
import subprocess
import tarfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ciworker.domain.container import LABEL_INSTANCE
from ciworker.domain.log import LogFrame, Stream
from ciworker.engine import docker, network
from ciworker.engine.docker import DockerEngine
from ciworker.engine.port import EngineInfo
from ciworker.engine.sandbox import write_hosts
from ciworker.errors import (
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    ImageInUse,
    ImageMissing,
)
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
    assert config["NetworkDisabled"]
    assert host["NetworkMode"] == "none"
    assert not host["Binds"]
    [hosts] = host["Mounts"]
    assert (hosts["Type"], hosts["Target"], hosts["ReadOnly"]) == ("bind", "/etc/hosts", True)
    assert sorted(host["Tmpfs"]) == ["/tmp", "/var/lib/thing", "/workspace"]
    assert all(f"size={16 * 2**20}" in options for options in host["Tmpfs"].values())
    assert host["LogConfig"]["Type"] == "json-file"
    assert host["LogConfig"]["Config"]["max-size"] == str(64 * 2**20)
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["AutoRemove"] is False


async def test_with_network_it_is_on_a_bridge_of_our_own(lab: Lab) -> None:
    described = _docker_inspect(await lab.engine.create(lab.spec(network=True)))
    made = json.loads(_docker("network", "inspect", network.NAME))[0]

    assert described["HostConfig"]["NetworkMode"] == network.NAME
    assert not described["Config"].get("NetworkDisabled")
    assert (made["Driver"], made["EnableIPv6"]) == ("bridge", False)
    assert made["Options"] == {
        "com.docker.network.bridge.name": network.BRIDGE,
        "com.docker.network.bridge.enable_icc": "false",
    }


REACH = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 8000), timeout=2).close()
    print("reached")
except OSError as error:
    print(error)
"""


async def test_containers_of_that_bridge_do_not_reach_each_other(lab: Lab) -> None:
    """On the engine's default one the same two do."""

    async def tried(one: str, other: str) -> str:
        _docker(
            "run", "-d", "--rm", "--name", f"{lab.instance}-{one}", "--network", one, lab.image,
            "python3", "-m", "http.server", "8000",
        )  # fmt: skip
        try:
            found = _docker_inspect(f"{lab.instance}-{one}")
            address = found["NetworkSettings"]["Networks"][one]["IPAddress"]
            within = "socket.create_connection(('127.0.0.1', 8000)).close()"
            ready = f"import socket\nwhile 1:\n try: {within}; break\n except OSError: pass"
            _docker("exec", f"{lab.instance}-{one}", "python3", "-c", ready)
            return _docker(
                "run", "--rm", "--network", other, lab.image, "python3", "-c", REACH, address
            )
        finally:
            _docker("rm", "-f", f"{lab.instance}-{one}")

    await lab.engine.create(lab.spec(network=True))
    assert await tried("bridge", "bridge") == "reached"
    assert await tried(network.NAME, network.NAME) == "timed out"


async def test_a_network_that_cannot_be_made_is_told(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "NETWORK_TIMEOUT", 0.0)
    await lab.engine.create(lab.spec(network=True))
    first = network.NAME
    with monkeypatch.context() as patched:  # of another name, with the same interface
        patched.setattr(network, "NAME", f"{first}-other")
        with pytest.raises(EngineRefused, match=r"its network cannot be made: .*same bridge name"):
            await lab.engine.create(lab.spec(name="other", network=True))


LOOPBACK = """
import socket
listener = socket.create_server(("localhost", 0))
socket.create_connection(("localhost", listener.getsockname()[1]), timeout=5)
print(sorted(name for _, name in socket.if_nameindex()))
try:
    socket.create_connection(("192.0.2.1", 80), timeout=5)
except OSError as error:
    print(error.strerror)
"""


async def test_without_network_there_is_a_loopback_device_that_localhost_names_and_no_other(
    lab: Lab,
) -> None:
    said = await _said(lab, f"python3 -c '{LOOPBACK}'")

    assert said.split("\n") == ["['lo']", "Network is unreachable", ""]


@pytest.mark.parametrize("lost", ["never there", "gone"])
async def test_an_engine_that_does_not_see_our_files_runs_jobs_on_its_own_empty_network(
    lab: Lab, tmp_path: Path, lost: str
) -> None:
    hosts = write_hosts(tmp_path) if lost == "gone" else tmp_path / "none" / "hosts"
    async with DockerEngine(None, lab.instance, hosts=hosts) as engine:
        if lost == "gone":
            await engine.create(lab.spec(name="before"))
            hosts.unlink()
        for name in ("one", "two"):
            described = _docker_inspect(await engine.create(lab.spec(name=name)))
            assert not described["Config"].get("NetworkDisabled")
            assert described["HostConfig"]["NetworkMode"] == "none"
            assert not described["HostConfig"].get("Mounts")


async def test_an_operators_own_hosts_file_is_mounted_instead_of_ours(
    lab: Lab, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    own.write_text("127.0.0.1 localhost elsewhere\n")
    own.chmod(0o644)

    said = await _said(lab, "cat /etc/hosts", mounts=[f"{own}:/etc/hosts:ro"])

    assert said == own.read_text()


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


async def test_the_engine_confirms_what_an_installing_container_may_do_and_nothing_else(
    lab: Lab,
) -> None:
    volumes = ("/var/lib/thing",)
    await lab.engine.create(lab.spec(name="job", volumes=volumes))
    await lab.engine.create(lab.spec(name="setup", volumes=volumes, installs=True))
    job, setup = (_docker_inspect(f"{lab.instance}-{name}") for name in ("job", "setup"))
    differing = {
        key: setup[part][key]
        for part in ("Config", "HostConfig")
        for key in setup[part]
        if setup[part][key] != job[part].get(key) and key not in ("Hostname", "Tmpfs")
    }

    assert differing == {
        "User": "0:0",
        "CapAdd": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID"],
        "ReadonlyRootfs": False,
    }
    assert setup["HostConfig"]["Tmpfs"] == {
        path: options.replace("id=1000", "id=0")
        for path, options in job["HostConfig"]["Tmpfs"].items()
    }


async def test_an_installing_container_is_root_with_seven_capabilities(lab: Lab) -> None:
    said = await _said(
        lab,
        "id -u; stat -c '%a %u' /workspace; grep -E '^(Cap|NoNewPrivs)' /proc/self/status",
        installs=True,
    )

    user, workspace, *status = said.splitlines()
    assert (user, workspace) == ("0", "700 0")
    seven = f"{0b11111011:016x}"  # 0 CHOWN, 1 DAC_OVERRIDE, 3 FOWNER ... 7 SETUID: not 2
    said_of = dict(line.split(":\t") for line in status)
    assert {said_of[name] for name in ("CapPrm", "CapEff", "CapBnd")} == {seven}
    assert (said_of["CapAmb"], said_of["NoNewPrivs"]) == ("0" * 16, "1")


async def test_an_installing_container_can_do_what_packages_do(lab: Lab) -> None:
    """Each line needs one of the capabilities: to add a user and its folder, and to be it."""
    said = await _said(
        lab,
        "useradd --system owner && install -d -o owner -g owner -m 2750 /opt/d && touch /opt/d/f\n"
        "chmod 2755 /opt/d && install -g owner -m 2755 /bin/true /opt/d/true\n"
        "stat -c '%a %U' /opt/d /opt/d/true\n"
        "setpriv --reuid owner --regid owner --clear-groups sh -c 'id -un; exec sleep 60' &\n"
        "until grep -q '^Name:.sleep' /proc/$!/status; do :; done\n"
        "kill $! && echo killed",
        installs=True,
    )

    assert said.splitlines() == ["2755 owner", "2755 root", "owner", "killed"]


async def test_an_installing_container_can_neither_mount_nor_make_devices(lab: Lab) -> None:
    said = await _said(
        lab,
        "for tried in 'mount -t tmpfs none /mnt' 'mknod /opt/disk b 8 0' 'chroot / true'"
        " 'unshare --mount true' 'hostname other'; do"
        " $tried 2>/dev/null && echo $tried; done; ls -A /mnt /opt",
        installs=True,
    )

    assert said == "/mnt:\n\n/opt:\n"  # and none of those that did


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
    assert [mount["Destination"] for mount in described["Mounts"]] == ["/etc/hosts"]
    assert "Health" not in described["State"]


# -- what a commit keeps ---------------------------------------------------------------------------

SECRET = "a-token-that-was-sent-through-stdin"


async def test_what_was_installed_is_kept_and_nothing_else(lab: Lab, tmp_path: Path) -> None:
    """Not what lies in memory or in a mount, nor what was sent in; mount points stay, empty."""
    (tmp_path / "ca.pem").write_text(f"{SECRET}\n")
    tmp_path.chmod(0o755)
    spec = lab.script(
        "read -r secret; for d in /workspace /tmp /var/lib/thing; do echo $secret >$d/left; done\n"
        "cat /etc/own/ca.pem /workspace/left /tmp/left; mkdir /opt/d; echo kept-bytes >/opt/d/kept",
        installs=True,
        volumes=("/var/lib/thing",),
        mounts=(f"{tmp_path}/ca.pem:/etc/own/ca.pem:ro",),
    )
    container, output = await lab.run(spec, f"{SECRET}\n".encode())
    await lab.down(container)
    image = await lab.engine.commit(container, lab.tag(), {})
    saved = tmp_path / "image.tar"
    _docker("save", "--output", str(saved), image)

    assert output == {Stream.STDOUT: f"{SECRET}\n".encode() * 3, Stream.STDERR: b""}
    assert _holds(saved, b"kept-bytes")
    assert not _holds(saved, SECRET.encode())
    assert SECRET not in _docker("history", "--no-trunc", image)
    assert SECRET not in _docker("inspect", image)
    assert _files(saved) == {"opt/d/kept": len("kept-bytes\n")}


def _holds(path: Path, searched: bytes) -> bool:
    """Whether a file holds these bytes; it is read in pieces that overlap."""
    rest = b""
    with path.open("rb") as file:
        while piece := file.read(2**24):
            if searched in rest + piece:
                return True
            rest = piece[-len(searched) :]
    return False


def _files(saved: Path) -> Mapping[str, int]:
    """Names and sizes of the files in the layer that was added last; without empty ones."""
    with tarfile.open(saved) as image:
        manifest = image.extractfile("manifest.json")
        assert manifest
        (described,) = json.load(manifest)
        with tarfile.open(fileobj=image.extractfile(described["Layers"][-1])) as layer:
            return {item.name: item.size for item in layer if item.size}


async def test_a_job_reads_what_was_installed_and_cannot_change_it(lab: Lab) -> None:
    image = await lab.commit(
        lab.script("umask 022; echo tea >/opt/kept; chmod 777 /opt", installs=True)
    )

    said = await _said(lab, "cat /opt/kept; touch /opt/x; id -u", name="reader", image=image)

    assert said == "tea\ntouch: cannot touch '/opt/x': Read-only file system\n1000\n"


async def test_started_by_hand_an_image_gives_a_root_shell_or_what_is_asked(lab: Lab) -> None:
    await lab.commit(lab.spec(installs=True))

    shell = subprocess.run(
        ["docker", "run", "--rm", "--interactive", lab.tag()],
        check=True, capture_output=True, text=True, input="id -u; pwd\n",
    )  # fmt: skip
    asked = _docker("run", "--rm", lab.tag(), "python3", "-c", "print('asked')")

    assert shell.stdout == "0\n/\n"
    assert asked == "asked"


async def test_volumes_that_the_base_declares_are_told_of_a_committed_image_too(
    lab: Lab, awkward: str
) -> None:
    image = await lab.commit(lab.spec(image=awkward, volumes=("/var/lib/thing",), installs=True))
    found = await lab.engine.image(image)
    config = json.loads(_docker("image", "inspect", image))[0]["Config"]
    await lab.engine.remove_image(image)  # before the one that it was made from

    assert found is not None
    assert list(found.volumes) == ["/var/lib/thing"]
    assert (config["Entrypoint"] or [], config["Cmd"]) == ([], ["sh"])


async def test_only_images_of_this_instance_are_told(lab: Lab) -> None:
    container, _ = await lab.run(lab.spec(installs=True))
    await lab.down(container)
    async with DockerEngine(None, lab.stranger) as stranger:
        theirs = await stranger.commit(container, lab.tag("theirs"), {LABEL_INSTANCE: lab.instance})
        ours = await lab.engine.commit(container, lab.tag("ours"), {})

        assert [image.id for image in await stranger.images({})] == [theirs]
    assert [image.id for image in await lab.engine.images({})] == [ours]


@pytest.fixture
def copy(lab: Lab) -> Iterator[str]:
    """A name that somebody gives to an image; at the end it is taken back."""
    name = f"{lab.instance}:copy"
    yield name
    subprocess.run(["docker", "rmi", name], check=True, capture_output=True)


async def test_what_somebody_made_from_an_image_of_ours_is_theirs(lab: Lab, copy: str) -> None:
    image = await lab.commit(lab.spec(installs=True))
    container = await lab.engine.create(lab.spec(image=image, labels={}))
    _docker("commit", container, copy)
    await lab.engine.remove(container)

    assert LABEL_INSTANCE in _docker("inspect", copy)  # it has inherited everything
    assert [found.id for found in await lab.engine.images({})] == [image]


async def test_an_image_that_somebody_named_too_stays_theirs(lab: Lab, copy: str) -> None:
    image = await lab.commit(lab.spec(installs=True))
    _docker("tag", image, copy)

    (told,) = await lab.engine.images({})
    with pytest.raises(ImageInUse, match="multiple repositories"):
        await lab.engine.remove_image(image)
    await lab.engine.remove_image(lab.tag())

    assert sorted(told.names) == sorted([copy, lab.tag()])
    assert await lab.engine.images({}) == []
    found = await lab.engine.image(image)
    assert found is not None
    assert list(found.names) == [copy]


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


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
async def test_how_far_its_clock_is_ahead_is_known_to_the_time_that_an_answer_takes(
    tmp_path: Path, ahead: float
) -> None:
    async def info(_request: web.Request) -> web.Response:
        now = datetime.now(UTC) + timedelta(seconds=ahead)
        return web.json_response({"ServerVersion": "1", "SystemTime": now.isoformat()})

    async with _engine_that(info, tmp_path) as engine:
        began = time.time()
        await engine.info()
        taken = time.time() - began
        assert abs(engine.ahead - ahead) <= taken


async def test_events_that_come_while_it_is_asked_make_no_restart(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They push out others, and are too new to be counted themselves."""
    assert isinstance(lab.engine, DockerEngine)
    async with lab.tape() as tape:
        container = await lab.engine.create(lab.script("while :; do sleep 1; done"))
        await lab.engine.start(container)
        start = await tape.until("start", container)

    async def events(number: int) -> None:
        for _ in range(number):
            await lab.engine.signal(container, signal.SIGCONT)

    info = lab.engine.info

    async def busy() -> EngineInfo:
        answer = await info()
        await events(5)
        return answer

    await events(256)
    monkeypatch.setattr(lab.engine, "info", busy)

    assert not await lab.engine.restarted_since(start)


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

    await follow.aclose()
    await events.aclose()

    assert len(connections._acquired) == 0


@contextlib.asynccontextmanager
async def _engine_that(
    answer: Callable[[web.Request], Awaitable[web.Response]], folder: Path
) -> AsyncIterator[DockerEngine]:
    """An engine with one answer to everything but the question for its version."""

    async def version(_request: web.Request) -> web.Response:
        return web.json_response({"ApiVersion": "1.41"})

    app = web.Application()
    app.router.add_get("/version", version)
    app.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.UnixSite(runner, str(folder / "docker.sock")).start()
    try:
        async with DockerEngine(f"unix://{folder}/docker.sock", "test") as engine:
            yield engine
    finally:
        await runner.cleanup()


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
    async def damaged(_request: web.Request) -> web.Response:
        return web.Response(body=body)

    frames: list[LogFrame] = []
    async with _engine_that(damaged, tmp_path) as engine:
        with pytest.raises(error, match=message):  # noqa: PT012 # what came before counts
            async for batch in engine.log("x", follow=False):
                frames += batch

    assert frames == [LogFrame(Stream.STDOUT, 1795227222802, b"one\n")]


async def test_a_commit_that_finds_no_room_has_failed_with_the_engines_words(
    tmp_path: Path,
) -> None:
    """As Docker 20.10 answers on a full disk; it leaves nothing of the image behind."""
    words = "Error processing tar file(exit status 1): write /opt/x: no space left on device"

    async def full(_request: web.Request) -> web.Response:
        return web.json_response({"message": words}, status=500)

    async with _engine_that(full, tmp_path) as engine:
        with pytest.raises(EngineFailed, match="no space left on device"):
            await engine.commit("x", "ciworker-env:key", {})


async def test_a_commit_may_take_longer_than_other_calls_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ciworker.engine.docker.CALL_TIMEOUT", 0.2)
    waits = 0.4

    async def slow(_request: web.Request) -> web.Response:
        await asyncio.sleep(waits)
        return web.json_response({"Id": "sha256:1"}, status=201)

    async with _engine_that(slow, tmp_path) as engine:
        with pytest.raises(EngineUnavailable, match="in time"):
            await engine.info()
        assert await engine.commit("x", "ciworker-env:key", {}) == "sha256:1"
        monkeypatch.setattr("ciworker.engine.docker.COMMIT_TIMEOUT", 0.2)
        with pytest.raises(EngineUnavailable, match="in time"):
            await engine.commit("x", "ciworker-env:key", {})


def _errors(engine: DockerEngine, call: str) -> float:
    return float(engine.metrics._errors.labels(call)._value.get())


async def test_a_pull_that_fails_or_takes_too_long_counts_as_an_error_of_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = asyncio.Event()

    async def failing(request: web.Request) -> web.Response:
        if "slow" in request.query["fromImage"]:
            await answered.wait()
        return web.json_response({"message": "dial tcp: no route to host"}, status=500)

    async with _engine_that(failing, tmp_path) as engine:
        with pytest.raises(ImageMissing, match="no route to host"):
            await engine.pull("tea")
        assert _errors(engine, "pull") == 1
        monkeypatch.setattr("ciworker.engine.docker.PULL_TIMEOUT", 0.1)
        with pytest.raises(ImageMissing, match="took longer"):
            await engine.pull("slow")
        assert _errors(engine, "pull") == 2
        answered.set()


async def test_streams_that_end_too_early_count_as_errors_of_the_engine(tmp_path: Path) -> None:
    async def cut(_request: web.Request) -> web.Response:
        return web.Response(body=ENTRY[:-3])

    async def nothing(_request: web.Request) -> web.Response:
        return web.Response()

    async with _engine_that(cut, tmp_path) as engine:
        with pytest.raises(EngineUnavailable, match="broke off"):
            await anext(engine.log("x", follow=False))
        assert _errors(engine, "log") == 1
    async with _engine_that(nothing, tmp_path) as engine:
        events = engine.events("0.0")
        assert await anext(events) is None
        with pytest.raises(EngineUnavailable, match="closed its event stream"):
            await anext(events)
        assert _errors(engine, "events") == 1


async def test_limits_that_no_container_can_have_are_refused(docker_lab: Lab) -> None:
    container, attachment = await docker_lab.attached(docker_lab.script("read -r x"))
    for memory, cpus in ((1, 1), (256 * 2**20, 4096)):
        with pytest.raises(EngineRefused, match=r"\w"):
            await docker_lab.engine.update(container, memory, cpus)
    found = await docker_lab.engine.inspect(container)
    assert found is not None
    assert (found.memory, found.cpus) == (256 * 2**20, 1)
    await attachment.close()
