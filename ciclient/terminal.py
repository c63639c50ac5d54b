"""The two streams a person or a script reads: results on stdout, everything else on stderr.

The one place that writes to them. Text that is not our own must have passed `sanitise` before it
comes to `out` or `out_line`; `say` cleans by itself.
"""

import os
import select
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from ciclient.errors import OutputClosed
from ciclient.sanitise import clean

ERASE_LINE = "\r\x1b[2K"


class Terminal:
    """`live`: colour and animation are wanted. `on_tty`: a terminal obeys what stdout gets."""

    def __init__(
        self,
        out: TextIO | None = None,
        err: TextIO | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._out = out or sys.stdout
        self._err = err or sys.stderr
        self.on_tty = self._out.isatty()
        plain = bool(environ.get("NO_COLOR")) or environ.get("TERM", "dumb") in {"dumb", ""}
        self.live = self.on_tty and not plain
        self._note_shown = False

    @contextmanager
    def noting(self, text: str) -> Iterator[None]:
        """On a live terminal, shows a line that the next output or the end replaces."""
        if self.live:
            self.out(clean(text))
            self._note_shown = True
        try:
            yield
        finally:
            self._erase_note()

    def out(self, text: str) -> None:
        """Writes and flushes; raises OutputClosed when nobody reads any more.

        A file or pipe gets UTF-8. A terminal gets its own encoding: in another one, bytes of
        UTF-8 would be C1 controls.
        """
        encoding = self._out.encoding if self.on_tty else "utf-8"
        self.out_bytes(text.encode(encoding, "replace" if self.on_tty else "backslashreplace"))

    def out_line(self, text: str) -> None:
        self.out(text + "\n")

    def out_bytes(self, data: bytes) -> None:
        if self._note_shown:
            self._note_shown = False
            data = ERASE_LINE.encode() + data
        try:
            _write_whole(self._out.fileno(), data)
        except BrokenPipeError as error:
            raise OutputClosed from error

    def say(self, text: str) -> None:
        """A message to the person; it may hold foreign text and several lines."""
        self._erase_note()
        lines = [clean(line) for line in text.split("\n")]
        message = "\n".join([*lines, ""])
        try:
            encoded = message.encode(self._err.encoding or "utf-8", "backslashreplace")
            _write_whole(self._err.fileno(), encoded)
        except BrokenPipeError as error:
            raise OutputClosed from error

    def _erase_note(self) -> None:
        if self._note_shown:
            self.out("")


def _write_whole(handle: int, data: bytes) -> None:
    """Past Python's buffers, which under PYTHONUNBUFFERED write as much as fits and say no more,
    and which can't wait where another program has made a shared terminal or pipe non-blocking."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(handle, rest) :]
        except BlockingIOError:
            select.select([], [handle], [])
