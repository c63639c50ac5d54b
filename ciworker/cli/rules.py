"""The packet filter's rules that keep jobs with the network away from the machine that runs them.

They are about what comes in by the interface of the jobs' bridge. Nothing of that may go to the
machine itself, by whichever of its addresses, nor to link-local addresses, where clouds answer with
credentials. The bridge has IPv4 alone, so nothing at all may pass by IPv6. Docker's own rules do
the rest: traffic between the bridge's containers, and to its other networks.

Each rule carries a comment, by which `remove` knows it. Rules do not outlive a boot.
"""

import os
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from ciworker.engine.network import BRIDGE
from ciworker.errors import Final, Invalid

COMMENT = "ciworker-firewall"
PATIENCE = 30.0  # seconds for one command, and for others that hold the filter's lock
LINK_LOCAL = IPv4Network("169.254.0.0/16")
REFUSALS = {"iptables": "icmp-admin-prohibited", "ip6tables": "icmp6-adm-prohibited"}
DOCKER_CHAIN = "DOCKER-USER"  # Docker asks it before its own rules, and leaves it alone
FORWARD = "FORWARD"

_OURS = re.compile(rf'--comment "?{COMMENT}"?(?= |$)')
_IPV6 = Path("/proc/net/if_inet6")


class CannotFilter(Final):
    """The packet filter cannot be read or changed; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service of the machine that jobs may reach, by TCP and UDP."""

    address: IPv4Address
    port: int


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of the table `filter`. words: as `iptables -S` writes them, after the chain."""

    program: str
    chain: str
    words: Sequence[str]


def service(text: str) -> Service:
    """From `ADDRESS:PORT`.

    Raises:
        Invalid: it is none.
    """
    address, _, port = text.rpartition(":")
    try:
        found = Service(IPv4Address(address), int(port))
    except ValueError:
        found = None
    if found is None or not 0 < found.port < 2**16:
        raise Invalid(
            f"--allow {text!r} has to be an IPv4 address and a port, such as 192.0.2.1:3128: jobs "
            "have no IPv6"
        )
    return found


def _rules(allowed: Sequence[Service], programs: Collection[str], forward: str) -> list[Rule]:
    """All rules that should stand, in their order.

    Args:
        allowed: exceptions.
        programs: of the families that the machine has.
        forward: the chain that is asked about IPv4 packets that the machine passes on.
    """
    found = [rule for each in allowed for rule in _exceptions(each, forward)]
    found.append(_refusal("iptables", "INPUT"))
    found.append(_refusal("iptables", forward, to=LINK_LOCAL))
    if "ip6tables" in programs:
        found += [_refusal("ip6tables", chain) for chain in ("INPUT", FORWARD)]
    return found


def _exceptions(each: Service, forward: str) -> Iterator[Rule]:
    for chain in ("INPUT", forward) if each.address in LINK_LOCAL else ("INPUT",):
        for protocol in ("tcp", "udp"):
            asked = ("-p", protocol, "-m", protocol, "--dport", str(each.port))
            words = ("-d", f"{each.address}/32", "-i", BRIDGE, *asked, *_marked("ACCEPT"))
            yield Rule("iptables", chain, words)


def _refusal(program: str, chain: str, to: IPv4Network | None = None) -> Rule:
    where = ("-d", str(to)) if to else ()
    how = ("--reject-with", REFUSALS[program])
    return Rule(program, chain, (*where, "-i", BRIDGE, *_marked("REJECT"), *how))


def _marked(target: str) -> Sequence[str]:
    return ("-m", "comment", "--comment", COMMENT, "-j", target)


def commands(wanted: Sequence[Rule]) -> list[str]:
    """Lines for a shell that put the rules before all others of their chains."""
    places: Counter[tuple[str, str]] = Counter()
    lines = []
    for rule in wanted:
        places[rule.program, rule.chain] += 1
        place = str(places[rule.program, rule.chain])
        lines.append(shlex.join([rule.program, "-w", "-I", rule.chain, place, *rule.words]))
    return lines


def usual(allowed: Sequence[Service]) -> list[Rule]:
    """What should stand on a machine with Docker, whose filter cannot be looked at."""
    return _rules(allowed, _programs(), DOCKER_CHAIN)


@dataclass(frozen=True, slots=True)
class Filter:
    """What stands. listed: what `-S` printed, by program."""

    listed: Mapping[str, Sequence[str]]

    @classmethod
    def read(cls) -> "Filter":
        """Raises CannotFilter."""
        if os.geteuid() != 0:
            raise CannotFilter("only root may see and change the packet filter: use sudo")
        return cls({program: _ran(program, "-w", "-S").splitlines() for program in _programs()})

    def wanted(self, allowed: Sequence[Service]) -> list[Rule]:
        """What should stand here: Docker's chain is used if there is one."""
        dockers = f"-N {DOCKER_CHAIN}" in self.listed["iptables"]
        return _rules(allowed, self.listed, DOCKER_CHAIN if dockers else FORWARD)

    def ours(self, program: str) -> list[str]:
        """Our rules, as `-S` prints them."""
        return [x for x in self.listed[program] if x.startswith("-A ") and _OURS.search(x)]

    def standing(self, program: str) -> list[str]:
        """Our rules as commands, which would append them."""
        return [f"{program} -w {line}" for line in self.ours(program)]

    def put(self, wanted: Sequence[Rule]) -> None:
        """Have just these of ours, before all others: at one instant for each program.

        Raises:
            CannotFilter: nothing is changed for the program that the message names.
        """
        for program in self.listed:
            gone = [f"-D {line.removeprefix('-A ')}" for line in self.ours(program)]
            own = [rule for rule in wanted if rule.program == program]
            made = [line.removeprefix(f"{program} -w ") for line in commands(own)]
            text = "\n".join(["*filter", *gone, *made, "COMMIT", ""])
            _ran(f"{program}-restore", "-w", "--noflush", stdin=text)


def install(allowed: Sequence[Service]) -> list[str]:
    """Have the rules, and no earlier ones of ours; as commands. Raises CannotFilter."""
    found = Filter.read()
    wanted = found.wanted(allowed)
    found.put(wanted)
    return commands(wanted)


def remove() -> list[str]:
    """Remove all rules of ours; those that stood, as commands. Raises CannotFilter."""
    found = Filter.read()
    found.put(())
    return [line for program in found.listed for line in found.standing(program)]


def show(allowed: Sequence[Service]) -> tuple[list[str], bool]:
    """The rules that should stand, as commands with what is the case, and whether all do.

    Exceptions that were installed and are not named here follow. Raises CannotFilter.
    """
    found = Filter.read()
    wanted = found.wanted(allowed)
    stand = [_stands(rule) for rule in wanted]
    lines = [
        f"{line}  # {'stands' if there else 'missing'}"
        for line, there in zip(commands(wanted), stand, strict=True)
    ]
    known = {shlex.join([rule.program, "-w", "-A", rule.chain, *rule.words]) for rule in wanted}
    standing = [line for program in found.listed for line in found.standing(program)]
    others = [f"{line}  # stands, too" for line in standing if line not in known]
    return lines + others, all(stand)


def _stands(rule: Rule) -> bool:
    """Wherever in its chain."""
    return _run(rule.program, "-w", "-C", rule.chain, *rule.words).returncode == 0


def _programs() -> Sequence[str]:
    """A machine without IPv6 has nothing to filter there."""
    return ("iptables", "ip6tables") if _IPV6.exists() else ("iptables",)


def _ran(*words: str, stdin: str | None = None) -> str:
    ran = _run(*words, stdin=stdin)
    if ran.returncode:
        raise CannotFilter(f"`{shlex.join(words)}` failed: {ran.stderr.strip()}")
    return ran.stdout


def _run(*words: str, stdin: str | None = None) -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(
            words, input=stdin, capture_output=True, text=True, check=False, timeout=PATIENCE
        )
    except FileNotFoundError:
        raise CannotFilter(f"there is no {words[0]}: apt-get install iptables") from None
    except subprocess.TimeoutExpired:
        raise CannotFilter(f"`{shlex.join(words)}` took over {PATIENCE:g} s: try again") from None
