"""One active worker per store."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ciworker.errors import StoreRefused
from ciworker.store.lock import LOCK_FILE, StoreLock, holder_of

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


def test_a_lock_that_cannot_be_described_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            StoreLock(tmp_path, "me")

    with StoreLock(tmp_path, "me"):
        pass
