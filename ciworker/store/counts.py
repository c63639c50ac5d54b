"""How many there are, for the metrics: from indices alone, however much each row holds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlmodel import Session

from ciworker.store.session import Database

# The indices are named: SQLite has no statistics here that would tell it how few rows the partial
# ones hold.
_BY_STATUS = text("SELECT status, count(*) FROM job INDEXED BY job_status GROUP BY status")
_HIDDEN = text(
    "SELECT status, count(*) FROM job INDEXED BY job_removed WHERE removed = 1 GROUP BY status"
)
_FOR_A_SLOT = text(
    "SELECT kind, count(*) FROM job INDEXED BY job_queue "
    "WHERE status = 'queued' AND waits = 0 GROUP BY kind"
)
_FOR_ENVIRONMENTS = text(
    "SELECT count(*) FROM job INDEXED BY job_waiting WHERE status = 'queued' AND waits = 1"
)
_ENVIRONMENTS = text("SELECT coalesce(sum(bytes), 0) FROM environment")


@dataclass(frozen=True, slots=True)
class Counts:
    """One moment of the store.

    by_status: all jobs but those being removed, setups too. for_a_slot: queued ones that may
    start, by kind. for_environments: queued ones that may not yet. environments: bytes of all.
    """

    by_status: Mapping[str, int]
    for_a_slot: Mapping[str, int]
    for_environments: int
    environments: int


class Counter:
    """Counts what a database holds."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def counts(self) -> Counts:
        """All of them, at one moment.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        return await self._database.read(_counts)


def _counts(session: Session) -> Counts:
    connection = session.connection()
    hidden = _numbers(connection.execute(_HIDDEN))
    stored = _numbers(connection.execute(_BY_STATUS))
    by_status = {status: number - hidden.get(status, 0) for status, number in stored.items()}
    for_a_slot = _numbers(connection.execute(_FOR_A_SLOT))
    waiting = (connection.execute(_FOR_ENVIRONMENTS)).scalar_one()
    environments = (connection.execute(_ENVIRONMENTS)).scalar_one()
    return Counts(by_status, for_a_slot, waiting, environments)


def _numbers(rows: Iterable[Any]) -> Mapping[str, int]:
    """Of rows with two columns."""
    return {name: number for name, number in rows}  # noqa: C416 # dict() would have a row's type
