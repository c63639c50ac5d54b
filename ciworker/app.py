"""The composition root: builds every part, holds the one TaskGroup. Only this file knows all."""

import asyncio
import contextlib
import errno
import os
import resource
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from aiohttp import web
from ulid import ULID, ULIDGenerator

from ciworker.cli.api import base_url
from ciworker.control.clock import SystemClock
from ciworker.control.controller import WORKERS, Controller
from ciworker.control.drain import Drain
from ciworker.control.environments import EnvironmentController
from ciworker.control.members import MemberStatus
from ciworker.control.parts import Parts
from ciworker.control.pool import PoolController
from ciworker.control.resync import Resync
from ciworker.control.retention import Retainer
from ciworker.control.supervisor import Supervisor
from ciworker.control.witness import Witness
from ciworker.control.workqueue import WorkQueue
from ciworker.domain.decide import Bucket
from ciworker.engine.disks import Disks
from ciworker.engine.docker import DockerEngine
from ciworker.engine.events import EventWatch
from ciworker.engine.sandbox import write_hosts
from ciworker.feed.feed import Feed
from ciworker.metrics import EngineMetrics, Metrics
from ciworker.settings import Settings
from ciworker.store.counts import Counter
from ciworker.store.environments import Environments
from ciworker.store.jobs import Jobs
from ciworker.store.lock import StoreLock
from ciworker.store.logs import LogReader, LogWriter
from ciworker.store.meta import LastEvent, PoolIntent, instance_id
from ciworker.store.packing import Packer
from ciworker.store.retention import Retention
from ciworker.store.session import Database
from ciworker.store.sessions import Sessions
from ciworker.store.tokens import Role, Token, Tokens
from ciworker.telemetry import configure, logger
from ciworker.web.access import allowed_hosts
from ciworker.web.application import application
from ciworker.web.context import Context
from ciworker.web.models import (
    PoolChange,
    PoolEntryModel,
    PoolMember,
    PoolReport,
    ResyncReport,
)
from ciworker.web.sessions import Login, login_url

CLOCK = SystemClock()
IDLE_TIMEOUT = 60.0  # seconds a connection may take to bring a whole header, first or next
DEAD_PEER = 60.0  # seconds that a peer may leave unacknowledged what was sent to it
SHUTDOWN_TIMEOUT = 1.0  # seconds for handlers to end, once their streams were told to
FIRST_TOKEN = "first admin"  # noqa: S105 # its name
DRAIN_TIMEOUT = 1.0  # seconds for lines that were read to be stored; the engine has them too


def serve(settings: Settings) -> None:
    """Run the worker until SIGTERM or SIGINT; its containers go on.

    Raises:
        StoreRefused, StoreUnavailable: the store cannot be used.
        OSError: the port is taken, or the data folder cannot be written.
    """
    configure(settings.log_format)
    _raise_file_limit()
    os.umask(0o077)  # what jobs print and are given is nobody else's on this machine
    _make_data_folder(settings)
    listener = _listen(settings)
    holder = f"the worker on http://{settings.host}:{listener.getsockname()[1]}"
    with StoreLock(settings.data_dir, holder), contextlib.closing(listener):
        uvloop.run(Worker(settings, listener).run())


@dataclass(frozen=True, slots=True)
class Store:
    """The database's sides, and the feed of what is committed there."""

    jobs: Jobs
    environments: Environments
    logs: LogReader
    writer: LogWriter
    feed: Feed
    tokens: Tokens
    sessions: Sessions
    counter: Counter
    packer: Packer
    retention: Retention
    intent: PoolIntent


def _store(database: Database) -> Store:
    logs = LogReader(database)
    feed = Feed(logs)
    return Store(
        jobs=Jobs(database, on_change=feed.job_changed),
        environments=Environments(database),
        logs=logs,
        writer=LogWriter(database),
        feed=feed,
        tokens=Tokens(database),
        sessions=Sessions(database),
        counter=Counter(database),
        packer=Packer(database),
        retention=Retention(database),
        intent=PoolIntent(database),
    )


@dataclass(frozen=True, slots=True)
class Control:
    """What brings about what is wanted, and what wakes it."""

    controller: Controller
    environments: EnvironmentController
    pool: PoolController
    resync: Resync
    events: EventWatch
    witness: Witness
    drain: Drain


def _control(
    parts: Parts,
    pool: PoolController,
    metrics: EngineMetrics,
    witness: Witness,
    stop: Callable[[], None],
) -> Control:
    environments = EnvironmentController(parts, pool.leave)
    controller = Controller(
        parts,
        environments,
        pool,
        look_for_engine=lambda: events.hurry(),  # noqa: PLW0108 # made below, from the controller
    )
    resync = Resync(
        parts,
        controller,
        environments,
        pool,
        on_missed=lambda: events.reconnect(),  # noqa: PLW0108 # made below, from the resync
    )
    events = EventWatch(
        parts.engine,
        on_event=controller.on_event,
        on_connected=resync.start_afresh,
        on_restarted=controller.on_engine_restarted,
        on_sight=controller.on_engine_in_sight,
        on_witness=witness.keep,
        witness=witness.event,
        metrics=metrics,
    )
    drain = Drain(parts, controller, pool, stop=stop)
    return Control(controller, environments, pool, resync, events, witness, drain)


def _services(
    parts: Parts, store: Store, control: Control
) -> Iterator[tuple[str, Coroutine[None, None, None]]]:
    """What runs as long as the worker does, by name."""
    yield "log writer", parts.writer.run()
    yield "engine events", control.events.run()
    yield "last event", control.witness.run()
    yield "resync", control.resync.run_periodically()
    yield "drain", control.drain.run()
    yield "retention", Retainer(parts, store.retention, store.packer).run()
    for n in range(WORKERS):
        yield f"worker {n}", control.controller.run_worker()


async def _end(parts: Parts, pool: PoolController, services: Sequence[asyncio.Task[None]]) -> None:
    """Once nobody is served any more: lines that were read are stored, the rest is let go."""
    await parts.supervisor.cancel_all()
    await parts.writer.drained(DRAIN_TIMEOUT)
    parts.queue.close()
    for task in services:
        task.cancel()
    await pool.close()


class Worker:
    """One running worker."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._settings = settings
        self._listener = listener
        self._stop = asyncio.Event()
        self._metrics = Metrics()

    async def run(self) -> None:
        """Until told to stop."""
        settings = self._settings
        database = await Database.open(settings.database, self._metrics.store)
        try:
            instance = await instance_id(database, settings.instance)
            hosts = write_hosts(settings.data_dir)
            async with DockerEngine(
                settings.docker_host, instance, self._metrics.engine, hosts
            ) as engine:
                await self._run(database, engine, instance)
        finally:
            await database.close()

    async def _run(self, database: Database, engine: DockerEngine, instance: str) -> None:
        store = _store(database)
        first = await _first_token(self._settings, store.tokens)
        await _remove_unowned_spool_files(self._settings, store.jobs)
        new_id = await _ids(store.jobs)
        witness = await Witness.recalled(LastEvent(database))
        async with asyncio.TaskGroup() as tasks:
            parts = Parts(
                settings=self._settings,
                instance=instance,
                clock=CLOCK,
                engine=engine,
                jobs=store.jobs,
                environments=store.environments,
                logs=store.logs,
                writer=store.writer,
                feed=store.feed,
                queue=WorkQueue(),
                supervisor=Supervisor(tasks),
                new_id=new_id,
                metrics=self._metrics.control,
            )
            pool = PoolController(parts, store.intent, down=await store.intent.is_down())
            control = _control(parts, pool, self._metrics.engine, witness, self._stop.set)
            services = [
                tasks.create_task(work, name=name)
                for name, work in _services(parts, store, control)
            ]
            context = self._context(parts, store, control, engine)
            async with self._serving(context):
                if first is not None:
                    _show_first_link(context, first)
                await self._stop.wait()
                control.controller.accepting = False
            await _end(parts, pool, services)

    def _context(
        self, parts: Parts, store: Store, control: Control, engine: DockerEngine
    ) -> Context:
        """What the handlers work with."""
        return Context(
            settings=parts.settings,
            port=self._listener.getsockname()[1],
            now=parts.clock.now,
            jobs=store.jobs,
            environments=store.environments,
            logs=store.logs,
            tokens=store.tokens,
            sessions=store.sessions,
            feed=store.feed,
            notify=control.controller.notify,
            resync=lambda: _reported(control.resync),
            remove_environment=control.environments.remove,
            engine_ready=control.events.check,
            store_ready=store.jobs.check,
            new_id=parts.new_id,
            metrics=self._metrics,
            counter=store.counter,
            connected=control.events.connected.is_set,
            work_queue=lambda: len(parts.queue),
            disks=Disks(engine, engine.host, parts.settings.data_dir).usage,
            started_at=parts.clock.now(),
            drain=control.drain,
            pool=_Pool(control.pool),
        )

    @contextlib.asynccontextmanager
    async def _serving(self, context: Context) -> AsyncIterator[None]:
        """The port is open within the block; at its end the streams are closed, not awaited."""
        app = application(context, allowed_hosts(self._settings, context.port))

        async def end_streams(_app: web.Application) -> None:
            context.close()

        app.on_shutdown.append(end_streams)
        runner = web.AppRunner(
            app,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=IDLE_TIMEOUT,
            shutdown_timeout=SHUTDOWN_TIMEOUT,
        )
        await runner.setup()
        self._handle_signals()
        try:
            await web.SockSite(runner, self._listener).start()
            logger().info("listening", url=f"http://{self._settings.host}:{context.port}")
            yield
        finally:
            await runner.cleanup()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self._on_signal)

    def _on_signal(self) -> None:
        if self._stop.is_set():
            logger().warning("told to stop twice: ending at once")
            os._exit(1)
        logger().info("stopping: containers go on")
        self._stop.set()


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:  # `::` takes IPv4 too, whatever the system's default
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    # Inherited by every connection: without it a quiet stream's dead peer stays for 15 minutes.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAD_PEER * 1000))
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise OSError(
            error.errno, f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        ) from error
    listener.listen(1024)
    listener.setblocking(False)
    return listener


def _make_data_folder(settings: Settings) -> None:
    try:
        settings.spool.mkdir(parents=True, exist_ok=True)
        if not os.access(settings.spool, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise OSError(
            error.errno,
            f"{settings.data_dir} cannot be written ({error.strerror}): make it writable for "
            f"user {os.getuid()}, or choose another data_dir",
        ) from error


def _raise_file_limit() -> None:
    """A watcher is a file descriptor: allow as many as the system lets us."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _first_token(settings: Settings, tokens: Tokens) -> Token | None:
    """At the first start: a token for whoever may read the data folder."""
    token = next((token for token in await tokens.list() if token.name == FIRST_TOKEN), None)
    temporary = settings.admin_token.with_suffix(".new")
    if settings.admin_token.exists() or (token and not temporary.exists()):
        return None

    def publish(text: str) -> None:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    if token is None:  # else a crash came between the commit and the new name
        token, _ = await tokens.create(FIRST_TOKEN, Role.ADMIN, CLOCK.now(), publish=publish)
    temporary.rename(settings.admin_token)
    logger().info("first start: the admin token is stored", file=str(settings.admin_token))
    return token


def _show_first_link(context: Context, token: Token) -> None:
    """The one link that may stand in the log: whoever started the worker has no other way in."""
    code = context.codes.issue(Login(token, "/", None))
    own = base_url(context.settings.model_copy(update={"port": context.port}))
    url = login_url(context.settings, own, code)
    if sys.stdout.isatty():
        print(f"\nOpen this once, within 5 minutes:  {url}\n", flush=True)  # noqa: T201 # for a person
    else:
        logger().info("first start: open this once, within 5 minutes", url=url)


async def _remove_unowned_spool_files(settings: Settings, jobs: Jobs) -> None:
    """A crash leaves files that nobody will ask for: before a job's row, or after a setup's end."""
    files: dict[str, Path] = {}
    for path in await asyncio.to_thread(lambda: list(settings.spool.iterdir())):
        files[path.name.partition(".")[0]] = path
    for job_id in files.keys() - await jobs.needing_workspace(files):
        files[job_id].unlink(missing_ok=True)


async def _ids(jobs: Jobs) -> Callable[[], str]:
    """Makes ULIDs that only grow, also when the clock was set back since the last one."""
    newest = await jobs.newest_id()
    floor = ULID.from_str(newest).milliseconds + 1 if newest else 0

    def now() -> int:
        nonlocal floor
        floor = max(floor, int(CLOCK.now().timestamp() * 1000))
        return floor

    generator = ULIDGenerator(clock=now)
    return lambda: str(generator.generate())


class _Pool:
    """The runner pool as the web asks for it."""

    def __init__(self, controller: PoolController) -> None:
        self._controller = controller

    async def status(self) -> PoolReport:
        found = await self._controller.status()
        return PoolReport(
            wanted="down" if found.down else "up",
            entries=[PoolEntryModel(**asdict(entry)) for entry in found.entries],
            members=[_shown(member) for member in found.members],
        )

    async def turn(self, *, down: bool) -> PoolChange:
        buckets = await self._controller.turn(down=down)
        names = {name: list(buckets.get(Bucket(name), ())) for name in PoolChange.model_fields}
        return PoolChange(**names)

    def counts(self) -> Mapping[tuple[str, str], int]:
        found = self._controller.counts()
        wanted = {(name, "wanted"): size for name, size in self._controller.wanted.items()}
        return {**wanted, **{(name, state.value): count for (name, state), count in found.items()}}

    def environments(self) -> Mapping[tuple[str, str], int]:
        return self._controller.environments


def _shown(member: MemberStatus) -> PoolMember:
    return PoolMember(
        name=member.name,
        entry=member.entry,
        state=member.state.value,
        container_id=member.container,
        environment=member.environment,
        job=member.job,
        error=member.error,
        failures=member.failures,
        retry_at=member.retry_at,
    )


async def _reported(resync: Resync) -> ResyncReport:
    report = await resync.run()
    names = {bucket.value: list(report.buckets.get(bucket, ())) for bucket in Bucket}
    return ResyncReport(**names, repairs=report.repairs, seconds=round(report.seconds, 3))
