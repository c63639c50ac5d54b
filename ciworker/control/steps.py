"""The steps that `decide` can ask for: each may be repeated after a crash at any point of it.

A step returns True when the job can be looked at again at once, False when an event, a timer or a
task of the job will bring its key back.
"""

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import replace
from datetime import timedelta

from ciworker.control.credentials import NOTHING, Grant
from ciworker.control.keys import DISPATCH, environment_key, job_key
from ciworker.control.launcher import Sender, container_bounds, container_spec, engine_log_size
from ciworker.control.life import Life
from ciworker.control.logpump import END_OF_STREAM_WAIT, LogLimits, LogPump
from ciworker.control.look import Look
from ciworker.control.members import Parked
from ciworker.control.needs import Needs
from ciworker.control.parts import Parts
from ciworker.control.pulls import Pulls
from ciworker.control.sources import Sources
from ciworker.domain.container import State, kept_of
from ciworker.domain.decide import Verb
from ciworker.domain.environment import SHOWN
from ciworker.domain.job import Cache, Job, Kind, Mark, Reason, Status, status_of
from ciworker.domain.limit import limit_sentences
from ciworker.domain.verdict import CONTAINER_LOST, ENGINE_RESTARTED, killed_sentence, verdict
from ciworker.engine.port import Attachment, Image
from ciworker.errors import (
    CiworkerError,
    ContainerMissing,
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    ImageMissing,
    NameTaken,
    StoreUnavailable,
    TryAgain,
)
from ciworker.source.archive import SpoolCorrupt
from ciworker.store.logs import LogEnd
from ciworker.telemetry import logger

REQUEUE_FIRST = 0.2
_LOST = (Reason.CONTAINER_LOST, Reason.ENGINE_RESTARTED, Reason.KILLED_OUTSIDE)
SETTLE = END_OF_STREAM_WAIT + 0.25  # a look waits so long for a log's rest, then lets others go on
CLOSE_WAIT = 5.0
KEPT_FOR_COMMIT = timedelta(hours=1)  # of a setup's container, should its image never be made
RETRY_PUMP = 1.0


class Steps:
    """Performs what was decided."""

    def __init__(
        self,
        parts: Parts,
        forget: Callable[[str], None],
        look_for_engine: Callable[[], Awaitable[None]],
    ) -> None:
        """Take the parts.

        Args:
            parts: of the worker.
            forget: called with the id of a job whose attempt is over.
            look_for_engine: come to tell of the engine what there is to tell, if it can be seen.
        """
        self._look_for_engine = look_for_engine
        self._settings, self._instance, self._clock = parts.settings, parts.instance, parts.clock
        self._engine, self._jobs, self._logs = parts.engine, parts.jobs, parts.logs
        self._writer, self._feed, self._queue = parts.writer, parts.feed, parts.queue
        self._supervisor, self._forget = parts.supervisor, forget
        self._tallies, self._credentials = parts.tallies, parts.credentials
        self._sender = Sender(parts.settings)
        self._bounds = container_bounds(parts.settings)
        self._pulls = Pulls(parts.engine, parts.supervisor, parts.settings.pull)
        self.needs = Needs(parts, self._pulls)
        self._sources = Sources(parts)
        self._log_limits = LogLimits(
            parts.settings.log_limit, engine_log_size(parts.settings) * 8 // 10
        )
        self._verbs: Mapping[Verb, Callable[[Look], Awaitable[bool]]] = {
            Verb.FETCH: self._sources.fetch,
            Verb.RESOLVE: self._resolve,
            Verb.WATCH_SETUP: self.needs.watch_setup,
            Verb.RELEASE: self.needs.release,
            Verb.LAUNCH: self._launch,
            Verb.START: self._start,
            Verb.WATCH: self._watch,
            Verb.LOOK_FOR_MARK: self._read_rest,
            Verb.ENTER_RUNNING: self._enter_running,
            Verb.REQUEUE: self._requeue,
            Verb.READ_OUTPUT: self._read_output,
            Verb.STOP: self._stop,
            Verb.KILL: self._kill,
            Verb.REMOVE: self._remove,
            Verb.CANCEL: self._cancel,
            Verb.FAIL: self._fail_as_decided,
            Verb.RECORD_VERDICT: self._record_verdict,
        }

    async def perform(self, look: Look) -> bool:
        """Do what `look.action` says."""
        return await self._verbs[look.action.verb](look)

    # queued

    async def _resolve(self, look: Look) -> bool:
        try:
            return await self.needs.resolve(look)
        except ImageMissing as error:
            return await self._fail(look, Reason.IMAGE_MISSING, str(error))

    # starting

    async def _launch(self, look: Look) -> bool:
        """Create the container of a job that is `starting`; START follows at once."""
        job = look.job
        try:
            image = await self._image(job)
            if image is None:
                return await self._wait_for_image(look)
            agent = self._credentials.agent(job)
            spec = container_spec(job, self._settings, self._instance, image, agent)
            look.life.untouched = False
            container_id = await self._engine.create(spec)
        except NameTaken:
            return True
        except ImageMissing as error:
            return await self._fail(look, Reason.IMAGE_MISSING, str(error))
        except EngineRefused as error:
            return await self._fail(look, Reason.START_REFUSED, _refused(job, error))
        except EngineFailed as error:
            return await self._start_failed(look, error)
        return await self._start_container(look, container_id)

    async def _image(self, job: Job) -> Image | None:
        if job.environment is not None:
            return await self.needs.image(job)
        return await self._pulls.image(job.id, job.spec.image, self._again(job))

    async def _wait_for_image(self, look: Look) -> bool:
        """It is being pulled; or it was an environment's, and the job waits for that anew."""
        job = look.job
        if job.environment is None:
            return False
        await self._jobs.move(
            job.id,
            look.expect,
            Status.QUEUED,
            self._clock.now(),
            message=f"the image of its environment {job.environment[:SHOWN]} is gone",
            waits=True,
            build=None,
        )
        self._forget(job.id)
        self._queue.add(environment_key(job.environment))
        self._queue.add(DISPATCH)
        return True

    async def _start(self, look: Look) -> bool:
        return await self._start_container(look, look.found.id)

    async def _start_container(self, look: Look, container: str) -> bool:
        job, life = look.job, look.life
        await self._let_go(life)
        life.grant = await self._credentials.grant(job)
        try:
            pump = await self._new_pump(job, container, life.grant)
            attachment = await self._engine.attach(container)
            self._run_pump(job, life, pump, attachment)
            await self._begin(job, container, life.grant)
        except ContainerMissing as error:
            await self._let_go(life)
            raise EngineUnavailable(f"the container went away while it started: {error}") from error
        except EngineFailed as error:
            return await self._start_failed(look, error)
        except EngineRefused as error:
            return await self._fail(look, Reason.START_REFUSED, _refused(job, error))
        except TryAgain:
            await self._let_go(life)  # if it did start, it ends by itself: nothing was sent
            raise
        self._start_sender(job, life, attachment)
        return False

    def _start_sender(self, job: Job, life: Life, attachment: Attachment) -> None:
        life.transfer_deadline = self._clock.monotonic() + self._settings.transfer_timeout
        life.sender = self._supervisor.spawn(
            self._send(job, life, attachment), name=f"send {job.id}"
        )

    async def take(
        self, job: Job, life: Life, parked: Parked, commit: Coroutine[None, None, Job | None]
    ) -> Job | None:
        """Have a parked container run the job: with both the commit and its new name, and only
        then, the archive goes out on the attachment that is open already.

        Args:
            job: with the attempt that begins; queued.
            life: of that attempt; `taking`, so that no look comes between, with its grant.
            parked: taken from the pool.
            commit: makes the job `starting`, and stores the container's id and `sent_at`. The job
                that came of it is returned.

        Raises:
            StoreUnavailable: it is not known whether that is committed; nothing was sent.
        """
        committed, renamed, end = await asyncio.gather(
            commit,
            self._engine.rename(parked.container, job.container_name),
            self._logs.end(job.id),
            return_exceptions=True,
        )
        life.taking = False
        if (
            isinstance(committed, Job)
            and not committed.cancel_asked
            and renamed is None
            and isinstance(end, LogEnd)
        ):
            self._run_taken(committed, life, parked, end)
            return committed
        life.unsent = True
        await self._abandon(parked, keep=committed is not None)
        self._queue.add(job_key(job.id))
        if isinstance(committed, BaseException):
            self._forget(job.id)
            raise committed
        for error in (renamed, end):
            if isinstance(error, CiworkerError):
                logger().warning("a parked container could not be taken", error=str(error))
            elif isinstance(error, BaseException):
                raise error
        return committed

    def _run_taken(self, job: Job, life: Life, parked: Parked, end: LogEnd) -> None:
        pump = self._made_pump(job, parked.container, end, life.grant or NOTHING)
        self._run_pump(job, life, pump, parked.attachment)
        self._start_sender(job, life, parked.attachment)
        delay = 0.0 if life.missed else self._settings.transfer_timeout
        self._queue.add_after(job_key(job.id), delay)

    async def _abandon(self, parked: Parked, *, keep: bool) -> None:
        """It was sent nothing and ends by itself. keep: it may be known to the store."""
        await parked.attachment.close()
        if not keep:
            with contextlib.suppress(CiworkerError):  # else the resync finds it
                await self._engine.remove(parked.container)

    async def _begin(self, job: Job, container: str, grant: Grant) -> None:
        """Start it, and meanwhile commit that it is sent to, and what: before anything is."""
        noted, started = await asyncio.gather(
            self._jobs.note_quietly(
                job.id,
                sent_at=self._clock.now(),
                container_id=container,
                granted=dict(grant.fingerprints),
            ),
            self._engine.start(container),
            return_exceptions=True,
        )
        for error in (started, noted):
            if isinstance(error, BaseException):
                raise error

    async def _send(self, job: Job, life: Life, attachment: Attachment) -> None:
        try:
            spool = self._settings.spool_file(job.id)
            await self._sender.send(job, attachment, spool, (life.grant or NOTHING).values)
        except SpoolCorrupt as error:
            life.workspace_error = str(error)
            self._queue.add(job_key(job.id))

    async def _start_failed(self, look: Look, error: EngineFailed) -> bool:
        """The engine answered with an error of its own: tried again, not for ever."""
        look.life.start_failures += 1
        failures, most = look.life.start_failures, self._settings.start_attempts
        if failures >= most:
            # One killed in mid start leaves a container that none can start (20.10.24), and may
            # refuse it before its restart is told.
            await self._look_for_engine()
            job = await self._jobs.current(look.job.id)
            if job is not None and job.engine_restarted_at is not None:
                return await self._fail(look, Reason.ENGINE_RESTARTED, ENGINE_RESTARTED)
            return await self._fail(look, Reason.START_REFUSED, _refused(look.job, error))
        await self._jobs.note(
            look.job.id,
            self._clock.now(),
            f"start {failures} of {most} of attempt {look.job.attempt} failed and is tried again: "
            f"{error}",
        )
        raise error

    async def _pump(self, look: Look) -> LogPump:
        """The pump at work, else a new one on the engine's log."""
        life = look.life
        if life.pump is None:
            life.grant = life.grant or await self._credentials.granted(look.job)
            pump = await self._new_pump(look.job, look.found.id, life.grant)
            self._run_pump(look.job, life, pump, None)
            return pump
        return life.pump

    async def _new_pump(self, job: Job, container: str, grant: Grant) -> LogPump:
        return self._made_pump(job, container, await self._logs.end(job.id), grant)

    def _made_pump(self, job: Job, container: str, end: LogEnd, grant: Grant) -> LogPump:
        return LogPump(
            job,
            container,
            engine=self._engine,
            writer=self._writer,
            topic=self._feed.topic(job.id),
            end=end,
            limits=self._log_limits,
            on_progress=self._again(job),
            grant=grant,
        )

    def _run_pump(self, job: Job, life: Life, pump: LogPump, attachment: Attachment | None) -> None:
        life.pump = pump
        life.pump_task = self._supervisor.spawn(
            pump.run(attachment),
            name=f"pump {job.id}",
            on_error=lambda: self._replace(job, life, pump),
        )

    def _replace(self, job: Job, life: Life, pump: LogPump) -> None:
        """A pump failed: another one goes on from what is stored, once that is all."""

        async def replace() -> None:
            await pump.abandoned()
            if life.pump is pump:
                life.pump = None
            self._queue.add_after(job_key(job.id), RETRY_PUMP)

        self._supervisor.spawn(replace(), name=f"replace the pump of {job.id}")

    async def _watch(self, look: Look) -> bool:
        pump = await self._pump(look)
        pump.container_up()
        return False

    async def _enter_running(self, look: Look) -> bool:
        pump, now, monotonic = look.life.pump, self._clock.now(), self._clock.monotonic()
        assert pump is not None
        if pump.marked_at is not None:
            now -= timedelta(seconds=monotonic - pump.marked_at)
            monotonic = pump.marked_at
        moved = await self._jobs.move(
            look.job.id,
            look.expect,
            Status.RUNNING,
            now,
            started_at=now,
            deadline_at=now + timedelta(seconds=look.job.spec.timeout),
            container_id=look.container.id if look.container else None,
            container=kept_of(look.container, None),
        )
        if moved is None:
            return False
        look.life.deadline = monotonic + look.job.spec.timeout
        return True

    async def _requeue(self, look: Look) -> bool:
        await self._close_log(look)
        job, now = look.job, self._clock.now()
        delay = REQUEUE_FIRST * 2**job.attempt
        await self._jobs.move(
            job.id,
            look.expect,
            Status.QUEUED,
            now,
            message=f"attempt {job.attempt} of {self._settings.start_attempts} never began and is "
            f"tried again: {_why_unsent(look)}",
            not_before=now + timedelta(seconds=delay),
        )
        self._tallies.requeued(job.id)
        self._forget(job.id)
        self._queue.add(DISPATCH)
        return True

    # running

    async def _read_output(self, look: Look) -> bool:
        if look.found.state.down:
            return await self._read_rest(look)
        return await self._watch(look)

    async def _read_rest(self, look: Look) -> bool:
        """The container is down: wait a little for the rest of its log, else come back."""
        pump = await self._pump(look)
        pump.container_down(look.container)
        return await pump.completed(SETTLE)

    async def _stop(self, look: Look) -> bool:
        """Noted before it is sent; TERM to every process, and after the grace KILL."""
        job, life, container = look.job, look.life, look.found
        assert look.action.reason is not None
        now, monotonic = self._clock.now(), self._clock.monotonic()
        if job.stop is None:
            noted = await self._jobs.note(
                job.id,
                now,
                f"stopping: {look.action.reason}",
                reason=look.action.reason,
                stop_cause=look.action.reason,
                stop_at=now,
                stop_by=job.cancel_by,
            )
            if noted is None:
                return True
            life.kill_at = monotonic + self._settings.stop_grace
        assert life.kill_at is not None
        if monotonic >= life.kill_at:
            await self._kill(look)
            life.kill_at = monotonic + self._settings.stop_grace
        elif not life.terminated:
            await self._engine.signal(container.id, signal.SIGTERM)
            life.terminated = True
        return await self._watch(look)

    async def _kill(self, look: Look) -> bool:
        life = look.life
        life.ours = True
        if look.job.status is Status.STARTING and look.job.stop is None:
            now = self._clock.now()
            await self._jobs.note(
                look.job.id,
                now,
                "stopping: the workspace did not arrive within transfer_timeout",
                stop_cause=Reason.TRANSFER_FAILED,
                stop_at=now,
            )
        await self._engine.signal(look.found.id, signal.SIGKILL)
        if life.transfer_deadline is not None:  # no container is killed twice within the grace
            life.transfer_deadline = self._clock.monotonic() + self._settings.stop_grace
        return False

    async def _record_verdict(self, look: Look) -> bool:
        met = look.life.pump.limits if look.life.pump else ()
        limits = limit_sentences(met, self._bounds)
        found = verdict(look.job, look.found, unseen=look.life.unseen, limits=limits)
        return await self._end(look, found.reason, found.message, exit_code=found.exit_code)

    # the end

    async def _fail_as_decided(self, look: Look) -> bool:
        assert look.action.reason is not None
        if look.action.reason is Reason.SETUP_FAILED:
            message, exit_code = await self.needs.failure(look.job)
            return await self._end(look, Reason.SETUP_FAILED, message, exit_code=exit_code)
        return await self._fail(look, look.action.reason, _why_failed(look))

    async def _fail(self, look: Look, reason: Reason, message: str) -> bool:
        return await self._end(look, reason, message)

    async def _cancel(self, look: Look) -> bool:
        if look.container is not None:
            await self._engine.remove(look.container.id)
            look.container = replace(look.container, state=State.REMOVING)
        by = look.job.cancel_by or "the operator"
        began = "" if look.job.sent_at else " before it began"
        return await self._end(look, Reason.CANCELLED, f"cancelled by {by}{began}")

    async def _end(
        self, look: Look, reason: Reason, message: str, *, exit_code: int | None = None
    ) -> bool:
        """Record the end, after the last line: no line is ever stored behind it."""
        await self._close_log(look)
        now = self._clock.now()
        moved = await self._jobs.move(
            look.job.id,
            look.expect,
            status_of(reason),
            now,
            reason=reason,
            message=message,
            exit_code=exit_code,
            container=kept_of(look.container, look.job.container),
            log_complete=True,
            log_incomplete=_incomplete(look, reason),
            keep_until=now + KEPT_FOR_COMMIT if _has_result(look.job, reason) else None,
            waits=False,
        )
        if moved is not None:
            self._tallies.ended(look.job, reason)
            self._pulls.forget(look.job.id)
            logger().info("job ended", job=look.job.id, reason=reason, message=message)
            self._forget(look.job.id)
            self._queue.add(DISPATCH)
            if look.job.environment is not None and _concerns_environment(look.job):
                self._queue.add(environment_key(look.job.environment))
            if look.job.kind is Kind.SETUP or moved.unfetched:  # it is never retried, or half
                self._settings.spool_file(look.job.id).unlink(missing_ok=True)
        return True

    async def _close_log(self, look: Look) -> None:
        """What was read is stored and shown, and nothing more is read."""
        life = look.life
        await self._sources.let_go(look)
        await self.needs.let_go(life)
        if life.pump is not None and not life.pump.complete:
            life.pump.container_down(look.container)
            if look.job.status is Status.STARTING or not await life.pump.completed(CLOSE_WAIT):
                await _cancelled(life.pump_task)
                life.pump.give_up()
                if not await life.pump.completed(CLOSE_WAIT):
                    raise StoreUnavailable("lines of the job wait for the store")
        await self._end_tasks(life)

    async def _let_go(self, life: Life) -> None:
        """End what an earlier start of this container began; the next look begins anew."""
        await self._end_tasks(life)
        life.pump = life.pump_task = life.sender = None

    async def _end_tasks(self, life: Life) -> None:
        await _cancelled(life.sender)
        await _cancelled(life.pump_task)

    async def _remove(self, look: Look) -> bool:
        job = look.job
        look.removed = await self._engine.remove(look.found.id)
        if job.status is Status.QUEUED:
            self._queue.add(DISPATCH)
        if job.spec.cache is Cache.OFF and job.environment is not None:
            self._queue.add(environment_key(job.environment))  # its image can go only now
        return False

    def _again(self, job: Job) -> Callable[[], None]:
        return lambda: self._queue.add(job_key(job.id))


def _has_result(job: Job, reason: Reason) -> bool:
    """Whether the container is kept, because an image is to be made from it."""
    return job.kind is Kind.SETUP and reason is Reason.PASSED


def _concerns_environment(job: Job) -> bool:
    """Whether the end of this job decides about its environment, or leaves it without a user."""
    return job.kind is Kind.SETUP or job.waits or job.spec.cache is Cache.OFF


def _incomplete(look: Look, reason: Reason) -> bool:
    """Whether lines of the job may be missing; of one that never began none are.

    An engine that crashes loses what it had read and not yet written, also with live-restore.
    """
    pump = look.life.pump
    if look.job.engine_restarted:
        return True
    if look.job.status is Status.RUNNING or (pump is not None and pump.mark is Mark.SEEN):
        return pump is None or pump.incomplete
    return reason in _LOST


def _refused(job: Job, error: CiworkerError) -> str:
    return f"the engine could not start a container of {job.spec.image!r}: {error}"


def _why_unsent(look: Look) -> str:
    pump, container = look.life.pump, look.container
    said = pump.preamble.decode(errors="replace").strip() if pump else ""
    code = container.exit_code if container else None
    return said[:1000] or (f"the container ended with exit code {code}")


def _why_failed(look: Look) -> str:
    match look.action.reason:
        case Reason.KILLED_OUTSIDE:
            return killed_sentence(look.job.kills[-1] if look.job.kills else None)
        case Reason.ENGINE_RESTARTED:
            return ENGINE_RESTARTED
        case Reason.SOURCE_FAILED:
            return str(look.life.source_error)
        case Reason.WORKSPACE_INVALID:
            return f"{look.life.workspace_error}: submit it again"
        case Reason.TRANSFER_FAILED:
            return (
                f"the workspace could not be brought into the container in {look.job.attempt} "
                f"attempts: {_why_unsent(look)}"
            )
        case _:
            return CONTAINER_LOST


async def _cancelled(task: asyncio.Task[None] | None) -> None:
    if task is not None and task is not asyncio.current_task():
        task.cancel()
        await asyncio.wait([task])
