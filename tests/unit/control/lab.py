"""A worker without its web: composed as `app.py` does it, around the fake engine and a clock."""

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from ulid import ULID

from ciworker.control.controller import WORKERS, Controller
from ciworker.control.credentials import Credentials
from ciworker.control.environments import EnvironmentController
from ciworker.control.parts import Parts
from ciworker.control.pool import PoolController
from ciworker.control.resync import Resync
from ciworker.control.supervisor import Supervisor
from ciworker.control.witness import Witness
from ciworker.control.workqueue import WorkQueue
from ciworker.domain.container import State
from ciworker.domain.job import Cache, Job, Spec, Status
from ciworker.engine.events import EventWatch
from ciworker.feed.feed import Feed
from ciworker.metrics import Metrics
from ciworker.settings import Settings
from ciworker.source.secrets import Secrets
from ciworker.source.spool import SpoolWriter, tar_member
from ciworker.store.environments import Environments
from ciworker.store.jobs import Jobs
from ciworker.store.logs import LogReader, LogWriter
from ciworker.store.meta import LastEvent, PoolIntent
from ciworker.store.session import Database
from tests.engine.fake import FakeEngine
from tests.store.lab import nobody

PATIENCE = 20.0  # seconds after which a test fails instead of hanging


@dataclass
class SteppedClock:
    """Both clocks go as real ones do, and jump when they are told to."""

    wall: timedelta = field(default_factory=timedelta)
    passed: float = 0.0

    def now(self) -> datetime:
        return datetime.now(UTC) + self.wall

    def monotonic(self) -> float:
        return time.monotonic() + self.passed

    def advance(self, seconds: float) -> None:
        """Time passes: both clocks say so."""
        self.wall += timedelta(seconds=seconds)
        self.passed += seconds


class Lab:
    """One worker after the other on one store and one engine; `life` is a life of the process."""

    def __init__(self, folder: Path, engine: FakeEngine, **settings: Any) -> None:
        self.engine = engine
        self.clock = SteppedClock()
        self.environ: dict[str, str] = {}  # where secrets are looked for
        engine.now = self.clock.now  # of one machine
        chosen: dict[str, Any] = {"data_dir": folder, "max_jobs": 1, "max_memory": 2**40}
        self.settings = Settings(**(chosen | settings))
        self.settings.spool.mkdir(parents=True, exist_ok=True)
        self._made = 0

    @contextlib.asynccontextmanager
    async def life(self, *, clean: bool = True) -> AsyncIterator["Life"]:
        """From start to SIGTERM. With `clean`, afterwards nothing of any job may be left."""
        database = await Database.open(self.settings.database)
        try:
            async with asyncio.TaskGroup() as tasks:
                witness = await Witness.recalled(LastEvent(database))
                down = await PoolIntent(database).is_down()
                life = Life(self, database, tasks, witness, pool_down=down)
                services = await life.begin(tasks)
                try:
                    yield life
                    if clean:
                        await life.comes_to_rest()
                        life.assert_nothing_is_left()
                finally:
                    await life.end(services)
        finally:
            await database.close()
            await self.engine.hang_up()

    def new_id(self) -> str:
        self._made += 1
        return str(ULID.from_int((1 << 90) + self._made))

    def new_job(self, run: str, **fields: Any) -> Job:
        """A queued job with its spool file."""
        job_id = self.new_id()
        spool = SpoolWriter(self.settings.spool_file(job_id))
        spool.write(tar_member("src/tea.txt", b"oolong\n", 0o644, time.time()))
        spool.commit()
        spec: dict[str, Any] = {
            "image": "fake", "run": run, "timeout": 900.0, "memory": 2**28, "cpus": 1.0,
            "network": False, "project": "tea", "setup": (), "setup_inputs": {},
            "cache": Cache.USE, "secrets": (), "setup_secrets": (), "env": {},
        }  # fmt: skip
        spec |= {name: fields.pop(name) for name in list(fields) if name in spec}
        return Job(
            id=job_id,
            status=Status.QUEUED,
            spec=Spec(**spec),
            created_at=self.clock.now(),
            mark_token="token",
            tar_length=spool.length,
            waits=bool(spec["setup"]),
            **({"source": {"kind": "upload"}} | fields),
        )


class Life:
    """The parts of one running worker."""

    def __init__(
        self,
        lab: Lab,
        database: Database,
        tasks: asyncio.TaskGroup,
        witness: Witness,
        *,
        pool_down: bool,
    ) -> None:
        self.lab, self.engine, self.witness = lab, lab.engine, witness
        self.database = database
        self.logs, self.writer = LogReader(database), LogWriter(database)
        self.feed = Feed(self.logs)
        self.jobs = Jobs(database, on_change=self.feed.job_changed, outbox=nobody())
        self.queue: WorkQueue[Any, Any] = WorkQueue()
        self.supervisor = Supervisor(tasks)
        self.metrics = Metrics()
        self.parts = Parts(
            settings=lab.settings,
            instance="fake",
            clock=lab.clock,
            engine=lab.engine,
            jobs=self.jobs,
            environments=Environments(database),
            logs=self.logs,
            writer=self.writer,
            feed=self.feed,
            queue=self.queue,
            supervisor=self.supervisor,
            new_id=lab.new_id,
            credentials=Credentials(lab.settings, Secrets(lab.settings.secrets_file, lab.environ)),
            metrics=self.metrics.control,
        )
        self.pool = PoolController(self.parts, PoolIntent(database), down=pool_down)
        self.environments = EnvironmentController(self.parts, self.pool.leave)
        self.controller = Controller(
            self.parts, self.environments, self.pool, look_for_engine=self._look_for_engine
        )
        self.resync = Resync(
            self.parts, self.controller, self.environments, self.pool, on_missed=self._reconnect
        )
        self.events = EventWatch(
            lab.engine,
            on_event=self.controller.on_event,
            on_connected=self.resync.start_afresh,
            on_restarted=self.controller.on_engine_restarted,
            on_sight=self.controller.on_engine_in_sight,
            on_witness=witness.keep,
            witness=witness.event,
            metrics=self.metrics.engine,
        )

    async def begin(self, tasks: asyncio.TaskGroup) -> list[asyncio.Task[None]]:
        services = [
            tasks.create_task(self.writer.run(), name="log writer"),
            tasks.create_task(self.events.run(), name="engine events"),
            tasks.create_task(self.witness.run(), name="last event"),
            *(
                tasks.create_task(self.controller.run_worker(), name=f"worker {n}")
                for n in range(WORKERS)
            ),
        ]
        async with asyncio.timeout(PATIENCE):
            await self.events.connected.wait()
        return services

    def _reconnect(self) -> None:
        self.events.reconnect()

    async def _look_for_engine(self) -> None:
        await self.events.hurry()

    async def end(self, services: list[asyncio.Task[None]]) -> None:
        self.controller.accepting = False
        await self.supervisor.cancel_all()
        await self.writer.drained(1.0)
        self.queue.close()
        for task in services:
            task.cancel()
        await self.pool.close()

    async def submit(self, run: str = "echo hello", **fields: Any) -> str:
        job = await self.jobs.add(self.lab.new_job(run, **fields), "me", None)
        self.controller.notify(job.id)
        return job.id

    async def cancel(self, job_id: str) -> None:
        await self.jobs.note(job_id, self.lab.clock.now(), "cancel", cancel_by="me")
        self.controller.notify(job_id)

    async def until(self, job_id: str, reached: Callable[[Job], bool]) -> Job:
        """The job, once it is as wanted."""
        topic = self.feed.topic(job_id)
        async with asyncio.timeout(PATIENCE):
            while True:
                seen = topic.changed.version
                job = await self.jobs.get(job_id)
                assert job is not None
                if reached(job):
                    return job
                await topic.changed.wait(seen, PATIENCE)

    async def running(self, job_id: str) -> Job:
        return await self.until(job_id, lambda job: job.status is Status.RUNNING)

    async def ended(self, job_id: str) -> Job:
        """The job, ended: once, and by a story that makes sense."""
        job = await self.until(job_id, lambda job: job.status.terminal)
        entries = await self.jobs.history(job_id)
        assert [entry.after.terminal for entry in entries].count(True) == 1
        assert entries[-1].after is job.status
        for before, after in pairwise(entries):
            assert after.before is before.after
        return job

    async def text(self, job_id: str) -> bytes:
        """The stored log."""
        last = (await self.logs.end(job_id)).last
        return b"".join([chunk.data async for chunk in self.logs.stream(job_id, 0, last)])

    async def printed(self, job_id: str, text: bytes) -> None:
        """Until the stored log has this text."""
        topic = self.feed.topic(job_id)
        async with asyncio.timeout(PATIENCE):
            while True:
                seen = topic.changed.version
                if text in await self.text(job_id):
                    return
                await topic.changed.wait(seen, PATIENCE)

    async def comes_to_rest(self) -> None:
        """Nothing waits, nothing is worked on, no timer is set, no task of a job runs."""
        async with asyncio.timeout(PATIENCE):
            while self._unrest() or any(not box.parked for box in await self.engine.list()):
                await asyncio.sleep(0.005)

    def assert_nothing_is_left(self) -> None:
        assert self.controller._lives == {}
        assert self.controller._failures == {}
        pulls = self.controller._steps._pulls
        assert (pulls._waiting, pulls._answers) == ({}, {})
        assert not self.writer._ready
        if len(self.feed._topics):
            gc.collect()  # a traceback may hold one in a cycle
        assert len(self.feed._topics) == 0

    def _unrest(self) -> bool:
        queue = self.queue
        busy = queue._waiting or queue._active or queue._dirty or queue._timers
        return bool(busy or self.supervisor._running or self.controller._lives)

    def up(self) -> list[str]:
        """Names of the containers that run."""
        return [box.spec.name for box in self.engine._boxes.values() if box.state is State.RUNNING]

    def calls(self, name: str) -> int:
        return [call for call, _ in self.engine.calls].count(name)
