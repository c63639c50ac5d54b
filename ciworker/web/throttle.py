"""How often somebody may do something, and the address that somebody who asks us has."""

import math
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from ciworker.units import Rate
from ciworker.web.problems import Refused

MOST_KEYS = 10_000  # remembered at once; past that the one that was silent longest is forgotten
UNIX = "unix"  # the address of whoever came by our Unix socket
_SITE = 64  # bits of an IPv6 address by which its owner is known

Address = IPv4Address | IPv6Address


class Meter:
    """Counts what each of many does against a rate: all of it at once, or spread.

    The generic cell rate algorithm (ATM Forum TM 4.1): one instant is kept of each, that at which
    all it did so far would be used up. What is refused does not count.
    """

    def __init__(self, rate: Rate | None, monotonic: Callable[[], float] = time.monotonic) -> None:
        """rate: None allows everything."""
        self._rate, self._monotonic = rate, monotonic
        self._used_up_at: dict[str, float] = {}  # by who was counted last

    def take(self, key: str) -> float:
        """0 if it may, which is counted; else the seconds until it may."""
        if self._rate is None:
            return 0.0
        now, each = self._monotonic(), self._rate.seconds / self._rate.count
        used_up_at = max(now, self._used_up_at.get(key, now))
        wait = used_up_at + each - self._rate.seconds - now
        if wait > each * 1e-6:  # what floats leave over
            return wait
        self._used_up_at.pop(key, None)
        self._used_up_at[key] = used_up_at + each
        self._forget(now)
        return 0.0

    def _forget(self, now: float) -> None:
        """Those at the front of which nothing is left to know; and one, where they are too many."""
        while self._used_up_at:
            oldest = next(iter(self._used_up_at))
            if self._used_up_at[oldest] > now and len(self._used_up_at) <= MOST_KEYS:
                return
            del self._used_up_at[oldest]


class Proxies:
    """Those whose word on who asked them is taken. trusted: networks, and `unix`."""

    def __init__(self, trusted: Sequence[str]) -> None:
        self._unix = UNIX in trusted
        self._networks = [ip_network(each) for each in trusted if each != UNIX]

    def client(self, peer: str, forwarded: Sequence[str]) -> str:
        """Whom a request came from.

        X-Forwarded-For is read from the right, as each proxy adds whom it was asked by, and only
        as far as the one who says it is trusted: what stands before may be anybody's invention.

        Args:
            peer: the address at the other end of the connection; empty at a Unix socket.
            forwarded: the values of all X-Forwarded-For headers, in order.
        """
        hop = _parsed(peer)
        if not self._trusts(hop):
            return str(hop or UNIX)
        for told in reversed(",".join(forwarded).split(",")):
            before = _parsed(told)
            if before is None:
                break
            hop = before
            if not self._trusts(hop):
                break
        return str(hop or UNIX)

    def _trusts(self, hop: Address | None) -> bool:
        if hop is None:
            return self._unix
        return any(hop in network for network in self._networks)


def site(address: str) -> str:
    """What a rate goes by: one who has an IPv6 address has 2^64 of them."""
    parsed = _parsed(address)
    if not isinstance(parsed, IPv6Address):
        return address
    return str(ip_network((int(parsed), _SITE), strict=False))


def too_many(wait: float, detail: str) -> Refused:
    """429, with when to come back."""
    seconds = max(1, math.ceil(wait))
    return Refused(429, f"{detail}: try again in {seconds} s", {"Retry-After": str(seconds)})


def _parsed(text: str) -> Address | None:
    """An address, which some proxies give with a port; None if it is none."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
