"""One transient row that tells how far packing and sending are; silent but on a live terminal."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ciclient.report import plural, size
from ciclient.terminal import Terminal

if TYPE_CHECKING:
    from ciclient.pack import Count

GLANCE = 0.1  # seconds from one row of a stage to the next
BAR = 12  # columns


class Progress:
    """Of one submit.

    changes: files with uncommitted changes; None where git has nothing to say.
    """

    def __init__(
        self,
        terminal: Terminal,
        *,
        changes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._terminal, self._clock = terminal, clock
        self._uncommitted = f"{changes:,} uncommitted" if changes else ""
        self._files = 0  # in the archive, as far as that is known
        self._stage = ""
        self._due = 0.0

    def packed(self, done: "Count", whole: "Count") -> None:
        """So much of the tree is in the archive."""
        self._files = whole.files
        counted = f"{done.files:,} of {plural(whole.files, 'file')}"
        self._tell("packing", counted, done.size, whole.size)

    def sent(self, done: int, total: int) -> None:
        """So many bytes of the archive have gone out."""
        counted = plural(self._files, "file") if self._files else ""
        self._tell("sending", counted, done, total)

    def again(self, reason: str) -> None:
        """Sending failed, and begins anew."""
        self._stage = ""
        self._terminal.say(f"sending again: {reason}")

    def _tell(self, stage: str, files: str, done: int, total: int) -> None:
        now = self._clock()
        if not self._terminal.live or (stage == self._stage and now < self._due):
            return
        self._stage, self._due = stage, now + GLANCE
        figures = [amount(done, total), files, self._uncommitted]
        width = self._terminal.size.columns - 1
        self._terminal.frame("", [row(stage, bar(done, total), figures, width)])


def row(stage: str, drawn: str, figures: list[str], width: int) -> str:
    """What fits: where that is not all, no bar, so that there is a figure at any width."""
    told = [figure for figure in figures if figure]
    whole = "  ".join([stage, drawn, *told])
    return whole if len(whole) <= width else "  ".join([stage, *told])[:width]


def amount(done: int, total: int) -> str:
    """`12.3 of 45.6 MB`, `512 B of 1.5 kB`."""
    number, unit = size(done).split()
    whole = size(total)
    return f"{number} of {whole}" if whole.endswith(f" {unit}") else f"{number} {unit} of {whole}"


def bar(done: int, total: int) -> str:
    """`━━━━────`; full where there is nothing to do, and never more than full."""
    full = BAR * min(done, total) // total if total else BAR
    return "━" * full + "─" * (BAR - full)
