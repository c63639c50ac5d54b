"""Row 42: a job that looks for the socket, the host, neighbours, the metadata address, privileges.

What it tries is `hostile.py`. With the network it does so in a private engine's network namespace,
where the firewall can be installed: behind that machine lies a net whose first host is a cloud's.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.chaos.daemon import Daemon, Elsewhere, private_daemon
from tests.conftest import Attack
from tests.driver import DEADLINE, Worker, docker
from tests.e2e.conftest import running
from tests.namespaces import Namespace, namespace

pytestmark = [pytest.mark.attacks(42), pytest.mark.asyncio(loop_scope="module")]

HOSTILE = {"hostile.py": (Path(__file__).parent / "hostile.py").read_text()}
MACHINE, BEYOND, METADATA = "192.0.2.10", "192.0.2.1", "169.254.169.254"
NEIGHBOUR = "touch NEIGHBOUR /tmp/NEIGHBOUR /dev/shm/NEIGHBOUR; exec python3 -m http.server 8000"
SERVES = b"Serving HTTP"
FALSY = (
    "Privileged", "CapAdd", "Devices", "DeviceCgroupRules", "DeviceRequests", "GroupAdd", "PidMode",
    "UTSMode", "UsernsMode", "VolumesFrom", "Links", "ExtraHosts", "CgroupParent", "PortBindings",
    "PublishAllPorts", "Sysctls", "Binds", "Dns", "OomKillDisable",
)  # fmt: skip
MASKED = {"/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware", "/proc/acpi"}
READ_ONLY = {"/proc/bus", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}


class Fenced(Elsewhere):
    """A worker on the machine of a private daemon: in its network namespace."""

    async def spawn(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.daemon.namespace.within, sys.executable, "-m", "ciworker", "serve",
                env=self.environment, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._session is None:
            machine = self.daemon.namespace
            connector = aiohttp.TCPConnector(limit=0, socket_factory=lambda _: machine.socket())
            self._session = aiohttp.ClientSession(self.url, connector=connector)
        return self._session

    async def operator(self, *words: str) -> str:
        """What one of our commands prints on that machine; it has to succeed."""
        process = await asyncio.create_subprocess_exec(
            *self.daemon.namespace.within, sys.executable, "-m", "ciworker", *words,
            env=self.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(DEADLINE):
            out, err = await process.communicate()
        assert process.returncode == 0, (words, out, err)
        return out.decode()


@dataclass(frozen=True)
class World:
    """A machine, and what a job on it may want to reach: `ADDRESS:PORT`."""

    worker: Fenced
    daemon: Daemon
    service: str
    proxy: str
    internet: str
    metadata: str = f"{METADATA}:80"

    async def machine(self) -> list[str]:
        """What is the machine's own, by each of its addresses."""
        form = "{{(index .IPAM.Config 0).Gateway}}"
        inspected = await self.daemon.docker("network", "inspect", "ciworker", "-f", form)
        port = self.service.rpartition(":")[2]
        addresses = (MACHINE, inspected.decode().strip())
        return [f"{a}:{p}" for a in addresses for p in (port, self.worker.port)]


@asynccontextmanager
async def beyond(machine: Namespace) -> AsyncIterator[Namespace]:
    """What the machine's way out leads to."""
    with namespace() as cloud:
        cable = ("up0", "type", "veth", "peer", "name", "down0", "netns", cloud.name)
        machine.run("ip", "link", "add", *cable)
        for end, link, address in ((machine, "up0", MACHINE), (cloud, "down0", BEYOND)):
            end.run("ip", "addr", "add", f"{address}/24", "dev", link)
            end.run("ip", "link", "set", link, "up")
        cloud.run("ip", "addr", "add", f"{METADATA}/32", "dev", "lo")
        machine.run("ip", "route", "add", "default", "via", BEYOND)
        machine.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        yield cloud


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, image: str) -> AsyncIterator[World]:
    folder = tmp_path_factory.mktemp("fenced") / "worker"
    settings = {"default_image": image, "host": "0.0.0.0", "max_jobs": "3", "max_memory": "64g"}
    settings["allowed_hosts"] = f'["{MACHINE}"]'
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(private_daemon(image))
        machine = daemon.namespace
        cloud = await stack.enter_async_context(beyond(machine))
        service = await stack.enter_async_context(machine.serving("0.0.0.0"))
        proxy = await stack.enter_async_context(machine.serving(MACHINE))
        internet = await stack.enter_async_context(cloud.serving(BEYOND))
        await stack.enter_async_context(cloud.serving(METADATA, 80))
        worker = Fenced(folder, settings, daemon)
        await stack.enter_async_context(running(worker))
        yield World(
            worker, daemon, f"{MACHINE}:{service}", f"{MACHINE}:{proxy}", f"{BEYOND}:{internet}"
        )


async def publish(daemon: Daemon, image: str) -> str:
    """A service of the machine that is a container of another network, and answers."""
    await daemon.docker("network", "create", "other")
    serving = ("python3", "-u", "-m", "http.server", "8000")
    own = ("--name", "published", "--network", "other", "-p", "5000:8000")
    await daemon.docker("run", "-d", *own, image, *serving)
    asked = f"import socket; socket.create_connection(('{MACHINE}', 5000), 1)"
    async with asyncio.timeout(DEADLINE):
        while SERVES not in await daemon.docker("logs", "published"):
            await asyncio.sleep(0.05)
    daemon.namespace.run(sys.executable, "-c", asked)
    return f"{MACHINE}:5000"


async def tried(worker: Worker, *targets: str, network: bool) -> Mapping[str, str]:
    """What a hostile job says came of each thing that it tried: `held` or `through`."""
    run = f"python3 hostile.py {' '.join(targets)}"
    job = await worker.run(run, HOSTILE, network=network)
    said = (await worker.text(job["id"])).decode()
    assert (job["reason"], "tried everything" in said) == ("passed", True), said
    lines = [line.partition(" ") for line in said.splitlines()]
    return {name: result for result, _, name in lines if result in {"held", "through"}}


def through(results: Mapping[str, str]) -> list[str]:
    return [name for name, result in results.items() if result == "through"]


def profile(described: Mapping[str, Any], *, network: str, mounts: list[str]) -> Mapping[str, bool]:
    """By what it is about, whether the engine confirms it."""
    config, host = described["Config"], described["HostConfig"]
    return {
        **{name: not host.get(name) for name in FALSY},
        "CapDrop": host["CapDrop"] == ["ALL"],
        "SecurityOpt": host["SecurityOpt"] == ["no-new-privileges"],  # seccomp is the default's
        "User": config["User"] == "1000:1000",
        "ReadonlyRootfs": host["ReadonlyRootfs"] is True,
        "PidsLimit": host["PidsLimit"] == 512,
        "Memory": 0 < host["Memory"] == host["MemorySwap"],
        "NanoCpus": host["NanoCpus"] > 0,
        "IpcMode": host["IpcMode"] == "private",
        "MaskedPaths": set(host["MaskedPaths"]) >= MASKED,
        "ReadonlyPaths": set(host["ReadonlyPaths"]) >= READ_ONLY,
        "NetworkMode": host["NetworkMode"] == network,
        "NetworkDisabled": bool(config.get("NetworkDisabled")) is (network == "none"),
        "Mounts": [m["Destination"] for m in described["Mounts"] if not m["RW"]] == mounts,
        "writable Mounts": not [m for m in described["Mounts"] if m["RW"]],
    }


async def test_without_the_network_nothing_of_it_is_reached(shared: Worker, attack: Attack) -> None:
    neighbour = await shared.submit(NEIGHBOUR)
    await shared.wait_for_text(neighbour, SERVES)
    described = json.loads(await docker("inspect", await shared.container(neighbour)))[0]
    confirmed = profile(described, network="none", mounts=["/etc/hosts"])
    targets = (f"172.17.0.1:{shared.port}", f"{METADATA}:80", f"{BEYOND}:80")
    results = await tried(shared, *targets, network=False)
    await shared.call("POST", f"/jobs/{neighbour}/cancel")
    wrong = [*through(results), *(name for name, fine in confirmed.items() if not fine)]
    assert wrong == []
    attack(42, tried=len(results) + len(confirmed), through=len(wrong))


@pytest.mark.slow
async def test_with_the_network_no_neighbour_and_behind_the_firewall_no_machine_is_reached(
    world: World, attack: Attack
) -> None:
    worker, daemon = world.worker, world.daemon
    neighbour = await worker.submit(NEIGHBOUR, network=True)
    await worker.wait_for_text(neighbour, SERVES)
    [name] = [found for found in await worker.containers() if neighbour.lower() in found]
    described = json.loads(await daemon.docker("inspect", name))[0]
    confirmed = profile(described, network="ciworker", mounts=[])
    address = described["NetworkSettings"]["Networks"]["ciworker"]["IPAddress"]
    published = await publish(daemon, worker.settings["default_image"])
    closed = [*await world.machine(), published, world.metadata]
    fine = [f"+{world.proxy}", f"+{world.internet}"]

    seen = [f"+{target}" for target in closed]
    before = await tried(worker, *seen, *fine, f"{address}:8000", network=True)
    await worker.operator("firewall", "install", "--allow", world.proxy)
    try:
        after = await tried(worker, *closed, *fine, f"{address}:8000", network=True)
    finally:
        await worker.operator("firewall", "remove")
    await worker.call("POST", f"/jobs/{neighbour}/cancel")

    wrong = [*through(before), *through(after), *(n for n, held in confirmed.items() if not held)]
    assert wrong == []
    attack(42, tried=len(before) + len(after) + len(confirmed), through=len(wrong))


@pytest.mark.slow
async def test_doctor_says_what_jobs_reach_with_the_lines_that_mend_it(world: World) -> None:
    machine = world.daemon.namespace

    async def found() -> Mapping[str, Any]:
        document = json.loads(await world.worker.operator("doctor", "--json"))
        item: Mapping[str, Any]
        (item,) = (item for item in document if item["check"] == "jobs' network")
        return item

    machine.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0")
    try:
        everything = await found()
    finally:
        machine.run("sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1")
    gateway = (await world.machine())[-1].partition(":")[0]
    assert everything["ok"]  # a warning
    for what in ("any port of this machine", "the worker's API of this machine"):
        assert f"{what} at {gateway}, {MACHINE}" in everything["detail"]
    assert f"the cloud's metadata at {METADATA}" in everything["detail"]
    assert everything["detail"].endswith("other jobs")
    install, apart = everything["mend"].split("; ")
    assert apart.startswith("sysctl -w net.bridge.bridge-nf-call-iptables=1, ")
    assert install.startswith("ciworker firewall install, ")
    await world.worker.operator("firewall", "install")
    try:
        nothing = await found()
    finally:
        await world.worker.operator("firewall", "remove")
    assert (nothing["ok"], nothing["mend"]) == (True, "")
    assert "reaches no socket" in nothing["detail"]
    left = await world.daemon.docker("ps", "-aq", "--filter", "label=ciworker.instance=doctor")
    assert left == b""
