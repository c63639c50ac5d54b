"""The real console script as a process: on a terminal, into a pipe, interrupted."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.client.fakeworker import PATIENCE, TOKEN, FakeWorker, ulid

CICLIENT = [sys.executable, "-c", "from ciclient.cli import main; main()"]
ROOT = str(Path(__file__).parents[3])
# what the live view itself sends besides SGR: back to column 1 and erase the line
OWN = b"\r\x1b[2K"
SGR = re.compile(rb"\x1b\[[0-9;:]*m")
HOSTILE = [
    "\x1b]52;c;ZXZpbA==\x07 clipboard",
    "\x1b]0;owned\x1b\\ title",
    "\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\",
    "\x1bP+q544e\x1b\\ DCS",
    "\x1b[2J\x1b[H\x1b[10A cursor",
    "\x9b2J\x9d0;c1\x9c",
    "100%\r  0%",
    "a\b\b\x07\x0e",
    "\u202ereversed\u202c",
    "\x1b[31mred, left open",
]


def environ(worker: FakeWorker, **more: str) -> dict[str, str]:
    return {
        **os.environ,
        "CICLIENT_SERVER": worker.url,
        "CICLIENT_TOKEN": TOKEN,
        "PYTHONPATH": ROOT,
        "PYTHONUTF8": "1",
        **more,
    }


@dataclass
class Terminal:
    process: subprocess.Popen[bytes]
    screen: int
    seen: bytes = b""

    def read_until(self, ready: Callable[[bytes], object]) -> bytes:
        end = time.monotonic() + PATIENCE
        while not ready(self.seen):
            left = end - time.monotonic()
            assert left > 0, f"it did not come to that: {self.seen!r}"
            if select.select([self.screen], [], [], left)[0]:
                block = self._block()
                assert block or ready(self.seen), f"it ended early: {self.seen!r}"
                self.seen += block
        return self.seen

    def read_to_end(self) -> bytes:
        while block := self._block():
            self.seen += block
        return self.seen

    def _block(self) -> bytes:
        try:
            return os.read(self.screen, 65536)
        except OSError:  # Linux: EIO once the last process of the terminal has gone
            return b""

    def code(self) -> int:
        return self.process.wait(PATIENCE)


@contextmanager
def on_terminal(worker: FakeWorker, *arguments: str, **more: str) -> Iterator[Terminal]:
    screen, inner = pty.openpty()
    process = subprocess.Popen(
        [*CICLIENT, *arguments], stdin=inner, stdout=inner, stderr=inner,
        env=environ(worker, **more), start_new_session=True,
    )  # fmt: skip
    os.close(inner)
    try:
        yield Terminal(process, screen)
    finally:
        process.kill()
        process.wait()
        os.close(screen)


@contextmanager
def in_pipes(worker: FakeWorker, *arguments: str, **more: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [*CICLIENT, *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=environ(worker),
    ) as process:  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def obeyed(screen: bytes) -> str:
    """What is left that a terminal would obey, but line ends and what the view may send."""
    rest = SGR.sub(b"", screen.replace(OWN, b"").replace(b"\r\n", b"\n")).decode()
    return "".join(re.findall(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", rest))


@pytest.mark.parametrize(
    ("command", "more"),
    [
        (["follow"], {}),
        (["follow"], {"NO_COLOR": "1"}),
        (["logs"], {}),
        (["logs"], {"TERM": "dumb"}),
        (["wait", "--from-beginning"], {}),
    ],
)
def test_of_a_job_s_escapes_only_colour_reaches_a_terminal(
    worker: FakeWorker, command: list[str], more: dict[str, str]
) -> None:
    job_id = worker.add_ended(
        lines=HOSTILE,
        ending="tests_failed",
    )
    worker.update(job_id, image="\x1b]0;image\x07", message="\x1b[2Jmessage\u202e")
    with on_terminal(worker, *command, job_id, **more) as terminal:
        screen = terminal.read_to_end()
        assert terminal.code() == (0 if command == ["logs"] else 1)
    assert obeyed(screen) == ""
    assert b"^[]52;c;ZXZpbA==^G clipboard" in screen
    assert b"100%^M  0%" in screen
    coloured = command != ["wait", "--from-beginning"] and not more
    assert (b"\x1b[31mred, left open\x1b[0m" in screen) is coloured


@pytest.mark.parametrize("more", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colour_nothing_is_animated(worker: FakeWorker, more: dict[str, str]) -> None:
    job_id = worker.add_ended(lines=["one"])
    for arguments in (["follow", job_id], ["list"]):
        with on_terminal(worker, *arguments, **more) as terminal:
            screen = terminal.read_to_end()
        assert b"\x1b" not in screen
        assert job_id.encode() in screen


def test_the_live_view_keeps_its_status_line_below_the_log(worker: FakeWorker) -> None:
    job_id = worker.add_job(status="running", started_at="2025-06-01T10:00:01.000Z")
    with on_terminal(worker, "follow", job_id) as terminal:
        terminal.read_until(lambda seen: job_id[:12].encode() in seen)
        worker.print(job_id, "first line")
        terminal.read_until(lambda seen: b"first line\r\n" in seen)
        worker.end(job_id, "tests_failed")
        screen = terminal.read_to_end()
        assert terminal.code() == 1
    frames = SGR.sub(b"", screen).split(OWN)
    assert any(frame.startswith(b"running  ") for frame in frames)
    lines = frames[-1].decode().split("\r\n")
    assert f"ciclient logs {job_id}" in lines[-4]
    assert f"ciclient retry {job_id}" in lines[-3]
    assert "not passed (tests_failed" in lines[-2]


def test_a_flood_is_painted_in_few_frames(worker: FakeWorker) -> None:
    count = 100_000
    job_id = worker.add_ended(lines=[f"line {n}" for n in range(count)])
    with on_terminal(worker, "follow", job_id) as terminal:
        before = time.monotonic()
        screen = terminal.read_to_end()
        took = time.monotonic() - before
        assert terminal.code() == 0
    text = SGR.sub(b"", screen).replace(OWN, b"")
    numbers = [int(n) for n in re.findall(rb"line (\d+)\r\n", text)]
    assert numbers == list(range(count))
    # eight in a second, and one for each megabyte that can't wait
    assert screen.count(OWN) <= 8 * took + len(screen) / 1e6 + 4


def test_a_lost_connection_is_told_on_the_status_line(worker: FakeWorker) -> None:
    job_id = worker.add_job(status="running", lines=["one", "two"])
    busy = (503, "the worker is starting", {"Retry-After": "1"})
    worker.cuts = [1]
    with on_terminal(worker, "follow", job_id) as terminal:
        terminal.read_until(lambda seen: b"one\r\n" in seen)
        terminal.read_until(lambda seen: b"two\r\n" in seen)
        worker.cuts = [0]
        worker.refusals[f"/api/v1/jobs/{job_id}/events"] = [busy]
        worker.cut_streams()
        terminal.read_until(lambda seen: b"the worker is starting" in seen)
        worker.end(job_id)
        screen = terminal.read_to_end()
        assert terminal.code() == 0
    assert b"reconnecting in 1." in screen


def test_the_first_ctrl_c_detaches_and_says_how_to_come_back(worker: FakeWorker) -> None:
    job_id = worker.add_job(status="running", lines=["one"])
    with on_terminal(worker, "follow", job_id) as terminal:
        terminal.read_until(lambda seen: b"one\r\n" in seen)
        terminal.process.send_signal(signal.SIGINT)
        screen = terminal.read_to_end().decode()
        assert terminal.code() == 130
    assert f"ciclient follow {job_id}" in screen
    assert f"ciclient cancel {job_id}" in screen
    assert "Traceback" not in screen
    assert worker.jobs[job_id]["status"] == "running"


@pytest.mark.parametrize("command", ["follow", "wait"])
def test_ctrl_c_detaches_off_a_terminal_too(worker: FakeWorker, command: str) -> None:
    job_id = worker.add_job(status="running", lines=["one"])
    with in_pipes(worker, command, job_id) as process:
        worker.wait_until(lambda: worker.asked("GET", "/events"))
        if command == "follow":
            assert process.stdout is not None
            assert process.stdout.readline() == b"one\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, out) == (130, b"")
    assert f"ciclient follow {job_id}" in err.decode()
    assert b"Traceback" not in err


def test_the_second_ctrl_c_leaves_at_once_even_where_output_is_stuck(worker: FakeWorker) -> None:
    job_id = worker.add_job(status="running", lines=["x" * 1000] * 2000)
    with on_terminal(worker, "follow", job_id) as terminal:
        # nobody reads the terminal: the view is stuck in a write
        worker.wait_until(lambda: worker.asked("GET", "/events"))
        terminal.read_until(lambda seen: b"xxx" in seen)
        deadline = time.monotonic() + PATIENCE
        while terminal.process.poll() is None:
            assert time.monotonic() < deadline, "it can't be stopped"
            terminal.process.send_signal(signal.SIGINT)
            select.select([], [], [], 0.05)
        # a SIGINT while the interpreter goes down kills it: to a shell the same as 130
        assert terminal.code() in {130, -signal.SIGINT}


def test_a_background_job_of_a_shell_is_not_interrupted(worker: FakeWorker) -> None:
    job_id = worker.add_job(status="running", lines=["one"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with in_pipes(worker, "follow", job_id) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"one\n"
            process.send_signal(signal.SIGINT)
            worker.end(job_id)
            process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}])
@pytest.mark.parametrize("command", ["logs", "follow", "list --limit=500"])
def test_a_reader_that_goes_away_is_no_error_to_speak_of(
    worker: FakeWorker, command: str, buffering: dict[str, str]
) -> None:
    for number in range(500):
        worker.add_ended(number, project="p" * 500, lines=["x" * 100] * (20_000 * (number == 1)))
    job = [] if command.startswith("list") else [ulid(1)]
    with in_pipes(worker, *command.split(), *job, **buffering) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10)
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(PATIENCE) == 141
    assert b"Broken" not in err
    assert b"Traceback" not in err


def test_a_login_asks_on_a_terminal_and_does_not_show_the_token(worker: FakeWorker) -> None:
    with on_terminal(worker, "login", worker.url) as terminal:
        terminal.read_until(lambda seen: b"token: " in seen)
        os.write(terminal.screen, f"{TOKEN}\n".encode())
        screen = terminal.read_to_end().decode()
        assert terminal.code() == 0
    assert TOKEN not in screen
    assert f"logged in to {worker.url}" in screen


def test_what_is_shown_while_it_asks_is_gone_when_it_has_an_answer(worker: FakeWorker) -> None:
    worker.refusals["/api/v1/jobs"] = [(503, "not now", {})]
    with on_terminal(worker, "list") as terminal:
        screen = terminal.read_to_end()
        assert terminal.code() == 5
    assert screen == f"asking {worker.url}".encode() + OWN + b"error: not now\r\n"


def test_a_list_fits_the_terminal(worker: FakeWorker) -> None:
    job_id = worker.add_job(image="registry." + "x" * 200, project="[red]p[/tmp")
    with on_terminal(worker, "list") as terminal:
        screen = SGR.sub(b"", terminal.read_to_end()).replace(OWN, b"").decode()
        assert terminal.code() == 0
    assert job_id in screen
    assert "[red]p[/tmp" in screen
    assert "registry.xxxxx…" in screen
    assert max(len(line) for line in screen.split("\r\n")[1:]) <= 80


def test_an_unexpected_error_shows_no_values_of_variables(worker: FakeWorker) -> None:
    program = (
        "import ciclient.jobs, ciclient.cli\n"
        "def broken(*_, **__): secret = 'hunter2'; raise ZeroDivisionError\n"
        "ciclient.jobs.newest_jobs = broken\n"
        "ciclient.cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "list"], env=environ(worker), capture_output=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert b"ZeroDivisionError" in done.stderr
    assert TOKEN.encode() not in done.stderr
    assert b"locals" not in done.stderr
