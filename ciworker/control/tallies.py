"""What is counted and timed of jobs on their way, for the metrics.

What began is remembered in this process alone, and of so many jobs: what began before a restart is
not measured.
"""

from datetime import datetime

from ciworker.control.clock import Clock
from ciworker.domain.job import Job, Kind, Reason, status_of
from ciworker.metrics import ControlMetrics

MOST_EXITS = 1024
MOST_RELEASED = 20_000


class Tallies:
    """Told by the control room what became of jobs, once it is committed."""

    def __init__(self, metrics: ControlMetrics, clock: Clock) -> None:
        self._metrics, self._clock = metrics, clock
        self._exits = _Begun(MOST_EXITS)
        self._released = _Begun(MOST_RELEASED)
        for kind in Kind:
            metrics.queue_wait.labels(kind)
            for reason in Reason:
                metrics.ended.labels(kind, status_of(reason), reason)

    def exit_heard(self, job_id: str) -> None:
        """An event told that the job's container ended or is gone."""
        self._exits.begin(job_id, self._clock.monotonic())

    def released(self, job_id: str) -> None:
        """The job's environment is ready: it waits for a slot alone."""
        self._released.begin(job_id, self._clock.monotonic())

    def admitted(self, job: Job, now: datetime) -> None:
        """A queued job becomes `starting`. Only its first wait is measured, not a backoff's.

        Its exits from now on are this attempt's.
        """
        self._exits.end(job.id)
        released = self._released.end(job.id)
        needs_environment = job.kind is Kind.JOB and job.environment is not None
        if job.attempt or (needs_environment and released is None):
            return
        since = max(job.created_at, job.not_before or job.created_at)
        waited = (now - since).total_seconds()
        if released is not None:
            waited = self._clock.monotonic() - released
        self._metrics.queue_wait.labels(job.kind).observe(max(0.0, waited))

    def requeued(self, job_id: str) -> None:
        """Its container ended before the job began."""
        self._state_follows(job_id)

    def ended(self, job: Job, reason: Reason) -> None:
        """The job is terminal."""
        self._metrics.ended.labels(job.kind, status_of(reason), reason).inc()
        self._state_follows(job.id)
        self._released.end(job.id)

    def settled(self, job_id: str) -> None:
        """The job was terminal already: what an event told has no consequence."""
        self._exits.end(job_id)

    def _state_follows(self, job_id: str) -> None:
        heard = self._exits.end(job_id)
        if heard is not None:
            self._metrics.event_to_state.observe(max(0.0, self._clock.monotonic() - heard))


class _Begun:
    """Since when, by job; bounded: of more than `most` the oldest are not measured."""

    def __init__(self, most: int) -> None:
        self._since: dict[str, float] = {}
        self._most = most

    def __len__(self) -> int:
        return len(self._since)

    def begin(self, job_id: str, at: float) -> None:
        """It began, unless it had before."""
        self._since.setdefault(job_id, at)
        if len(self._since) > self._most:
            del self._since[next(iter(self._since))]

    def end(self, job_id: str) -> float | None:
        """When it began, if it did; from now on it has not."""
        return self._since.pop(job_id, None)
