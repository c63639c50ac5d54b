"""What this machine's packet filter does with new connections to a port, as far as that is plain.

Connections to a machine's own addresses pass over `lo`, which firewalls let through: only the rules
themselves tell what others meet. They are read by `iptables -S`, which needs root; rules that only
`nft` shows (firewalld's) are not looked at.
"""

import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence

PATIENCE = 5.0
_SHUT = {"DROP", "REJECT"}
_NEW = re.compile(r"--(?:ctstate|state) (?!\S*NEW)\S+")
_NAMED_PORTS = re.compile(r"--dports? (\S+)")

Rules = Mapping[str, Sequence[str]]


def shuts(program: str, port: int) -> bool:
    """Whether what `iptables` or `ip6tables` shows surely keeps others from a port."""
    try:
        ran = subprocess.run(
            [program, "-w", "1", "-S"],
            capture_output=True, text=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ran.returncode == 0 and is_shut(ran.stdout, port)


def is_shut(listed: str, port: int) -> bool:
    """Whether these rules let no new TCP connection in, from anywhere, to a port.

    False as soon as there is a rule that may, whatever else it asks for: only the plain case is
    judged, in which the chain ends in a refusal and nothing before it can accept.

    Args:
        listed: what `iptables -S` prints.
        port: of this machine.
    """
    chains: dict[str, list[str]] = {}
    for line in listed.splitlines():
        if line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            chains.setdefault(chain, []).append(rule)
    own = chains.get("INPUT", [])
    refused = any(f"-P INPUT {policy}" in listed.splitlines() for policy in _SHUT) or (
        any(_refuses_all(rule) for rule in own) and "RETURN" not in map(_target, own)
    )
    return refused and not any(_may_accept(rule, port) for rule in _reached(chains))


def _reached(chains: Rules) -> Iterator[str]:
    """The rules of INPUT, and of all chains that it leads to."""
    known, waiting = {"INPUT"}, ["INPUT"]
    while waiting:
        for rule in chains.get(waiting.pop(), ()):
            yield rule
            if (target := _target(rule)) in chains and target not in known:
                known.add(target)
                waiting.append(target)


def _target(rule: str) -> str:
    found = re.search(r"(?:^| )-[jg] (\S+)", rule)
    return found[1] if found else ""


def _refuses_all(rule: str) -> bool:
    return re.match(r"-j (?:DROP|REJECT)\b", rule) is not None


def _may_accept(rule: str, port: int) -> bool:
    """Whether it accepts something that may be a new TCP connection of another to the port."""
    if _target(rule) not in {"ACCEPT", "QUEUE", "NFQUEUE"}:
        return False
    if "-i lo " in rule or _NEW.search(rule):
        return "! -i lo " in rule or "! --" in rule
    protocol = re.search(r"(! )?-p (\S+)", rule)
    if protocol and not protocol[1] and protocol[2] not in {"tcp", "all", "0", "6"}:
        return False
    ports = _NAMED_PORTS.search(rule)
    return ports is None or "! --dport" in rule or _holds(ports[1], port)


def _holds(ports: str, port: int) -> bool:
    """Of `80`, `80,443` and `8000:8999`."""
    for part in ports.split(","):
        first, _, last = part.partition(":")
        if int(first) <= port <= int(last or first):
            return True
    return False
