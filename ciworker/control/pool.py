"""Makes the runner pool's members and the engine's containers agree, as the controller does with
jobs: a key says which member to look at, `decide_member` says what to do.

A member is a container that waits on the shim for a job's archive, started and attached to. When a
job takes it, it leaves the pool at once and belongs to the job's key alone; its place is filled
again once the job has ended. What members may use of the memory is promised to them: whoever counts
what is free holds `counting`, so that nothing is promised twice.
"""

import asyncio
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from signal import SIGKILL

from ciworker.control.keys import DISPATCH, job_key, pool_key
from ciworker.control.launcher import member_spec
from ciworker.control.look import Outcome, buckets_of
from ciworker.control.members import FINE, Member, MemberState, MemberStatus, Parked, PoolStatus
from ciworker.control.parts import Parts
from ciworker.control.recent import RecentEnvironments
from ciworker.domain.container import LABEL_SPEC, Container
from ciworker.domain.decide import Bucket
from ciworker.domain.job import Job, Kind, Spec
from ciworker.domain.pool import MemberAction, Move, Wanted, decide_member, member_name
from ciworker.engine.port import ContainerSpec, Event
from ciworker.errors import (
    CiworkerError,
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
)
from ciworker.settings import Parking
from ciworker.store.meta import PoolIntent
from ciworker.telemetry import logger

RETRY_FIRST = 0.5
RETRY_MOST = 60.0
STEADY = 30.0  # seconds after which a member that died did not die again
MOST_WAIT = 60.0


class PoolController:
    """Reconciles the pool, one member at a time, and gives members to jobs."""

    def __init__(self, parts: Parts, intent: PoolIntent, *, down: bool) -> None:
        """Take the parts.

        Args:
            parts: of the worker.
            intent: what the operator wants.
            down: that, as it is stored.
        """
        self._settings, self._instance, self._clock = parts.settings, parts.instance, parts.clock
        self._engine, self._jobs, self._queue = parts.engine, parts.jobs, parts.queue
        self._metrics = parts.metrics
        self._intent, self._down, self._draining = intent, down, False
        self._members = {
            member.name: member for member in _members(parts.settings.parkings, parts.instance)
        }
        self._recent = RecentEnvironments(parts, self._members.values())
        self._listed = False
        self._taken: dict[str, Member] = {}  # by job
        self.counting = asyncio.Lock()
        self.awaited = 0  # bytes that the head of the queue waits for
        for entry in parts.settings.parkings:
            parts.metrics.pool_taken.labels(entry.name)

    # what others call

    @property
    def promised(self) -> int:
        """Bytes that members may use, those that jobs took left out."""
        return sum(member.entry.memory for member in self._members.values() if member.promised)

    @property
    def wants_any(self) -> bool:
        """Whether there should be members at all."""
        return bool(self._members) and not (self._down or self._draining)

    def keys(self, containers: Sequence[Container]) -> Sequence[str]:
        """Names of the members that there should be, and of those that are in this list.

        Whoever asks looks at them all.
        """
        self._listed = True
        found = [container.name for container in containers if container.parked]
        return [*dict.fromkeys([*self._members, *found])]

    def on_event(self, event: Event) -> None:
        """An engine's event about a member that no job took."""
        ended = event.action in ("die", "destroy")
        member = self._members.get(event.member)
        parked = member.parked if member else None
        if ended and parked is not None and parked.container == event.container:
            parked.died = True
        # What is replayed at the start is the first resync's to find, and to tell of by name.
        if self._listed and (ended or member is None):
            self._queue.add(pool_key(event.member))

    def set_draining(self, draining: bool) -> None:
        """While the worker drains there are no members."""
        self._draining = draining
        self._wake(self._members)

    async def turn(self, *, down: bool) -> Mapping[Bucket, Sequence[str]]:
        """Have no members, or all that the settings name and no others; names by what was done.

        Raises:
            StoreUnavailable: nothing is changed. EngineUnavailable: it is not done yet.
        """
        await self._intent.put(down=down)
        self._down = down
        for member in self._members.values():
            member.failures, member.retry_at = 0, 0.0
        names = self.keys(await self._engine.list())
        looks = [self._queue.join(pool_key(name)) for name in names]
        try:
            async with asyncio.timeout(MOST_WAIT):
                return buckets_of(await asyncio.gather(*looks))
        except TimeoutError:
            raise EngineUnavailable(
                "the engine takes long: see `ciworker pool status` in a while"
            ) from None

    async def status(self) -> PoolStatus:
        """What is wanted, and what there is; members beyond today's settings too."""
        containers = {c.name: c for c in await self._engine.list() if c.parked}
        known = [self._told(member, containers) for member in self._members.values()]
        others = [
            MemberStatus(c.name, "", MemberState.UNWANTED, c.id)
            for c in containers.values()
            if c.name not in self._members
        ]
        return PoolStatus(self._down, self._settings.parkings, [*known, *others])

    def _told(self, member: Member, containers: Mapping[str, Container]) -> MemberStatus:
        there, parked, retry_at = containers.get(member.name), member.parked, None
        state = self._state(member)
        if state is MemberState.BACKING_OFF:
            left = member.retry_at - self._clock.monotonic()
            retry_at = self._clock.now() + timedelta(seconds=max(0.0, left))
        return MemberStatus(
            name=member.name,
            entry=member.entry.name,
            state=state,
            container=parked.container if parked else there.id if there else None,
            environment=member.environment,
            job=member.taken_by,
            error=None if state in FINE else member.error,
            failures=member.failures,
            retry_at=retry_at,
        )

    @property
    def wanted(self) -> Mapping[str, int]:
        """How many members there should be, by entry."""
        counts = {entry.name: 0 for entry in self._settings.parkings}
        for member in self._members.values() if self.wants_any else ():
            counts[member.entry.name] += not member.vacant
        return counts

    @property
    def environments(self) -> Mapping[tuple[str, str], int]:
        """How many members hold each environment, or are to, by entry and key."""
        return self._recent.held()

    def counts(self) -> Mapping[tuple[str, MemberState], int]:
        """How many members there are, by entry and state; 0 too."""
        known = [state for state in MemberState if state is not MemberState.UNWANTED]
        counts: dict[tuple[str, MemberState], int]
        counts = {(e.name, state): 0 for e in self._settings.parkings for state in known}
        for member in self._members.values():
            counts[member.entry.name, self._state(member)] += 1
        return counts

    def _state(self, member: Member) -> MemberState:
        facts = (
            (member.taken_by is not None, MemberState.TAKEN),
            (self._down or self._draining, MemberState.DOWN),
            (member.parked is not None, MemberState.PARKED),
            (member.no_image, MemberState.NO_IMAGE),
            (member.vacant, MemberState.NO_ENVIRONMENT),
            (member.retry_at > self._clock.monotonic(), MemberState.BACKING_OFF),
            (member.waits, MemberState.NO_MEMORY),
        )
        return next((state for true, state in facts if true), MemberState.STARTING)

    async def close(self) -> None:
        """The worker ends: parked members end by themselves, as nobody holds their stdin."""
        for member in self._members.values():
            await self._let_go(member)

    # taking

    def could_fit(self, *, network: bool) -> bool:
        """Whether any member is there for such a job, if it is of its image."""
        return any(parked.network is network for _, parked in self._ready())

    def find(self, image: str, spec: Spec) -> Member | None:
        """A member for such a job, best one with the same limits; image: the id of the job's."""
        fitting = [
            (parked.memory == spec.memory and parked.cpus == spec.cpus, member)
            for member, parked in self._ready()
            if parked.image == image and parked.network is spec.network
        ]
        same = (member for exact, member in fitting if exact)
        return next(same, fitting[0][1] if fitting else None)

    async def take(self, member: Member, job: Job) -> Parked | None:
        """From now on what is parked there is this job's, with its limits.

        The place is free again when the job has ended. None: those limits are refused, and it is
        gone.
        """
        parked, member.parked = member.parked, None
        assert parked is not None
        member.promised, member.taken_by, member.failures = False, job.id, 0
        member.takes += 1
        self._taken[job.id] = member
        if (parked.memory, parked.cpus) == (job.spec.memory, job.spec.cpus):
            return parked
        try:
            await self._engine.update(parked.container, job.spec.memory, job.spec.cpus)
        except CiworkerError as error:
            logger().warning(
                "a job starts cold: its limits could not be given to a parked container",
                job=job.id,
                container=member.name,
                error=str(error),
            )
            await parked.attachment.close()
            with contextlib.suppress(CiworkerError):  # else it is found by its name, and altered
                await self._engine.remove(parked.container)
            self.give_back(job.id)
            return None
        return parked

    def tally(self, job: Job) -> None:
        """Count how a job starts: with a member, or cold though there is a pool."""
        member = self._taken.get(job.id)
        if member is not None:
            self._metrics.pool_taken.labels(member.entry.name).inc()
        elif job.kind is Kind.JOB and self.wants_any:
            self._metrics.pool_cold.inc()
        self._recent.started(job)

    def give_back(self, job_id: str) -> None:
        """The attempt of a job is over; if it took a member, another one takes its place."""
        member = self._taken.pop(job_id, None)
        if member is not None:
            member.taken_by, member.free_at = None, self._clock.monotonic()
            self._queue.add(pool_key(member.name))
        self._recent.ended(job_id)

    async def leave(self, image: str) -> None:
        """Remove the members of an environment's image, which is to be removed.

        None is made of it any more: the store says by now that nobody is to start from it.

        Args:
            image: the engine's id.
        """
        for member in self._recent.places:
            async with member.looking:
                takes, container = member.takes, self._ours(await self._engine.inspect(member.name))
                if container is None or not container.parked or container.image != image:
                    continue
                if member.takes != takes or await self._holder(member, container):
                    continue  # it is a job's
                await self._let_go(member)
                await self._engine.remove(container.id)

    async def make_room(self, memory: int) -> bool:
        """Give up so many members that this many bytes are free; whether that was possible.

        Called by who holds `counting`: jobs go before members.
        """
        ready = list(self._ready())
        if memory > sum(parked.memory for _, parked in ready):
            return False
        for member, parked in reversed(ready):
            if memory <= 0:
                break
            if member.parked is not parked:
                continue  # a look was at work
            logger().info("a member of the pool makes room for a job", container=member.name)
            await self._let_go(member)
            await self._engine.remove(parked.container)
            member.promised = False
            memory -= parked.memory
        return True

    def wake_waiting(self) -> None:
        """Memory may be free again."""
        self._wake(name for name, member in self._members.items() if member.waits)

    def _ready(self) -> Iterator[tuple[Member, Parked]]:
        for member in self._members.values():
            parked = member.parked
            if parked is not None and not parked.died and parked.attachment.open:
                yield member, parked

    def _wake(self, names: Iterable[str]) -> None:
        for name in names:
            self._queue.add(pool_key(name))

    # looking

    async def reconcile(self, name: str, outcomes: list[Outcome]) -> None:
        """Look, decide, act. Called with one name by one worker at a time.

        Raises:
            EngineUnavailable, StoreUnavailable: the look is to be tried again.
        """
        member = self._members.get(name)
        async with member.looking if member else contextlib.nullcontext():
            await self._look(name, member, outcomes)

    async def _look(self, name: str, member: Member | None, outcomes: list[Outcome]) -> None:
        """None: no member of today's settings."""
        takes = member.takes if member else 0
        spec = await self._spec(member) if member is not None and self.wants_any else None
        container = self._ours(await self._engine.inspect(name))
        if holder := await self._holder(member, container):
            self._queue.add(job_key(holder))
            self._queue.add_after(pool_key(name), RETRY_FIRST)
            return
        # No await from here to where a parked member is let go of: a job may take it meanwhile.
        if member is None:
            await self._remove_strange(container, outcomes)
        elif member.takes != takes:
            self._queue.add(pool_key(name))  # what was seen is a job's by now
        elif member.taken_by is None:
            parked = member.parked
            action = decide_member(_wanted(spec), container, held=_holds(parked, container))
            await self._act(_Look(member, spec, container, parked, action), outcomes)

    async def _holder(self, member: Member | None, container: Container | None) -> str | None:
        """The job that took it in an earlier life of the worker, which ended before it was renamed.

        It has to find out that nothing was sent, so what it took is there until then.
        """
        parked = member.parked if member else None
        if container is None or not container.parked or _holds(parked, container):
            return None
        return await self._jobs.holder(container.id)

    async def _spec(self, member: Member) -> ContainerSpec | None:
        """What is wanted of it; None while the engine has no such image, or none is wanted."""
        name = member.entry.image or await self._recent.image(member)
        member.vacant = name is None
        image = await self._engine.image(name) if name else None
        if image is None and name and not member.no_image:
            logger().warning(
                "the pool's image is missing: its jobs start cold",
                entry=member.entry.name,
                image=name,
            )
        member.no_image = image is None and name is not None
        if image is None:
            return None
        return member_spec(member.entry, member.name, self._settings, self._instance, image)

    def _ours(self, container: Container | None) -> Container | None:
        """A stranger's that has the name counts as none: who creates ours is told of it."""
        ours = container is not None and container.instance == self._instance
        return container if ours else None

    async def _remove_strange(self, container: Container | None, outcomes: list[Outcome]) -> None:
        """A member that today's settings do not name."""
        action = decide_member(None, container, held=False)
        if container is not None and action.move is Move.REMOVE:
            await self._engine.remove(container.id)
            name, since = container.name, container.changed_at
            outcomes.append(Outcome(action.bucket, name, name, since, heard=True))

    async def _act(self, look: "_Look", outcomes: list[Outcome]) -> None:
        member, move = look.member, look.action.move
        if look.spec is None:
            member.promised = member.waits = False
        if move is Move.NOTHING:
            if _holds(look.parked, look.container):
                outcomes.append(look.outcome(look.action.bucket))
            elif look.container is None:
                await self._let_go(member)
            return
        await self._let_go(member)
        bucket: Bucket | None = look.action.bucket
        if move is Move.REMOVE:
            await self._engine.remove(look.found.id)
        else:
            bucket = await self._fill(look)
        if bucket is not None:
            outcomes.append(look.outcome(bucket))

    # filling

    async def _fill(self, look: "_Look") -> Bucket | None:
        """Have a member that waits for a job; None while there is no memory for it."""
        member, now = look.member, self._clock.monotonic()
        if member.free_at is None:
            member.free_at = now
        if look.parked is not None:
            self._count_death(look, look.parked)
        if member.retry_at > now:
            self._queue.add_after(pool_key(member.name), member.retry_at - now)
            return Bucket.FAILED
        if not await self._promise(member):
            return None
        try:
            member.parked = await self._park(look)
        except (EngineRefused, EngineFailed) as error:
            self._failed(member, f"{type(error).__name__}: {error}", RETRY_FIRST)
            return Bucket.FAILED
        self._metrics.pool_refills.observe(max(0.0, self._clock.monotonic() - member.free_at))
        member.free_at = None
        if self.awaited:
            self._queue.add(DISPATCH)  # a job that waits for memory goes first
        return look.action.bucket

    async def _promise(self, member: Member) -> bool:
        async with self.counting:
            if not member.promised:
                taken = sum((await self._jobs.active()).values()) + self.promised + self.awaited
                free = self._settings.max_memory - taken
                member.promised = member.entry.memory <= free
            member.waits = not member.promised
        return member.promised

    async def _park(self, look: "_Look") -> Parked:
        """Attached before it is started, so that its stdin stays open."""
        assert look.spec is not None
        container = await self._prepared(look, look.spec)
        try:
            attachment = await self._engine.attach(container)
            try:
                await self._engine.start(container)
            except BaseException:
                await attachment.close()
                raise
        except (EngineRefused, EngineFailed):
            with contextlib.suppress(CiworkerError):
                await self._engine.remove(container)  # some can never be started again
            raise
        spec, now = look.spec, self._clock.monotonic()
        return Parked(
            container, spec.image, spec.network, spec.memory, spec.cpus, attachment, since=now
        )

    async def _prepared(self, look: "_Look", spec: ContainerSpec) -> str:
        """The id of a container that is not started."""
        if look.action.move is Move.RECREATE:
            await self._engine.remove(look.found.id)
        if look.action.move in (Move.CREATE, Move.RECREATE):
            return await self._engine.create(spec)
        if look.action.move is Move.RESTART:
            await self._engine.signal(look.found.id, SIGKILL)
        return look.found.id

    def _count_death(self, look: "_Look", parked: Parked) -> None:
        """A member that was parked is not any more, and no job took it: once may happen."""
        member = look.member
        if look.action.move is Move.RECREATE:
            return
        if self._clock.monotonic() - parked.since > STEADY:
            member.failures = 0
        code = look.container.exit_code if look.container else None
        how = "it is gone" if look.container is None else f"it ended with exit code {code}"
        self._failed(member, f"MemberLost: {how}", RETRY_FIRST if member.failures else 0.0)

    def _failed(self, member: Member, error: str, first: float) -> None:
        delay = min(first * 2 ** min(member.failures, 10), RETRY_MOST)
        member.failures, member.error = member.failures + 1, error
        member.promised = False
        member.retry_at = self._clock.monotonic() + delay if delay else 0.0
        logger().warning(
            "a member of the pool failed",
            container=member.name,
            error=error,
            failures=member.failures,
            retry_in=delay,
        )
        if delay:
            self._queue.add_after(pool_key(member.name), delay)

    async def _let_go(self, member: Member) -> None:
        """It can't be taken any more, and ends if it still runs."""
        parked, member.parked = member.parked, None
        if parked is not None:
            await parked.attachment.close()


@dataclass(frozen=True, slots=True)
class _Look:
    """spec: what is wanted; parked: what this process believed before the look."""

    member: Member
    spec: ContainerSpec | None
    container: Container | None
    parked: Parked | None
    action: MemberAction

    @property
    def found(self) -> Container:
        """The container, where the decision says that there is one."""
        assert self.container is not None
        return self.container

    def outcome(self, bucket: Bucket) -> Outcome:
        """What came of it. What never ran here, and what is made anew, gives no event."""
        since = self.container.changed_at if self.container else None
        unheard = self.parked is not None and not self.parked.died
        heard = self.action.move is Move.RECREATE or not unheard
        return Outcome(bucket, self.member.name, self.member.name, since, heard)


def _members(entries: Sequence[Parking], instance: str) -> Iterator[Member]:
    for entry in entries:
        for number in range(1, entry.size + 1):
            yield Member(member_name(entry.name, number, instance), entry)


def _wanted(spec: ContainerSpec | None) -> Wanted | None:
    return Wanted(spec.labels[LABEL_SPEC], spec.memory, spec.cpus) if spec else None


def _holds(parked: Parked | None, container: Container | None) -> bool:
    if parked is None or container is None or parked.died:
        return False
    return parked.container == container.id and parked.attachment.open
