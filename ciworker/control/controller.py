"""The one reconcile path: take a key, look afresh, decide, act, until nothing is left to do.

Events, API calls, timers and the resync only put keys on the queue; nothing else changes a job.
"""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from datetime import datetime

import structlog

from ciworker.control.credentials import NOTHING, Grant
from ciworker.control.environments import EnvironmentController
from ciworker.control.keys import DISPATCH, Key, Kind, environment_key, job_key
from ciworker.control.life import Life, Patience, arm, facts_of, next_look
from ciworker.control.look import Look, Outcome
from ciworker.control.members import Parked
from ciworker.control.parts import Parts
from ciworker.control.pool import PoolController
from ciworker.control.steps import Steps
from ciworker.domain.container import KIND_POOL, Container
from ciworker.domain.decide import Action, Bucket, Verb, admit, decide
from ciworker.domain.job import Job, Reason, Status
from ciworker.domain.job import Kind as JobKind
from ciworker.domain.pool import PREFIX
from ciworker.domain.secrets import AGENT
from ciworker.engine.port import Event
from ciworker.errors import CiworkerError, StoreUnavailable
from ciworker.store.jobs import Expect
from ciworker.telemetry import logger
from ciworker.units import format_size

WORKERS = 16  # as many again as jobs need: starting parked containers takes them up for long
MOST_STEPS = 20
RETRY_FIRST = 0.2
RETRY_MOST = 30.0
REMEMBERED = 1024  # jobs whose last event's or removal's time is kept
_EXITS = ("die", "destroy")
_SUBJECTS = {
    Kind.JOB: "job",
    Kind.STRAY: "container",
    Kind.ENVIRONMENT: "environment",
    Kind.POOL: "container",
}


class Controller:
    """Makes jobs and containers agree."""

    def __init__(
        self,
        parts: Parts,
        environments: EnvironmentController,
        pool: PoolController,
        *,
        look_for_engine: Callable[[], Awaitable[None]],
    ) -> None:
        """Take the parts.

        Args:
            parts: of the worker.
            environments: reconciles theirs.
            pool: likewise, and gives its members to jobs.
            look_for_engine: come to tell of the engine what there is to tell, if it can be seen.
        """
        settings, self._environments, self._pool = parts.settings, environments, pool
        self._settings, self._clock = settings, parts.clock
        self._engine, self._jobs, self._queue = parts.engine, parts.jobs, parts.queue
        self._metrics, self._tallies = parts.metrics, parts.tallies
        self._credentials = parts.credentials
        self._steps = Steps(parts, self._forget, look_for_engine)
        self._patience = Patience(
            settings.transfer_timeout,
            settings.stop_grace,
            settings.start_attempts,
            settings.no_output_timeout,
        )
        self._lives: dict[str, Life] = {}
        self._failures: dict[Key, int] = {}
        self._last_heard: dict[str, float] = {}
        self._look_for_engine = look_for_engine
        self._engine_in_sight = False
        self._told_since: datetime | None = None  # in this life of the worker and of the engine
        self._removed: dict[str, float] = {}  # when containers were whose end is not told yet
        self._saw_engine = False  # in this life of the worker
        self.accepting = True

    # what others call

    def notify(self, job_id: str) -> None:
        """Something about this job may have changed."""
        self._queue.add(job_key(job_id))
        self._queue.add(DISPATCH)

    def on_event(self, event: Event) -> None:
        """An engine's event: note what no inspect tells later, and queue the key."""
        if event.member:
            _remember(self._last_heard, event.member, self._clock.monotonic())
            self._pool.on_event(event)
            return
        _remember(self._last_heard, event.job, self._clock.monotonic())
        if event.action == "destroy":
            self._removed.pop(event.job, None)
        life = self._lives.setdefault(event.job, Life(event.attempt))
        if life.attempt == event.attempt:
            life.heard.add(event.action)
            if event.action == "kill":
                life.kills.append(event.signal or int(signal.SIGKILL))
            life.oom = life.oom or event.action == "oom"
            if event.action in _EXITS:
                self._tallies.exit_heard(event.job)
        self._queue.add(job_key(event.job))

    async def on_engine_restarted(self) -> None:
        """The engine forgot its events: note it with every job that it may have cost."""
        self._told_since = None
        self._removed.clear()
        for job_id in await self._jobs.active():
            now = self._clock.now()
            noted = await self._jobs.note(
                job_id, now, "the Docker engine restarted", engine_restarted_at=now
            )
            if noted is not None and not self._saw_engine:
                self._life(noted).unseen = True

    def on_engine_in_sight(self, seen: bool) -> None:
        """Whether a restart of the engine would be known by now."""
        self._engine_in_sight = seen
        self._saw_engine = self._saw_engine or seen
        if seen and self._told_since is None:
            self._told_since = self._clock.now()

    def heard_of(self, job_id: str, since: float) -> bool:
        """Whether an event told of this job, or member of the pool, at `since` (monotonic seconds)
        or later.
        """
        return self._last_heard.get(job_id, since - 1) >= since

    def would_be_told(self, at: datetime) -> bool:
        """Whether events were told at that time: not before this start of worker and engine."""
        return self._told_since is not None and self._told_since <= at

    def passed_over(self, before: float) -> bool:
        """Whether no event told of a container that we removed before that (monotonic seconds).

        A removal gives an event: without one the stream is silent. Each is asked about once.
        """
        due = [job_id for job_id, at in self._removed.items() if at <= before]
        for job_id in due:
            del self._removed[job_id]
        return bool(due)

    async def run_worker(self) -> None:
        """Take, reconcile, forget or retry; for ever. Several run side by side."""
        while True:
            key = await self._queue.get()
            outcomes: list[Outcome] = []
            try:
                with structlog.contextvars.bound_contextvars(**_subject(key)):
                    await self._reconcile_or_retry(key, outcomes)
            finally:
                self._queue.done(key, outcomes)

    async def _reconcile_or_retry(self, key: Key, outcomes: list[Outcome]) -> None:
        try:
            await self._reconcile(key, outcomes)
            self._failures.pop(key, None)
        except CiworkerError as error:
            self._retry(key, error)
        except Exception:  # noqa: BLE001 # the controller outlives any one job's trouble
            logger().exception("a look failed")
            self._retry(key, None)

    def _retry(self, key: Key, error: CiworkerError | None) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        delay = min(RETRY_FIRST * 2 ** min(failures - 1, 10), RETRY_MOST)
        logger().warning("a look is tried again", error=str(error), retry_in=delay)
        self._queue.add_after(key, delay)

    async def _reconcile(self, key: Key, outcomes: list[Outcome]) -> None:
        if key.kind is Kind.DISPATCH:
            await self._dispatch(outcomes)
        elif key.kind is Kind.ENVIRONMENT:
            await self._environments.reconcile(key.id, outcomes)
        elif key.kind is Kind.POOL:
            await self._pool.reconcile(key.id, outcomes)
        elif key.kind is Kind.STRAY:
            await self._reconcile_stray(key.id, outcomes)
        else:
            await self._reconcile_job(key.id, outcomes)

    # jobs

    async def _reconcile_job(self, job_id: str, outcomes: list[Outcome]) -> None:
        look: Look | None = None
        for _ in range(MOST_STEPS):
            in_sight = self._engine_in_sight  # before the job is read: a restart is noted there
            job = await self._jobs.current(job_id)
            if job is None:
                self._forget(job_id)
                await self._remove_all_of(job_id, outcomes)
                return
            if self._is_being_taken(job):
                return
            look = await self._look(job, look)
            if not await self._is_its_own_end(look, in_sight):
                self._queue.add_after(job_key(job_id), RETRY_FIRST)
                return
            if not await self._step(look, outcomes):
                self._set_timer(look)
                return
        logger().error("a job does not come to rest", steps=MOST_STEPS)
        self._queue.add_after(job_key(job_id), 1.0)

    def _is_being_taken(self, job: Job) -> bool:
        """Whether it takes a parked container right now: who does that has it looked at again."""
        life = self._lives.get(job.id)
        if life is None or not life.taking:
            return False
        life.missed = True
        return True

    async def _look(self, job: Job, before: Look | None) -> Look:
        life = self._life(job)
        job = await self._note_events(job, life)
        job = await self._note_missing_lines(job, life)
        container = await self._container(job, life, before)
        job = await self._note_unsent(job, life)
        now, monotonic = self._clock.now(), self._clock.monotonic()
        arm(job, life, container, self._patience, now=now, monotonic=monotonic)
        down = container is None or container.state.down
        if life.sender is not None and down:
            life.sender.cancel()
        return Look(job, life, container, need=await self._steps.needs.need(job, life))

    async def _is_its_own_end(self, look: Look, in_sight: bool) -> bool:
        """False as long as the engine may have ended it, or lost some of its log, and will say so.

        An engine that stops ends its containers while it still answers on open connections, and
        one that boots after a crash before it answers; that it did is told by `on_restarted`.

        in_sight: whether the engine was when the look began.
        """
        if not look.ended_unasked:
            return True
        if look.may_be_ended_by_engine or not self._saw_engine:
            if self._engine_in_sight:
                await self._engine.ping()
            return self._engine_in_sight
        if in_sight:
            return True
        await self._engine.ping()
        await self._look_for_engine()
        return not self._engine_in_sight

    async def _container(self, job: Job, life: Life, before: Look | None) -> Container | None:
        """Ask the engine, but where the answer cannot have changed."""
        if job.attempt == 0 or life.untouched:
            return None
        if before is not None and before.only_read_the_end:
            return before.container
        found = await self._engine.inspect(job.container_name)
        if found is None and job.status is Status.STARTING and job.container_id is not None:
            life.unsent = life.unsent or await self._was_never_renamed(job, job.container_id)
        return found

    async def _was_never_renamed(self, job: Job, container: str) -> bool:
        """Whether what it took from the pool is another's name, or the pool's, still.

        Then a crash came before the new name, and nothing was sent.
        """
        found = await self._engine.inspect(container)
        if found is None or found.kind != KIND_POOL:
            return False
        return found.name.startswith(PREFIX) or found.job not in ("", job.id)

    async def _note_unsent(self, job: Job, life: Life) -> Job:
        """Without `sent_at` it is started anew."""
        if not life.unsent:
            return job
        if job.status is Status.STARTING:
            said = (
                f"attempt {job.attempt} goes on with a new container: the parked one that it took "
                "was lost before anything was sent to it"
            )
            now = self._clock.now()
            noted = await self._jobs.note(job.id, now, said, sent_at=None, container_id=None)
            job = noted or job
        life.unsent = False
        return job

    async def _step(self, look: Look, outcomes: list[Outcome]) -> bool:
        """Decide and act once. True when there may be more to do at once."""
        if look.life.workspace_error is not None and look.job.status is Status.STARTING:
            action = Action(Verb.FAIL, Bucket.FAILED, Reason.WORKSPACE_INVALID)
        else:
            now, monotonic = self._clock.now(), self._clock.monotonic()
            facts = facts_of(look.job, look.life, self._patience, monotonic, look.need)
            action = decide(facts, look.container, now, admitted=False)
        look.action = action
        if action.verb is Verb.NOTHING:
            outcomes.append(look.outcome())
            if look.job.status is Status.QUEUED and look.container is None:
                self._queue.add(DISPATCH)  # a leftover was in its way
            return False
        if action.verb is Verb.REMOVE:
            _remember(self._removed, look.job.id, self._clock.monotonic())
        again = await self._steps.perform(look)
        if action.verb is Verb.REMOVE and not look.removed:
            self._removed.pop(look.job.id, None)
        outcomes.append(look.outcome())
        return again

    def _life(self, job: Job) -> Life:
        if job.status.terminal:
            self._tallies.settled(job.id)
            return self._lives.pop(job.id, None) or Life(job.attempt)
        life = self._lives.get(job.id)
        if life is None or life.attempt != job.attempt:
            life = self._lives[job.id] = Life(job.attempt)
        return life

    def _forget(self, job_id: str) -> None:
        self._lives.pop(job_id, None)
        self._pool.give_back(job_id)

    async def _note_events(self, job: Job, life: Life) -> Job:
        """A `kill` or `oom` is in the history before anything is decided from it."""
        if job.status.terminal or job.stop is not None or life.ours:
            life.kills.clear()  # told of signals that we sent
        kills, oom = tuple(life.kills), life.oom and not job.oom
        if not kills and not oom:
            return job
        told = [f"the engine told of signal {signum} from outside" for signum in kills]
        told += ["the engine told of a process killed for want of memory"] if oom else []
        noted = await self._jobs.note(
            job.id,
            self._clock.now(),
            "; ".join(told),
            kills=[*job.kills, *kills],
            oom=job.oom or oom,
        )
        del life.kills[: len(kills)]  # not before: the store may have been unavailable
        return noted or job

    async def _note_missing_lines(self, job: Job, life: Life) -> Job:
        """Likewise that lines may be missing: the engine's log does not tell the next worker."""
        pump = life.pump
        known = job.log_incomplete or pump is None or not pump.incomplete
        if known or job.status is not Status.RUNNING:
            return job
        await self._jobs.note_quietly(job.id, log_incomplete=True)
        return replace(job, log_incomplete=True)

    def _set_timer(self, look: Look) -> None:
        key = job_key(look.job.id)
        due = next_look(look.job, look.life, self._patience)
        if due is None:
            self._queue.forget_timer(key)
        else:
            left = due - self._clock.monotonic()
            self._queue.add_after(key, left if left > 0 else RETRY_FIRST)  # past: never a hot loop

    # starting

    async def _dispatch(self, outcomes: list[Outcome]) -> None:
        """Admit the heads of both queues as long as there is room; the commit is the admission.

        Setups come first. One that waits for memory is not overtaken by jobs, for ever.
        """
        async with self._pool.counting:
            self._pool.awaited = 0
            for kind in (JobKind.SETUP, JobKind.JOB):
                if not await self._admit_all(kind, outcomes):
                    return
        self._pool.wake_waiting()
        backoff = await self._jobs.next_backoff()
        if backoff is not None:
            left = (backoff - self._clock.now()).total_seconds()
            self._queue.add_after(DISPATCH, max(left, RETRY_FIRST))

    async def _admit_all(self, kind: JobKind, outcomes: list[Outcome]) -> bool:
        """Admit from one queue; whether what is left of the machine may go to another one."""
        while self.accepting and (head := await self._jobs.queue_head(self._clock.now(), kind)):
            if head.spec.memory > self._settings.max_memory:
                await self._refuse(head)
                continue
            (image, grant), (slots, memory) = await asyncio.gather(
                self._wanted_of_pool(head), self._free(kind)
            )
            container = await self._engine.inspect(head.container_name) if head.attempt else None
            member = self._pool.find(image, head.spec) if image else None
            given_back = member.entry.memory if member else 0
            if not admit(head.spec.memory, slots, memory + given_back):
                if slots > 0 and await self._pool.make_room(head.spec.memory - memory):
                    continue
                self._pool.awaited = head.spec.memory if slots > 0 else 0
                return slots <= 0
            facts = facts_of(head, Life(head.attempt), self._patience, self._clock.monotonic())
            action = decide(facts, container, self._clock.now(), admitted=True)
            if action.verb is not Verb.LAUNCH:
                self._queue.add(job_key(head.id))
                return False
            parked = await self._pool.take(member, head) if member else None
            if await self._admit(head, parked, grant if parked else NOTHING):
                outcomes.append(Look(head, Life(head.attempt), None, action).outcome())
        return True

    async def _wanted_of_pool(self, head: Job) -> tuple[str | None, Grant]:
        """The id of the image that a parked container has to have for this job, and what it gets.

        A job that cannot be given its secrets starts cold: it waits for them where it holds up no
        other one.
        """
        image = await self._image_to_park(head)
        if image is None:
            return None, NOTHING
        try:
            return image, await self._credentials.grant(head)
        except StoreUnavailable as error:
            logger().warning("a job starts cold", job=head.id, error=str(error))
            return None, NOTHING

    async def _image_to_park(self, head: Job) -> str | None:
        """The id of the image that a parked container has to have; None where none would do.

        None has the socket of an agent: what is mounted is fixed when it is created.
        """
        parkable = head.kind is JobKind.JOB and AGENT not in head.spec.secrets
        fits = parkable and self._pool.could_fit(network=head.spec.network)
        return await self._steps.needs.image_id(head) if fits else None

    async def _free(self, kind: JobKind) -> tuple[int, int]:
        """Slots for jobs of this kind, and bytes of memory, that are not taken."""
        slots = self._settings.max_jobs if kind is JobKind.JOB else self._settings.max_setups
        held = await self._jobs.held()
        taken = sum(of is kind for of, _ in held)
        promised = sum(memory for _, memory in held) + self._pool.promised
        return slots - taken, self._settings.max_memory - promised

    async def _refuse(self, head: Job) -> None:
        """Nothing behind a job that can never start would start either."""
        refused = await self._jobs.move(
            head.id,
            Expect(Status.QUEUED, head.attempt),
            Status.FAILED,
            self._clock.now(),
            reason=Reason.START_REFUSED,
            message=f"its memory of {format_size(head.spec.memory)} is more than the worker's "
            f"max_memory of {format_size(self._settings.max_memory)}: ask for less",
            log_complete=True,
        )
        if refused is not None:
            self._tallies.ended(head, Reason.START_REFUSED)
        self._queue.add(job_key(head.id))
        if head.environment is not None:
            self._queue.add(environment_key(head.environment))

    async def _admit(self, head: Job, parked: Parked | None, grant: Grant) -> bool:
        # Before the commit: from then on another worker may look at the job.
        life = Life(head.attempt + 1, untouched=parked is None, taking=parked is not None)
        self._lives[head.id], now = life, self._clock.now()
        commit = self._commit_starting(head, now, parked, grant)
        life.grant = grant if parked else None
        if parked is None:
            moved = await commit
            self._queue.add(job_key(head.id))
        else:
            moved = await self._steps.take(
                replace(head, attempt=life.attempt), life, parked, commit
            )
        if moved is not None:
            self._tallies.admitted(head, now)
            self._pool.tally(head)
        elif self._lives.get(head.id) is life:
            self._forget(head.id)
        return moved is not None

    async def _commit_starting(
        self, head: Job, now: datetime, parked: Parked | None, grant: Grant
    ) -> Job | None:
        return await self._jobs.move(
            head.id,
            Expect(Status.QUEUED, head.attempt),
            Status.STARTING,
            now,
            attempt=head.attempt + 1,
            starting_at=now,
            not_before=None,
            sent_at=now if parked else None,
            container_id=parked.container if parked else None,
            granted=dict(grant.fingerprints),
            kills=[],
            oom=False,
            engine_restarted_at=None,
            stop_cause=None,
            stop_at=None,
            stop_by=None,
        )

    # containers without a job

    async def _reconcile_stray(self, container_id: str, outcomes: list[Outcome]) -> None:
        container = await self._engine.inspect(container_id)
        if container is None:
            return
        job = await self._jobs.get(container.job)
        if job is not None and job.attempt == container.attempt:
            self._queue.add(job_key(job.id))
            return
        await self._remove_stray(container, outcomes)

    async def _remove_all_of(self, job_id: str, outcomes: list[Outcome]) -> None:
        for container in await self._engine.list():
            if container.job == job_id:
                await self._remove_stray(container, outcomes)

    async def _remove_stray(self, container: Container, outcomes: list[Outcome]) -> None:
        action = decide(None, container, self._clock.now(), admitted=False)
        if action.verb is Verb.REMOVE:
            if await self._engine.remove(container.id):
                self._metrics.orphans.inc()
                logger().warning("orphan removed", container=container.name)
            outcomes.append(
                Outcome(
                    action.bucket, container.name, container.job, container.changed_at, heard=False
                )
            )


def _remember(times: dict[str, float], job_id: str, at: float) -> None:
    """The newest stands last; of more than REMEMBERED the oldest go."""
    times.pop(job_id, None)
    times[job_id] = at
    if len(times) > REMEMBERED:
        del times[next(iter(times))]


def _subject(key: Key) -> Mapping[str, str]:
    """What lines of the worker's own log are about, while it looks at `key`."""
    return {_SUBJECTS.get(key.kind, "key"): key.id or key.kind.value}
