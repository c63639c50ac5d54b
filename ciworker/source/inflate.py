"""Decompression in bounded pieces, whatever the stream says about itself.

Neither a few bytes that unfold to gigabytes nor a stream that asks for a large window can take
more memory than a few pieces: output is drawn piece by piece and windows are capped.
"""

import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Protocol

from zstandard import FRAME_HEADER as FRAME_MAGIC
from zstandard import ZstdDecompressor, ZstdError, frame_header_size, get_frame_parameters

from ciworker.source.archive import PIECE, ArchiveRefused

if TYPE_CHECKING:
    from zlib import _Decompress

_CUT = "the {} stream ends early: it was cut off on its way, send it again"
_DAMAGED = "the {} stream is damaged or followed by other data ({}): pack and send it again"
_TINY_BLOCKS = "the zstd stream is made of tiny blocks: compress it in one go"
_TOO_MANY = "the archive is made of too many {} streams: pack it as one"

_GZIP_WBITS = 31
_MAX_WINDOW = 8 * 1024 * 1024
_MAX_BLOCK = 128 * 1024
_BLOCK_CREDIT = 1024
_LEAST_PER_BLOCK = 64
_FRAME_START = len(FRAME_MAGIC) + 1
_BLOCK_HEADER = 3
_CHECKSUM = 4
_RLE_BLOCK = 1


class Inflater(Protocol):
    """A stream of bytes on its way from packed to plain."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What `data` unfolds to, in pieces of at most 128 KiB. Raises `ArchiveRefused`."""

    def finish(self) -> None:
        """Raise `ArchiveRefused` if the stream is not whole."""


class Plain:
    """Not compressed at all."""

    def feed(self, data: bytes) -> Iterator[bytes]:
        return sliced(data)

    def finish(self) -> None:
        """Only what lies inside can tell whether it is whole."""


class Gzip:
    """gzip; members that follow each other are one stream, as for gzip(1)."""

    def __init__(self, max_streams: int) -> None:
        self._streams_left = max_streams
        self._stream = self._next()

    def feed(self, data: bytes) -> Iterator[bytes]:
        for piece in sliced(data):
            yield from self._inflate(piece)

    def finish(self) -> None:
        if not self._stream.eof:
            raise ArchiveRefused(_CUT.format("gzip"))

    def _inflate(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._stream.eof:
                self._stream = self._next()
            try:
                yield from drawn(self._stream, data)
            except zlib.error as error:
                raise ArchiveRefused(_DAMAGED.format("gzip", error)) from error
            data = self._stream.unused_data

    def _next(self) -> "_Decompress":
        self._streams_left -= 1
        if self._streams_left < 0:
            raise ArchiveRefused(_TOO_MANY.format("gzip"))
        return zlib.decompressobj(_GZIP_WBITS)


class Zstd:
    """zstd; frames that follow each other are one stream, as for zstd(1).

    python-zstandard's `decompressobj` has no bound on its output (seen on 0.25), and 4 bytes of
    input can be 128 KiB of it. So frames are cut here at their blocks (RFC 8878, 3.1.1), which
    unfold to at most 128 KiB each; the library does the rest. Skippable frames are refused, and
    so are blocks that unfold to next to nothing: 256 MB of them would take minutes.
    """

    def __init__(self, max_streams: int) -> None:
        self._streams_left = max_streams
        self._library = ZstdDecompressor(max_window_size=_MAX_WINDOW)
        self._frame = self._library.decompressobj()
        self._held = bytearray()
        self._start = b""
        self._has_checksum = False
        self._credit = _BLOCK_CREDIT * _LEAST_PER_BLOCK
        self._await(_FRAME_START, self._frame_start)

    def feed(self, data: bytes) -> Iterator[bytes]:
        for piece in sliced(data):
            self._held += piece
            while len(self._held) >= self._needed:
                taken = bytes(self._held[: self._needed])
                del self._held[: self._needed]
                try:
                    plain = self._step(taken)
                except ZstdError as error:
                    raise ArchiveRefused(_DAMAGED.format("zstd", error)) from error
                if plain:
                    self._credit += len(plain)
                    yield plain

    def finish(self) -> None:
        if self._held or not self._frame.eof:
            raise ArchiveRefused(_CUT.format("zstd"))

    def _await(self, needed: int, step: Callable[[bytes], bytes]) -> None:
        self._needed, self._step = needed, step

    def _frame_start(self, data: bytes) -> bytes:
        self._streams_left -= 1
        if self._streams_left < 0:
            raise ArchiveRefused(_TOO_MANY.format("zstd"))
        if not data.startswith(FRAME_MAGIC):
            raise ArchiveRefused(_DAMAGED.format("zstd", "no frame begins where one should"))
        self._start = data
        self._await(frame_header_size(data) - _FRAME_START, self._frame_header)
        return b""

    def _frame_header(self, data: bytes) -> bytes:
        header = self._start + data
        parameters = get_frame_parameters(header)
        if parameters.window_size > _MAX_WINDOW:
            raise ArchiveRefused(
                f"the zstd stream asks for a window of over {_MAX_WINDOW >> 20} MiB: compress it "
                "without --long and --ultra"
            )
        self._has_checksum = parameters.has_checksum
        self._frame = self._library.decompressobj()
        self._await(_BLOCK_HEADER, self._block_header)
        return self._frame.decompress(header)

    def _block_header(self, data: bytes) -> bytes:
        fields = int.from_bytes(data, "little")
        is_last, block_type, size = fields & 1, fields >> 1 & 3, fields >> 3
        if size > _MAX_BLOCK:
            raise ArchiveRefused(_DAMAGED.format("zstd", "a block is too large"))
        self._credit -= _LEAST_PER_BLOCK
        if self._credit < 0:
            raise ArchiveRefused(_TINY_BLOCKS)
        follows = self._last_block if is_last else self._block
        self._await(1 if block_type == _RLE_BLOCK else size, follows)
        return self._frame.decompress(data)

    def _block(self, data: bytes) -> bytes:
        self._await(_BLOCK_HEADER, self._block_header)
        return self._unfold(data)

    def _last_block(self, data: bytes) -> bytes:
        if self._has_checksum:
            self._await(_CHECKSUM, self._checksum)
        else:
            self._await(_FRAME_START, self._frame_start)
        return self._unfold(data)

    def _unfold(self, data: bytes) -> bytes:
        # An empty last block ends the frame with its header, and a frame at its end takes no more.
        return self._frame.decompress(data) if data else b""

    def _checksum(self, data: bytes) -> bytes:
        self._await(_FRAME_START, self._frame_start)
        return self._frame.decompress(data)


def drawn(stream: "_Decompress", data: bytes) -> Iterator[bytes]:
    """All that a zlib stream makes of `data`, in pieces of at most `PIECE` bytes."""
    while True:
        plain = stream.decompress(data, PIECE)
        if plain:
            yield plain
        data = stream.unconsumed_tail
        if stream.eof or (not data and len(plain) < PIECE):
            return


def sliced(data: bytes) -> Iterator[bytes]:
    """`data` in pieces of at most `PIECE` bytes."""
    if len(data) <= PIECE:
        yield data
        return
    view = memoryview(data)
    for start in range(0, len(view), PIECE):
        yield bytes(view[start : start + PIECE])
