"""The composition root: builds every part, holds the one TaskGroup. Only this file knows all."""

import asyncio
import contextlib
import errno
import os
import resource
import shutil
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import uvloop
from aiohttp import web
from ulid import ULID, ULIDGenerator

from ciworker.cli.connection import base_url, listens_at
from ciworker.control.clock import SystemClock
from ciworker.control.controller import WORKERS, Controller
from ciworker.control.credentials import Credentials
from ciworker.control.deliveries import Deliverer
from ciworker.control.drain import Drain
from ciworker.control.environments import EnvironmentController
from ciworker.control.members import MemberStatus
from ciworker.control.parts import Parts
from ciworker.control.pool import PoolController
from ciworker.control.resync import Resync
from ciworker.control.retention import Retainer
from ciworker.control.statuses import Statuses
from ciworker.control.supervisor import Supervisor
from ciworker.control.webhooks import Webhooks
from ciworker.control.witness import Witness
from ciworker.control.workqueue import WorkQueue
from ciworker.domain.decide import Bucket
from ciworker.domain.webhook import DeliveryKind
from ciworker.engine.disks import Disks
from ciworker.engine.docker import DockerEngine
from ciworker.engine.events import EventWatch
from ciworker.engine.sandbox import write_hosts
from ciworker.errors import Expired
from ciworker.feed.feed import Feed, Signal
from ciworker.memory import give_back_periodically
from ciworker.metrics import EngineMetrics, Metrics
from ciworker.settings import Settings
from ciworker.source.secrets import Secrets
from ciworker.store.audit import Action, Audit, Deed
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
from ciworker.store.webhooks import Deliveries, Outbox, Tell
from ciworker.telemetry import configure, logger
from ciworker.web.access import allowed_hosts
from ciworker.web.application import application
from ciworker.web.context import Context
from ciworker.web.hooks import check_rules
from ciworker.web.listening import Site, listen, tls
from ciworker.web.models import (
    PoolChange,
    PoolEntryModel,
    PoolMember,
    PoolReport,
    ResyncReport,
)
from ciworker.web.sessions import Login, login_url
from ciworker.web.throttle import Meter, Proxies
from ciworker.web.tokenuse import TokenUses

CLOCK = SystemClock()
IDLE_TIMEOUT = 60.0  # seconds a connection may take to bring a whole header, first or next
SHUTDOWN_TIMEOUT = 0.5  # seconds, twice, for handlers to end, once their streams were told to
FIRST_TOKEN = "first admin"  # noqa: S105 # its name
DRAIN_TIMEOUT = 1.0  # seconds for what is known to be stored; of lines the engine has them too


def serve(settings: Settings) -> None:
    """Run the worker until SIGTERM or SIGINT; its containers go on.

    Raises:
        StoreRefused, StoreUnavailable: the store cannot be used.
        Invalid: a setting cannot be.
        SecretsRefused: the file of secrets cannot be used.
        OSError: the port is taken, or the data folder cannot be written.
        ValueError: the certificate cannot be used.
    """
    configure(settings.log_format)
    check_rules(settings)
    _raise_file_limit()
    secrets = Secrets(settings.secrets_file)
    _make_data_folder(settings)
    context = tls(settings)
    with (  # the lock first: whoever is refused it touches no socket of the one who has it
        StoreLock(settings.data_dir, _holder(settings)) as lock,
        contextlib.closing(listen(settings)) as listener,
    ):
        bound = settings if settings.unix_path else _at_port(settings, listener.getsockname()[1])
        if bound.port != settings.port:
            lock.describe(_holder(bound))
        uvloop.run(Worker(bound, listener, context, secrets).run())


@dataclass(frozen=True, slots=True)
class Store:
    """The database's sides, and the feed of what is committed there.

    outbound: fires when there is something to deliver.
    """

    jobs: Jobs
    environments: Environments
    logs: LogReader
    writer: LogWriter
    feed: Feed
    audit: Audit
    tokens: Tokens
    token_uses: TokenUses
    sessions: Sessions
    counter: Counter
    packer: Packer
    retention: Retention
    intent: PoolIntent
    outbound: Signal
    deliveries: Deliveries


def _store(database: Database, tell: Tell, hurry: Callable[[], None]) -> Store:
    """tell: what others are told of a change. hurry: called when they are to be told on demand."""
    logs, outbound = LogReader(database), Signal()
    feed, tokens = Feed(logs), Tokens(database)
    return Store(
        jobs=Jobs(database, on_change=feed.job_changed, outbox=Outbox(tell, outbound.fire)),
        environments=Environments(database),
        logs=logs,
        writer=LogWriter(database),
        feed=feed,
        audit=Audit(database),
        tokens=tokens,
        token_uses=TokenUses(tokens.used),
        sessions=Sessions(database),
        counter=Counter(database),
        packer=Packer(database),
        retention=Retention(database),
        intent=PoolIntent(database),
        outbound=outbound,
        deliveries=Deliveries(database, on_change=hurry),
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
    parts: Parts, store: Store, control: Control, deliverer: Deliverer
) -> Iterator[tuple[str, Coroutine[None, None, None]]]:
    """What runs as long as the worker does, by name."""
    yield "log writer", parts.writer.run()
    yield "engine events", control.events.run()
    yield "last event", control.witness.run()
    yield "resync", control.resync.run_periodically()
    yield "drain", control.drain.run()
    yield "deliveries", deliverer.run()
    yield "token uses", store.token_uses.run()
    yield "memory", give_back_periodically()
    yield "retention", Retainer(parts, store.retention, store.packer).run()
    for n in range(WORKERS):
        yield f"worker {n}", control.controller.run_worker()


async def _end(
    parts: Parts, uses: TokenUses, pool: PoolController, services: Sequence[asyncio.Task[None]]
) -> None:
    """Once nobody is served any more: lines that were read and uses of tokens are stored, the rest
    is let go."""
    await parts.supervisor.cancel_all()
    await asyncio.gather(parts.writer.drained(DRAIN_TIMEOUT), _stored(uses))
    parts.queue.close()
    for task in services:
        task.cancel()
    await pool.close()


async def _stored(uses: TokenUses) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_TIMEOUT):
            await uses.flush()


class Worker:
    """One running worker."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        secrets: Secrets,
    ) -> None:
        self._settings = settings
        self._listener = listener
        self._tls = tls
        self._secrets = secrets
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
        secret = self._secrets.text
        webhooks, statuses = Webhooks(self._settings, secret), Statuses(self._settings, secret)

        def hurry() -> None:
            deliverer.hurry()  # it is made below, from the store

        store = _store(
            database,
            lambda job, at: [*webhooks.tell(job, at), *statuses.tell(job, at)],
            hurry=hurry,
        )
        first = await _first_token(self._settings, store.tokens)
        await _remove_unowned_spool_files(self._settings, store.jobs)
        await asyncio.to_thread(shutil.rmtree, self._settings.fetches, ignore_errors=True)
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
                credentials=Credentials(self._settings, self._secrets),
                secret=secret,
                metrics=self._metrics.control,
            )
            pool = PoolController(parts, store.intent, down=await store.intent.is_down())
            control = _control(parts, pool, self._metrics.engine, witness, self._stop.set)
            deliverer = Deliverer(
                store.deliveries,
                {
                    DeliveryKind.WEBHOOK: webhooks.request,
                    DeliveryKind.STATUS: lambda one, _now: statuses.request(one, store.jobs),
                },
                parts.clock,
                store.outbound,
                self._metrics.deliveries,
            )
            services = [
                tasks.create_task(work, name=name)
                for name, work in _services(parts, store, control, deliverer)
            ]
            context = self._context(parts, store, control, engine)
            async with self._serving(context):
                if first is not None:
                    _show_first_link(context, first)
                await self._stop.wait()
                control.controller.accepting = False
            await _end(parts, store.token_uses, pool, services)

    def _context(
        self, parts: Parts, store: Store, control: Control, engine: DockerEngine
    ) -> Context:
        """What the handlers work with."""
        return Context(
            settings=parts.settings,
            port=parts.settings.port,
            now=parts.clock.now,
            jobs=store.jobs,
            environments=store.environments,
            logs=store.logs,
            audit=store.audit,
            tokens=store.tokens,
            token_uses=store.token_uses,
            sessions=store.sessions,
            proxies=Proxies(parts.settings.trusted_proxies),
            failures=Meter(parts.settings.failed_token_rate),
            submits=Meter(parts.settings.submit_rate),
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
            deliveries=store.deliveries,
            secret=parts.secret,
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
            await Site(runner, self._listener, self._tls).start()
            logger().info("listening", url=listens_at(self._settings))
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


def _holder(settings: Settings) -> str:
    """Who has the store, for others who want it."""
    return f"the worker on {listens_at(settings)}"


def _at_port(settings: Settings, port: int) -> Settings:
    """Port 0 is whichever was free."""
    return settings.model_copy(update={"port": port})


def _make_data_folder(settings: Settings) -> None:
    try:
        settings.spool.mkdir(parents=True, exist_ok=True)
        for file in settings.data_dir.glob(f"{settings.database.name}*"):
            file.chmod(0o600)  # restored, or made by an earlier version
        if not os.access(settings.spool, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise OSError(
            f"{settings.data_dir} cannot be written ({error.strerror}): make it writable for "
            f"user {os.getuid()}, or choose another data_dir"
        ) from error


def _raise_file_limit() -> None:
    """A watcher is a file descriptor: allow as many as the system lets us."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _first_token(settings: Settings, tokens: Tokens) -> Token | None:
    """A token for whoever may read the data folder, where its file has none that this store takes.

    So nobody who has the folder is locked out: not by a backup that is restored without the file,
    nor by a token that was revoked.

    Returns:
        It, at the first start alone.
    """
    path, temporary = settings.admin_token, settings.admin_token.with_suffix(".new")
    if await _opens(tokens, path):
        return None

    def publish(text: str) -> None:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())

    token = next((token for token in await tokens.list() if token.name == FIRST_TOKEN), None)
    is_first = token is None
    if token is None or not await _opens(tokens, temporary):
        now = CLOCK.now()
        deed = Deed(now, Action.CREATE_TOKEN, by="ciworker", address="local", detail=FIRST_TOKEN)
        token, _ = await tokens.create(FIRST_TOKEN, Role.ADMIN, now, deed=deed, publish=publish)
    temporary.rename(path)  # after a crash between the commit and this, at the next start
    logger().info("the admin token is stored", file=str(path))
    return token if is_first else None


async def _opens(tokens: Tokens, path: Path) -> bool:
    """Whether the file's text is an admin's token."""
    try:
        text = await asyncio.to_thread(path.read_text)
        token = await tokens.check(text.strip(), CLOCK.now())
    except (FileNotFoundError, UnicodeDecodeError, Expired):
        return False
    return token is not None and token.role is Role.ADMIN


def _show_first_link(context: Context, token: Token) -> None:
    """The one link that may stand in the log: whoever started the worker has no other way in."""
    if context.settings.unix_path and not context.settings.public_url:
        logger().info("first start: set public_url, then `ciworker token link` makes a login link")
        return
    code = context.codes.issue(Login(token, "/", None))
    url = login_url(context.settings, base_url(context.settings), code)
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
