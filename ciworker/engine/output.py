"""The engine's multiplexed streams, parsed from raw bytes.

aiodocker's `log()` drops the stream's identity and hides truncation, so the response is read raw:
frames of an 8-byte header (stream, length) and a payload; with `timestamps=1` each payload starts
with an RFC 3339 time and a space.
"""

import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Protocol

from aiodocker.stream import Message

from ciworker.domain.log import LogFrame, Stream

_ENGINE_SAYS = 3  # not the container's output: the engine cannot read its own log any further
_HEADER = struct.Struct(">BxxxL")
_SECOND = len("2026-01-01T00:00:00")


class MessageQueue(Protocol):
    """As aiodocker's own is, of an attached stream."""

    def feed_data(self, data: Message, size: int = 0) -> None: ...
    def feed_eof(self) -> None: ...
    def set_exception(self, exc: BaseException) -> None: ...


class AttachParser:
    """An attached stream: payloads of one stream that come together are handed on together.

    aiohttp's connection calls it, in place of aiodocker's own, which makes a message of each frame.
    """

    def __init__(self, queue: MessageQueue) -> None:
        """Feed nothing yet.

        Args:
            queue: takes the messages, and holds the connection back while it has enough of them.
        """
        self._queue = queue
        self._rest = b""

    def feed_eof(self) -> None:
        self._queue.feed_eof()

    def set_exception(self, error: BaseException) -> None:
        self._queue.set_exception(error)

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        """Never at its end; nothing is left for another parser."""
        data = self._rest + data if self._rest else data
        view, start, of, payloads = memoryview(data), 0, 0, list[memoryview]()
        while start + 8 <= len(data):
            stream, length = _HEADER.unpack_from(data, start)
            end = start + 8 + length
            if end > len(data):
                break
            if stream != of and payloads:
                self._flush(of, payloads)
                payloads = []
            payloads.append(view[start + 8 : end])
            of, start = stream, end
        if payloads:
            self._flush(of, payloads)
        self._rest = data[start:]
        return False, b""

    def _flush(self, stream: int, payloads: Sequence[memoryview]) -> None:
        data = b"".join(payloads)
        self._queue.feed_data(Message(stream, data), len(data))


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
