"""Every command against a worker on a real socket: what it prints where, and its exit code."""

import io
import json
import re
import socket
import subprocess
import sys
import tarfile
import threading
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest
import zstandard

from ciclient import api as api_module
from ciclient.cli import run
from ciclient.config import find_access, login_path
from ciclient.options import duration
from tests.unit.client.conftest import Ciclient, git
from tests.unit.client.fakeworker import TOKEN, FakeWorker, ulid

VERDICTS = [
    ("passed", 0, "passed (12 s)"),
    ("tests_failed", 1, "not passed (tests_failed, exit code 1, 12 s): 2 of 7 tests failed"),
    (
        "image_missing",
        3,
        "no verdict (image_missing, 12 s): there is no image nosuch:1; name another",
    ),
    ("cancelled", 4, "cancelled (12 s): cancelled by admin"),
]


def ends(worker: FakeWorker, ending: str = "passed", *lines: str) -> None:
    def end(job: dict[str, object]) -> None:
        worker.print(str(job["id"]), *lines)
        worker.end(str(job["id"]), ending)

    worker.on_submit = end


def only_submission(worker: FakeWorker) -> tuple[str, dict[str, object], bytes]:
    ((job_id, submission),) = worker.submissions.items()
    assert submission.types == ("application/json", "application/octet-stream")
    return job_id, submission.spec, submission.archive


def names_in(archive: bytes) -> list[str]:
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(archive)
    with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
        return tar.getnames()


# submit


@pytest.mark.parametrize(("ending", "code", "verdict"), VERDICTS)
def test_submit_packs_follows_and_exits_with_the_verdict(
    worker: FakeWorker, ciclient: Ciclient, here: Path, ending: str, code: int, verdict: str
) -> None:
    ends(worker, ending, "collected 1 item", "\x1b[32mPASSED\x1b[0m")
    result = ciclient("submit")
    job_id, spec, archive = only_submission(worker)
    assert result.code == code
    assert result.out == "collected 1 item\nPASSED\n"
    assert names_in(archive) == ["test_tea.py"]
    assert spec == {"project": "tea"}
    assert "1 file, 21 B" in result.err
    *_, logs, retry, last = result.err.splitlines()
    assert last == f"{job_id} {verdict}"
    assert f"ciclient logs {job_id}" in logs
    assert f"ciclient retry {job_id}" in retry


@pytest.mark.parametrize("option", ["--detach", "--async"])
def test_a_detached_submit_prints_the_id_alone(
    worker: FakeWorker, ciclient: Ciclient, here: Path, option: str
) -> None:
    result = ciclient("submit", option)
    job_id, _, _ = only_submission(worker)
    assert (result.code, result.out) == (0, f"{job_id}\n")


def test_submit_sends_every_override_and_the_vcs(
    worker: FakeWorker, ciclient: Ciclient, here: Path
) -> None:
    git(here, "init", "-q")
    result = ciclient(
        "submit", str(here), "--detach", "--image", "python:3.13", "--timeout", "10m",
        "--memory", "512m", "--cpus", "0.5", "--network", "--env", "A=1", "--env", "B=x=y",
        "--priority", "7", "--project", "mine", "--rebuild",
        "--secret", "NPM_TOKEN", "--secret", "KEY", "--", "pytest", "-x", "--", "a b",
    )  # fmt: skip
    assert result.code == 0
    _, spec, _ = only_submission(worker)
    assert spec == {
        "image": "python:3.13",
        "timeout": "10m",
        "memory": "512m",
        "cpus": 0.5,
        "network": True,
        "env": {"A": "1", "B": "x=y"},
        "priority": 7,
        "project": "mine",
        "cache": "rebuild",
        "secrets": ["NPM_TOKEN", "KEY"],
        "command": ["pytest", "-x", "--", "a b"],
        "vcs": {"branch": "main", "dirty": True},
    }
    assert "with uncommitted changes in 1" in result.err


def test_a_command_alone_is_not_taken_for_a_path(
    worker: FakeWorker, ciclient: Ciclient, here: Path
) -> None:
    assert ciclient("submit", "--detach", "--", "pytest").code == 0
    assert only_submission(worker)[1]["command"] == ["pytest"]


@pytest.mark.parametrize(
    ("options", "cache"), [([], None), (["--no-cache"], "off"), (["--rebuild"], "rebuild")]
)
def test_what_to_do_with_kept_environments_is_sent_only_when_it_is_said(
    worker: FakeWorker, ciclient: Ciclient, here: Path, options: list[str], cache: str | None
) -> None:
    assert ciclient("submit", "--detach", *options).code == 0
    assert only_submission(worker)[1].get("cache") == cache


def test_a_whole_number_of_cpus_is_sent_as_one(
    worker: FakeWorker, ciclient: Ciclient, here: Path
) -> None:
    ciclient("submit", "--detach", "--cpus", "2", "--no-network")
    spec = only_submission(worker)[1]
    assert (repr(spec["cpus"]), spec["network"]) == ("2", False)


def test_a_ready_archive_is_sent_as_it_is(
    worker: FakeWorker, ciclient: Ciclient, here: Path, tmp_path: Path
) -> None:
    path = tmp_path / "ready.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(here / "test_tea.py", "test_tea.py")
    assert ciclient("submit", str(path), "--detach").code == 0
    assert only_submission(worker)[1:] == ({}, path.read_bytes())


def test_an_archive_larger_than_memory_allows_is_streamed_from_disk(
    worker: FakeWorker, ciclient: Ciclient, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ciclient import pack

    monkeypatch.setattr(pack, "IN_MEMORY", 1000)
    noise = bytes(range(256)) * 20 + Path(tarfile.__file__).read_bytes()
    (here / "noise.bin").write_bytes(noise)
    assert ciclient("submit", "--detach").code == 0
    assert names_in(only_submission(worker)[2]) == ["noise.bin", "test_tea.py"]


def test_a_lost_reply_is_asked_for_again_and_makes_one_job(
    worker: FakeWorker, ciclient: Ciclient, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module.Api.submit, "__kwdefaults__", {"sleep": lambda _: None})
    worker.lost_replies = 2
    result = ciclient("submit", "--detach")
    assert (result.code, worker.uploads) == (0, 3)
    assert result.out.split() == list(worker.jobs)
    keys = {request.headers["Idempotency-Key"] for request in worker.asked("POST", "/jobs")}
    assert len(keys) == 1
    ciclient("submit", "--detach")
    assert len(worker.jobs) == 2


def test_replies_lost_again_and_again_are_an_unreachable_server(
    worker: FakeWorker, ciclient: Ciclient, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api_module.Api.submit, "__kwdefaults__", {"sleep": lambda _: None})
    worker.lost_replies = 99
    result = ciclient("submit", "--detach")
    assert (result.code, result.out) == (5, "")
    assert "was lost" in result.err
    assert worker.uploads == api_module.SUBMIT_ATTEMPTS


def test_a_refused_submit_prints_the_problem_s_detail(
    worker: FakeWorker, ciclient: Ciclient, here: Path
) -> None:
    worker.refusals["/api/v1/jobs"] = [(422, "timeout: 'soon' is no duration\x1b[2J", {})]
    result = ciclient("submit", "--timeout", "soon")
    assert (result.code, result.out) == (5, "")
    assert "error: timeout: 'soon' is no duration^[[2J\n" in result.err


@pytest.mark.parametrize(("wish", "told"), [("30", "30"), ("9" * 400, "86400")])
def test_a_busy_server_tells_when_to_come_back(
    worker: FakeWorker, ciclient: Ciclient, here: Path, wish: str, told: str
) -> None:
    worker.refusals["/api/v1/jobs"] = [(429, "too many submits", {"Retry-After": wish})]
    result = ciclient("submit")
    assert result.code == 5
    assert f"too many submits (try again in {told} s)" in result.err


def test_a_wait_that_the_problem_tells_is_told_once(worker: FakeWorker, ciclient: Ciclient) -> None:
    detail = "too many submits: try again in 12 s"
    worker.refusals["/api/v1/jobs"] = [(429, detail, {"Retry-After": "12"})]
    assert ciclient("list").err.endswith(f"error: {detail}\n")


@pytest.mark.parametrize("reads_the_rest", [True, False])
def test_an_upload_refused_before_its_end_prints_why(
    ciclient: Ciclient, here: Path, reads_the_rest: bool
) -> None:
    (here / "large.tar").write_bytes(b"\x1f\x8b" + bytes(30_000_000))
    problem = b'{"detail": "an upload may have 256 MB at most"}'
    head = "HTTP/1.1 413 no\r\nContent-Type: application/problem+json\r\n"
    head += f"Content-Length: {len(problem)}"

    def refuse(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(100)
            connection.sendall(head.encode() + b"\r\n\r\n" + problem)
            while reads_the_rest and connection.recv(1 << 20):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        result = ciclient("submit", "large.tar", "--server", url)
        thread.join()
    assert (result.code, result.out) == (5, "")
    assert "an upload may have 256 MB at most" in result.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nosuch"], "does not exist"),
        (["empty"], "there is nothing to pack"),
        (["zero.tar"], "is empty"),
        (["text.tar"], "is no archive"),
        (["/dev/null"], "neither a folder nor a file"),
        (["--env", "A"], "NAME=VALUE"),
        (["--env", "=1"], "NAME=VALUE"),
        (["--cpus", "nan"], "above 0"),
        (["--cpus", "many"], "--cpus"),
        (["--priority", "high"], "--priority"),
        (["--no-cache", "--rebuild"], "--rebuild and --no-cache exclude each other"),
        (["--"], "a command is missing"),
        (["--git", "x", "."], "--git has the worker fetch the source"),
        (["--git", "x", "--dry-run"], "--dry-run lists what would be packed"),
        (["--ref", "main"], "--git URL, which is missing"),
    ],
)
def test_a_wrong_submit_exits_2_before_any_connection(
    worker: FakeWorker, ciclient: Ciclient, here: Path, arguments: list[str], sentence: str
) -> None:
    (here / "empty").mkdir()
    (here / "zero.tar").touch()
    (here / "text.tar").write_text("text")
    result = ciclient("submit", *arguments)
    assert (result.code, result.out) == (2, "")
    assert sentence in result.err
    assert worker.requests == []


def test_a_dry_run_lists_the_files_and_asks_no_server(
    worker: FakeWorker, ciclient: Ciclient, here: Path
) -> None:
    (here / "b\x1b[2J.py").write_text("x")
    (here / "link").symlink_to("test_tea.py")
    result = ciclient("submit", "--dry-run")
    assert result.code == 0
    assert [line.split(maxsplit=1) for line in result.out.splitlines()] == [
        ["1", "b^[[2J.py"],
        ["0", "link -> test_tea.py"],
        ["21", "test_tea.py"],
    ]
    assert "3 files, 22 B" in result.err
    assert worker.requests == []


def test_what_was_left_out_is_named(worker: FakeWorker, ciclient: Ciclient, here: Path) -> None:
    (here / "passwd").symlink_to("/etc/passwd")
    result = ciclient("submit", "--detach")
    assert "left out, a link that leaves the tree (to /etc/passwd): passwd" in result.err
    assert names_in(only_submission(worker)[2]) == ["test_tea.py"]


# follow and wait


@pytest.mark.parametrize(("ending", "code", "verdict"), VERDICTS)
def test_follow_and_wait_exit_with_the_verdict(
    worker: FakeWorker, ciclient: Ciclient, ending: str, code: int, verdict: str
) -> None:
    job_id = worker.add_ended(lines=["one", "two"], ending=ending)
    followed = ciclient("follow", job_id)
    assert (followed.code, followed.out) == (code, "one\ntwo\n")
    assert followed.err.splitlines()[-1] == f"{job_id} {verdict}"
    waited = ciclient("wait", job_id)
    assert (waited.code, waited.out) == (code, f"{job_id} {verdict}\n")
    assert waited.err.splitlines() == (followed.err.splitlines()[:-1] if code in (1, 3) else [])


def test_a_failure_is_told_with_its_last_lines_where_they_were_not_just_shown(
    worker: FakeWorker, ciclient: Ciclient
) -> None:
    job_id = worker.add_ended(lines=["one", "two", "\x1b]0;x\x07three"], ending="tests_failed")
    lines = [{"n": n, "stream": "stdout", "text": worker.lines[job_id][n - 1]} for n in (2, 3)]
    worker.update(
        job_id, last_lines=lines, history=[], exit_words="exit code 143: killed by signal 15"
    )
    told = ["last 2 lines of 3:", "two", "^[]0;x^Gthree"]
    waited = ciclient("wait", job_id)
    assert waited.err.splitlines()[:3] == told
    assert f"its log:    ciclient logs {job_id}" in waited.err
    assert "exit code 143: killed by signal 15" in waited.out
    shown = ciclient("show", job_id).out.splitlines()
    assert shown[shown.index(told[0]) :][:3] == told
    for words in (("follow",), ("wait", "--from-beginning")):
        assert told[0] not in ciclient(*words, job_id).err


def test_a_cut_follow_prints_each_line_once_and_says_that_it_reconnects(
    worker: FakeWorker, ciclient: Ciclient
) -> None:
    job_id = worker.add_ended(lines=[str(n) for n in range(100)], ending="tests_failed")
    worker.cuts = [30, 0, 30]
    worker.overlap = 3
    result = ciclient("follow", job_id)
    assert result.code == 1
    assert result.out == "".join(f"{n}\n" for n in range(100))
    assert result.err.count("reconnecting in") == 3


def test_follow_begins_where_it_is_told(worker: FakeWorker, ciclient: Ciclient) -> None:
    job_id = worker.add_ended(lines=["1", "2", "3"])
    assert ciclient("follow", job_id, "--tail", "2").out == "2\n3\n"
    assert ciclient("follow", job_id, "--now").out == ""
    assert ciclient("follow", job_id, "--now", "--tail", "1").code == 2


def test_a_job_s_text_is_never_obeyed_unless_raw(worker: FakeWorker, ciclient: Ciclient) -> None:
    hostile = "\x1b]0;x\x07[bold]\x1b[31mred[/tmp"
    job_id = worker.add_ended(lines=[hostile])
    assert ciclient("follow", job_id).out == "^[]0;x^G[bold]red[/tmp\n"
    assert ciclient("follow", "--raw", job_id).out == f"{hostile}\n"
    assert ciclient("wait", "--from-beginning", job_id).out.startswith("^[]0;x^G[bold]red[/tmp\n")


@pytest.mark.parametrize("command", [["follow"], ["wait", "--from-beginning"]])
def test_off_a_terminal_groups_are_lines_and_what_is_unfinished_is_not_shown(
    worker: FakeWorker, ciclient: Ciclient, command: list[str]
) -> None:
    job_id = worker.add_job(lines=["::group::Set up", "::endgroup::"])
    records = "".join(f"data: {worker.record(job_id, number)}\n" for number in (1, 2))
    ended = {"id": job_id, "status": "completed", "success": True}
    worker.raw_stream = (
        'event: partial\ndata: {"stream": "stdout", "text": "unfinished"}\n\n'
        f"event: log\n{records}id: 2\n\nevent: end\ndata: {json.dumps(ended)}\nid: end\n\n"
    ).encode()
    result = ciclient(*command, job_id)
    assert result.out.startswith("::group::Set up\n::endgroup::\n")
    assert "unfinished" not in result.out + result.err


def test_off_a_terminal_phases_are_told_as_on_one(worker: FakeWorker, ciclient: Ciclient) -> None:
    job_id = worker.add_ended(lines=["one"])
    spent = {"queued": 2.04, "setup": 2.5, "run": 60.9}
    worker.update(
        job_id, phases=[{"name": n, "seconds": s, "since": None} for n, s in spent.items()]
    )
    for raw in ([], ["--raw"]):
        err = ciclient("follow", job_id, *raw).err.splitlines()
        assert err[0] == "phases:     queued 2.0 s, setup 2.5 s, run 1 min 0 s"


@pytest.mark.parametrize(
    "problem", [(401, "the token was revoked", {}), (404, "gone", {}), (503, "not now", {})]
)
def test_what_is_told_besides_takes_no_verdict_away(
    worker: FakeWorker, ciclient: Ciclient, problem: tuple[int, str, dict[str, str]]
) -> None:
    job_id = worker.add_ended(lines=["one"], ending="tests_failed")
    prefix = job_id[:-1]  # found in the list, so that the job itself is asked for at the end only
    worker.refusals[f"/api/v1/jobs/{job_id}"] = [problem]
    result = ciclient("follow", prefix)
    assert worker.refusals[f"/api/v1/jobs/{job_id}"] == []
    assert result.code == 1
    assert result.err.splitlines()[-1].startswith(f"{job_id} not passed")


def test_before_it_runs_a_job_is_set_up(worker: FakeWorker, ciclient: Ciclient) -> None:
    job_id = worker.add_job()
    told = [
        f"event: status\ndata: {json.dumps(worker.jobs[job_id] | {'status': status})}\n\n"
        for status in ("queued", "queued", "starting", "running")
    ]
    ended = {"id": job_id, "status": "completed", "success": True}
    told.append(f"event: end\ndata: {json.dumps(ended)}\nid: end\n\n")
    worker.raw_stream = "".join(told).encode()
    assert ciclient("follow", job_id).err.splitlines()[:3] == [
        f"{job_id} queued", f"{job_id} setup", f"{job_id} running",
    ]  # fmt: skip


@pytest.mark.parametrize("raw", [[], ["--raw"]])
def test_a_last_line_without_a_newline_gets_one(
    worker: FakeWorker, ciclient: Ciclient, raw: list[str]
) -> None:
    job_id = worker.add_ended(lines=["one", "no newline"])
    worker.cut_off = {(job_id, 2)}
    result = ciclient("wait", "--from-beginning", *raw, job_id)
    assert result.out == f"one\nno newline\n{job_id} passed (12 s)\n"
    assert ciclient("follow", *raw, job_id).out == "one\nno newline\n"


def test_off_a_terminal_the_pieces_of_a_line_stay_together(
    worker: FakeWorker, ciclient: Ciclient
) -> None:
    job_id = worker.add_ended(lines=["a piece,", " and the rest"])
    worker.cut_off = {(job_id, 1)}
    worker.cuts = [1]
    result = ciclient("follow", job_id)
    assert "reconnecting in" in result.err
    assert result.out == "a piece, and the rest\n"


def test_lines_missing_in_the_store_are_told(worker: FakeWorker, ciclient: Ciclient) -> None:
    job_id = worker.add_ended(lines=["1", "2", "3"])
    worker.never_stored = {2}
    result = ciclient("follow", job_id)
    assert result.out == "1\n3\n"
    assert "lines 2 to 2 are not in the stored log" in result.err


@pytest.mark.parametrize("limit", ["1", "1s"])
def test_a_wait_that_takes_too_long_exits_124(
    worker: FakeWorker, ciclient: Ciclient, limit: str
) -> None:
    job_id = worker.add_job(status="running")
    result = ciclient("wait", job_id, "--timeout", limit)
    assert (result.code, result.out) == (124, "")
    assert "not ended after 1s;" in result.err


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("2h", 7200)])
def test_durations_are_read_as_the_contract_says(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1.5", "-1", "0", "5 m", "1d", "\u0663"])
def test_a_time_limit_that_is_none_exits_2(ciclient: Ciclient, text: str) -> None:
    result = ciclient("wait", ulid(1), "--timeout", text)
    assert result.code == 2


# JOB


def test_without_an_id_the_newest_job_of_this_folder_is_meant(
    worker: FakeWorker, ciclient: Ciclient, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends(worker)
    first = ciclient("submit", "--detach").out.strip()
    second = ciclient("submit", "--detach").out.strip()
    assert first != second
    assert ciclient("wait").out.startswith(second)
    third = ciclient("retry").out.strip()
    worker.end(third)
    assert ciclient("wait").out.startswith(third)
    monkeypatch.chdir(here.parent)
    result = ciclient("wait")
    assert result.code == 2
    assert "no job was submitted from this folder" in result.err


def test_a_prefix_in_any_case_names_a_job(worker: FakeWorker, ciclient: Ciclient) -> None:
    worker.page_limit = 3
    for number in range(20):
        worker.add_ended(number * 32**5)
    wanted = ulid(4 * 32**5)
    result = ciclient("wait", wanted[:21].lower())
    assert result.out.startswith(wanted)
    # pages are read until ids sort before the prefix, no further
    assert len(worker.asked("GET", "/jobs")) == 6


def test_an_ambiguous_prefix_exits_2_and_lists_the_matches(
    worker: FakeWorker, ciclient: Ciclient
) -> None:
    found = [worker.add_ended(number) for number in (1, 2)]
    result = ciclient("show", found[0][:10])
    assert result.code == 2
    assert all(job_id in result.err for job_id in found)


@pytest.mark.parametrize(
    ("job", "sentence"),
    [
        (ulid(9), f"there is no job {ulid(9)} on http://127.0.0.1:"),
        (ulid(9), ": see `ciclient list`\n"),
        ("01K5TESTZ", "no job's id begins with 01K5TESTZ"),
        ("01K5", "at least the first 6"),
        ("../../etc", "is no job id"),
        ("01K5TESU", "is no job id"),
    ],
)
@pytest.mark.parametrize("command", ["follow", "wait", "logs", "show", "cancel", "retry"])
def test_an_unknown_job_exits_2(
    worker: FakeWorker, ciclient: Ciclient, command: str, job: str, sentence: str
) -> None:
    worker.add_job()
    result = ciclient(command, job)
    assert (result.code, result.out) == (2, "")
    assert sentence in result.err
    assert result.err.count("there is no job") < 2


def test_a_job_is_read_from_stdin(
    worker: FakeWorker, ciclient: Ciclient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = worker.add_ended()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{job_id}\n"))
    assert ciclient("wait", "-").code == 0
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert ciclient("wait", "-").code == 2


# logs, list, show


def test_logs_prints_exact_bytes(worker: FakeWorker, ciclient: Ciclient) -> None:
    job_id = worker.add_ended(lines=["a\x1b[31m\r", "caf\udce9\u2028", "\x00"])
    assert ciclient("logs", job_id).raw == b"a\x1b[31m\r\ncaf\xe9\xe2\x80\xa8\n\x00\n"
    assert ciclient("logs", job_id, "--tail", "1").raw == b"\x00\n"
    assert ciclient("logs", job_id, "--timestamps").raw.startswith(b"2025-06-01T10:00:01.000Z a")


def test_an_empty_log_says_why(worker: FakeWorker, ciclient: Ciclient) -> None:
    queued, ended = worker.add_job(1), worker.add_ended(2, lines=["a"])
    result = ciclient("logs", queued)
    assert (result.code, result.out) == (0, "")
    assert f"{queued} has no output yet; it is queued" in result.err
    result = ciclient("logs", ended, "--stream", "stderr")
    assert f"{ended} ended without any output on stderr" in result.err


def test_list_shows_the_newest_first(worker: FakeWorker, ciclient: Ciclient) -> None:
    worker.add_ended(1, ending="tests_failed")
    worker.add_job(2, project="\x1b[2Jhostile", status="running")
    lines = ciclient("list").out.splitlines()
    assert re.split(r"  +", lines[0]) == ["ID", "STATUS", "PROJECT", "IMAGE", "CREATED", "TOOK"]
    assert lines[1].startswith(f"{ulid(2)}  running     ^[[2Jhostile  python:3.12-slim")
    assert lines[2].startswith(f"{ulid(1)}  not passed  tea")
    assert lines[2].endswith("d ago  12 s")


def test_list_filters_and_reads_as_many_pages_as_it_needs(
    worker: FakeWorker, ciclient: Ciclient
) -> None:
    worker.page_limit = 4
    for number in range(10):
        worker.add_job(number, status="running" if number % 2 else "queued")
    document = json.loads(ciclient("list", "--json", "--limit", "9").out)
    assert [job["id"] for job in document["items"]] == [ulid(n) for n in range(9, 0, -1)]
    assert document["next"] is not None
    document = json.loads(ciclient("list", "--status", "running", "--json").out)
    assert [job["id"] for job in document["items"]] == [ulid(n) for n in (9, 7, 5, 3, 1)]
    assert ciclient("list", "--status", "finished").code == 2


def test_an_empty_list_says_so(worker: FakeWorker, ciclient: Ciclient) -> None:
    result = ciclient("list")
    assert (result.code, result.out, result.err) == (0, "", "there are no jobs yet\n")
    assert ciclient("list", "--project", "x").err == "no job matches\n"
    assert json.loads(ciclient("list", "--json").out) == {"items": [], "next": None}


def test_show_counts_a_phase_that_goes_on_until_now(worker: FakeWorker, ciclient: Ciclient) -> None:
    since = (datetime.now(UTC) - timedelta(hours=2, seconds=1)).isoformat()
    phases = [{"name": "queued", "seconds": 2.0, "since": None}]
    phases += [{"name": "run", "seconds": 60.0, "since": since}]
    job_id = worker.add_job(status="running", phases=phases)
    assert "phases           queued 2.0 s, run 2 h 1 min" in ciclient("show", job_id).out


def test_show_tells_everything_and_ends_with_the_verdict(
    worker: FakeWorker, ciclient: Ciclient
) -> None:
    moves = [
        {"at": "2025-06-01T10:00:00.000Z", "from": None, "to": "queued", "reason": None},
        {"at": "2025-06-01T10:00:01.000Z", "from": "queued", "to": "starting", "message": "\x07"},
    ]
    job_id = worker.add_ended(ending="tests_failed")
    spent = [{"name": n, "seconds": s, "since": None} for n, s in (("queued", 2), ("run", 65.2))]
    worker.update(job_id, spec={"image": "a", "env": {"TZ": "UTC"}}, history=moves, phases=spent)
    lines = ciclient("show", job_id).out.splitlines()
    assert "    TZ           UTC" in lines
    assert "phases           queued 2.0 s, run 1 min 5 s" in lines
    assert "  2025-06-01T10:00:00.000Z  - -> queued" in lines
    assert "  2025-06-01T10:00:01.000Z  queued -> starting  ^G" in lines
    assert lines[-1].endswith("2 of 7 tests failed")
    assert json.loads(ciclient("show", job_id, "--json").out) == worker.jobs[job_id]


# cancel, retry, resync


def test_cancel_takes_several_jobs_and_tells_of_each(
    worker: FakeWorker, ciclient: Ciclient, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, done = worker.add_job(1), worker.add_job(2), worker.add_ended(3)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{one} {two}\n{one}"))
    assert ciclient("cancel", "-").out == f"{one} cancelled\n{two} cancelled\n"
    result = ciclient("cancel", done)
    assert (result.code, result.err) == (5, f"{done}: the job has ended already\n")
    assert ciclient("cancel").code == 2


def test_retry_prints_the_new_job(worker: FakeWorker, ciclient: Ciclient) -> None:
    job_id = worker.add_ended(ending="tests_failed")
    result = ciclient("retry", job_id)
    again = result.out.strip()
    assert worker.jobs[again]["retry_of"] == job_id
    assert f"ciclient follow {again}" in result.err


def test_resync_prints_a_line_per_bucket_that_names_anything(ciclient: Ciclient) -> None:
    assert ciclient("resync").out.splitlines() == [
        "[resync] started: ci-a-1, ci-b-1",
        "[resync] removed: ci-c-1",
        "[resync] unchanged: 3, repairs: 1",
    ]


# servers and tokens


@pytest.mark.parametrize(
    "arguments", [["list"], ["submit"], ["follow", ulid(1)], ["resync"], ["logs", "01K5TEST"]]
)
def test_a_server_that_cannot_be_reached_exits_5(
    ciclient: Ciclient, here: Path, arguments: list[str]
) -> None:
    result = ciclient(*arguments, "--server", "http://127.0.0.1:1")
    assert (result.code, result.out) == (5, "")
    assert "can't connect to http://127.0.0.1:1: Connection refused" in result.err


def test_a_wrong_token_exits_5_and_is_not_repeated(
    ciclient: Ciclient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CICLIENT_TOKEN", "wrong-token")
    result = ciclient("list")
    assert result.code == 5
    assert "this needs a token" in result.err
    assert "wrong-token" not in result.err


def test_without_a_token_the_next_command_is_named(
    worker: FakeWorker, ciclient: Ciclient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CICLIENT_TOKEN")
    told = f"error: no token was found; run: ciclient login {worker.url}\n"
    assert ciclient("list").err.endswith(told)


def test_options_of_the_server_stand_before_or_after_the_command(
    worker: FakeWorker, ciclient: Ciclient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CICLIENT_TOKEN")
    monkeypatch.delenv("CICLIENT_SERVER")
    path = tmp_path / "token"
    path.write_text(TOKEN)
    given = ("--server", worker.url, "--token-file", str(path))
    assert ciclient(*given, "list").code == 0
    result = ciclient("list", *given)
    assert result.code == 0
    assert "warning: others can read the token" in result.err


def test_another_web_server_is_told_from_a_ciworker(worker: FakeWorker, ciclient: Ciclient) -> None:
    worker.refusals["/api/v1/jobs"] = [(302, "", {"Location": "https://elsewhere/"})]
    result = ciclient("list")
    assert result.code == 5
    assert "redirects to https://elsewhere/" in result.err
    assert ciclient("--server", f"{worker.url}/prefix", "list").code == 5


def test_login_tries_the_token_and_stores_both(
    worker: FakeWorker, ciclient: Ciclient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\n"))
    result = ciclient("login", f"{worker.url}/", "--token-file", "-")
    assert result.code == 0
    assert TOKEN not in result.err
    monkeypatch.delenv("CICLIENT_TOKEN")
    monkeypatch.delenv("CICLIENT_SERVER")
    assert find_access(None, None).token == TOKEN
    assert ciclient("list").code == 0


def test_a_login_with_a_wrong_token_stores_nothing(
    worker: FakeWorker, ciclient: Ciclient, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    path.write_text("wrong")
    result = ciclient("login", worker.url, "--token-file", str(path))
    assert result.code == 5
    assert "this needs a token" in result.err
    assert not login_path().exists()


def test_a_login_without_a_terminal_does_not_wait_for_one(
    worker: FakeWorker, ciclient: Ciclient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    result = ciclient("login", worker.url)
    assert result.code == 2
    assert "--token-file" in result.err


def test_what_is_no_command_exits_2(ciclient: Ciclient) -> None:
    assert ciclient("frobnicate").code == 2
    assert ciclient("list", "--limit", "0").code == 2


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_of_every_command_tells_its_options(ciclient: Ciclient, word: str) -> None:
    for command in ("submit", "follow", "wait", "logs", "list", "show", "cancel", "doctor"):
        result = ciclient(command, word)
        assert result.code == 0
        assert "--server" in result.out


def test_help_tells_the_variables(ciclient: Ciclient) -> None:
    result = ciclient("-h")
    assert result.code == 0
    told = {line.split()[0] for line in result.out.splitlines() if line.startswith("    CICLIENT_")}
    assert told == {"CICLIENT_SERVER", "CICLIENT_TOKEN", "CICLIENT_TOKEN_FILE"}


def test_help_of_submit_tells_what_is_packed_and_how_a_command_is_read(ciclient: Ciclient) -> None:
    told = " ".join(ciclient("submit", "--help").out.split())
    assert "A `.ciignore` file" in told
    assert "ciclient submit . -- sh -c 'make && pytest'" in told


def test_the_version_is_the_package_s(ciclient: Ciclient) -> None:
    result = ciclient("--version")
    assert (result.code, result.out) == (0, f"ciclient {version('ciworker')}\n")


def test_a_job_that_is_not_the_contract_s_is_an_error(
    worker: FakeWorker, ciclient: Ciclient
) -> None:
    job_id = worker.add_job()
    worker.update(job_id, status=None)
    result = ciclient("show", job_id)
    assert result.code == 5
    assert "is this a ciworker?" in result.err


def test_run_is_what_the_console_script_calls() -> None:
    assert run(["--help"]) == 0


def test_the_command_line_is_read_before_anything_heavy_is_imported() -> None:
    program = "import sys, ciclient.cli; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    heavy = {"urllib3", "rich", "zstandard", "pathspec", "platformdirs", "tarfile", "ssl"}
    assert heavy & set(done.stdout.split()) == set()
