"""What git says, in lines: as a terminal would show them in the end, and without the password.

A host may repeat what it was sent, in whichever form: the credential's value is masked as secrets
are in the lines of jobs, before anything is shown, told as a reason, or cut.
"""

from collections.abc import Callable, Iterator

from ciworker.domain.masking import Mask
from ciworker.domain.secrets import Secret

MAX_LINE = 1000  # bytes; of a longer one, its end


class GitLines:
    """Takes git's output in pieces, however it is cut."""

    def __init__(self, token: str | None) -> None:
        """token: what git sends as a password, if it sends one; its value is a valid secret's."""
        self._mask = None if token is None else Mask([Secret(token)])
        self._rest = b""
        self._before = 0  # bytes of it that are looked at, and not shown: of a line that is cut

    def feed(self, piece: bytes) -> Iterator[bytes]:
        """The lines that end with this piece, without their ends; none is empty."""
        *lines, rest = (self._rest + piece).split(b"\n")
        for line in lines:
            yield from self._ended(line)
        longest = self._mask.longest if self._mask else 0
        self._rest = rest[-(MAX_LINE + longest) :]
        if len(self._rest) < len(rest):
            self._before = longest

    def finish(self) -> Iterator[bytes]:
        """Nothing follows."""
        yield from self._ended(self._rest)
        self._rest = b""

    @property
    def unfinished(self) -> bytes:
        """The line that has not ended, as far as it is sure to be no secret's part."""
        return self._shown(self._rest, self._mask.masked_so_far if self._mask else _plain)

    def _ended(self, line: bytes) -> Iterator[bytes]:
        if shown := self._shown(line, self._mask.masked if self._mask else _plain):
            yield shown
        self._before = 0

    def _shown(self, line: bytes, masked: Callable[[bytes, int], bytes]) -> bytes:
        """What a terminal would show in the end: progress is written over by carriage returns."""
        line = line.rstrip()
        start = max(self._before, line.rfind(b"\r") + 1)
        return masked(line, start).strip()[-MAX_LINE:]


def _plain(line: bytes, start: int) -> bytes:
    return line[start:]
