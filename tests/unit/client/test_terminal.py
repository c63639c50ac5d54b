"""The real console script as a process: on a terminal, into a pipe, interrupted."""

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.cells import cell_len

from tests.unit.client.fakeworker import PATIENCE, TOKEN, FakeWorker, ulid
from tests.unit.client.screen import (
    CICLIENT,
    ERASE,
    HOSTILE,
    Screen,
    echoes,
    environ,
    kept,
    obeyed,
    on_screen,
    on_terminal,
    set_echo,
    transient,
)

NEVER_READ = "import sys, os\nsys.stdout"
INTERRUPTED_AT_IMPORT = """\
import os, signal, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
from ciclient.cli import main; main()
"""


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


@pytest.mark.attacks(40)
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
    text = kept(screen)
    assert "<script>alert(1)</script> <b>bold</b>\r\n" in text
    assert "^[]52;c;ZXZpbA==^G clipboard\r\n" in text
    assert "100%^M  0%\r\n" in text
    assert "^[[?7l^[[?1049h modes, the view's own among them\r\n" in text
    assert "[/tmp test[a-b]\r\n" in text
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


def test_the_first_ctrl_c_detaches_and_says_how_to_come_back(worker: FakeWorker) -> None:
    job_id = worker.add_job(status="running", lines=["one"])
    with on_terminal(worker, "follow", job_id) as terminal:
        terminal.read_until(lambda seen: b"one\r\n" in seen)
        terminal.type(b"\x03")
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
    with followed(worker) as terminal:
        with stuck(terminal):
            deadline = time.monotonic() + PATIENCE
            while terminal.process.poll() is None:
                assert time.monotonic() < deadline, "it can't be stopped"
                terminal.process.send_signal(signal.SIGINT)
                select.select([], [], [], 0.05)
            # a SIGINT while the interpreter goes down kills it: to a shell the same as 130
            assert terminal.code() in {130, -signal.SIGINT}
            assert echoes(terminal.handle)
        assert b"detached" not in terminal.read_to_end()


@contextmanager
def stuck(terminal: Screen) -> Iterator[None]:
    """As after Ctrl-S: nothing can be written to it."""
    handle = os.open(f"/proc/{terminal.process.pid}/fd/1", os.O_RDWR | os.O_NOCTTY)
    try:
        termios.tcflow(handle, termios.TCOOFF)
        yield
    finally:
        os.close(handle)


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


@pytest.mark.parametrize(
    "command", [["follow"], ["follow", "--raw"], ["wait"], ["wait", "--from-beginning"], ["logs"]]
)
def test_output_that_can_not_be_written_is_no_verdict(
    worker: FakeWorker, command: list[str]
) -> None:
    job_id = worker.add_ended(lines=["one"])
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*CICLIENT, *command, job_id], env=environ(worker), stdout=full,
            stderr=subprocess.PIPE, timeout=PATIENCE, check=False,
        )  # fmt: skip
    assert done.returncode == 5
    assert done.stderr.decode().splitlines()[-1] == (
        "error: can't write the output: No space left on device"
    )
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(("ending", "code"), [("passed", 0), ("tests_failed", 1)])
def test_messages_that_can_not_be_written_take_no_verdict_away(
    worker: FakeWorker, ending: str, code: int
) -> None:
    job_id = worker.add_ended(lines=["one"], ending=ending)
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*CICLIENT, "follow", job_id], env=environ(worker), stdout=subprocess.PIPE,
            stderr=full, timeout=PATIENCE, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (code, b"one\n")


def test_a_terminal_that_was_hung_up_is_a_reader_that_went_away(worker: FakeWorker) -> None:
    job_id = worker.add_job(status="running", lines=["one"])
    handle, inner = pty.openpty()
    argv = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *CICLIENT, "follow", job_id]
    with subprocess.Popen(
        ["setsid", "--ctty", *argv], stdin=inner, stdout=inner, stderr=inner, env=environ(worker)
    ) as process:
        os.close(inner)
        try:
            Screen(process, handle).read_until(lambda seen: b"one\r\n" in seen)
            os.close(handle)
            worker.end(job_id)
            assert process.wait(PATIENCE) == 141
        finally:
            process.kill()


def test_on_a_terminal_what_is_said_stands_on_a_line_of_its_own(worker: FakeWorker) -> None:
    job_id = worker.add_job(status="running", lines=["a piece"])
    worker.cut_off = {(job_id, 1)}
    with on_terminal(worker, "follow", "--raw", job_id) as terminal:
        terminal.read_until(lambda seen: b"a piece" in seen)
        worker.end(job_id)
        screen = terminal.read_to_end()
        assert terminal.code() == 0
    assert b"a piece\r\npage: " in screen


def test_on_a_terminal_a_lost_connection_is_not_told_in_a_line(worker: FakeWorker) -> None:
    job_id = worker.add_ended(lines=["a piece", "the rest"])
    worker.cut_off, worker.cuts = {(job_id, 1)}, [1]
    with on_terminal(worker, "follow", job_id, NO_COLOR="1") as terminal:
        assert b"a piece\r\nthe connection to the server was lost: " in terminal.read_to_end()


# what a person does to a live terminal


@contextmanager
def followed(worker: FakeWorker, argv: list[str] | None = None) -> Iterator[Screen]:
    """A job that runs, with a line and an unfinished one, on a terminal; no clock changes it."""
    job_id = worker.add_job(status="running", created_at=None, lines=["one"])
    worker.print_without_newline(job_id, "unfinished")
    with on_screen([*(argv or []), *CICLIENT, "follow", job_id], environ(worker)) as terminal:
        terminal.read_until(unfinished_row_shown)
        yield terminal


def unfinished_row_shown(seen: bytes) -> bool:
    return transient(seen)[-1:] != [] and transient(seen)[-1][0] == "unfinished"


def wait_until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline, "it did not come to that"
        select.select([], [], [], 0.01)


def test_what_is_typed_leaves_nothing_in_the_log(worker: FakeWorker) -> None:
    with followed(worker) as terminal:
        terminal.type(b"typed\n\n")
        worker.print(ulid(1), "two")
        terminal.read_until(lambda seen: b"two\r\n" in seen)
        assert not echoes(terminal.handle)
        worker.end(ulid(1))
        screen = kept(terminal.read_to_end())
        assert terminal.code() == 0
        assert echoes(terminal.handle)
    assert screen.split("\r\n")[1:4] == ["one", "two", "─" * 79]


def test_a_ctrl_c_gives_the_echo_back(worker: FakeWorker) -> None:
    with followed(worker) as terminal:
        terminal.type(b"\x03")
        terminal.read_to_end()
        assert terminal.code() == 130
        assert echoes(terminal.handle)


def test_a_sigterm_leaves_no_rows_behind(worker: FakeWorker) -> None:
    with followed(worker) as terminal:
        terminal.process.send_signal(signal.SIGTERM)
        screen = terminal.read_to_end()
        assert terminal.code() == -signal.SIGTERM
        assert echoes(terminal.handle)
    assert screen.endswith(ERASE)
    assert kept(screen).endswith("one\r\n")


def test_a_sigterm_ends_it_where_output_is_stuck_too(worker: FakeWorker) -> None:
    with followed(worker) as terminal, stuck(terminal):
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.code() == -signal.SIGTERM
        assert echoes(terminal.handle)


def test_ctrl_z_gives_the_terminal_back_until_it_goes_on(worker: FakeWorker) -> None:
    shell = ["bash", "-mc", '"$@"; echo stopped; read answer; fg', "bash"]
    with followed(worker, shell) as terminal:
        terminal.type(b"\x1a")
        before = terminal.read_until(lambda seen: b"stopped\r\n" in seen)
        assert kept(before).startswith("page:")
        assert "unfinished" not in kept(before)
        assert echoes(terminal.handle)
        terminal.type(b"\n")
        terminal.read_until(lambda seen: unfinished_row_shown(seen[len(before) :]))
        wait_until(lambda: not echoes(terminal.handle))
        worker.end(ulid(1))
        assert kept(terminal.read_to_end()).endswith("passed (12 s)\r\n")
        assert echoes(terminal.handle)


def test_gone_on_from_elsewhere_it_is_silent_again(worker: FakeWorker) -> None:
    with followed(worker) as terminal:
        set_echo(terminal.handle)
        terminal.process.send_signal(signal.SIGCONT)
        wait_until(lambda: not echoes(terminal.handle))


def test_in_the_background_it_leaves_the_terminal_alone(worker: FakeWorker) -> None:
    with followed(worker, ["bash", "-mc", '"$@" & wait', "bash"]) as terminal:
        assert echoes(terminal.handle)
        worker.end(ulid(1))
        assert "passed (12 s)" in kept(terminal.read_to_end())


@pytest.mark.parametrize("words", [["submit"], ["follow", ulid(1)], ["wait", ulid(1)]])
def test_ctrl_c_before_the_first_line_says_how_to_come_back(
    worker: FakeWorker, here: Path, words: list[str]
) -> None:
    job_id = worker.add_job() if words != ["submit"] else ulid(100)
    program = INTERRUPTED_AT_IMPORT.format(module="ciclient.follow")
    done = subprocess.run(
        [sys.executable, "-c", program, *words], env=environ(worker), capture_output=True,
        timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (130, b"")
    assert f"come back:  ciclient follow {job_id}\n" in done.stderr.decode()


# the end


def test_a_verdict_does_not_wait_for_what_is_told_besides(worker: FakeWorker) -> None:
    job_id = worker.add_job(status="running", lines=["one"])
    with on_terminal(worker, "follow", job_id) as terminal:
        terminal.read_until(lambda seen: b"one\r\n" in seen)
        worker.silent.add(f"/api/v1/jobs/{job_id}")
        worker.end(job_id, "tests_failed")
        before = time.monotonic()
        screen = kept(terminal.read_to_end())
        assert terminal.code() == 1
        assert time.monotonic() - before < PATIENCE / 2
    assert screen.endswith("not passed (tests_failed, exit code 1, 12 s): 2 of 7 tests failed\r\n")


def test_ctrl_c_after_the_end_takes_no_verdict_away(worker: FakeWorker) -> None:
    job_id = worker.add_job(status="running", lines=["one"])
    path = f"/api/v1/jobs/{job_id}"
    with on_terminal(worker, "follow", job_id) as terminal:
        terminal.read_until(lambda seen: b"one\r\n" in seen)
        worker.silent.add(path)
        asked = len(worker.asked("GET", path))
        worker.end(job_id)
        worker.wait_until(lambda: len(worker.asked("GET", path)) > asked)
        before = time.monotonic()
        terminal.type(b"\x03")
        screen = kept(terminal.read_to_end())
        assert terminal.code() == 0
        assert time.monotonic() - before < 1.5  # sooner than without
    assert screen.endswith("passed (12 s)\r\n")


def test_a_login_asks_on_a_terminal_and_does_not_show_the_token(worker: FakeWorker) -> None:
    with on_terminal(worker, "login", worker.url) as terminal:
        terminal.read_until(lambda seen: b"token: " in seen)
        os.write(terminal.handle, f"{TOKEN}\n".encode())
        screen = terminal.read_to_end().decode()
        assert terminal.code() == 0
    assert TOKEN not in screen
    assert f"logged in to {worker.url}" in screen


def test_what_is_shown_while_it_asks_is_gone_when_it_has_an_answer(worker: FakeWorker) -> None:
    worker.refusals["/api/v1/jobs"] = [(503, "not now", {})]
    with on_terminal(worker, "list") as terminal:
        screen = terminal.read_to_end()
        assert terminal.code() == 5
    assert transient(screen) == [[f"asking {worker.url}"]]
    assert kept(screen) == "error: not now\r\n"


@pytest.mark.parametrize(
    ("columns", "headings"),
    [
        (120, "ID STATUS PROJECT IMAGE CREATED TOOK"),
        (70, "ID STATUS PROJECT IMAGE CREATED TOOK"),
        (69, "ID STATUS PROJECT IMAGE CREATED"),
        (60, "ID STATUS PROJECT IMAGE"),
        (50, "ID STATUS PROJECT"),
        (40, "ID STATUS"),
    ],
)
@pytest.mark.parametrize("more", [{"COLUMNS": "200"}, {"NO_COLOR": "1"}])
def test_a_list_leaves_out_what_does_not_fit(
    worker: FakeWorker, columns: int, headings: str, more: dict[str, str]
) -> None:
    now = datetime.now(UTC).isoformat()
    worker.add_job(1, status="running", created_at=now, project="宽" * 5)
    worker.add_job(2, status="running", created_at=now, project="p" * 9, image="i" * 80)
    argv = [*CICLIENT, "list"]
    with on_screen(argv, environ(worker, **more), columns=columns) as terminal:
        first, *jobs = kept(terminal.read_to_end()).rstrip().split("\r\n")
    assert first.split() == headings.split()
    assert [job[:35] for job in jobs] == [f"{ulid(n)}  running" for n in (2, 1)]
    assert max(map(cell_len, [first, *jobs])) <= columns
    assert ("宽宽宽 …" in jobs[1]) is (columns == 70)
    if "IMAGE" in headings:
        starts = {
            cell_len(job[: job.index(image)]) for job, image in zip(jobs, ("ii", "py"), strict=True)
        }
        assert starts == {first.index("IMAGE")}


def test_a_list_fits_the_terminal(worker: FakeWorker) -> None:
    job_id = worker.add_job(image="registry." + "x" * 200, project="[red]p[/tmp")
    with on_terminal(worker, "list") as terminal:
        screen = kept(terminal.read_to_end())
        assert terminal.code() == 0
    assert job_id in screen
    assert "[red]p[/tmp" in screen
    assert "registry.xxxxx…" in screen
    assert max(len(line) for line in screen.split("\r\n")) <= 80


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
