"""What others are told of jobs, and how that is signed: pure.

The scheme is Standard Webhooks (https://www.standardwebhooks.com): a message keeps its id however
often it is sent, and `v1,` and the base64 of an HMAC-SHA256 over `id.timestamp.body` sign it.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

import orjson

from ciworker.domain.job import Job, Status

EVENTS = tuple(f"job.{status}" for status in Status)
ENDS = tuple(f"job.{status}" for status in Status if status.terminal)
TEST = "webhook.test"
BACKOFF_FIRST = timedelta(seconds=2)
BACKOFF_MOST = timedelta(hours=1)
GIVEN_UP_AFTER = timedelta(days=3)


class DeliveryState(StrEnum):
    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


class DeliveryKind(StrEnum):
    """What is told, and to whom."""

    WEBHOOK = "webhook"  # an event, to who the settings name
    STATUS = "status"  # how a commit's job stands, to the forge that it comes from


class Message(NamedTuple):
    """Something to be told. endpoint: to whom, by name; type: of the event; job: whom it is about.

    body: as it is sent.
    """

    kind: DeliveryKind
    endpoint: str
    type: str
    job: str | None
    body: bytes


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message on its way. since: what its giving up is reckoned from. answer: the last HTTP
    status; error: why the last try failed.
    """

    id: str
    message: Message
    created_at: datetime
    since: datetime
    state: DeliveryState = DeliveryState.PENDING
    tries: int = 0
    next_try_at: datetime | None = None
    tried_at: datetime | None = None
    answer: int | None = None
    error: str | None = None


class Subscriber(NamedTuple):
    """An endpoint of the settings, and what it is to be told of."""

    name: str
    events: Sequence[str]


def messages(
    job: Job, at: datetime, subscribers: Sequence[Subscriber], public: str | None
) -> Sequence[Message]:
    """What its new status means for these; public: the worker's web address."""
    event = f"job.{job.status}"
    wanted = [subscriber.name for subscriber in subscribers if event in subscriber.events]
    if not wanted:
        return ()
    body = _body(event, at, _data(job, public))
    return [Message(DeliveryKind.WEBHOOK, name, event, job.id, body) for name in wanted]


def trial_message(endpoint: str, at: datetime) -> Message:
    """Tells nothing but that it arrives."""
    return Message(DeliveryKind.WEBHOOK, endpoint, TEST, None, _body(TEST, at, {}))


def _body(event: str, at: datetime, data: dict[str, object]) -> bytes:
    return orjson.dumps({"type": event, "timestamp": _rfc3339(at), "data": data})


def page_of(job: Job, public: str | None) -> str | None:
    """The address of its page, if the worker has a web address."""
    return f"{public}/jobs/{job.id}" if public else None


def _data(job: Job, public: str | None) -> dict[str, object]:
    return {
        "id": job.id,
        "project": job.spec.project,
        "status": job.status,
        "success": job.success,
        "reason": job.reason,
        "message": job.message,
        "exit_code": job.exit_code,
        "attempt": job.attempt,
        "retry_of": job.retry_of,
        "image": job.spec.image,
        "source": job.source,
        "created_at": _rfc3339(job.created_at),
        "started_at": _rfc3339(job.started_at),
        "finished_at": _rfc3339(job.finished_at),
        "url": page_of(job, public),
    }


def _rfc3339(at: datetime | None) -> str | None:
    if at is None:
        return None
    return at.astimezone(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def signature(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """timestamp: seconds since the epoch, when it is sent."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def backoff(failures: int, jitter: float) -> timedelta:
    """The pause after so many failures in a row, doubled each time; jitter: 0 to 1."""
    pause = min(BACKOFF_FIRST * 2.0 ** min(failures - 1, 16), BACKOFF_MOST)
    return pause * (0.75 + 0.5 * jitter)
