"""One active worker per store."""

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ciworker.errors import StoreRefused
from ciworker.store import lock
from ciworker.store.lock import LOCK_FILE, StoreLock, holder_of, writers_of
from tests.store.lab import other_process

HOLDER = """
import sys, time
from pathlib import Path
from ciworker.store.lock import StoreLock
with StoreLock(Path(sys.argv[1]), "the worker on http://127.0.0.1:8480"):
    print("held", flush=True)
    sys.stdin.read()
"""


def holding(folder: Path) -> "subprocess.Popen[str]":
    """Another process that holds it, until it is killed or its stdin ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_is_refused_and_told_who_holds_it(tmp_path: Path) -> None:
    with holding(tmp_path) as other:
        expected = rf"in use by the worker on http://127.0.0.1:8480 \(process {other.pid}\): stop"
        with pytest.raises(StoreRefused, match=expected):
            StoreLock(tmp_path, "me")
        other.communicate("")

    with StoreLock(tmp_path, "me"):
        assert holder_of(tmp_path) == f"me (process {os.getpid()})"


def test_a_killed_holders_lock_is_free(tmp_path: Path) -> None:
    with holding(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.communicate()

    with StoreLock(tmp_path, "me"):
        pass


def test_a_second_in_the_same_process_is_refused_and_does_not_free_the_first(
    tmp_path: Path,
) -> None:
    with StoreLock(tmp_path, "first"):
        for _ in range(3):
            with pytest.raises(StoreRefused, match="in use by first"):
                StoreLock(tmp_path, "second")
        assert holder_of(tmp_path).startswith("first")

    with StoreLock(tmp_path, "second"):
        pass


def test_a_program_that_the_holder_starts_does_not_hold_it(tmp_path: Path) -> None:
    with StoreLock(tmp_path, "me"):
        child = subprocess.Popen(["sleep", "60"], close_fds=False)
    try:
        with StoreLock(tmp_path, "next"):
            pass
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize("text", ["", "[]", "no json", '{"holder": "x"}', "\udcff"])
def test_a_lock_file_that_says_nothing_names_another_process(tmp_path: Path, text: str) -> None:
    (tmp_path / LOCK_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))

    assert holder_of(tmp_path) == "another process"


def test_a_folder_without_lock_names_another_process(tmp_path: Path) -> None:
    assert holder_of(tmp_path) == "another process"


def test_the_file_is_its_owners_alone_and_says_who(tmp_path: Path) -> None:
    with StoreLock(tmp_path, "me"):
        assert (tmp_path / LOCK_FILE).stat().st_mode & 0o777 == 0o600
        assert json.loads((tmp_path / LOCK_FILE).read_text()) == {
            "holder": "me",
            "pid": os.getpid(),
        }


def test_who_holds_it_can_be_told_anew(tmp_path: Path) -> None:
    with StoreLock(tmp_path, "somebody on port 0") as held:
        held.describe("me on 8480")
        assert holder_of(tmp_path) == f"me on 8480 (process {os.getpid()})"


def test_a_lock_that_cannot_be_described_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", broken)
        with pytest.raises(OSError, match="Input/output"):
            StoreLock(tmp_path, "me")

    with StoreLock(tmp_path, "me"):
        pass


def test_on_a_full_disk_it_is_held_by_nobody_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with (
        StoreLock(tmp_path, "me"),
        pytest.raises(StoreRefused, match="in use by another process: stop that one"),
    ):
        StoreLock(tmp_path, "next")


def test_a_lock_of_a_file_on_another_disk_with_the_same_number_is_another_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = tmp_path / "ciworker.db"
    database.touch()
    with other_process(database) as holder:
        asyncio.run(holder.does("BEGIN IMMEDIATE"))
        assert f"(process {holder.pid})" in writers_of(database)
        real = lock._in_locks

        def elsewhere(found: os.stat_result) -> str:
            return real(os.stat_result((*found[:2], found.st_dev + 1, *found[3:])))

        monkeypatch.setattr(lock, "_in_locks", elsewhere)
        assert writers_of(database) == ""
