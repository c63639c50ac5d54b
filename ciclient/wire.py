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
    exit_words: str | None
    project: str | None
    image: str | None
    priority: int
    created_at: datetime | None
    started_at: datetime | None
    finished_at: datetime | None
    log_lines: int | None
    waits_for: str | None
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
            exit_words=_text(fields, "exit_words"),
            project=_text(fields, "project"),
            image=_text(fields, "image"),
            priority=_number(fields, "priority") or 0,
            created_at=_time(fields, "created_at"),
            started_at=_time(fields, "started_at"),
            finished_at=_time(fields, "finished_at"),
            log_lines=_number(fields, "log_lines"),
            waits_for=_text(fields, "waits_for"),
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

    def age(self, now: datetime) -> float:
        """How long it has run, or since when it waits: seconds, 0 where that isn't known."""
        if self.started_at is not None or self.created_at is None:
            return self.seconds(now) or 0.0
        return max(0.0, ((self.finished_at or now) - self.created_at).total_seconds())

    def phases(self, now: datetime | None = None) -> list[tuple[str, float]]:
        """What a job's time went into, and how many seconds of it; empty where the server did not
        tell. now: until when one that goes on is counted; left out, what is over of it."""
        told = self.raw.get("phases")
        found = []
        for phase in map(as_object, told if isinstance(told, list) else []):
            name, seconds, since = _text(phase, "name"), phase.get("seconds"), _time(phase, "since")
            if name is not None and isinstance(seconds, int | float):
                goes_on = (now - since).total_seconds() if now and since else 0.0
                found.append((name, seconds + max(0.0, goes_on)))
        return found

    def last_lines(self) -> "list[Record]":
        """Of the log of a job that did not pass; empty where the server did not tell."""
        told = self.raw.get("last_lines")
        return [_record(as_object(line)) for line in told] if isinstance(told, list) else []

    def place(self) -> "Place | None":
        """Where it stands in the queue; None where it does not, or the server did not tell."""
        told = as_object(self.raw.get("place") or {})
        number, queued = _number(told, "number"), _number(told, "queued")
        return None if number is None or queued is None else Place(number, queued)


@dataclass(frozen=True, slots=True)
class Place:
    """number: 1 for the job that starts next, of so many."""

    number: int
    queued: int


@dataclass(frozen=True, slots=True)
class Page:
    jobs: tuple[Job, ...]
    next: str | None


class Record(NamedTuple):
    """A line of a log; `whole` is False on a piece of one and on a last one without a newline."""

    n: int
    stream: str
    text: str
    whole: bool


class Unfinished(NamedTuple):
    """What a stream has printed since its last newline; an empty text: nothing any more."""

    stream: str
    text: str


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


def parse_unfinished(raw: object) -> Unfinished:
    fields = as_object(raw)
    stream, text = _text(fields, "stream"), _text(fields, "text")
    if stream is None or text is None:
        raise Nonsense("the server sent an unfinished line without stream or text")
    return Unfinished(stream, text)


def _record(fields: Mapping[str, object]) -> Record:
    n, text = fields.get("n"), fields.get("text")
    if not isinstance(n, int) or not isinstance(text, str):
        raise Nonsense("the server sent a log line without number or text")
    return Record(n, _text(fields, "stream") or "", text, fields.get("end") is not False)


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
