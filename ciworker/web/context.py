"""What the handlers work with; made once, in `app.py`."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from aiohttp import web

from ciworker.engine.disks import Disk
from ciworker.feed.feed import Feed, Signal
from ciworker.metrics import Metrics
from ciworker.settings import Settings
from ciworker.store.audit import Audit
from ciworker.store.counts import Counter
from ciworker.store.environments import Environments
from ciworker.store.jobs import Jobs
from ciworker.store.logs import LogReader
from ciworker.store.sessions import Sessions
from ciworker.store.tokens import Tokens
from ciworker.store.webhooks import Deliveries
from ciworker.web.ends import Ends
from ciworker.web.models import PoolChange, PoolReport, ResyncReport
from ciworker.web.sessions import Codes
from ciworker.web.throttle import Meter, Proxies
from ciworker.web.tokenuse import TokenUses
from ciworker.web.watchers import Watchers

HOOKS = 16


class Drain(Protocol):
    """Waiting for the jobs that run, to stop then. wanted: it does; over: it did."""

    @property
    def wanted(self) -> bool: ...

    @property
    def over(self) -> bool: ...

    def begin(self) -> None:
        """Start nothing more; a second call changes nothing."""

    def undo(self) -> None:
        """Take and start jobs again.

        Raises:
            Conflict: it is too late.
        """


class Pool(Protocol):
    """The containers that are kept parked."""

    async def status(self) -> PoolReport: ...

    async def turn(self, *, down: bool) -> PoolChange:
        """Have all members or none, from now on, also after a restart.

        Raises:
            StoreUnavailable: nothing is changed. EngineUnavailable: it is not done yet.
        """

    def counts(self) -> Mapping[tuple[str, str], int]:
        """How many members there are, and are wanted, by entry and state."""

    def environments(self) -> Mapping[tuple[str, str], int]:
        """How many members hold each environment, or are to, by entry and key."""


@dataclass(frozen=True, slots=True)
class Context:
    """The store's sides, the feed, and the calls that the control room hands out.

    port: where the worker listens. notify: something about a job may have changed.
    resync: look at everything. engine_ready: raises EngineUnavailable while the engine does not
    answer.
    store_ready: likewise StoreUnavailable. new_id: a job's id, larger than all before.
    remove_environment: takes a key and a why; answers once that was tried.
    connected: whether the engine's events are read. work_queue: how many keys wait there.
    disks: those that can fill, by name.
    started_at: when this process did. drain: how it is told to wait for its jobs, then stop.
    pool: the containers that are kept parked.
    deliveries: what others are told.
    secret: the value of a secret by its name, if it has one.
    hook_turns: of forges' deliveries that are read, before it is known who sent them.
    ends: the last that is told of jobs.
    failures, submits: what is counted of wrong credentials, by address, and of submits, by token.
    closing: fires when the worker goes down and streams have to end.
    access_ended: fires when a token or a session does before its time.
    """

    settings: Settings
    port: int
    now: Callable[[], datetime]
    jobs: Jobs
    environments: Environments
    logs: LogReader
    audit: Audit
    tokens: Tokens
    token_uses: TokenUses
    sessions: Sessions
    proxies: Proxies
    failures: Meter
    submits: Meter
    feed: Feed
    notify: Callable[[str], None]
    resync: Callable[[], Awaitable[ResyncReport]]
    remove_environment: Callable[[str, str], Awaitable[None]]
    engine_ready: Callable[[], Awaitable[None]]
    store_ready: Callable[[], Awaitable[None]]
    new_id: Callable[[], str]
    metrics: Metrics
    counter: Counter
    connected: Callable[[], bool]
    work_queue: Callable[[], int]
    disks: Callable[[], Awaitable[Mapping[str, Disk]]]
    started_at: datetime
    drain: Drain
    pool: Pool
    deliveries: Deliveries
    secret: Callable[[str], str | None]
    watchers: Watchers = field(default_factory=Watchers)
    codes: Codes = field(default_factory=Codes)
    ends: Ends = field(default_factory=Ends)
    hook_turns: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(HOOKS))
    closing: Signal = field(default_factory=Signal)
    access_ended: Signal = field(default_factory=Signal)

    def close(self) -> None:
        """Let every stream end."""
        self.closing.fire()
        self.feed.wake_all()

    def end_access(self) -> None:
        """Let every stream look whether it was its own token or session that has ended."""
        self.access_ended.fire()
        self.feed.wake_all()


CONTEXT: web.AppKey[Context] = web.AppKey("context", Context)
