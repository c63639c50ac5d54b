"""How a followed job is shown where nothing may be redrawn: pipes, files, `NO_COLOR`, `wait`.

The live view is `live`; both are driven by `watch`.
"""

import codecs
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing
from typing import Protocol, Self

from ciclient.follow import (
    Changed,
    Ended,
    Event,
    JobStream,
    Lines,
    Missing,
    Reconnected,
    Reconnecting,
)
from ciclient.report import duration, outcome
from ciclient.sanitise import clean, clean_block, clean_line
from ciclient.terminal import Terminal
from ciclient.wire import Job, Record

LONGEST_LINE = 1 << 16  # characters of a line that are held back to see its end


class View(AbstractContextManager[object], Protocol):
    def lines(self, records: tuple[Record, ...]) -> None: ...

    def notice(self, text: str) -> None:
        """Something about the log that stays on record."""

    def connection(self, text: str) -> None:
        """How the connection is; an empty text: well."""

    def changed(self, job: Job) -> None: ...


def watch(stream: JobStream, view: View) -> Job:
    """Shows a job to its end and returns it."""
    with view, closing(stream.events()) as events:
        for event in events:
            if isinstance(event, Ended):
                return event.job
            _show(event, view)
    raise AssertionError("a stream ends with the job or raises")


def _show(event: Event, view: View) -> None:
    match event:
        case Lines(records):
            view.lines(records)
        case Missing(first, last):
            view.notice(f"lines {first} to {last} are not in the stored log")
        case Changed(job):
            view.changed(job)
        case Reconnecting(reason, pause):
            view.connection(f"{reason}: reconnecting in {duration(pause)}")
        case Reconnected():
            view.connection("")


class QuietView:
    """Says nothing but that the connection is broken."""

    def __init__(self, terminal: Terminal) -> None:
        self.terminal = terminal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def lines(self, records: tuple[Record, ...]) -> None:
        pass

    def notice(self, text: str) -> None:
        pass

    def connection(self, text: str) -> None:
        self.terminal.say(text or "connected again")

    def changed(self, job: Job) -> None:
        pass


class PlainView(QuietView):
    """The log on stdout, exactly and append-only; what happens to the job on stderr."""

    def __init__(self, terminal: Terminal, *, raw: bool) -> None:
        super().__init__(terminal)
        self._raw = raw
        self._status = ""

    def lines(self, records: tuple[Record, ...]) -> None:
        self.terminal.out("".join([self._line(record) for record in records]))

    def notice(self, text: str) -> None:
        self.terminal.say(text)

    def changed(self, job: Job) -> None:
        if job.ended or job.status == self._status:
            return
        self._status = job.status
        self.terminal.say(f"{clean(job.id)} {outcome(job)}")

    def _line(self, record: Record) -> str:
        if self._raw:
            return record.text + "\n" * record.whole
        if not record.whole:
            return clean(record.text)
        return clean_line(record.text, colour=False) + "\n"


def print_log(blocks: Iterator[bytes], terminal: Terminal, *, raw: bool) -> bool:
    """A stored log on stdout: exact bytes, but cleaned where a terminal would obey them.

    Returns whether there was anything.
    """
    if raw or not terminal.on_tty:
        return _print_bytes(blocks, terminal)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest, any_text = "", False
    for block in blocks:
        any_text = True
        *lines, rest = (rest + decoder.decode(block)).split("\n")
        terminal.out(clean_block(lines, colour=terminal.live))
        if len(rest) > LONGEST_LINE:
            terminal.out(clean(rest, colour=terminal.live))
            rest = ""
    terminal.out(clean_line(rest + decoder.decode(b"", final=True), colour=terminal.live))
    return any_text


def _print_bytes(blocks: Iterator[bytes], terminal: Terminal) -> bool:
    any_bytes = False
    for block in blocks:
        any_bytes = True
        terminal.out_bytes(block)
    return any_bytes
