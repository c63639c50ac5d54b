"""What is to be told to others: an outbox.

A message is written in the transaction of the change that it tells of, so that neither a crash nor
a receiver that is away loses one; how each fared is kept beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, literal_column, or_, update
from sqlalchemy import select as sql_select
from sqlmodel import Session, col
from ulid import ULID

from ciworker.domain.job import Job, Kind
from ciworker.domain.webhook import (
    BACKOFF_MOST,
    Delivery,
    DeliveryKind,
    DeliveryState,
    Message,
)
from ciworker.errors import Conflict, Unknown
from ciworker.store import audit
from ciworker.store.audit import Deed
from ciworker.store.schema import WebhookDeliveryRow, table
from ciworker.store.session import Database

KEPT_FOR = timedelta(days=7)  # of what is not pending any more
MOST_KEPT = 10_000  # likewise
MOST_PENDING = 10_000  # for one endpoint; the oldest are given up

# A partial index is used only where the query spells its condition out, as no parameter.
_PENDING = col(WebhookDeliveryRow.state) == literal_column("'pending'")
_OVER = col(WebhookDeliveryRow.state) != literal_column("'pending'")
_ROWS = table(WebhookDeliveryRow)

Tell = Callable[[Job, datetime], Sequence[Message]]


class Outbox:
    """Writes what `tell` has to say of a job's new status into the transaction of that.

    `on_change` is called once that is committed.
    """

    def __init__(self, tell: Tell, on_change: Callable[[], None]) -> None:
        self._tell = tell
        self._on_change = on_change
        self._wrote = False  # in the transaction under way, of which there is but one

    def put(self, connection: Connection, job: Job, at: datetime) -> None:
        """Setups are nobody's business."""
        if job.kind is not Kind.JOB:
            return
        for message in self._tell(job, at):
            self._wrote = True
            connection.execute(insert(_ROWS), _values(_new(message, at)))

    def committed(self) -> None:
        """A transaction is, in which there may have been something."""
        if self._wrote:
            self._wrote = False
            self._on_change()


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is pending for one endpoint. failing: tried in vain at least once."""

    kind: DeliveryKind
    endpoint: str
    pending: int
    failing: int
    oldest: datetime
    due: datetime


class Deliveries:
    """The messages of one database. `on_change` is called when somebody wants one to be sent."""

    def __init__(self, database: Database, on_change: Callable[[], None]) -> None:
        self._database = database
        self._on_change = on_change

    async def add(self, message: Message, at: datetime) -> Delivery:
        """A message that tells of no change."""
        delivery = _new(message, at)

        def work(session: Session) -> None:
            session.connection().execute(insert(_ROWS), _values(delivery))

        await self._database.write(work, lambda _: self._on_change())
        return delivery

    async def get(self, delivery_id: str) -> Delivery:
        """Raises Unknown when there is no such delivery."""
        query = sql_select(*_ROWS.columns).where(col(WebhookDeliveryRow.id) == delivery_id)
        rows = await self._database.table(query)
        if not rows:
            raise Unknown(f"there is no delivery {delivery_id[:50]!r}: see `ciworker webhook list`")
        return _delivery(rows[0])

    async def page(
        self, limit: int, state: DeliveryState | None = None, *, failed: bool = False
    ) -> Sequence[Delivery]:
        """Newest first. failed: only those whose last try did."""
        query = sql_select(*_ROWS.columns).order_by(col(WebhookDeliveryRow.id).desc()).limit(limit)
        if state is not None:
            query = query.where(col(WebhookDeliveryRow.state) == state.value)
        if failed:
            query = query.where(col(WebhookDeliveryRow.error).is_not(None))
        return [_delivery(row) for row in await self._database.table(query)]

    async def backlogs(self) -> Sequence[Backlog]:
        """By endpoint, of those for which something is pending."""
        row = WebhookDeliveryRow
        query = (
            sql_select(
                col(row.kind),
                col(row.endpoint),
                func.count().label("pending"),
                func.count().filter(col(row.tries) > 0).label("failing"),
                func.min(row.created_at).label("oldest"),
                func.min(row.next_try_at).label("due"),
            )
            .where(_PENDING)
            .group_by(col(row.kind), col(row.endpoint))
        )
        return [
            Backlog(
                kind=DeliveryKind(found.kind),
                endpoint=found.endpoint,
                pending=found.pending,
                failing=found.failing,
                oldest=found.oldest,
                due=found.due,
            )
            for found in await self._database.table(query)
        ]

    async def due(self, backlog: Backlog, now: datetime, limit: int) -> Sequence[Delivery]:
        """Those of an endpoint whose next try is due, that for which it is the longest first.

        One that is due later than any pause lasts was written by a clock that has been set back.
        """
        row = WebhookDeliveryRow
        query = (
            sql_select(*_ROWS.columns)
            .where(
                _PENDING,
                col(row.kind) == backlog.kind.value,
                col(row.endpoint) == backlog.endpoint,
                or_(col(row.next_try_at) <= now, col(row.next_try_at) > now + 2 * BACKOFF_MOST),
            )
            .order_by(col(row.next_try_at))
            .limit(limit)
        )
        return [_delivery(found) for found in await self._database.table(query)]

    async def record(self, delivery: Delivery) -> None:
        """How a try went. Lost in a power cut, the message is sent once more."""

        def work(session: Session) -> None:
            statement = update(_ROWS).where(col(WebhookDeliveryRow.id) == delivery.id, _PENDING)
            session.connection().execute(statement.values(**_progress(delivery)))

        await self._database.write(work, durable=False)

    async def again(self, delivery_id: str, now: datetime, *, deed: Deed | None = None) -> Delivery:
        """Have one sent again that is not pending any more, with the same id; deed: told by the
        audit history.

        Raises:
            Unknown: there is none. Conflict: it is pending.
        """
        statement = (
            update(_ROWS)
            .where(col(WebhookDeliveryRow.id) == delivery_id, _OVER)
            .values(state=DeliveryState.PENDING.value, next_try_at=now, since=now, tries=0)
            .returning(*_ROWS.columns)
        )

        def work(session: Session) -> Row[Any] | None:
            found = session.connection().execute(statement).first()
            audit.write(session, deed if found else None)
            return found

        row = await self._database.write(work, lambda _: self._on_change())
        if row is None:
            found = await self.get(delivery_id)
            raise Conflict(f"{found.id} is pending: it is tried again by itself")
        return _delivery(row)

    async def tidy(self, now: datetime) -> int:
        """Forget what is over and old, and give up what is too much; how many were given up."""
        row = WebhookDeliveryRow
        newest = sql_select(col(row.id)).where(_OVER).order_by(col(row.id).desc())
        old = and_(_OVER, col(row.created_at) < now - KEPT_FOR)
        too_many = and_(_OVER, col(row.id).in_(newest.offset(MOST_KEPT).limit(-1)))
        crowded = [found for found in await self.backlogs() if found.pending > MOST_PENDING]

        def work(session: Session) -> int:
            connection = session.connection()
            connection.execute(delete(_ROWS).where(or_(old, too_many)))
            given_up = [connection.execute(_crowded_out(found, now)) for found in crowded]
            return sum(result.rowcount for result in given_up)

        return await self._database.write(work, durable=False)


def _crowded_out(backlog: Backlog, now: datetime) -> Any:
    row = WebhookDeliveryRow
    of_it = and_(
        _PENDING,
        col(row.kind) == backlog.kind.value,
        col(row.endpoint) == backlog.endpoint,
    )
    kept = sql_select(col(row.id)).where(of_it).order_by(col(row.id).desc())
    error = f"more than {MOST_PENDING} wait for this endpoint: only the newest are kept"
    return (
        update(_ROWS)
        .where(col(row.id).in_(kept.offset(MOST_PENDING).limit(-1)))
        .values(state=DeliveryState.GIVEN_UP.value, error=error, tried_at=now, next_try_at=None)
    )


def _new(message: Message, at: datetime) -> Delivery:
    return Delivery(f"msg_{ULID()}", message, created_at=at, since=at, next_try_at=at)


def _progress(delivery: Delivery) -> Mapping[str, Any]:
    return {
        "state": delivery.state.value,
        "tries": delivery.tries,
        "next_try_at": delivery.next_try_at,
        "tried_at": delivery.tried_at,
        "answer": delivery.answer,
        "error": delivery.error,
    }


def _values(delivery: Delivery) -> Mapping[str, Any]:
    message = delivery.message
    return {
        "id": delivery.id,
        "kind": message.kind.value,
        "endpoint": message.endpoint,
        "type": message.type,
        "job": message.job,
        "body": message.body,
        "created_at": delivery.created_at,
        "since": delivery.since,
        **_progress(delivery),
    }


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        id=row.id,
        message=Message(DeliveryKind(row.kind), row.endpoint, row.type, row.job, row.body),
        created_at=row.created_at,
        since=row.since,
        state=DeliveryState(row.state),
        tries=row.tries,
        next_try_at=row.next_try_at,
        tried_at=row.tried_at,
        answer=row.answer,
        error=row.error,
    )
