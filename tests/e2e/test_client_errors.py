"""The real commands against a real worker: what each prints, and the code it exits with."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio

from tests.driver import DEADLINE, Worker, command, free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNKNOWN_ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
NO_ENV: Mapping[str, str] = {}


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: bytes
    err: bytes

    @property
    def said(self) -> str:
        return self.err.decode()

    @property
    def line(self) -> str:
        """The one line on stdout."""
        (found,) = self.out.decode().splitlines()
        return found


@dataclass(frozen=True)
class Commands:
    """Runs `ciclient` and `ciworker` beside one worker, in one folder."""

    worker: Worker
    folder: Path

    async def client(
        self,
        *words: str,
        stdin: bytes = b"",
        cwd: Path | None = None,
        env: Mapping[str, str] = NO_ENV,
    ) -> Result:
        environment = {**self.worker.client_environment, **env}
        return await run("ciclient", *words, env=environment, stdin=stdin, cwd=cwd or self.folder)

    async def operator(self, *words: str, **env: str) -> Result:
        return await run("ciworker", *words, env=self.worker.environment | env, cwd=self.folder)

    async def submitted(self, script: str, cwd: Path | None = None) -> str:
        """The id of a job that was just submitted."""
        done = await self.client("submit", "--detach", "tree", "--", "sh", "-c", script, cwd=cwd)
        assert done.code == 0, done.said
        return done.line

    async def begun(self, *words: str) -> asyncio.subprocess.Process:
        """`ciclient` that goes on in the background."""
        return await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name("ciclient"), *words,
            env=self.worker.client_environment, cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip


async def run(
    *words: str, env: Mapping[str, str], stdin: bytes = b"", cwd: Path | None = None
) -> Result:
    result = Result(*await command(*words, env=env, stdin=stdin, cwd=cwd))
    assert b"Traceback" not in result.err, result.said
    return result


async def ended(process: asyncio.subprocess.Process) -> Result:
    async with asyncio.timeout(DEADLINE):
        out, err = await process.communicate()
    assert process.returncode is not None
    return Result(process.returncode, out, err)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def worker(image: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Worker]:
    """One worker for the module, with an upload cap that a test can reach."""
    settings = {
        "default_image": image,
        "allowed_images": '["*"]',
        "pull": "never",
        "max_upload": "2m",
        "max_jobs": "4",
        "stop_grace": "1s",
    }
    running = Worker(tmp_path_factory.mktemp("commands") / "worker", settings)
    try:
        await running.start()
        yield running
    finally:
        await running.destroy()


@pytest.fixture
def commands(worker: Worker, tmp_path: Path) -> Commands:
    """In a folder of its own, with a tree that can be submitted."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "data.txt").write_text("tea\n")
    return Commands(worker, tmp_path)


# the verdict is the exit code


@pytest.mark.parametrize(
    ("script", "code", "words"),
    [
        ("exit 0", 0, "passed"),
        ("exit 1", 1, "tests_failed, exit code 1"),
        ("exit 5", 1, "no_tests, exit code 5"),
    ],
)
async def test_submit_exits_with_the_verdict_and_says_it_last(
    commands: Commands, script: str, code: int, words: str
) -> None:
    done = await commands.client("submit", "tree", "--", "sh", "-c", f"cat data.txt; {script}")
    assert (done.code, done.out) == (code, b"tea\n")
    assert words in done.said.splitlines()[-1]


async def test_follow_and_wait_of_an_ended_job_exit_with_its_verdict(commands: Commands) -> None:
    failed = await commands.client("submit", "tree", "--", "sh", "-c", "echo no; exit 3")
    followed, waited = await commands.client("follow"), await commands.client("wait")
    assert (failed.code, followed.code, waited.code) == (1, 1, 1)
    assert followed.out == b"no\n"
    assert "tests_failed" in waited.line


async def test_an_image_that_is_not_there_is_no_verdict(commands: Commands) -> None:
    done = await commands.client("submit", "--image", "no-such-image:1", "tree")
    assert done.code == 3
    assert "image_missing" in done.said.splitlines()[-1]
    assert "no-such-image:1" in done.said


async def test_a_cancelled_job_exits_4_for_whoever_watches_it(commands: Commands) -> None:
    job = await commands.submitted("echo begun; sleep 60")
    watching = [await commands.begun("follow", job), await commands.begun("wait", job)]
    await commands.worker.wait_for_text(job, b"begun\n")
    cancelled = await commands.client("cancel", job)
    assert (cancelled.code, cancelled.line) == (0, f"{job} is being cancelled")
    assert [(await ended(one)).code for one in watching] == [4, 4]
    again = await commands.client("cancel", job)
    assert again.code == 5
    assert "has ended already" in again.said


# 2: the command line is wrong


@pytest.mark.parametrize("verb", ["follow", "wait", "logs", "show", "cancel", "retry"])
async def test_an_unknown_job_is_a_mistake_of_the_command_line(
    commands: Commands, verb: str
) -> None:
    done = await commands.client(verb, UNKNOWN_ID)
    assert (done.code, done.out) == (2, b"")
    assert UNKNOWN_ID in done.said


async def test_a_prefix_names_a_job_unless_it_names_several(commands: Commands) -> None:
    jobs = [await commands.submitted("true") for _ in range(3)]
    shared = next(one[:6] for one, other in pairwise(jobs) if one[:6] == other[:6])
    ambiguous = await commands.client("show", shared)
    assert ambiguous.code == 2
    assert sum(job in ambiguous.said for job in jobs) >= 2
    one = await commands.client("show", "--json", jobs[0][:-1].lower())
    assert json.loads(one.out)["id"] == jobs[0]
    short = await commands.client("show", jobs[0][:5])
    assert short.code == 2
    assert "6" in short.said


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("empty", "empty"),
        ("missing", "does not exist"),
        ("nothing.tar", "is empty"),
        ("letter.txt", "is no archive"),
    ],
)
async def test_what_cannot_be_packed_is_said_before_anything_is_sent(
    commands: Commands, path: str, words: str
) -> None:
    (commands.folder / "empty").mkdir()
    (commands.folder / "nothing.tar").touch()
    (commands.folder / "letter.txt").write_text("Dear worker,\n" * 100)
    before = await commands.client("list", "--json", "--limit", "1")
    done = await commands.client("submit", path)
    assert (done.code, done.out) == (2, b"")
    assert words in done.said
    assert (await commands.client("list", "--json", "--limit", "1")).out == before.out


async def test_without_a_job_of_this_folder_one_has_to_be_named(commands: Commands) -> None:
    done = await commands.client("follow")
    assert done.code == 2
    assert "no job was submitted from this folder" in done.said


# 5: the server is away, or says no


async def test_a_wrong_token_is_refused_with_the_way_to_a_right_one(commands: Commands) -> None:
    (commands.folder / "token").write_text("wrong\n")
    (commands.folder / "token").chmod(0o600)
    done = await commands.client("list", "--token-file", "token")
    assert (done.code, done.out) == (5, b"")
    assert "wrong or revoked" in done.said
    assert "ciworker token create" in done.said


@pytest.mark.parametrize("words", [("list",), ("submit", "tree"), ("doctor",)])
async def test_a_server_that_is_down_is_named(commands: Commands, words: tuple[str, ...]) -> None:
    server = f"http://127.0.0.1:{free_port()}"
    done = await commands.client(*words, env={"CICLIENT_SERVER": server})
    assert done.code == (1 if words == ("doctor",) else 5)
    assert server in (done.out + done.err).decode()


async def test_an_unknown_key_in_the_job_file_is_answered_with_the_nearest(
    commands: Commands,
) -> None:
    (commands.folder / "tree" / ".ciworker.toml").write_text('time_out = "10m"\n')
    done = await commands.client("submit", "tree")
    assert (done.code, done.out) == (5, b"")
    assert "time_out" in done.said
    assert "timeout" in done.said.replace("time_out", "")


async def test_a_duration_that_does_not_parse_is_refused(commands: Commands) -> None:
    done = await commands.client("submit", "--timeout", "soon", "tree")
    assert (done.code, done.out) == (5, b"")
    assert "soon" in done.said


async def test_an_upload_over_the_cap_is_refused_with_the_cap(commands: Commands) -> None:
    (commands.folder / "tree" / "large").write_bytes(os.urandom(5 * 2**20))
    done = await commands.client("submit", "tree")
    assert (done.code, done.out) == (5, b"")
    assert f"over {2 * 2**20:,} bytes" in done.said


# leaving while a job runs


async def test_wait_gives_up_after_its_timeout_and_the_job_runs_on(commands: Commands) -> None:
    job = await commands.submitted("sleep 60")
    done = await commands.client("wait", "--timeout", "1", job)
    assert (done.code, done.out) == (124, b"")
    assert (await commands.worker.job(job))["status"] in {"starting", "running"}
    assert (await commands.client("cancel", job)).code == 0


@pytest.mark.parametrize("verb", ["follow", "wait"])
async def test_ctrl_c_detaches_and_says_how_to_come_back(commands: Commands, verb: str) -> None:
    job = await commands.submitted("echo begun; sleep 60")
    await commands.worker.wait_for_text(job, b"begun\n")
    watching = await commands.begun(verb, *(["--from-beginning"] if verb == "wait" else []), job)
    assert watching.stdout is not None
    assert await watching.stdout.readline() == b"begun\n"
    watching.send_signal(signal.SIGINT)
    done = await ended(watching)
    assert done.code == 130
    assert f"ciclient follow {job}" in done.said
    assert f"ciclient cancel {job}" in done.said
    assert (await commands.worker.job(job))["status"] == "running"
    assert (await commands.client("cancel", job)).code == 0


# what is printed


async def test_logs_are_the_exact_bytes_of_the_job(commands: Commands) -> None:
    raw = b"caf\xc3\xa9 \xff\x00\r\n\n\x1b[31mred\x1b[0m\x1b]0;title\x07\nlast, without newline"
    octal = "".join(f"\\{byte:03o}" for byte in raw)
    done = await commands.client("submit", "tree", "--", "sh", "-c", f"printf '{octal}'")
    assert done.code == 0
    assert (await commands.client("logs")).out == raw
    assert (await commands.client("logs", "--tail", "1")).out == b"last, without newline"


async def test_logs_of_one_stream_and_with_times(commands: Commands) -> None:
    await commands.client("submit", "tree", "--", "sh", "-c", "echo out; sleep 0.1; echo err >&2")
    assert (await commands.client("logs", "--stream", "stdout")).out == b"out\n"
    assert (await commands.client("logs", "--stream", "stderr")).out == b"err\n"
    timed = (await commands.client("logs", "--timestamps")).out.decode().splitlines()
    assert [line.split(" ", 1)[1] for line in timed] == ["out", "err"]
    assert all(line.split(" ", 1)[0].endswith("Z") for line in timed)


async def test_a_job_without_output_is_said_to_have_none(commands: Commands) -> None:
    await commands.client("submit", "tree", "--", "true")
    done = await commands.client("logs")
    assert (done.code, done.out) == (0, b"")
    assert "without any output" in done.said


async def test_an_id_is_read_from_stdin(commands: Commands) -> None:
    job = await commands.submitted("echo piped")
    waited = await commands.client("wait", "-", stdin=f"{job}\n".encode())
    assert waited.code == 0
    assert waited.line.startswith(f"{job} passed")
    assert (await commands.client("logs", "-", stdin=job.encode())).out == b"piped\n"


async def test_the_newest_job_is_that_of_the_folder_one_stands_in(commands: Commands) -> None:
    for name in ("left", "right"):
        (commands.folder / name / "tree").mkdir(parents=True)
        (commands.folder / name / "tree" / "x").touch()
    left, right = commands.folder / "left", commands.folder / "right"
    jobs = [await commands.submitted("true", cwd=folder) for folder in (left, right)]
    found = [await commands.client("show", "--json", cwd=folder) for folder in (left, right)]
    assert [json.loads(one.out)["id"] for one in found] == jobs


async def test_list_shows_the_newest_first_and_only_what_was_asked_for(commands: Commands) -> None:
    for script in ("true", "false"):
        await commands.client(
            "submit", "--project", "samovar", "tree", "--", "sh", "-c", script, cwd=commands.folder
        )
    listed = await commands.client("list", "--json", "--project", "samovar")
    items = json.loads(listed.out)["items"]
    assert [item["success"] for item in items] == [False, True]
    assert [item["id"] for item in items] == sorted((item["id"] for item in items), reverse=True)
    table = (await commands.client("list", "--project", "samovar", "--limit", "1")).out.decode()
    heading, row = table.splitlines()
    assert heading.split()[:3] == ["ID", "STATUS", "PROJECT"]
    assert row.startswith(items[0]["id"])
    assert "samovar" in row
    none = await commands.client("list", "--project", "no-such-project")
    assert (none.code, none.out, "no job matches" in none.said) == (0, b"", True)


async def test_show_tells_everything_and_the_verdict_last(commands: Commands) -> None:
    await commands.client("submit", "tree", "--", "sh", "-c", "exit 7")
    shown = (await commands.client("show")).out.decode()
    job = json.loads((await commands.client("show", "--json")).out)
    assert [step["to"] for step in job["history"]] == ["queued", "starting", "running", "completed"]
    assert job["id"] in shown.splitlines()[-1]
    assert "exit code 7" in shown.splitlines()[-1]
    assert job["image"] in shown


async def test_retry_runs_the_same_tree_as_a_new_job(commands: Commands) -> None:
    await commands.client("submit", "tree", "--", "cat", "data.txt")
    first = json.loads((await commands.client("show", "--json")).out)
    again = await commands.client("retry")
    assert again.code == 0
    assert (await commands.client("wait", again.line)).code == 0
    assert (await commands.client("logs")).out == b"tea\n"
    second = json.loads((await commands.client("show", "--json")).out)
    assert (second["id"], second["retry_of"]) == (again.line, first["id"])
    assert second["spec"] == first["spec"]


async def test_resync_by_either_command_reports_its_buckets(commands: Commands) -> None:
    job = await commands.submitted("echo begun; sleep 60")
    await commands.worker.wait_for_text(job, b"begun\n")
    for done in (await commands.client("resync"), await commands.operator("resync")):
        assert (done.code, done.err) == (0, b"")
        assert done.out.decode().splitlines()[-1].startswith("[resync] unchanged: ")
        assert done.out.decode().splitlines()[-1].endswith(", repairs: 0")
    assert (await commands.client("cancel", job)).code == 0


async def test_the_clients_doctor_finds_nothing_wrong(commands: Commands) -> None:
    text, document = await commands.client("doctor"), await commands.client("doctor", "--json")
    assert (text.code, document.code) == (0, 0), text.out.decode()
    assert "failed" not in document.out.decode()
    assert "token" in text.out.decode()


# the operator's commands


async def test_the_operators_doctor_finds_the_engine_or_says_how_to_get_it(
    commands: Commands,
) -> None:
    fine = await commands.operator("doctor")
    assert fine.code == 0, fine.out.decode()
    assert "FAIL" not in fine.out.decode()
    missing = await commands.operator("doctor", CIWORKER_DOCKER_HOST="unix:///nowhere.sock")
    assert missing.code == 1
    assert "FAIL  engine:" in missing.out.decode()
    document = await commands.operator(
        "doctor", "--json", CIWORKER_DOCKER_HOST="unix:///nowhere.sock"
    )
    (engine,) = (one for one in json.loads(document.out) if one["check"] == "engine")
    assert (document.code, engine["ok"]) == (1, False)
    assert engine["mend"]


async def test_a_token_opens_what_its_role_says_until_it_is_revoked(commands: Commands) -> None:
    made = await commands.operator("token", "create", "reader", "--role", "read")
    env = {"CICLIENT_TOKEN": made.line}
    assert (await commands.client("list", env=env)).code == 0
    refused = await commands.client("submit", "tree", env=env)
    assert refused.code == 5
    assert "role submit" in refused.said
    listed = json.loads((await commands.operator("token", "list", "--json")).out)
    (reader,) = (token for token in listed if token["name"] == "reader")
    assert made.line not in json.dumps(listed)
    assert (await commands.operator("token", "revoke", reader["id"])).code == 0
    revoked = await commands.client("list", env=env)
    assert revoked.code == 5
    assert "revoked" in revoked.said


async def test_who_revokes_the_machine_s_own_token_is_told_the_way_back(
    image: str, tmp_path: Path
) -> None:
    worker = Worker(tmp_path / "worker", {"default_image": image})
    try:
        await way_back(Commands(worker, tmp_path))
    finally:
        await worker.destroy()


async def way_back(commands: Commands) -> None:
    await commands.worker.start()
    made = await commands.operator("token", "create", "other")
    (own, other) = json.loads((await commands.operator("token", "list", "--json")).out)
    assert other["id"] in made.line
    assert "warning" not in (await commands.operator("token", "revoke", other["id"])).said
    revoked = await commands.operator("token", "revoke", own["id"])
    assert revoked.code == 0
    told = f"warning: it is the token in {commands.worker.data_dir}/admin.token, "
    assert told in revoked.said
    assert "restart the worker" in revoked.said
    assert (await commands.operator("token", "list")).code != 0
    await commands.worker.stop()
    await commands.worker.start()
    assert (await commands.operator("token", "list")).code == 0


async def test_tokens_of_a_stopped_worker_are_kept_in_its_store(image: str, tmp_path: Path) -> None:
    worker = Worker(tmp_path / "worker", {"default_image": image})
    try:
        await tokens_of_a_stopped(Commands(worker, tmp_path))
    finally:
        await worker.destroy()


async def tokens_of_a_stopped(commands: Commands) -> None:
    await commands.worker.start()
    await commands.worker.stop()
    made = await commands.operator("token", "create", "helper")
    doomed = await commands.operator("token", "create", "doomed")
    listed = (await commands.operator("token", "list")).out.decode().splitlines()
    (row,) = (line for line in listed if "doomed" in line)
    assert (await commands.operator("token", "revoke", row.split()[0])).code == 0
    await commands.worker.start()
    assert (await commands.client("list", env={"CICLIENT_TOKEN": made.line})).code == 0
    assert (await commands.client("list", env={"CICLIENT_TOKEN": doomed.line})).code == 5


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CIWORKER_PROT", "8480", "did you mean CIWORKER_PORT"),
        ("CIWORKER_PORT", "tea", "setting port:"),
        ("CIWORKER_RESYNC_INTERVAL", "often", "setting resync_interval:"),
        ("CIWORKER_ALLOWED_IMAGES", "python:*", "setting allowed_images: has to be JSON"),
    ],
)
async def test_serve_refuses_a_setting_in_a_sentence(
    commands: Commands, name: str, value: str, words: str
) -> None:
    done = await commands.operator("serve", **{name: value})
    assert (done.code, done.out) == (2, b"")
    assert words in done.said


async def test_serve_says_who_holds_its_store(commands: Commands) -> None:
    done = await commands.operator("serve", CIWORKER_PORT=str(free_port()))
    assert done.code == 2
    assert commands.worker.url in done.said


async def test_resync_without_a_worker_exits_3(commands: Commands, tmp_path: Path) -> None:
    nobody = {"CIWORKER_PORT": str(free_port()), "CIWORKER_DATA_DIR": str(tmp_path)}
    (tmp_path / "admin.token").write_text("ciw_0123456789ab_secret\n")
    done = await commands.operator("resync", **nobody)
    assert (done.code, done.out) == (3, b"")
    assert "ciworker serve" in done.said
