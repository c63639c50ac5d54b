"""The live view of a job on a terminal: its log scrolls by, a few transient rows stay below it.

Those are what the job has printed since its last newline, and the status row. Log text is written
to the terminal directly, in blocks, because laying out each line would cost more than a flood
leaves; rich renders only the rows below. A frame is one write, and there are at most twelve in a
second.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.text import Text

from ciclient import echo, report
from ciclient.errors import ClientError
from ciclient.interrupts import tidying
from ciclient.loglines import LONGEST_RULE, LogLines, unfinished_row
from ciclient.queuewatch import QueueWatch
from ciclient.sanitise import clean
from ciclient.terminal import Terminal
from ciclient.wire import Job, Place, Record, Unfinished

if TYPE_CHECKING:
    from ciclient.config import Access

FRAME = 0.08
PENDING_LIMIT = 1 << 20  # characters; more is written at once
SHORT_ID = 12
TIDYING_PATIENCE = 0.2  # seconds
_STYLES = {
    "passed": "bold green",
    "not passed": "bold red",
    "no verdict": "bold magenta",
    "cancelled": "bold yellow",
    "running": "bold cyan",
}


class LiveView:
    """A context manager; the log and the rows below it are painted while it is open.

    A thread ticks for the clock, for resizes and for what came too soon after a frame; one lock
    holds all that threads share.
    """

    def __init__(self, terminal: Terminal, access: "Access", job: Job) -> None:
        self._terminal = terminal
        self._access = access
        self._console = _console()
        self._job = job
        self._place: Place | None = None
        self._lost: tuple[str, str] | None = None  # since when, why
        self._log = LogLines()
        self._unfinished: dict[str, str] = {}  # by stream
        page = Text(f"page:       {report.page_url(job, access.server)}", "dim")
        self._pending = [_rendered(self._console, page) + "\n"]
        self._pending_size = 0
        self._painted: tuple[int, list[str]] = 0, []
        self._last_frame = 0.0
        self._failure: ClientError | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="live view", daemon=True)
        self._queue_watch: QueueWatch | None = None
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._open.callback(echo.restore)
        self._terminal.silence()
        self._open.enter_context(tidying(self._tidied, self._terminal.silence))
        with self._lock:
            self._frame()
            self._watch_queue()
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._open:
            self._stop.set()
            if self._queue_watch is not None:
                self._queue_watch.stop()
            self._ticker.join()
            if self._failure is None:
                with self._lock:
                    self._terminal.frame(self._taken(), [])

    def lines(self, records: tuple[Record, ...]) -> None:
        text = self._log.text(records, self._terminal.size.columns)
        with self._lock:
            for stream in {record.stream for record in records}:
                self._unfinished.pop(stream, None)
            self._add(text)

    def unfinished(self, unfinished: Unfinished) -> None:
        with self._lock:
            self._unfinished.pop(unfinished.stream, None)
            if unfinished.text:
                self._unfinished[unfinished.stream] = unfinished.text
            self._add("")

    def notice(self, text: str) -> None:
        with self._lock:
            self._add(f"[{clean(text)}]\n")

    def lost(self, reason: str, pause: float) -> None:
        with self._lock:
            now = datetime.now(UTC).astimezone()
            since = f"{now:%H:%M:%S}" if self._lost is None else self._lost[0]
            self._lost = since, clean(reason)
            self._unfinished.clear()
            if self._queue_watch is not None:
                self._queue_watch.pause()

    def connected(self) -> None:
        with self._lock:
            self._lost = None
            if self._queue_watch is not None:
                self._queue_watch.poke()

    def changed(self, job: Job) -> None:
        with self._lock:
            self._job = job
            self._watch_queue()

    def _watch_queue(self) -> None:
        """While the job is queued, and its environment is there."""
        queued = self._job.status == "queued" and self._job.waits_for is None
        if queued and self._queue_watch is None:
            self._queue_watch = QueueWatch(self._access, self._job, self._told_place)
            self._queue_watch.start()
        elif queued and self._queue_watch is not None:
            self._queue_watch.poke()
        elif self._queue_watch is not None:
            self._queue_watch.stop()
            self._queue_watch = self._place = None

    def _told_place(self, place: Place | None) -> None:
        with self._lock:
            if self._queue_watch is not None:  # else it has started since it was asked
                self._place = place

    @contextmanager
    def _tidied(self) -> Iterator[None]:
        """The terminal as it was before, while nobody paints; for a signal's handler.

        What that interrupts may hold the lock itself, or another be stuck with it.
        """
        locked = self._lock.acquire(timeout=TIDYING_PATIENCE)
        try:
            self._terminal.wipe()
            echo.restore()
            yield
        finally:
            self._painted = 0, []
            if locked:
                self._lock.release()

    def _add(self, text: str) -> None:
        if self._failure is not None:
            raise self._failure
        self._pending.append(text)
        self._pending_size += len(text)
        due = time.monotonic() - self._last_frame >= FRAME
        if due or self._pending_size > PENDING_LIMIT:
            self._frame()

    def _tick(self) -> None:
        while not self._stop.wait(FRAME):
            with self._lock:
                try:
                    self._frame()
                except ClientError as error:
                    self._failure = error
                    return

    def _frame(self) -> None:
        """Writes what there is, unless nothing has changed since the last frame."""
        width = self._terminal.size.columns
        rows = width, [_rendered(self._console, row) for row in self._rows(width - 1)]
        if not self._pending_size and rows == self._painted:
            return
        self._painted = rows
        self._last_frame = time.monotonic()
        self._terminal.frame(self._taken(), rows[1])

    def _taken(self) -> str:
        text = "".join(self._pending)
        self._pending.clear()
        self._pending_size = 0
        return text

    def _rows(self, width: int) -> list[Text]:
        """A column less than there is: text that ends at the last one is wrapped by some."""
        unfinished = [unfinished_row(text, width) for text in self._unfinished.values()]
        status = self._status_row()
        status.truncate(max(width, 1), overflow="ellipsis")
        return [*unfinished, status]

    def _status_row(self) -> Text:
        """The most important first: a narrow terminal cuts off the end."""
        job = self._job
        phase = report.phase(job)
        row = Text().append(phase, _STYLES.get(phase, "bold"))
        row.append("  " + report.clock(job.age(datetime.now(UTC))))
        if self._lost is not None:
            since, reason = self._lost
            row.append(f"  reconnecting since {since}: {reason}", "bold yellow")
        elif self._place is not None:
            row.append(f"  number {self._place.number} of {self._place.queued} in the queue")
        if self._log.group is not None:
            row.append(f"  in {self._log.group}")
        names = [job.project, job.image, job.id[:SHORT_ID]]
        row.append("".join(f"  {clean(name)}" for name in names if name), "dim")
        return row


def closing(job: Job, server: str, now: datetime, width: int) -> str:
    """What is left on the terminal below the log: phases, page, commands, and last the verdict."""
    console = _console()
    style = _STYLES.get(report.outcome(job), "bold")
    lines = [
        Text("─" * min(LONGEST_RULE, width - 1), "dim"),
        *map(Text, report.next_steps(job, server)),
        Text(report.ending(job, now), style),
    ]
    return "\n".join(_rendered(console, line) for line in lines)


def job_table(jobs: tuple[Job, ...], now: datetime, width: int) -> str:
    """As wide as the terminal, with the outcomes in colour."""
    console = _console()
    rows = [report.HEADINGS, *(report.row(job, now) for job in jobs)]
    heading, *lines = (Text(line) for line in report.aligned(rows, width))
    heading.stylize("dim")
    for job, line in zip(jobs, lines, strict=True):
        outcome = report.outcome(job)
        start = line.plain.index(outcome, len(clean(job.id)))
        line.stylize(_STYLES.get(outcome, ""), start, start + len(outcome))
    return "\n".join(_rendered(console, line) for line in (heading, *lines))


def _console() -> Console:
    """Only renders; what it makes is written by `Terminal`."""
    return Console(force_terminal=True, markup=False, highlight=False, emoji=False)


def _rendered(console: Console, text: Text) -> str:
    with console.capture() as capture:
        console.print(text, end="", soft_wrap=True)
    return capture.get()
