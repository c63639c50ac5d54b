"""Tells others what the outbox holds: at least once, from one task, in no promised order.

An endpoint that fails is left alone for a growing while, then tried with one message; when that
arrives, the others follow. A message that fails is tried again until it is GIVEN_UP_AFTER old.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from random import SystemRandom
from typing import NamedTuple

import aiohttp

from ciworker.control.clock import Clock
from ciworker.domain.webhook import (
    GIVEN_UP_AFTER,
    Delivery,
    DeliveryKind,
    DeliveryState,
    backoff,
)
from ciworker.errors import CiworkerError, Final, TryAgain
from ciworker.feed.feed import Signal
from ciworker.metrics import DeliveryMetrics
from ciworker.store.webhooks import Backlog, Deliveries
from ciworker.telemetry import logger

TIMEOUT = 10.0  # seconds for one try, and for the tries of one endpoint until others have a turn
PER_TURN = 50
TIDY_INTERVAL = 3600.0
RETRY = 5.0  # seconds after which the store is asked again
MOST_ERROR = 300  # characters
GONE = 410  # so says the scheme: https://www.standardwebhooks.com
NO_MORE = "the receiver answered 410: it wants no more"

_RANDOM = SystemRandom()


class Undeliverable(Final):
    """It can never be told."""


class NotYet(TryAgain):
    """It cannot be told now."""


class Request(NamedTuple):
    """A POST. final: answers after which it is not tried again. ca_file: certificates to trust,
    instead of the system's.
    """

    url: str
    headers: Mapping[str, str]
    body: bytes
    final: Collection[int] = ()
    ca_file: Path | None = None


Maker = Callable[[Delivery, datetime], Awaitable[Request]]


@dataclass(slots=True)
class _Gate:
    """Of an endpoint that failed: how often in a row; until when, monotonic, it is left alone."""

    failures: int = 0
    until: float = 0.0


class Deliverer:
    """The one task that delivers."""

    def __init__(
        self,
        store: Deliveries,
        makers: Mapping[DeliveryKind, Maker],
        clock: Clock,
        changed: Signal,
        metrics: DeliveryMetrics,
    ) -> None:
        """Take the parts.

        Args:
            store: the outbox.
            makers: of the request that a message is, by kind.
            clock: tells what is due.
            changed: fires when there may be something new.
            metrics: counts what came of each try.
        """
        self._store, self._makers, self._clock = store, makers, clock
        self._changed, self._metrics = changed, metrics
        self._gates: dict[tuple[DeliveryKind, str], _Gate] = {}
        self._tidied = float("-inf")
        metrics.know(DeliveryKind)

    async def run(self) -> None:
        """For ever."""
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        jar = aiohttp.DummyCookieJar()
        async with aiohttp.ClientSession(timeout=timeout, cookie_jar=jar) as session:
            while True:
                seen = self._changed.version
                await self._changed.wait(seen, await self._guarded_turn(session))

    def hurry(self) -> None:
        """Somebody asks for it: have no endpoint left alone for what failed before."""
        self._gates.clear()
        self._changed.fire()

    async def _guarded_turn(self, session: aiohttp.ClientSession) -> float:
        again_in = RETRY
        try:
            again_in = await self.turn(session)
        except* CiworkerError as group:  # the store: what is pending stays so
            logger().warning("deliveries wait for the store", error=str(group.exceptions[0]))
        return again_in

    async def turn(self, session: aiohttp.ClientSession) -> float:
        """Deliver some of what is due; in how many seconds there may be more to do."""
        await self._tidy()
        backlogs = await self._store.backlogs()
        open_ones = [backlog for backlog in backlogs if self._pause(backlog) <= 0]
        async with asyncio.TaskGroup() as tasks:
            for backlog in open_ones:
                tasks.create_task(self._deliver_all(session, backlog))
        left = await self._store.backlogs() if open_ones else backlogs
        self._forget_gates(left)
        waits = [max(self._pause(b), _seconds_until(b.due, self._clock.now())) for b in left]
        return max(0.0, min([*waits, TIDY_INTERVAL]))

    async def _deliver_all(self, session: aiohttp.ClientSession, backlog: Backlog) -> None:
        """What is due for one endpoint, until one fails or it has taken too long."""
        ends = self._clock.monotonic() + TIMEOUT
        for delivery in await self._store.due(backlog, self._clock.now(), PER_TURN):
            tried = await self._tried(session, delivery)
            await self._store.record(tried)
            self._count(tried)
            if not self._keep_gate(tried) or self._clock.monotonic() >= ends:
                return

    async def _tried(self, session: aiohttp.ClientSession, delivery: Delivery) -> Delivery:
        """The delivery as it is after one more try."""
        now = self._clock.now()
        tried = replace(delivery, tries=delivery.tries + 1, tried_at=now, next_try_at=None)
        tried = replace(tried, answer=None, error=None)
        try:
            request = await self._makers[delivery.message.kind](delivery, now)
            status = await _post(session, request)
        except Undeliverable as error:
            return replace(tried, state=DeliveryState.GIVEN_UP, error=str(error))
        except TryAgain as error:
            return self._failed(tried, str(error))
        if 200 <= status < 300:
            return replace(tried, state=DeliveryState.DELIVERED, answer=status)
        tried = replace(tried, answer=status)
        if status == GONE:
            return replace(tried, state=DeliveryState.GIVEN_UP, error=NO_MORE)
        if status in request.final:
            refused = f"the receiver answered {status}: it takes no such message"
            return replace(tried, state=DeliveryState.GIVEN_UP, error=refused)
        redirect = ": redirects are not followed" if 300 <= status < 400 else ""
        return self._failed(tried, f"the receiver answered {status}{redirect}")

    def _failed(self, tried: Delivery, error: str) -> Delivery:
        """Tried again later, unless that was long enough."""
        now, error = self._clock.now(), error[:MOST_ERROR]
        if now - tried.since >= GIVEN_UP_AFTER:
            return replace(tried, state=DeliveryState.GIVEN_UP, error=error)
        pause = backoff(tried.tries, _RANDOM.random())
        return replace(tried, next_try_at=now + pause, error=error)

    def _keep_gate(self, tried: Delivery) -> bool:
        """Open or close the endpoint's gate by what came of a try; whether it is open."""
        key = (tried.message.kind, tried.message.endpoint)
        if tried.state is DeliveryState.DELIVERED:
            self._gates.pop(key, None)
        elif tried.state is DeliveryState.PENDING:
            gate = self._gates.setdefault(key, _Gate())
            gate.failures += 1
            pause = backoff(gate.failures, _RANDOM.random())
            gate.until = self._clock.monotonic() + pause.total_seconds()
            return False
        return True

    def _pause(self, backlog: Backlog) -> float:
        """Seconds for which its endpoint is left alone."""
        gate = self._gates.get((backlog.kind, backlog.endpoint))
        return gate.until - self._clock.monotonic() if gate else 0.0

    def _forget_gates(self, left: Sequence[Backlog]) -> None:
        pending = {(backlog.kind, backlog.endpoint) for backlog in left}
        self._gates = {key: gate for key, gate in self._gates.items() if key in pending}

    def _count(self, tried: Delivery) -> None:
        outcome = "failed" if tried.state is DeliveryState.PENDING else tried.state.value
        self._metrics.tries.labels(tried.message.kind, outcome).inc()
        if tried.state is DeliveryState.GIVEN_UP:
            logger().warning(
                "a delivery is given up",
                delivery=tried.id,
                endpoint=tried.message.endpoint,
                error=tried.error,
            )

    async def _tidy(self) -> None:
        if self._clock.monotonic() < self._tidied + TIDY_INTERVAL:
            return
        given_up = await self._store.tidy(self._clock.now())
        self._tidied = self._clock.monotonic()
        if given_up:
            logger().warning("too many deliveries wait: the oldest are given up", count=given_up)


def _seconds_until(due: datetime, now: datetime) -> float:
    return (due - now).total_seconds()


async def _post(session: aiohttp.ClientSession, request: Request) -> int:
    """The status of the answer, whose body nobody reads.

    Raises:
        NotYet: there was none.
    """
    try:
        trust = ssl.create_default_context(cafile=request.ca_file) if request.ca_file else True
        async with session.post(
            request.url,
            data=request.body,
            headers=request.headers,
            allow_redirects=False,
            ssl=trust,
        ) as answer:
            return answer.status
    except TimeoutError:
        raise NotYet(f"no answer within {TIMEOUT:g} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise NotYet(_without_url(error)) from None


def _without_url(error: Exception) -> str:
    """What went wrong, without what may be secret in the address.

    Errors of connections name the host alone; others may repeat the URL, in forms of its own, or
    what the receiver says, which may repeat it too.
    """
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, OSError) else name
