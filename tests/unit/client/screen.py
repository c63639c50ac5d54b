"""A command on a terminal of its own: the bytes that reach it, and what of them stays."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.unit.client.fakeworker import PATIENCE, TOKEN, FakeWorker

CICLIENT = [sys.executable, "-c", "from ciclient.cli import main; main()"]
ROOT = str(Path(__file__).parents[3])
LOCAL_FLAGS = 3  # where tcgetattr has them
SGR = re.compile(rb"\x1b\[[0-9;:]*m")

# All that the live view sends besides text and SGR. Rows that go away again are written with
# wrapping off, then the cursor goes back to where they begin; the next output erases what is
# below it.
ERASE = b"\x1b[?7h\r\x1b[K\x1b[C\x1b[J\r"
ROWS = re.compile(rb"\x1b\[\?7l([^\x1b]*)\x1b\[\?7h((?:\x1b\[A)*)\r")

HOSTILE = [
    "<script>alert(1)</script> <b>bold</b>",
    "\x1b]52;c;ZXZpbA==\x07 clipboard",
    "\x1b]0;owned\x1b\\ title",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\",
    "\x1bP+q544e\x1b\\ DCS",
    "\x1b[2J\x1b[H\x1b[10A cursor",
    "\x1b[?7l\x1b[?1049h modes, the view's own among them",
    "\x9b2J\x9d0;c1\x9c",
    "100%\r  0%",
    "a\b\b\x07\x0e",
    "\u202ereversed\u202c",
    "::group::\x1b]0;group\x07 [red]/tmp",
    "[/tmp test[a-b]",
    "\x1b[31mred, left open",
]


@dataclass
class Screen:
    """seen: what came so far."""

    process: subprocess.Popen[bytes]
    handle: int
    seen: bytes = b""

    def read_until(self, ready: Callable[[bytes], object], within: float = PATIENCE) -> bytes:
        end = time.monotonic() + within
        while not ready(self.seen):
            left = end - time.monotonic()
            assert left > 0, f"it did not come to that: {self.seen[-4000:]!r}"
            if select.select([self.handle], [], [], left)[0]:
                block = self._block()
                assert block or ready(self.seen), f"it ended early: {self.seen[-4000:]!r}"
                self.seen += block
        return self.seen

    def read_to_end(self) -> bytes:
        while block := self._block():
            self.seen += block
        return self.seen

    def _block(self) -> bytes:
        try:
            return os.read(self.handle, 65536)
        except OSError:  # Linux: EIO once the last process of the terminal has gone
            return b""

    def type(self, text: bytes) -> None:
        os.write(self.handle, text)

    def code(self) -> int:
        return self.process.wait(PATIENCE)


@contextmanager
def on_screen(
    argv: Sequence[str | Path],
    environ: Mapping[str, str],
    *,
    columns: int = 80,
    lines: int = 24,
    folder: Path | None = None,
) -> Iterator[Screen]:
    """The command as the foreground of a terminal, where ^C is an interrupt."""
    handle, inner = pty.openpty()
    resize(handle, columns, lines)
    process = subprocess.Popen(
        ["setsid", "--ctty", *argv], stdin=inner, stdout=inner, stderr=inner,
        env=dict(environ), cwd=folder,
    )  # fmt: skip
    os.close(inner)
    try:
        yield Screen(process, handle)
    finally:
        process.kill()
        process.wait()
        os.close(handle)


def environ(worker: FakeWorker, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "CICLIENT_SERVER": worker.url,
        "CICLIENT_TOKEN": TOKEN,
        "PYTHONPATH": ROOT,
        "PYTHONUTF8": "1",
        **more,
    }


@contextmanager
def on_terminal(worker: FakeWorker, *arguments: str, **more: str) -> Iterator[Screen]:
    with on_screen([*CICLIENT, *arguments], environ(worker, **more)) as screen:
        yield screen


def resize(handle: int, columns: int, lines: int) -> None:
    fcntl.ioctl(handle, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def kept(seen: bytes) -> str:
    """What stays on the terminal, without colours. What the terminal echoes (^C) is erased with
    the rows that it stands on."""
    erased = rb"(?:%b[^\n]*?)?%b" % (ROWS.pattern, re.escape(ERASE))
    return ROWS.sub(b"", re.sub(erased, b"", SGR.sub(b"", seen))).decode()


def transient(seen: bytes) -> list[list[str]]:
    """The rows of each frame that go away again, without colours."""
    found = []
    for rows, ups in ROWS.findall(SGR.sub(b"", seen)):
        found.append(rows.decode().split("\r\n"))
        assert len(ups) == len(b"\x1b[A") * (len(found[-1]) - 1), "it is parked elsewhere"
    return found


def obeyed(seen: bytes) -> str:
    """What is left that a terminal would obey, but line ends, SGR, and what the view may send."""
    text = ROWS.sub(rb"\1", SGR.sub(b"", seen)).replace(ERASE, b"").replace(b"\r\n", b"\n")
    controls = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
    return "".join(re.findall(controls, text.decode()))


def echoes(handle: int) -> bool:
    """Whether the terminal shows what is typed."""
    return bool(termios.tcgetattr(handle)[LOCAL_FLAGS] & termios.ECHO)


def set_echo(handle: int) -> None:
    attributes = termios.tcgetattr(handle)
    attributes[LOCAL_FLAGS] |= termios.ECHO
    termios.tcsetattr(handle, termios.TCSANOW, attributes)
