"""The engine's multiplexed log stream, parsed from raw bytes.

aiodocker's `log()` drops the stream's identity and hides truncation, so the response is read raw:
frames of an 8-byte header (stream, length) and a payload; with `timestamps=1` each payload starts
with an RFC 3339 time and a space.
"""

import struct
from datetime import UTC, datetime
from functools import lru_cache

from ciworker.domain.log import LogFrame, Stream

_ENGINE_SAYS = 3  # not the container's output: the engine cannot read its own log any further
_HEADER = struct.Struct(">BxxxL")
_SECOND = len("2026-01-01T00:00:00")


class FrameParser:
    """Feed it bytes as they come; it gives whole frames and keeps the rest.

    failure: what the engine said of its log where it is damaged, as it is after a power cut.
    """

    def __init__(self) -> None:
        self.failure = ""
        self._rest = b""

    @property
    def truncated(self) -> bool:
        """Bytes of an unfinished frame are held."""
        return bool(self._rest)

    def feed(self, data: bytes) -> list[LogFrame]:
        data = self._rest + data if self._rest else data
        frames, start, size = [], 0, len(data)
        while start + 8 <= size:
            stream, length = _HEADER.unpack_from(data, start)
            end = start + 8 + length
            if end > size:
                break
            payload = data[start + 8 : end]
            start = end
            if stream == _ENGINE_SAYS:
                self.failure = payload.decode(errors="replace").strip()
            else:
                frames.append(_frame(stream, payload))
        self._rest = data[start:]
        return frames


def _frame(stream: int, payload: bytes) -> LogFrame:
    time, _, data = payload.partition(b" ")
    return LogFrame(Stream(stream), milliseconds(time), data)


def milliseconds(time: bytes) -> int:
    """Since the epoch, of an RFC 3339 time in UTC with up to nine digits of fraction."""
    fraction = time[_SECOND + 1 : _SECOND + 4].rstrip(b"Z").ljust(3, b"0")
    return _seconds(time[:_SECOND]) * 1000 + int(fraction)


@lru_cache(maxsize=64)
def _seconds(time: bytes) -> int:
    return int(datetime.fromisoformat(time.decode()).replace(tzinfo=UTC).timestamp())
