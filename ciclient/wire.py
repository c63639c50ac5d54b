"""The server's JSON as values. Tolerant: a field this client does not know is kept in `raw`, one
that is absent is None, so an older client goes on working with a newer worker.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple, cast

from ciclient.errors import Nonsense

TERMINAL = frozenset({"completed", "cancelled", "failed"})


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    status: str
    success: bool | None
    reason: str | None
    message: str | None
    exit_code: int | None
    project: str | None
    image: str | None
    created_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    log_lines: int | None
    raw: Mapping[str, object]

    @classmethod
    def parse(cls, raw: object) -> "Job":
        """Raises Nonsense unless it is an object with an id and a status."""
        fields = as_object(raw)
        job_id, status = _text(fields, "id"), _text(fields, "status")
        if not job_id or not status:
            raise Nonsense("the server's job has no id or no status: is this a ciworker?")
        return cls(
            id=job_id,
            status=status,
            success=_flag(fields, "success"),
            reason=_text(fields, "reason"),
            message=_text(fields, "message"),
            exit_code=_number(fields, "exit_code"),
            project=_text(fields, "project"),
            image=_text(fields, "image"),
            created_at=_time(fields, "created_at"),
            started_at=_time(fields, "started_at"),
            finished_at=_time(fields, "finished_at"),
            log_lines=_number(fields, "log_lines"),
            raw=fields,
        )

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL

    def seconds(self, now: datetime) -> float | None:
        """How long it has run, or did run; None before it began. Never negative."""
        if self.started_at is None:
            return None
        return max(0.0, ((self.finished_at or now) - self.started_at).total_seconds())


@dataclass(frozen=True, slots=True)
class Page:
    jobs: tuple[Job, ...]
    next: str | None


class Record(NamedTuple):
    """A line of a log; `whole` is False on a piece of one and on a last one without a newline."""

    n: int
    text: str
    whole: bool


def loads(data: bytes) -> object:
    """Any JSON document; raises Nonsense when it is none."""
    try:
        return cast(object, json.loads(data.decode("utf-8", "replace")))
    except ValueError as error:
        raise Nonsense("the server's answer is no JSON: is this a ciworker?") from error


def as_object(value: object) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise Nonsense("the server's answer is not what a ciworker sends")
    return cast(dict[str, object], value)


def parse_page(raw: object) -> Page:
    fields = as_object(raw)
    items = fields.get("items")
    if not isinstance(items, list):
        raise Nonsense("the server's list of jobs has no items: is this a ciworker?")
    return Page(tuple(Job.parse(item) for item in items), _text(fields, "next"))


def parse_records(lines: Sequence[bytes]) -> list[Record]:
    """Line records, one JSON document each; read as one, which is twice as fast in a flood."""
    documents = loads(b"[" + b",".join(lines) + b"]")
    if not isinstance(documents, list) or len(documents) != len(lines):
        raise Nonsense("the server sent log lines that are no line records")
    return [_record(as_object(document)) for document in documents]


def _record(fields: Mapping[str, object]) -> Record:
    n, text = fields.get("n"), fields.get("text")
    if not isinstance(n, int) or not isinstance(text, str):
        raise Nonsense("the server sent a log line without number or text")
    return Record(n, text, fields.get("end") is not False)


def _text(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    return value if isinstance(value, str) else None


def _number(fields: Mapping[str, object], name: str) -> int | None:
    value = fields.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _flag(fields: Mapping[str, object], name: str) -> bool | None:
    value = fields.get(name)
    return value if isinstance(value, bool) else None


def _time(fields: Mapping[str, object], name: str) -> datetime | None:
    return parse_time(_text(fields, name))


def parse_time(value: str | None) -> datetime | None:
    """An RFC 3339 time in UTC, or None when it is none."""
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment.replace(tzinfo=moment.tzinfo or UTC)
