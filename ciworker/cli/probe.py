"""What a job that has the network reaches and should not: tried from containers like a job's.

Two are started. One says which address it has, and which its gateway; the other one tries that
neighbour, this machine, by a port that is opened for it and by the worker's own, and the address at
which clouds answer with credentials. It tries by what the image has: python3, perl, bash or nc.
"""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from urllib.parse import urlsplit

import ifaddr

from ciworker.cli.connection import is_any
from ciworker.cli.finding import Finding
from ciworker.domain.container import LABEL_INSTANCE, LABEL_KIND
from ciworker.domain.log import Stream
from ciworker.engine.docker import DockerEngine
from ciworker.engine.port import Attachment, ContainerSpec
from ciworker.errors import CiworkerError, EngineRefused, EngineUnavailable
from ciworker.settings import Settings

CHECK = "jobs' network"
INSTANCE = "doctor"
METADATA = "169.254.169.254"
PATIENCE = 2.0  # seconds for one connection; all are tried at once
BOUND = 30.0  # seconds for all of it
MEND = "ciworker firewall install, as root on the engine's machine (--help: what jobs may need)"
NEIGHBOUR_MEND = "sysctl -w net.bridge.bridge-nf-call-iptables=1, as root on the engine's machine"

_PLACE = "cat /proc/net/route /etc/hosts; echo; read -r _"
_PYTHON = """
import socket, sys, threading
def tried(address, port):
    try:
        socket.create_connection((address, int(port)), float(sys.argv[1])).close()
        said = "open"
    except ConnectionRefusedError:
        said = "refused"
    except OSError:
        said = "shut"
    print(address, port, said, flush=True)
for target in sys.argv[2:]:
    threading.Thread(target=tried, args=target.split(":")).start()
"""
_PERL = """
use IO::Socket::INET; use Errno; $| = 1;
my $patience = shift;
for my $target (@ARGV) {
    next if fork;
    my ($address, $port) = split /:/, $target;
    my $open = IO::Socket::INET->new(PeerAddr => $target, Timeout => $patience);
    print "$address $port ", $open ? "open" : $!{ECONNREFUSED} ? "refused" : "shut", "\\n";
    exit;
}
1 while wait != -1;
"""
# Not every nc can look without sending (-z). timeout comes with whatever brings bash.
_TRY = r"""
python=$1 perl=$2 patience=$3; shift 3
if command -v python3 >/dev/null; then exec python3 -c "$python" "$patience" "$@"; fi
if command -v perl >/dev/null; then exec perl -e "$perl" "$patience" "$@"; fi
tried() {
    if [ -n "$bash" ]
    then said=$(timeout "$patience" bash -c ': 2>&1 </dev/tcp/$0/$1' "$1" "$2" 2>&1)
    else said=$(nc -z -v -n -w "$whole" "$1" "$2" 2>&1)
    fi
    case $?$said in 0*) said=open ;; *[Rr]efused*) said=refused ;; *) said=shut ;; esac
    echo "$1 $2 $said"
}
bash='' whole=${patience%.*}; [ "$whole" -gt 0 ] || whole=1
if command -v bash >/dev/null && command -v timeout >/dev/null; then bash=yes
else case $(nc -h 2>&1) in *-z*|*[a-zA-Z]z]*) ;; *) echo nothing; exit ;; esac
fi
for target; do tried "${target%:*}" "${target##*:}" & done
wait
"""


class CannotLook(Exception):
    """Why nothing could be tried."""


@dataclass(frozen=True, slots=True)
class Targets:
    """Sockets, as (address, port). machine: by what they are."""

    machine: Mapping[tuple[str, int], str]
    neighbour: tuple[str, int]
    metadata: tuple[str, int] = (METADATA, 80)

    @property
    def words(self) -> list[str]:
        every = (*self.machine, self.neighbour, self.metadata)
        return [f"{address}:{port}" for address, port in every]


async def look_at_network(settings: Settings) -> Finding:
    """A warning where something is reached: it is the operator's to say who may submit here."""
    try:
        async with asyncio.timeout(BOUND):
            return await _looked(settings)
    except EngineRefused as error:
        mend = "do what it says; until then a job with the network cannot start"
        return Finding(CHECK, False, str(error), mend)
    except (CannotLook, EngineUnavailable, TimeoutError) as error:
        why = str(error) or f"it took over {BOUND:g} s"
        return Finding(CHECK, True, f"not looked at: {why}")


async def _looked(settings: Settings) -> Finding:
    async with (
        DockerEngine(settings.docker_host, INSTANCE) as engine,
        _listener() as listener,
        _container(engine, settings, "sh", "-c", _PLACE) as neighbour,
    ):
        own, gateway = _place(await _read(neighbour, end=b"\n\n"))
        targets = _targets(settings, engine.host, listener, own, gateway)
        words = ("sh", "-c", _TRY, "sh", _PYTHON, _PERL, f"{PATIENCE:g}", *targets.words)
        async with _container(engine, settings, *words) as prober:
            said = await _read(prober)
    return _finding(targets, _answers(said))


@asynccontextmanager
async def _container(
    engine: DockerEngine, settings: Settings, *command: str
) -> AsyncIterator[Attachment]:
    """One that runs, hardened as a job's; it is removed, and so are those that a killed doctor
    left: without it they ended.
    """
    image = await engine.image(settings.default_image)
    if image is None:
        raise CannotLook(f"the image {settings.default_image} is missing")
    for left in await engine.list():
        if (await engine.inspect(left.id) or left).state.down:
            await engine.remove(left.id)
    spec = ContainerSpec(
        name=f"ci-doctor-{os.urandom(6).hex()}",
        image=image.id,
        command=command,
        labels={LABEL_INSTANCE: INSTANCE, LABEL_KIND: INSTANCE},
        memory=settings.job_memory,
        cpus=settings.job_cpus,
        pids=settings.job_pids,
        network=True,
        workspace_size=settings.workspace_size,
        log_max_size=2**20,
        volumes=image.volumes,
    )
    container = await engine.create(spec)
    try:
        attachment = await engine.attach(container)
        try:
            await engine.start(container)
            yield attachment
        finally:
            await attachment.close()
    finally:
        with contextlib.suppress(CiworkerError):
            await engine.remove(container)


@asynccontextmanager
async def _listener() -> AsyncIterator[int]:
    """The port, on all addresses of this machine, of a socket that takes connections."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    everywhere = str(IPv4Address(0))  # is it reached by any of its addresses?
    async with await asyncio.start_server(hang_up, everywhere, 0) as server:
        yield server.sockets[0].getsockname()[1]


async def _read(attachment: Attachment, end: bytes | None = None) -> str:
    """What it prints: all of it, or until `end` is among it."""
    found = bytearray()
    while end is None or end not in found:
        message = await attachment.read()
        if message is None:
            break
        stream, data = message
        found += data if stream is Stream.STDOUT else b""
    return found.decode(errors="replace")


def _place(said: str) -> tuple[str, str]:
    """A container's own address and its gateway's, from /proc/net/route and /etc/hosts."""
    route = re.search(r"^\S+\t0{8}\t([0-9A-F]{8})\t", said, re.MULTILINE)
    own = re.search(r"^(?!127\.)(\d+(?:\.\d+){3})\s", said, re.MULTILINE)
    if route is None or own is None:
        raise CannotLook("a container of the default image does not say which address it has")
    gateway = IPv4Address(int(route[1], 16).to_bytes(4, sys.byteorder))
    return own[1], str(gateway)


def _targets(
    settings: Settings, engine: str, listener: int, neighbour: str, gateway: str
) -> Targets:
    addresses = dict.fromkeys([gateway, *_addresses()])
    found = {(address, listener): "any port" for address in addresses}
    if settings.unix_path is None:
        hosts = addresses if is_any(settings.host) else {**addresses, settings.host: None}
        found |= {(host, settings.port): "the worker's API" for host in hosts if _is_ipv4(host)}
    url = urlsplit(engine)
    if url.port and url.hostname:
        hosts = {**addresses, url.hostname: None}
        found |= {(host, url.port): "the engine" for host in hosts if _is_ipv4(host)}
    return Targets(found, (neighbour, listener))


def _addresses() -> Sequence[str]:
    """This machine's, by which a container could mean it; jobs have no IPv6."""
    found = [str(ip.ip) for each in ifaddr.get_adapters() for ip in each.ips if ip.is_IPv4]
    return [address for address in found if not address.startswith("127.")]


def _is_ipv4(host: str) -> bool:
    """Of another machine's or this one's; loopback addresses are the container's own there."""
    with contextlib.suppress(ValueError):
        return not IPv4Address(host).is_loopback
    return False


def _answers(said: str) -> Mapping[tuple[str, int], str]:
    """By socket: open, refused or shut."""
    if said.strip() == "nothing":
        raise CannotLook("the default image has neither python3, perl, bash nor nc -z to try with")
    answers = {}
    for line in said.splitlines():
        with contextlib.suppress(ValueError):
            address, port, answer = line.split(" ")
            answers[address, int(port)] = answer
    return answers


def _finding(targets: Targets, answers: Mapping[tuple[str, int], str]) -> Finding:
    every = {*targets.machine, targets.neighbour, targets.metadata}
    if missing := every - answers.keys():
        raise CannotLook(f"no answer about {', '.join(f'{a}:{p}' for a, p in sorted(missing))}")
    reached: dict[str, list[str]] = {}
    for (address, port), what in targets.machine.items():
        if answers[address, port] == "open":
            reached.setdefault(what, []).append(address)
    found = [f"{what} of this machine at {', '.join(at)}" for what, at in reached.items()]
    if answers[targets.metadata] == "open":
        found.append(f"the cloud's metadata at {METADATA}")
    mends = [MEND] if found else []
    if answers[targets.neighbour] in {"open", "refused"}:  # nobody listens there
        found.append("other jobs")
        mends.append(NEIGHBOUR_MEND)
    if not found:
        return Finding(CHECK, True, "a job with it reaches no socket of this machine's, nor others")
    return Finding(CHECK, True, f"a job with it reaches {'; '.join(found)}", "; ".join(mends))
