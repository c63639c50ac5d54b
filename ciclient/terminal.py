"""The two streams a person or a script reads: results on stdout, everything else on stderr.

The one place that writes to them. Text that is not our own must have passed `sanitise` before it
comes to `out`, `out_line` or `frame`; `say` cleans by itself.

A live terminal may have transient rows below what it keeps: the next output replaces them. The
cursor waits at their beginning, and the terminal clips them instead of wrapping, so that erasing
what is below the cursor removes them and nothing else: also where the terminal takes a character
for wider than we do, and where a resize has reflowed them, unless to more than a whole screen.
"""

import errno
import os
import select
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TextIO

from ciclient import echo
from ciclient.errors import OutputClosed, OutputFailed
from ciclient.sanitise import clean

NO_WRAP, WRAP = "\x1b[?7l", "\x1b[?7h"
# The first column by itself: from the first of all, tmux (3.3a) takes erasing what is below for
# clearing the screen, and keeps a copy in its history. With wrapping on again, because an interrupt
# may have cut a frame off.
ERASE = f"{WRAP}\r\x1b[K\x1b[C\x1b[J\r"
UP = "\x1b[A"
_NOBODY_READS = {errno.EPIPE, errno.EIO}  # EIO: of a terminal that was hung up
_OF_FILES = ("utf-8", "backslashreplace")
USUAL_SIZE = os.terminal_size((80, 24))


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
        self._encoding = (self._out.encoding, "replace") if self.on_tty else _OF_FILES
        self._transient = False

    @property
    def size(self) -> os.terminal_size:
        """Columns and lines as they are now."""
        try:
            size = os.get_terminal_size(self._out.fileno())
        except OSError:
            return USUAL_SIZE
        return size if size.columns > 0 and size.lines > 0 else USUAL_SIZE

    @contextmanager
    def noting(self, text: str) -> Iterator[None]:
        """On a live terminal, shows a row that the next output or the end replaces."""
        if self.live:
            self.frame("", [clean(text)])
        try:
            yield
        finally:
            self.clear()

    def frame(self, text: str, rows: Sequence[str]) -> None:
        """Writes text that stays, and transient rows below it, at once; for a live terminal.

        The text is empty or ends with a newline. Rows fit the terminal's width; where its height
        is too small, the first are left out.
        """
        shown = rows[-max(1, self.size.lines - 1) :]
        if not shown:
            self.out(text)
            return
        block = "\n".join(shown)
        park = UP * (len(shown) - 1) + "\r"
        erase = ERASE if self._transient else ""
        self._transient = True
        _write_whole(
            self._out, f"{erase}{text}{NO_WRAP}{block}{WRAP}{park}".encode(*self._encoding)
        )

    def clear(self) -> None:
        """Removes the transient rows, if there are any."""
        if self._transient:
            self.out("")

    def wipe(self) -> None:
        """Removes the transient rows where that needs no waiting; for a signal's handler.

        That they are there is kept in mind: whatever the signal has interrupted may still be
        about to write them.
        """
        if self._transient and select.select([], [self._out], [], 0)[1]:
            with suppress(OutputFailed):
                _write_whole(self._out, ERASE.encode())

    def silence(self) -> None:
        """Echoes nothing that is typed, until `echo.restore`."""
        echo.silence(self._out.fileno())

    def out(self, text: str) -> None:
        """Writes at once.

        Raises OutputClosed when nobody reads any more, OutputFailed when it can't be written.
        A file or pipe gets UTF-8. A terminal gets its own encoding: in another one, bytes of
        UTF-8 would be C1 controls.
        """
        self.out_bytes(text.encode(*self._encoding))

    def out_line(self, text: str) -> None:
        self.out(text + "\n")

    def out_bytes(self, data: bytes) -> None:
        _write_whole(self._out, ERASE.encode() + data if self._transient else data)
        self._transient = False

    def say(self, text: str) -> None:
        """A message to the person; it may hold foreign text and several lines.

        Where it can't be written it is lost: what goes to stdout, and the exit code, matter more.
        """
        self.clear()
        lines = [clean(line) for line in text.split("\n")]
        message = "\n".join([*lines, ""])
        data = message.encode(self._err.encoding or "utf-8", "backslashreplace")
        with suppress(OutputFailed):
            _write_whole(self._err, data)


def _write_whole(stream: TextIO, data: bytes) -> None:
    """Past Python's buffers, which under PYTHONUNBUFFERED write as much as fits and say no more,
    and which can't wait where another program has made a shared terminal or pipe non-blocking."""
    handle, rest = stream.fileno(), memoryview(data)
    while rest:
        try:
            rest = rest[os.write(handle, rest) :]
        except BlockingIOError:
            select.select([], [handle], [])
        except OSError as error:
            if error.errno in _NOBODY_READS:
                raise OutputClosed from error
            raise OutputFailed(f"can't write the output: {error.strerror}") from error
