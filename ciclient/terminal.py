"""The two streams a person or a script reads: results on stdout, everything else on stderr.

The one place that writes to them. Text that is not our own must have passed `sanitise` before it
comes to `out` or `out_line`; `say` cleans by itself.
"""

import os
import sys
from collections.abc import Mapping
from typing import BinaryIO, TextIO

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

    def note(self, text: str) -> None:
        """On a live terminal, a line that the next output replaces; elsewhere nothing."""
        if self.live:
            self.out(clean(text))
            self._note_shown = True

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
        buffer: BinaryIO = self._out.buffer
        if self._note_shown:
            self._note_shown = False
            data = ERASE_LINE.encode() + data
        try:
            buffer.write(data)
            buffer.flush()
        except BrokenPipeError as error:
            discard_stdout()
            raise OutputClosed from error

    def say(self, text: str) -> None:
        """A message to the person; it may hold foreign text and several lines."""
        if self._note_shown:
            self.out("")
        lines = [clean(line) for line in text.split("\n")]
        encoding = self._err.encoding or "utf-8"
        message = "\n".join(lines).encode(encoding, "backslashreplace").decode(encoding)
        try:
            self._err.write(message + "\n")
            self._err.flush()
        except BrokenPipeError as error:
            raise OutputClosed from error


def discard_stdout() -> None:
    """Lets the interpreter's last flush succeed, which else would complain on stderr."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
