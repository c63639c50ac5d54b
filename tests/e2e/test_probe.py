"""Doctor's look at what a job with the network reaches: by any program, in time, leaving nothing.

What it finds on a machine with and without the firewall: tests/e2e/test_looking_around.py.
"""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ciworker.cli import probe
from ciworker.cli.probe import look_at_network
from ciworker.engine import network
from ciworker.settings import Settings
from tests.driver import docker

TOOLS = (("python3",), ("perl",), ("bash", "timeout"), ("nc",))


@pytest.fixture
def settings(image: str, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", default_image=image)


@pytest.fixture
def instance(monkeypatch: pytest.MonkeyPatch) -> str:
    """The label that the containers of this test have."""
    name = f"doctor-{os.urandom(6).hex()}"
    monkeypatch.setattr(probe, "INSTANCE", name)
    return name


async def left(instance: str) -> bytes:
    return await docker("ps", "-aq", "--filter", f"label=ciworker.instance={instance}")


@pytest.fixture
def sockets() -> Iterator[tuple[str, str]]:
    """One that is open, and one that is not."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_server(("127.0.0.1", 0)) as closed:
            port = closed.getsockname()[1]
        yield f"127.0.0.1:{listener.getsockname()[1]}", f"127.0.0.1:{port}"


def tried(programs: Path, *targets: str) -> dict[str, str]:
    """What the script says, with these programs alone."""
    words = ["sh", probe._PYTHON, probe._PERL, "5", *targets]
    ran = subprocess.run(
        ["/bin/sh", "-c", probe._TRY, *words],
        env={"PATH": str(programs)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = (line.rpartition(" ") for line in ran.stdout.splitlines())
    return {where.replace(" ", ":"): said for where, _, said in found}


@pytest.mark.parametrize("tools", TOOLS, ids=" ".join)
def test_an_open_and_a_closed_socket_are_told_apart_by_whatever_the_image_has(
    tmp_path: Path, sockets: tuple[str, str], tools: tuple[str, ...]
) -> None:
    for tool in tools:
        found = sys.executable if tool == "python3" else shutil.which(tool)
        assert found, f"{tool} is missing: run scripts/test, which brings it"
        (tmp_path / tool).symlink_to(found)
    assert tried(tmp_path, *sockets) == dict(zip(sockets, ("open", "refused"), strict=True))


def test_an_address_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    """In a namespace with nothing beyond; by each program, which all say the same."""
    for tools in TOOLS:
        folder = tmp_path / tools[0]
        folder.mkdir()
        for tool in tools:
            found = sys.executable if tool == "python3" else shutil.which(tool)
            assert found
            (folder / tool).symlink_to(found)
        ran = subprocess.run(
            ["unshare", "--net", "env", f"PATH={folder}", "/bin/sh", "-c", probe._TRY, "sh",
             probe._PYTHON, probe._PERL, "0.5", "192.0.2.1:80"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert ran.stdout == "192.0.2.1 80 shut\n", tools


def test_an_image_without_any_of_them_says_so(tmp_path: Path) -> None:
    ran = subprocess.run(
        ["/bin/sh", "-c", probe._TRY, "sh", "", "", "1", "127.0.0.1:1"],
        env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    with pytest.raises(probe.CannotLook, match="neither python3, perl, bash nor nc"):
        probe._answers(ran.stdout)


async def test_what_it_starts_is_removed_and_what_a_killed_one_left_as_well(
    settings: Settings, instance: str, image: str
) -> None:
    await docker("run", "--label", f"ciworker.instance={instance}", image, "true")
    found = await look_at_network(settings)
    assert "a job with it reaches" in found.detail
    assert await left(instance) == b""


async def test_it_is_bounded_in_time_and_removes_what_it_started(
    settings: Settings, instance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_PLACE", "sleep 1000")
    monkeypatch.setattr(probe, "BOUND", 1.0)
    found = await look_at_network(settings)
    assert (found.ok, found.mend) == (True, "")
    assert found.detail == "not looked at: it took over 1 s"
    assert await left(instance) == b""


@pytest.mark.parametrize("said", ["exit 0", "echo nonsense; echo"])
async def test_a_container_that_says_nothing_of_its_place_is_no_proof(
    settings: Settings, instance: str, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    monkeypatch.setattr(probe, "_PLACE", said)
    found = await look_at_network(settings)
    assert (found.ok, "does not say which address" in found.detail) == (True, True)
    assert await left(instance) == b""


async def test_a_probe_that_does_not_answer_about_all_is_no_proof(
    settings: Settings, instance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_TRY", f"echo '{probe.METADATA} 80 shut'; echo something else")
    found = await look_at_network(settings)
    assert (found.ok, found.detail.startswith("not looked at: no answer about ")) == (True, True)
    assert await left(instance) == b""


async def test_without_the_image_it_says_that_it_could_not_look(settings: Settings) -> None:
    without = settings.model_copy(update={"default_image": "ciworker-test-nowhere:1"})
    found = await look_at_network(without)
    assert (found.ok, found.mend) == (True, "")
    assert found.detail == "not looked at: the image ciworker-test-nowhere:1 is missing"


async def test_a_network_that_jobs_cannot_be_on_is_a_trouble(
    settings: Settings, instance: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "NAME", instance)
    await docker("network", "create", instance)
    try:
        found = await look_at_network(settings)
    finally:
        await docker("network", "rm", instance)
    assert (found.ok, f"docker network rm {instance}" in found.detail) == (False, True)
    assert found.mend
    assert await left(instance) == b""


def test_the_engine_s_port_and_an_address_of_its_own_are_tried_too(settings: Settings) -> None:
    own = settings.model_copy(update={"host": "198.51.100.7", "port": 8480})
    found = probe._targets(own, "tcp://198.51.100.8:2375", 1234, "172.18.0.2", "172.18.0.1")
    assert found.machine["172.18.0.1", 1234] == "any port"
    assert found.machine["198.51.100.7", 8480] == "the worker's API"
    assert found.machine["198.51.100.8", 2375] == "the engine"
    loopback = settings.model_copy(update={"host": "127.0.0.1"})
    found = probe._targets(loopback, "tcp://localhost:2375", 1, "172.18.0.2", "172.18.0.1")
    assert not any(address.startswith("127.") for address, _ in found.machine)
