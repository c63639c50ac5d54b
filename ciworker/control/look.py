"""One look at one job, and what came of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ciworker.control.life import Life
from ciworker.domain.container import Container
from ciworker.domain.decide import Action, Bucket, Verb
from ciworker.domain.job import Job, Need, Status
from ciworker.domain.verdict import could_be_engines
from ciworker.store.jobs import Expect

_NOTHING = Action(Verb.NOTHING)

# What a user, the clock or the log asks for: no event could have told of it.
_NO_EVENTS_BUSINESS = frozenset(
    {
        Verb.LAUNCH,
        Verb.START,
        Verb.ENTER_RUNNING,
        Verb.STOP,
        Verb.CANCEL,
    }
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one step of a look did.

    since: when the container came into the state that was found, by the engine's clock; None if
    it is absent. heard: an event had told of it, or none ever would.
    """

    bucket: Bucket
    name: str
    job: str
    since: datetime | None
    heard: bool


@dataclass(slots=True)
class Look:
    """What is wanted, what is, and what was decided. removed: the step removed the container."""

    job: Job
    life: Life
    container: Container | None
    action: Action = _NOTHING
    need: Need = Need.NOTHING
    removed: bool = False

    @property
    def expect(self) -> Expect:
        return Expect(self.job.status, self.job.attempt)

    @property
    def found(self) -> Container:
        """The container, where the decision says that there is one."""
        assert self.container is not None
        return self.container

    @property
    def _is_no_events_business(self) -> bool:
        overdue = self.action.verb is Verb.KILL and not self.job.status.terminal
        queued = self.job.status is Status.QUEUED and self.container is None
        return overdue or queued or self.action.verb in _NO_EVENTS_BUSINESS

    @property
    def ended_unasked(self) -> bool:
        """Its container is gone, or ended and not by us."""
        job, container = self.job, self.container
        if job.status not in (Status.STARTING, Status.RUNNING) or self.life.untouched:
            return False
        own = job.stop is not None or self.life.ours
        return container is None or (container.state.down and not own)

    @property
    def may_be_ended_by_engine(self) -> bool:
        """Its container is gone, or ended as those do that the engine stops, and not by us."""
        container = self.container
        return self.ended_unasked and (
            container is None or could_be_engines(self.job, container, unseen=self.life.unseen)
        )

    @property
    def only_read_the_end(self) -> bool:
        """Its container was down, and all that was done is to read: it still is as it was."""
        down = self.container is not None and self.container.state.down
        return down and self.action.verb in (Verb.READ_OUTPUT, Verb.LOOK_FOR_MARK)

    def outcome(self) -> Outcome:
        name = self.container.name if self.container else self.job.container_name
        since = self.container.changed_at if self.container else None
        heard = bool(self.life.heard & {"die", "destroy"}) or self._is_no_events_business
        return Outcome(self.action.bucket, name, self.job.id, since, heard)


def buckets_of(found: Sequence[Sequence[Outcome]]) -> dict[Bucket, list[str]]:
    """Each name in the bucket of every step done to it; unchanged only if nothing was."""
    buckets: dict[Bucket, set[str]] = {bucket: set() for bucket in Bucket}
    for outcomes in found:
        changes = [o for o in outcomes if o.bucket is not Bucket.UNCHANGED]
        for outcome in changes or outcomes[:1]:
            buckets[outcome.bucket].add(outcome.name)
    return {bucket: sorted(names) for bucket, names in buckets.items()}
