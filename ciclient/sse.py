"""Server-sent events from bytes, as the WHATWG HTML standard (9.2.6) parses them.

Works on bytes because a line ends at CR, LF or CRLF only: `str.splitlines` would also break the
text of a log at U+2028, U+0085 and others (`bytes.splitlines` does not).
"""

from dataclasses import dataclass

from ciclient.errors import Nonsense

MAX_EVENT = 64 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    name: str
    data: tuple[bytes, ...]  # one per `data:` line
    last_id: str  # of this event, or of the last one before it that had an id


class Parser:
    """Feed it what the socket brings; it returns the events that are complete."""

    def __init__(self) -> None:
        self.retry_ms: int | None = None
        self._tail: list[bytes] = []  # pieces of the line that has not ended yet
        self._skip_lf = False
        self._at_start = True
        self._name = ""
        self._last_id = ""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        events = []
        for line in self._complete_lines(chunk):
            event = self._line(line)
            if event is not None:
                events.append(event)
        return events

    def _complete_lines(self, chunk: bytes) -> list[bytes]:
        if self._skip_lf and chunk:
            # the CR at the end of the last chunk has ended its line; this LF belongs to it
            chunk = chunk.removeprefix(b"\n")
            self._skip_lf = False
        if not chunk:
            return []
        self._skip_lf = chunk.endswith(b"\r")
        self._size += len(chunk)
        if self._size > MAX_EVENT:
            raise Nonsense(f"the server sent an event of more than {MAX_EVENT >> 20} MB")
        lines = chunk.splitlines()
        rest = b"" if chunk.endswith((b"\r", b"\n")) else lines.pop()
        if lines:
            lines[0] = b"".join([*self._tail, lines[0]])
            self._tail.clear()
        if rest:
            self._tail.append(rest)
        return lines

    def _line(self, line: bytes) -> ServerEvent | None:
        if self._at_start:
            line = line.removeprefix(_BOM)
            self._at_start = False
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        self._field(field, value.removeprefix(b" "))
        return None

    def _field(self, field: bytes, value: bytes) -> None:
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
        elif field == b"id" and b"\0" not in value:
            self._last_id = value.decode("utf-8", "replace")
        elif field == b"retry" and value.isdigit():
            self.retry_ms = int(value)

    def _dispatch(self) -> ServerEvent | None:
        name, data = self._name, tuple(self._data)
        self._name, self._size = "", 0
        self._data.clear()
        return ServerEvent(name or "message", data, self._last_id) if data else None
