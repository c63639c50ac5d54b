"""The live view on a terminal: what stays there, and what is shown for a while below it."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ciclient.progress import row
from tests.unit.client.fakeworker import FakeWorker, ulid
from tests.unit.client.screen import (
    ERASE,
    Screen,
    environ,
    kept,
    on_screen,
    on_terminal,
    resize,
    transient,
)

RUNNING: dict[str, Any] = {"status": "running", "started_at": "2025-06-01T10:00:01.000Z"}
WAITS_FOR_SETUP: dict[str, Any] = {"waits_for": ulid(99), "place": None}


def shows(*rows: str) -> Callable[[bytes], bool]:
    """Whether the newest of a screen's transient rows begin like these."""

    def ready(seen: bytes) -> bool:
        found = transient(seen)
        return (
            bool(found)
            and len(found[-1]) == len(rows)
            and all(row.startswith(start) for row, start in zip(found[-1], rows, strict=True))
        )

    return ready


def test_the_log_stays_and_the_status_row_stands_below_it(worker: FakeWorker) -> None:
    job_id = worker.add_job(**RUNNING)
    with on_terminal(worker, "follow", job_id) as terminal:
        terminal.read_until(shows("running  "))
        worker.print(job_id, "first line")
        terminal.read_until(lambda seen: b"first line\r\n" in seen)
        worker.end(job_id, "tests_failed")
        screen = terminal.read_to_end()
        assert terminal.code() == 1
    (row,) = transient(screen)[-1]
    assert row.endswith(f"tea  python:3.12-slim  {job_id[:12]}")
    page, line, rule, *closing = kept(screen).rstrip().split("\r\n")
    assert page == f"page:       {worker.url}/jobs/{job_id}"
    assert line == "first line"
    assert rule == "─" * 79
    assert closing == [
        page,
        f"its log:    ciclient logs {job_id}",
        f"once more:  ciclient retry {job_id}",
        "not passed (tests_failed, exit code 1, 12 s): 2 of 7 tests failed",
    ]


def test_the_end_tells_where_the_time_went(worker: FakeWorker) -> None:
    job_id = worker.add_ended()
    spent = {"queued": 2.04, "setup": 2.5, "run": 60.9}
    phases = [{"name": name, "seconds": s, "since": None} for name, s in spent.items()]
    worker.update(job_id, phases=phases)
    with on_terminal(worker, "follow", job_id) as terminal:
        assert "phases:     queued 2.0 s, setup 2.5 s, run 1 min 0 s\r\n" in kept(
            terminal.read_to_end()
        )


def test_a_flood_is_painted_in_few_frames(worker: FakeWorker) -> None:
    count = 100_000
    job_id = worker.add_ended(lines=[f"line {n}" for n in range(count)])
    with on_terminal(worker, "follow", job_id) as terminal:
        before = time.monotonic()
        screen = terminal.read_to_end()
        took = time.monotonic() - before
        assert terminal.code() == 0
    numbers = [int(n) for n in re.findall(r"line (\d+)\r\n", kept(screen))]
    assert numbers == list(range(count))
    # twelve and a half in a second, and one for each megabyte that can't wait
    assert screen.count(ERASE) <= 12.5 * took + len(screen) / 1e6 + 4


def test_a_lost_connection_is_told_with_since_when(worker: FakeWorker) -> None:
    job_id = worker.add_job(**RUNNING, lines=["one"])
    starting = (503, "the worker is starting", {"Retry-After": "1"})
    full = (503, "the disk is full", {"Retry-After": "1"})
    with on_terminal(worker, "follow", job_id) as terminal:
        terminal.read_until(lambda seen: b"one\r\n" in seen)
        worker.print_without_newline(job_id, "unfinished")
        terminal.read_until(shows("unfinished", "running"))
        worker.refusals[f"/api/v1/jobs/{job_id}/events"] = [starting, full]
        worker.cut_streams()
        worker.wait_until(lambda: len(worker.asked("GET", "/events")) == 4)
        worker.print(job_id, "two")
        terminal.read_until(lambda seen: b"two\r\n" in seen and "reconnecting" not in last(seen))
        worker.end(job_id)
        screen = terminal.read_to_end()
        assert terminal.code() == 0
    lost = [rows for rows in transient(screen) if "reconnecting" in rows[-1]]
    since = {re.sub(r".*  (reconnecting since \d\d:\d\d:\d\d): .*", r"\1", r[-1]) for r in lost}
    assert len(since) == 1
    assert any("the worker is starting" in rows[-1] for rows in lost)
    assert any("the disk is full" in rows[-1] for rows in lost)
    assert all(len(rows) == 1 for rows in lost)  # what was unfinished is told anew
    assert kept(screen).count("one\r\ntwo\r\n") == 1


def last(seen: bytes) -> str:
    """The newest status row."""
    found = transient(seen)
    return found[-1][-1] if found else ""


def test_an_unfinished_line_is_shown_until_its_line_takes_its_place(worker: FakeWorker) -> None:
    job_id = worker.add_job(**RUNNING)
    with on_terminal(worker, "follow", job_id) as terminal:
        worker.print_without_newline(job_id, "test_tea.py \x1b[32m..")
        terminal.read_until(shows("test_tea.py ..", "running"))
        worker.print_without_newline(job_id, "warning", "stderr")
        terminal.read_until(shows("test_tea.py ..", "warning", "running"))
        worker.print(job_id, "test_tea.py .....")
        terminal.read_until(shows("warning", "running"))
        worker.print_without_newline(job_id, "", "stderr")
        terminal.read_until(shows("running"))
        worker.print_without_newline(job_id, "the end without a newline")
        terminal.read_until(shows("the end", "running"))
        worker.end(job_id)
        screen = terminal.read_to_end()
    assert "test_tea.py .....\r\n──" in kept(screen)
    assert b"\x1b[32m" in screen


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("\r 10%\r 20%", " 20%"),
        ("10%\r20%\r", "20%"),
        ("a" * 100 + "b" * 78, "…" + "b" * 78),
        ("a" * 100 + "宽" * 39, "…" + "宽" * 39),
        ("a" * 100 + "b" + "宽" * 39, "…" + "宽" * 39),
        ("a\tb", "a       b"),
        ("[red]x[/red]\x1b]0;t\x07\x1b[2J", "[red]x[/red]^[]0;t^G^[[2J"),
    ],
)
def test_of_an_unfinished_line_the_newest_is_shown_as_much_as_fits(
    worker: FakeWorker, text: str, row: str
) -> None:
    job_id = worker.add_job(**RUNNING)
    with on_terminal(worker, "follow", job_id) as terminal:
        worker.print_without_newline(job_id, text)
        screen = terminal.read_until(shows("", "running"))
    assert transient(screen)[-1][0] == row


def test_groups_are_rules_and_the_worker_s_own_lines_are_dim(worker: FakeWorker) -> None:
    job_id = worker.add_job(**RUNNING)
    worker.from_worker = {(job_id, 1), (job_id, 5)}
    with on_terminal(worker, "follow", job_id) as terminal:
        worker.print(job_id, "::group::Set up", "pip \x1b[31minstall")
        terminal.read_until(lambda seen: "  in Set up  tea" in last(seen))
        worker.print(job_id, "::endgroup::", "tests", "ciworker: a note")
        worker.print(
            job_id, "\x1b[1m::group:: [b]Wide 宽\x1b[0m ", "not ::group:: this", "::group::"
        )
        worker.print(
            job_id, "::endgroup::", "::group::Next", "::endgroup::", "::endgroup::", "in none"
        )
        worker.print(job_id, "in none either", "::endgroup::", "nor is this")
        worker.print(job_id, "::group::Last", "::endgroup::")
        worker.end(job_id)
        screen = terminal.read_to_end()
    assert b"\x1b[2mciworker: a note\x1b[0m\r\n" in screen
    assert "\x1b[2m── Set up ─".encode() in screen
    assert "\x1b[2m──────".encode() in screen
    assert kept(screen).split("\r\n")[1:17] == [
        "── Set up " + "─" * 69,
        "pip install",
        "─" * 79,
        "tests",
        "ciworker: a note",
        "── [b]Wide 宽 " + "─" * 65,
        "not ::group:: this",
        "──  " + "─" * 75,
        "── Next " + "─" * 71,
        "─" * 79,
        "in none",
        "in none either",
        "─" * 79,
        "nor is this",
        "── Last " + "─" * 71,
        "─" * 79,  # of the closing block
    ]


def test_of_a_group_s_title_what_fits_is_shown(worker: FakeWorker) -> None:
    job_id = worker.add_job(**RUNNING, lines=["::group::" + "宽" * 20_000])
    with on_terminal(worker, "follow", job_id) as terminal:
        terminal.read_until(lambda seen: "  in 宽" in last(seen))
        worker.end(job_id)
        screen = terminal.read_to_end()
    assert kept(screen).split("\r\n")[1] == "── " + "宽" * 37 + "… "
    assert screen.count("宽".encode()) < 1000


@pytest.mark.parametrize("start", [[], ["--tail", "1"], ["--now"]])
@pytest.mark.parametrize("printed", [["::group::pip", "pip"], ["::group::pip", "::endgroup::"]])
def test_a_job_that_waits_for_its_setup_is_in_it_whatever_that_prints(
    worker: FakeWorker, start: list[str], printed: list[str]
) -> None:
    lines = ["::group::Set up", *printed]
    job_id = worker.add_job(lines=lines, **WAITS_FOR_SETUP)
    with on_terminal(worker, "follow", job_id, *start) as terminal:
        terminal.read_until(lambda seen: last(seen).startswith("setup  "))
        assert "queue" not in last(terminal.seen)
        worker.wait_until(lambda: worker.streams)
        worker.update(job_id, status="starting", waits_for=None)
        worker.print(job_id, "::endgroup::", "begins")
        terminal.read_until(lambda seen: b"begins\r\n" in seen)
        assert last(terminal.seen).startswith("setup  ")
        worker.update(job_id, **RUNNING)
        terminal.read_until(shows("running  "))


def test_a_group_of_a_queued_job_is_no_setup(worker: FakeWorker) -> None:
    job_id = worker.add_job(lines=["::group::Set up"], place={"number": 3, "queued": 5})
    with on_terminal(worker, "follow", job_id) as terminal:
        terminal.read_until(lambda seen: "  number 3 of 5 in the queue  in Set up" in last(seen))
        assert not any(rows[-1].startswith("setup") for rows in transient(terminal.seen))


def test_a_note_on_a_queued_job_is_followed_up_at_once(worker: FakeWorker) -> None:
    job_id = worker.add_job(place={"number": 3, "queued": 5})
    with impatient(worker, job_id, pause=3600) as terminal:
        terminal.read_until(lambda seen: "  number 3 of 5 in the queue" in last(seen))
        worker.update(job_id, **WAITS_FOR_SETUP)
        terminal.read_until(shows("setup  "))


def test_while_the_connection_is_lost_no_place_is_asked_or_shown(worker: FakeWorker) -> None:
    job_id = worker.add_job(place={"number": 3, "queued": 5})
    path = f"/api/v1/jobs/{job_id}"
    with impatient(worker, job_id, pause=0.001) as terminal:
        terminal.read_until(lambda seen: "in the queue" in last(seen))
        worker.refusals[f"{path}/events"] = [(503, "no", {"Retry-After": "1"})]
        worker.cut_streams()
        terminal.read_until(lambda seen: "  reconnecting since" in last(seen))
        terminal.read_until(lambda seen: "  number 3 of 5 in the queue" in last(seen))
    paths = [request.path for request in worker.requests]
    refused, resumed = [n for n, found in enumerate(paths) if found == f"{path}/events"][1:3]
    asked = paths[refused:resumed].count(path)
    assert asked <= 1  # it may have been under way when the connection was lost
    lost = [rows[0] for rows in transient(terminal.seen) if "reconnecting" in rows[0]]
    assert not any("in the queue" in row for row in lost)


@contextmanager
def impatient(worker: FakeWorker, job_id: str, pause: float) -> Iterator[Screen]:
    """A job followed by a client that asks for its place in another rhythm."""
    program = (
        f"import ciclient.queuewatch as q; q.PAUSE = {pause}; import ciclient.cli as c; c.main()"
    )
    argv = [sys.executable, "-c", program, "follow", job_id]
    with on_screen(argv, environ(worker), columns=200) as screen:
        yield screen


def test_a_queued_job_s_place_is_shown_until_it_starts(worker: FakeWorker) -> None:
    job_id = worker.add_job(place={"number": 3, "queued": 5})
    with on_terminal(worker, "follow", job_id) as terminal:
        terminal.read_until(lambda seen: "  number 3 of 5 in the queue  tea" in last(seen))
        worker.update(job_id, place={"number": 2, "queued": 4})
        terminal.read_until(lambda seen: "  number 2 of 4 in the queue  tea" in last(seen))
        worker.update(job_id, **RUNNING)
        terminal.read_until(lambda seen: last(seen).startswith("running"))
        assert "queue" not in last(terminal.seen)


@pytest.mark.parametrize("place", [None, {}, "3", {"number": "3", "queued": 5}, {"number": 3}])
def test_a_place_that_is_not_told_is_not_spoken_of(worker: FakeWorker, place: object) -> None:
    job_id = worker.add_job(place=place)
    path = f"/api/v1/jobs/{job_id}"
    with on_terminal(worker, "follow", job_id) as terminal:
        worker.wait_until(lambda: len(worker.asked("GET", path)) > 1)
        worker.end(job_id)
        screen = terminal.read_to_end()
        assert terminal.code() == 0
    assert "queue" not in "".join(row for rows in transient(screen) for row in rows[1:])


def test_a_place_that_can_not_be_asked_is_not_spoken_of(worker: FakeWorker) -> None:
    job_id = worker.add_job(place={"number": 3, "queued": 5})
    path = f"/api/v1/jobs/{job_id}"
    with on_terminal(worker, "follow", job_id) as terminal:
        terminal.read_until(lambda seen: "in the queue" in last(seen))
        worker.refusals[path] = [(503, "no", {})]
        terminal.read_until(lambda seen: "in the queue" not in last(seen))
        worker.end(job_id)
        screen = terminal.read_to_end()
        assert terminal.code() == 0
    assert "no" not in kept(screen).split("\r\n")


def test_a_resize_fits_the_rows_anew(worker: FakeWorker) -> None:
    job_id = worker.add_job(**RUNNING, image="registry/" + "x" * 100)
    with on_terminal(worker, "follow", job_id) as terminal:
        for columns in (80, 30, 131, 12):
            resize(terminal.handle, columns, 24)
            terminal.read_until(cut_at(columns - 1))


def cut_at(width: int) -> Callable[[bytes], bool]:
    return lambda seen: len(last(seen)) == width and last(seen).endswith("…")


def test_a_low_terminal_has_the_status_row_alone(worker: FakeWorker) -> None:
    job_id = worker.add_job(**RUNNING)
    with on_terminal(worker, "follow", job_id) as terminal:
        worker.print_without_newline(job_id, "out")
        worker.print_without_newline(job_id, "err", "stderr")
        terminal.read_until(shows("out", "err", "running"))
        resize(terminal.handle, 79, 2)
        terminal.read_until(shows("running"))


# submit


def progress_of(worker: FakeWorker, folder: Path, glance: float) -> bytes:
    """What a submit puts on a terminal where a glance takes so many seconds."""
    worker.on_submit = lambda job: worker.end(str(job["id"]))
    program = (
        f"import ciclient.progress as p; p.GLANCE = {glance}; import ciclient.cli as c; c.main()"
    )
    argv = [sys.executable, "-c", program, "submit", str(folder)]
    with on_screen(argv, environ(worker), columns=100) as screen:
        seen = screen.read_to_end()
        assert screen.code() == 0
    return seen


def test_packing_and_sending_tell_how_far_they_are(worker: FakeWorker, here: Path) -> None:
    (here / "large.bin").write_bytes(bytes(range(256)) * 4096)
    rows = [row for (row,) in transient(progress_of(worker, here, 0))]
    packing = [row for row in rows if row.startswith("packing")]
    assert packing[0] == "packing  " + "─" * 12 + "  16.0 kB of 1.0 MB  0 of 2 files"
    assert packing[-1] == "packing  " + "━" * 12 + "  1.0 of 1.0 MB  2 of 2 files"
    assert re.fullmatch(r"sending  ─{12}  0 of \S+ B  2 files", sending(rows)[0])
    assert re.fullmatch(r"sending  ━{12}  (\S+) of \1 B  2 files", sending(rows)[-1])
    bars = [row.count("━") for row in packing]
    assert all(before <= after for before, after in pairwise(bars))
    assert rows[0] == f"looking at {here}"


def sending(rows: list[str]) -> list[str]:
    return [row for row in rows if row.startswith("sending")]


def test_each_stage_is_shown_from_its_beginning_however_small_it_is(
    worker: FakeWorker, here: Path
) -> None:
    screen = progress_of(worker, here, 60)
    rows = [row for (row,) in transient(screen)]
    shown = [row for row in rows if not row.startswith(("queued", "passed"))]
    assert shown[:3] == [
        f"looking at {here}",
        "packing  ━━━━━━━━━━━━  21 of 21 B  0 of 1 file",
        f"asking {worker.url}",
    ]
    (sent,) = shown[3:]
    assert re.fullmatch(r"sending  ─{12}  0 of \d+ B  1 file", sent)
    assert kept(screen).startswith("1 file, 21 B\r\nsubmitted ")


def test_an_upload_that_begins_anew_says_why(worker: FakeWorker, here: Path) -> None:
    worker.lost_replies = 1
    screen = progress_of(worker, here, 60)
    assert f"sending again: the connection to {worker.url} was lost\r\n" in kept(screen)
    assert len(sending([row for (row,) in transient(screen)])) == 2


FIGURES = ["1.0 of 3.5 MB", "2 of 7 files", "", "3 uncommitted"]


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (65, "packing  ━━━━────────  1.0 of 3.5 MB  2 of 7 files  3 uncommitted"),
        (64, "packing  1.0 of 3.5 MB  2 of 7 files  3 uncommitted"),
        (30, "packing  1.0 of 3.5 MB  2 of 7"),
        (19, "packing  1.0 of 3.5"),
    ],
)
def test_a_narrow_row_has_figures_rather_than_a_bar(width: int, shown: str) -> None:
    assert row("packing", "━" * 4 + "─" * 8, FIGURES, width) == shown


def test_the_first_output_waits_for_no_slow_import(worker: FakeWorker, here: Path) -> None:
    program = (
        "import os, sys\n"
        "write = os.write\n"
        "def first(handle, data):\n"
        "    os.write = write\n"
        "    slow = {'urllib3', 'rich', 'zstandard', 'tarfile', 'pathspec'} & set(sys.modules)\n"
        "    return write(handle, f'before: {sorted(slow)}\\n'.encode()) and write(handle, data)\n"
        "os.write = first\n"
        "from ciclient.cli import main; main()"
    )
    worker.on_submit = lambda job: worker.end(str(job["id"]))
    with on_screen([sys.executable, "-c", program, "submit"], environ(worker)) as screen:
        assert screen.read_to_end().startswith(b"before: []\r\n")
