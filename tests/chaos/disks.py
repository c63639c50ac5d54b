"""Disks of their own for one test: small, so that they fill; made and removed as root."""

import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from tests.driver import Worker

BLOCK = 2**20
SECTOR = 512


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """An ext4 file system of `size` bytes, mounted within the block below `folder`."""
    image, mount = folder / "disk.img", folder / "disk"
    mount.mkdir(parents=True)
    with image.open("wb") as file:
        file.truncate(size)
    _run("mkfs.ext4", "-q", "-m", "0", str(image))
    with _mounted(mount, "-o", "loop", str(image)):
        yield mount


@contextlib.asynccontextmanager
async def worker_on(disk: Path, image: str, *, min_free: str) -> AsyncIterator[Worker]:
    """A worker that answers; its data lie on this disk, its own log beside the mount."""
    made = Worker(disk / "worker", {"default_image": image, "min_free": min_free})
    made.log = disk.parent / "worker.log"
    try:
        await made.start()
        yield made
    finally:
        await made.destroy()


@contextlib.contextmanager
def memory_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory that says it is of this size, which it need not have."""
    mount = folder / "memory"
    mount.mkdir(parents=True)
    with _mounted(mount, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield mount


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Within the block nobody can write to this folder, not even root."""
    with _mounted(folder, "--bind", str(folder)):
        _run("mount", "-o", "remount,bind,ro", str(folder))
        yield


@contextlib.contextmanager
def _mounted(mount: Path, *words: str) -> Iterator[None]:
    _run("mount", *words, str(mount))
    try:
        yield
    finally:
        _run("umount", "--lazy", str(mount))


def fill(disk: Path, *, leave: int = 0) -> Path:
    """Fill a disk until `leave` bytes are free; the file that does it."""
    ballast, size = disk / "ballast", BLOCK
    with ballast.open("ab", buffering=0) as file:
        while size >= SECTOR:
            if free(disk) - leave < size:
                size //= 2
                continue
            try:
                file.write(bytes(size))
                os.fsync(file.fileno())
            except OSError:
                size //= 2
    return ballast


def free(disk: Path) -> int:
    """Bytes that anybody may still write."""
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def _run(*words: str) -> None:
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, f"{' '.join(words)}: {ran.stderr.strip()} (needs root)"
