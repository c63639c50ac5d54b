"""The safety net: look at everything, through the same queue, and say what it found.

It runs at every (re)connect to the engine, every `resync_interval`, and on demand. What it mends
counts as a repair if no event had told of it and it was older than two seconds, so that none was
still under way.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ciworker.control.controller import Controller
from ciworker.control.environments import EnvironmentController
from ciworker.control.keys import (
    DISPATCH,
    Key,
    Kind,
    environment_key,
    job_key,
    pool_key,
    stray_key,
)
from ciworker.control.look import Outcome, buckets_of
from ciworker.control.parts import Parts
from ciworker.control.pool import PoolController
from ciworker.domain.decide import Bucket
from ciworker.errors import CiworkerError, EngineUnavailable
from ciworker.telemetry import logger

UNDER_WAY = 2.0  # seconds an event may take
MOST_WAIT = 60.0


@dataclass(frozen=True, slots=True)
class Report:
    """What a resync found. buckets: names by bucket, each list sorted."""

    buckets: Mapping[Bucket, Sequence[str]] = field(default_factory=dict)
    repairs: int = 0
    seconds: float = 0.0


class Resync:
    """Runs one resync at a time; whoever asks meanwhile joins it."""

    def __init__(
        self,
        parts: Parts,
        controller: Controller,
        environments: EnvironmentController,
        pool: PoolController,
        on_missed: Callable[[], None],
    ) -> None:
        """Take the parts.

        Args:
            parts: of the worker.
            controller: works the keys of jobs off.
            environments: likewise of environments.
            pool: likewise of its members.
            on_missed: the engine did not tell of what happened, or does not answer any more.
        """
        self._on_missed, self._pool = on_missed, pool
        self._clock, self._engine, self._jobs = parts.clock, parts.engine, parts.jobs
        self._queue, self._controller, self._environments = parts.queue, controller, environments
        self._interval = parts.settings.resync_interval
        self._supervisor, self._metrics = parts.supervisor, parts.metrics
        self._running: asyncio.Future[Report] | None = None
        self._looked_at: datetime | None = None  # when the last one began that came to its end

    async def run(self) -> Report:
        """Look at everything and report.

        Raises:
            EngineUnavailable, StoreUnavailable: it could not be done.
        """
        if self._running is None:
            self._running = asyncio.get_running_loop().create_future()
            self._supervisor.spawn(self._run(self._running), name="resync")
        return await asyncio.shield(self._running)

    async def start_afresh(self) -> None:
        """Begin a resync that lists everything after this call; returns at once."""
        self._supervisor.spawn(self._afresh(), name="resync after connecting")

    async def _afresh(self) -> None:
        try:
            if self._running is not None:
                await asyncio.wait([self._running])
            await self.run()
        except CiworkerError as error:
            logger().warning("resync failed", error=str(error))

    async def run_periodically(self) -> None:
        """For ever, every `resync_interval`."""
        while True:
            await asyncio.sleep(self._interval)
            try:
                await self.run()
            except CiworkerError as error:
                logger().warning("resync failed", error=str(error))

    async def _run(self, result: "asyncio.Future[Report]") -> None:
        try:
            report = await self._resync()
        except CiworkerError as error:
            self._metrics.resync_failures.inc()
            await self._doubt_engine()
            result.set_exception(error)
        else:
            self._metrics.resyncs.observe(report.seconds)
            result.set_result(report)
        finally:
            self._running = None
            if not result.done():  # a cancelled future would cancel whoever waits for it
                result.set_exception(EngineUnavailable("the resync broke off: see the log"))
            result.exception()  # whoever waits gets it; without anyone it is not worth a warning

    async def _resync(self) -> Report:
        began, began_at = self._clock.monotonic(), self._clock.now()
        keys = await self._keys()
        looks = [self._queue.join(key) for key in keys]
        try:
            async with asyncio.timeout(MOST_WAIT):
                found = await asyncio.gather(*looks)
        except TimeoutError:
            raise EngineUnavailable(
                f"the resync did not come to its end in {MOST_WAIT:g} s: the engine is slow"
            ) from None
        repairs = [
            (key.kind, change)
            for key, outcomes in zip(keys, found, strict=True)
            if (change := _first_change(outcomes))
            and await self._is_repair(change, began, began_at)
        ]
        self._metrics.repairs.inc(len(repairs))
        missed = sum(self._is_missed(*repair) for repair in repairs)
        self._metrics.events_missed.inc(missed)
        if self._controller.passed_over(began - UNDER_WAY) or missed:
            self._on_missed()
        self._looked_at = began_at
        report = Report(buckets_of(found), len(repairs), self._clock.monotonic() - began)
        _log(report)
        return report

    def _is_missed(self, kind: Kind, change: Outcome) -> bool:
        """Whether an event should have told of it: not of strays, nor of images that went away.

        What is absent now was there at the last resync: that is all that is known of when it went.
        """
        at = change.since or self._looked_at
        told_of = kind in (Kind.JOB, Kind.POOL)
        return told_of and at is not None and self._controller.would_be_told(at)

    async def _doubt_engine(self) -> None:
        try:
            await self._engine.ping()
        except EngineUnavailable:
            self._on_missed()

    async def _keys(self) -> list[Key]:
        containers = await self._engine.list()
        owned = [container for container in containers if not container.parked]
        attempts = await self._jobs.attempts({container.job for container in owned})
        live = [*await self._jobs.active(), *await self._jobs.cancelled_while_queued()]
        live += await self._jobs.waiting(for_builds=self._looked_at is None)
        strays = [c.id for c in owned if attempts.get(c.job) != c.attempt]
        jobs = dict.fromkeys([*live, *attempts])
        environments = await self._environments.keys()
        await self._environments.make_room()
        return [
            *map(job_key, jobs),
            *map(environment_key, environments),
            *map(stray_key, strays),
            *map(pool_key, self._pool.keys(containers)),
            DISPATCH,
        ]

    async def _is_repair(self, outcome: Outcome, began: float, began_at: datetime) -> bool:
        if outcome.heard:
            return False
        if outcome.since is not None:
            return began_at - outcome.since > timedelta(seconds=UNDER_WAY)
        # Nothing says since when a container is absent: give its event the time it may take.
        await asyncio.sleep(max(0.0, began + UNDER_WAY - self._clock.monotonic()))
        return not self._controller.heard_of(outcome.job, began - UNDER_WAY)


def _first_change(outcomes: Sequence[Outcome]) -> Outcome | None:
    """What a look found; the steps after it follow from it."""
    return next((o for o in outcomes if o.bucket is not Bucket.UNCHANGED), None)


def _log(report: Report) -> None:
    changed = {
        bucket.value: names
        for bucket, names in report.buckets.items()
        if names and bucket is not Bucket.UNCHANGED
    }
    if changed or report.repairs:
        logger().info("resync", repairs=report.repairs, **changed)
