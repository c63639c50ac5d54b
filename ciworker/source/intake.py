"""The way in: an upload of unknown make becomes a spool file with a clean tar, or nothing.

Nothing is unpacked, and memory does not grow with the upload: what was received is worked on in
batches of 256 KiB, in a thread, so that neither a large upload nor a bomb holds the event loop.
A small upload fits one batch and costs one hop, from `finish`.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Protocol, TypeVar

from ciworker.source.archive import ArchiveRefused, Limits, Refusal, Workspace
from ciworker.source.inflate import Gzip, Inflater, Plain, Zstd
from ciworker.source.rewrite import Rewriter
from ciworker.source.spool import SpoolWriter
from ciworker.source.tarstream import TarParser
from ciworker.source.zipsource import Zip

T = TypeVar("T")

_BATCH = 256 * 1024
_ZIP_IN_MEMORY = 1024 * 1024

_GZIP, _ZSTD, _ZIP, _EMPTY_ZIP = b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"PK\x05\x06"
_OTHERS = {b"BZh": "bzip2", b"\xfd7zX": "xz", b"7z\xbc\xaf": "7z", b"Rar!": "rar"}


class Intake:
    """One upload: `await feed(chunk)` for what arrives, one at a time, then `await finish()`.

    `target` is the spool file to be; its folder exists, it does not yet. `now` is the time, in
    seconds since the epoch, past which no file of the workspace is dated. `batch` is how many
    bytes are gathered, at least 4, before a thread takes them on.

    `feed` and `finish` raise `ArchiveRefused`, or `OSError` when the disk does not take it; then,
    and after `abort`, nothing is left on the disk and no call but `abort` is of use. An intake
    that is given up without either, as by a cancelled request, must be aborted.
    """

    def __init__(self, target: Path, limits: Limits, now: float, batch: int = _BATCH) -> None:
        self._target = target
        self._limits = limits
        self._now = now
        self._received = 0
        self._batch_size = batch
        self._batch = bytearray()
        self._source: _Source | None = None
        self._spool: SpoolWriter | None = None
        self._stopped = False
        self._at_work = threading.Lock()

    async def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the upload."""
        self._received += len(chunk)
        if self._received > self._limits.max_packed:
            self.abort()
            raise ArchiveRefused(
                f"the archive is over {self._limits.max_packed:,} bytes: leave out what the tests "
                "don't need",
                Refusal.TOO_LARGE,
            )
        self._batch += chunk
        if len(self._batch) >= self._batch_size:
            await asyncio.to_thread(self._work, self._advance)

    async def finish(self) -> Workspace:
        """The upload is complete: the workspace, durable in its spool file when this returns."""
        return await asyncio.to_thread(self._work, self._complete)

    def abort(self) -> None:
        """Remove everything that was made; at any time, any number of times. Never waits.

        If a thread is at work (the awaiting call was cancelled) it stops at its next piece and
        cleans up after itself.
        """
        self._stopped = True
        self._discard()

    def _work(self, step: Callable[[], T]) -> T:
        try:
            with self._at_work:
                self._check_stopped()
                return step()
        except BaseException:
            self._stopped = True
            raise
        finally:
            if self._stopped:
                self._discard()

    def _discard(self) -> None:
        # Whoever finds the lock taken leaves it to its holder, who looks at _stopped afterwards.
        if not self._at_work.acquire(blocking=False):
            return
        try:
            if self._source is not None:
                self._source.close()
            if self._spool is not None:
                self._spool.discard()
        finally:
            self._at_work.release()

    def _check_stopped(self) -> None:
        if self._stopped:
            raise RuntimeError("the intake was aborted")

    def _advance(self) -> None:
        batch = bytes(self._batch)
        self._batch.clear()
        if self._source is None:
            self._spool = SpoolWriter(self._target)
            rewriter = Rewriter(self._spool, self._limits, self._now)
            self._source = _source(batch, rewriter, self._limits, self._target.parent)
        for _ in self._source.feed(batch):
            self._check_stopped()

    def _complete(self) -> Workspace:
        if not self._received:
            raise ArchiveRefused(
                "the archive is empty, 0 bytes: send a tar, tar.gz, tar.zst or zip"
            )
        self._advance()
        assert self._source is not None
        for _ in self._source.finish():
            self._check_stopped()
        return self._source.rewriter.finish()


class _Source(Protocol):
    """What an upload of one make does with its bytes; yields after each piece of the work."""

    rewriter: Rewriter

    def feed(self, data: bytes) -> Iterator[None]: ...

    def finish(self) -> Iterator[None]: ...

    def close(self) -> None: ...


class _TarSource:
    """A tar, compressed or not: rewritten while it arrives."""

    def __init__(self, inflater: Inflater, rewriter: Rewriter, limits: Limits) -> None:
        self.rewriter = rewriter
        self._inflater = inflater
        self._limits = limits
        self._parser = TarParser(rewriter, limits)
        self._packed = 0
        self._unpacked = 0

    def feed(self, data: bytes) -> Iterator[None]:
        self._packed += len(data)
        for piece in self._inflater.feed(data):
            self._unpacked += len(piece)
            self._limits.check_ratio(self._packed, self._unpacked)
            self._parser.feed(piece)
            yield

    def finish(self) -> Iterator[None]:
        self._inflater.finish()
        self._parser.finish()
        yield

    def close(self) -> None:
        """It holds nothing but memory."""


class _ZipSource:
    """A zip: its directory is at its end, so it is kept, without a name, until it is complete."""

    def __init__(self, folder: Path, rewriter: Rewriter, limits: Limits) -> None:
        self.rewriter = rewriter
        self._limits = limits
        self._file = SpooledTemporaryFile(  # noqa: SIM115 - `close` closes it
            max_size=_ZIP_IN_MEMORY, mode="w+b", dir=str(folder)
        )
        self._length = 0

    def feed(self, data: bytes) -> Iterator[None]:
        self._length += self._file.write(data)
        yield

    def finish(self) -> Iterator[None]:
        yield from Zip(self._file, self._length, self._limits).rewrite(self.rewriter)
        self.close()

    def close(self) -> None:
        self._file.close()


def _source(head: bytes, rewriter: Rewriter, limits: Limits, folder: Path) -> _Source:
    """What fits the first bytes of an upload."""
    for magic, name in _OTHERS.items():
        if head.startswith(magic):
            raise ArchiveRefused(f"this is {name}: send a tar, tar.gz, tar.zst or zip")
    if head.startswith((_ZIP, _EMPTY_ZIP)):
        return _ZipSource(folder, rewriter, limits)
    inflater: Inflater = Plain()
    if head.startswith(_GZIP):
        inflater = Gzip(limits.max_members)
    elif head.startswith(_ZSTD):
        inflater = Zstd(limits.max_members)
    return _TarSource(inflater, rewriter, limits)
