"""Whose turn it is where only a few may go at once: jobs that wait cost no task and no topic."""

from bisect import bisect_left, insort
from collections.abc import Sequence

from ciworker.domain.job import Job


class Turns:
    """A few places, had by the highest priority, then by the oldest."""

    def __init__(self, places: int) -> None:
        self._places = places
        self._waiting: list[tuple[int, str]] = []
        self._held: set[str] = set()

    def wait(self, job: Job) -> bool:
        """See that it waits for a place; whether it did not yet."""
        if self._is_waiting(job):
            return False
        insort(self._waiting, _rank(job))
        return True

    def next(self) -> Sequence[str]:
        """Ids of those that may take a place now."""
        free = max(0, self._places - len(self._held))
        return [job_id for _, job_id in self._waiting[:free]]

    def take(self, job: Job) -> bool:
        """Have it take a place, if it still is one of the next."""
        if job.id not in self.next():
            return False
        self.leave(job)
        self._held.add(job.id)
        return True

    def give_back(self, job: Job) -> None:
        """Its place is free."""
        self._held.discard(job.id)

    def leave(self, job: Job) -> bool:
        """It waits no longer; whether it did."""
        if not self._is_waiting(job):
            return False
        del self._waiting[bisect_left(self._waiting, _rank(job))]
        return True

    def _is_waiting(self, job: Job) -> bool:
        at = bisect_left(self._waiting, _rank(job))
        return self._waiting[at : at + 1] == [_rank(job)]


def _rank(job: Job) -> tuple[int, str]:
    return -job.priority, job.id
