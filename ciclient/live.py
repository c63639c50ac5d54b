"""The live view of a job on a terminal: its lines scroll by, one status line stays below them.

Log text is written to the terminal directly, in blocks, because laying out each line would cost
more than a flood leaves; rich renders only the status line. A frame (erase the status line, the
lines that came, the status line again) is one write, and there are at most eight in a second.
"""

import threading
import time
from datetime import UTC, datetime
from typing import Self

from rich.console import Console
from rich.text import Text

from ciclient import report
from ciclient.errors import ClientError
from ciclient.sanitise import clean, clean_block
from ciclient.terminal import ERASE_LINE, Terminal
from ciclient.wire import Job, Record

FRAME = 0.125
PENDING_LIMIT = 1 << 20  # characters; more is written at once
SHORT_ID = 12
_STYLES = {
    "passed": "bold green",
    "not passed": "bold red",
    "no verdict": "bold magenta",
    "cancelled": "bold yellow",
    "running": "bold cyan",
}


class LiveView:
    """A context manager; the log and the status line are painted while it is open.

    A thread ticks for the clock of the status line and for lines that came too soon after a
    frame; one lock holds all that both threads touch.
    """

    def __init__(self, terminal: Terminal, job: Job) -> None:
        self._terminal = terminal
        self._console = _console()
        self._job = job
        self._connection = ""
        self._pending: list[str] = []
        self._pending_size = 0
        self._painted = ""
        self._last_frame = 0.0
        self._failure: ClientError | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="live view", daemon=True)

    def __enter__(self) -> Self:
        with self._lock:
            self._frame(self._status_line())
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._ticker.join()
        if self._failure is None:
            with self._lock:
                self._frame("")

    def lines(self, records: tuple[Record, ...]) -> None:
        # a piece of an overlong line gets a row of its own: the status line stands below it
        self._add(clean_block((record.text for record in records), colour=True))

    def notice(self, text: str) -> None:
        self._add(f"[{clean(text)}]\n")

    def connection(self, text: str) -> None:
        with self._lock:
            self._connection = clean(text)

    def changed(self, job: Job) -> None:
        with self._lock:
            self._job = job

    def _add(self, text: str) -> None:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._pending.append(text)
            self._pending_size += len(text)
            due = time.monotonic() - self._last_frame >= FRAME
            if due or self._pending_size > PENDING_LIMIT:
                self._frame(self._status_line())

    def _tick(self) -> None:
        while not self._stop.wait(FRAME):
            with self._lock:
                try:
                    self._frame_if_changed()
                except ClientError as error:
                    self._failure = error
                    return

    def _frame_if_changed(self) -> None:
        line = self._status_line()
        if self._pending or line != self._painted:
            self._frame(line)

    def _frame(self, line: str) -> None:
        text = "".join(self._pending)
        self._pending.clear()
        self._pending_size = 0
        self._painted = line
        self._last_frame = time.monotonic()
        self._terminal.out(f"{ERASE_LINE}{text}{line}")

    def _status_line(self) -> str:
        job = self._job
        text = Text(no_wrap=True)
        outcome = report.outcome(job)
        text.append(outcome, _STYLES.get(outcome, "bold"))
        seconds = job.seconds(datetime.now(UTC))
        if seconds is not None:
            text.append("  " + report.clock(seconds))
        if self._connection:
            text.append("  " + self._connection, "bold yellow")
        text.append(f"  {clean(job.image or '')}  {clean(job.id[:SHORT_ID])}", "dim")
        # one column stays free: a terminal may wrap at the last
        text.truncate(max(self._console.width - 1, 1), overflow="ellipsis")
        return _rendered(self._console, text)


def styled_verdict(job: Job, now: datetime) -> str:
    outcome = report.outcome(job)
    return _rendered(_console(), Text(report.verdict(job, now), _STYLES.get(outcome, "bold")))


def job_table(jobs: tuple[Job, ...], now: datetime) -> str:
    """As wide as the terminal, with the outcomes in colour."""
    console = _console()
    rows = [report.HEADINGS, *(report.row(job, now) for job in jobs)]
    heading, *lines = (Text(line) for line in report.aligned(rows, console.width))
    heading.stylize("dim")
    for job, line in zip(jobs, lines, strict=True):
        outcome = report.outcome(job)
        line.highlight_words([f"  {outcome} "], _STYLES.get(outcome, ""))
    return "\n".join(_rendered(console, line) for line in (heading, *lines))


def _console() -> Console:
    """Only renders; what it makes is written by `Terminal`."""
    return Console(force_terminal=True, markup=False, highlight=False, emoji=False)


def _rendered(console: Console, text: Text) -> str:
    with console.capture() as capture:
        console.print(text, end="", soft_wrap=True)
    return capture.get()
