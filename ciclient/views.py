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
    Partial,
    Reconnected,
    Reconnecting,
)
from ciclient.report import duration, phase
from ciclient.sanitise import clean, clean_block, clean_line
from ciclient.terminal import Terminal
from ciclient.wire import Job, Record, Unfinished

LONGEST_LINE = 1 << 16  # characters of a line that are held back to see its end


class View(AbstractContextManager[object], Protocol):
    def lines(self, records: tuple[Record, ...]) -> None: ...

    def unfinished(self, unfinished: Unfinished) -> None: ...

    def notice(self, text: str) -> None:
        """Something about the log that stays on record."""

    def lost(self, reason: str, pause: float) -> None:
        """The connection is; the next try is in `pause` seconds."""

    def connected(self) -> None:
        """Again."""

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
        case Partial(unfinished):
            view.unfinished(unfinished)
        case Missing(first, last):
            view.notice(f"lines {first} to {last} are not in the stored log")
        case Changed(job):
            view.changed(job)
        case Reconnecting(reason, pause):
            view.lost(reason, pause)
        case Reconnected():
            view.connected()


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

    def unfinished(self, unfinished: Unfinished) -> None:
        pass

    def notice(self, text: str) -> None:
        pass

    def lost(self, reason: str, pause: float) -> None:
        self._say(f"{reason}: reconnecting in {duration(pause)}")

    def connected(self) -> None:
        self._say("connected again")

    def changed(self, job: Job) -> None:
        pass

    def _say(self, text: str) -> None:
        self.terminal.say(text)


class PlainView(QuietView):
    """The log on stdout, exactly and append-only; what happens to the job on stderr."""

    def __init__(self, terminal: Terminal, *, raw: bool) -> None:
        super().__init__(terminal)
        self._raw = raw
        self._phase = ""
        self._in_line = False

    def __exit__(self, *_: object) -> None:
        self._end_line()

    def lines(self, records: tuple[Record, ...]) -> None:
        self.terminal.out("".join([self._line(record) for record in records]))
        self._in_line = not records[-1].whole

    def notice(self, text: str) -> None:
        self._say(text)

    def changed(self, job: Job) -> None:
        if job.ended or phase(job) == self._phase:
            return
        self._phase = phase(job)
        self._say(f"{clean(job.id)} {self._phase}")

    def _say(self, text: str) -> None:
        if self.terminal.on_tty:  # elsewhere the rest of a long line may follow its beginning
            self._end_line()
        self.terminal.say(text)

    def _end_line(self) -> None:
        if self._in_line:
            self._in_line = False
            self.terminal.out("\n")

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
