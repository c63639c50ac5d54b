"""How a job's log looks in the live view: its lines, and below them what is no line yet.

A group goes from a line `::group::TITLE` to `::endgroup::`, to the next group, or to the end, as
on GitHub; groups do not nest. Its lines stand below a rule with its
title; a plain rule stands before the next line that is in none.
"""

import re

from rich.cells import cell_len, get_character_cell_size
from rich.text import Text

from ciclient.cells import fitted
from ciclient.sanitise import RESET, clean, clean_line
from ciclient.wire import Record

WORKER = "worker"  # the stream of the worker's own lines
LONGEST_RULE = 79
_DIM = "\x1b[2m"
_COMMAND = re.compile(r"::(group|endgroup)::(.*)")


class LogLines:
    """group: the title of the group that is open, ready to be shown, cut to the terminal's width;
    else None."""

    def __init__(self) -> None:
        self.group: str | None = None
        self._left_group = False

    def text(self, records: tuple[Record, ...], width: int) -> str:
        """Lines as text for a terminal with so many columns.

        A piece of an overlong line gets a row of its own too, since others stand below it.
        """
        return "".join([self._row(record, width) for record in records])

    def _row(self, record: Record, width: int) -> str:
        command = _command(record.text)
        if command is not None:
            return self._begin_or_end(command, width)
        rule = _rule("", width) if self._left_group else ""
        self._left_group = False
        if record.stream == WORKER:
            return f"{rule}{_DIM}{clean_line(record.text, colour=False)}{RESET}\n"
        return f"{rule}{clean_line(record.text, colour=True)}\n"

    def _begin_or_end(self, command: re.Match[str], width: int) -> str:
        if command[1] == "endgroup":
            self._left_group = True  # even without a group: that of a setup is left by one inside
            self.group = None
            return ""
        self._left_group = False
        self.group = fitted(command[2].strip(), width - len("──  ") - 1)
        return _rule(f"── {self.group} ", width)


def _rule(beginning: str, width: int) -> str:
    missing = min(LONGEST_RULE, width - 1) - cell_len(beginning)
    return f"{_DIM}{beginning}{'─' * missing}{RESET}\n"


def _command(text: str) -> re.Match[str] | None:
    if "::" not in text:
        return None
    return _COMMAND.match(clean_line(text, colour=False))


def unfinished_row(text: str, width: int) -> Text:
    """The end of an unfinished line, as much as fits.

    What a lone CR would paint over is left out, so that a progress bar is seen at its newest: the
    row stays for a moment only, so nothing is lost by it.
    """
    newest = text.rstrip("\r").rpartition("\r")[2]
    row = Text.from_ansi(clean(newest, colour=True))
    row.expand_tabs(8)
    if row.cell_len <= width:
        return row
    left, first = width - 1, len(row.plain)
    while first and (left := left - get_character_cell_size(row.plain[first - 1])) >= 0:
        first -= 1
    return Text("…") + row[first:]
