"""Row 41: jobs and setups have their secrets; nothing that the worker stores, shows or says has."""

import asyncio
import base64
import json
import os
import signal
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
import zstandard

from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, command, docker, tree
from tests.e2e.follower import let_go

TOKEN = f"ghp_{os.urandom(15).hex()}+/~é&%"
KEY = "\n".join(
    ["-----BEGIN KEY-----", *(base64.b64encode(os.urandom(48)).decode() for _ in range(6)), ""]
)
INDEX = f"https://user:{os.urandom(15).hex()}@index.example/simple"
CANARIES = (TOKEN, KEY, INDEX)
FILE = {"KEY": KEY, "INDEX": INDEX}
NAMES = json.dumps(["GITHUB_TOKEN", "KEY", {"name": "INDEX", "setup": True}])

# Each form: whole, byte by byte, and over every edge of frames, chunks and pieces.
PRINT = """
import base64, os, time
from urllib.parse import quote, quote_plus

def forms(value):
    yield value
    for text in {value, value.rstrip(b"\\n")}:
        for before in (b"", b"u", b"u:", b"user:"):
            for encode in (base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes):
                yield encode(before + text)
                yield encode(before + text + b"@host")
        for safe in ("", "/", "!*'()~"):
            yield quote(text, safe=safe).encode()
        yield quote_plus(text).encode()
        yield quote(text, safe="").lower().encode() if text.islower() else b""
        yield b"".join(b"%%%02x" % byte for byte in text)

def long_line(form):
    line = bytearray(b"." * 200_000)
    for edge in (16384, 32768, 65536, 81920, 131072):
        place = edge - len(form) // 2
        line[place : place + len(form)] = form
    return bytes(line) + b"\\n"

for name in ("GITHUB_TOKEN", "KEY"):
    value = os.environ[name].encode()
    for form in forms(value):
        os.write(1, b"whole " + form + b"\\n")
        os.write(2, b"whole " + form + b"\\n")
    for form in list(forms(value))[:6]:
        for byte in form:
            os.write(1, bytes([byte]))
        os.write(1, b"\\n")
        data = long_line(form.replace(b"\\n", b" "))
        while data:
            data = data[os.write(1, data):]

token = os.environ["GITHUB_TOKEN"].encode()
half = len(token) // 2
os.write(1, b"now\\n")
os.write(1, b"?" * (65536 - half) + token[:half] + token[half:half + 1])
os.write(2, b"Token " + token + b"? " + token[:half])
while not os.path.exists("/workspace/go"):
    time.sleep(0.02)
os.write(1, token[half + 1:] + b" " + token + b"\\n")
os.write(2, token[half:] + b"\\n")
"""


def forms(value: str) -> Iterator[bytes]:
    """What must be found nowhere: told apart from the code that masks."""
    lines = [line for line in value.splitlines() if len(line) > 5]
    yield from (line.encode() for line in lines)
    for text in {*lines, value}:
        data = text.encode()
        for before in range(3):
            encoded = base64.b64encode(bytes(before) + data)
            fixed = encoded[4 if before else 0 : 8 * (before + len(data)) // 6][:60]
            yield from (fixed, fixed.translate(bytes.maketrans(b"+/", b"-_")))
        for quoted in (quote(text, safe=""), quote(text), quote_plus(text)):
            yield quoted.encode()[:200]
        yield b"".join(b"%%%02x" % byte for byte in data)[:200]


FORMS = frozenset(form for canary in CANARIES for form in forms(canary))


def found_in(data: bytes) -> list[bytes]:
    return [form for form in FORMS if form in data]


@pytest.fixture
def secretive(new_worker: WorkerFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """A worker with canaries, not started: one in its environment, others in its file."""
    monkeypatch.setenv("GITHUB_TOKEN", TOKEN)
    return new_worker(
        secrets_file=str(secrets_file(tmp_path)), secret_names=NAMES, max_setups="1",
        setup_memory="256m", job_memory="256m", log_limit="256m",
    )  # fmt: skip


def secrets_file(folder: Path, **values: str) -> Path:
    path = folder / "secrets.toml"
    path.touch(0o600)
    path.write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in {**FILE, **values}.items()))
    return path


def descendants(pid: int) -> Iterator[int]:
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        yield int(child)
        yield from descendants(int(child))


def command_lines(pid: int) -> bytes:
    """Of every process of this machine; and the environments of the worker's children."""
    texts = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            texts.append(path.read_bytes())
        except OSError:
            continue  # it ended meanwhile
    texts += [Path(f"/proc/{child}/environ").read_bytes() for child in descendants(pid)]
    return b"\0".join(texts)


def stored_logs(worker: Worker) -> bytes:
    """All chunks, packed ones unpacked; they follow each other, so a secret cannot hide between."""
    with closing(sqlite3.connect(worker.data_dir / "ciworker.db")) as connection:
        rows = connection.execute("SELECT data, packed FROM log_chunk ORDER BY job_id, first")
        return b"".join(
            zstandard.ZstdDecompressor().decompress(data) if packed else data
            for data, packed in rows
        )


async def asked(worker: Worker, *jobs: str) -> Mapping[str, bytes]:
    """Every answer of the API about these jobs, as it comes."""
    paths = ["/jobs", "/metrics", "/environments", "/openapi.json", "/"]
    for job in jobs:
        one = f"/jobs/{job}"
        paths += [one, f"{one}/log", f"{one}/log?timestamps=1", f"{one}/events?from=1"]
        paths += [f"{one}/log/search?q=whole"]
    answers = {}
    for path in paths:
        base = "" if path in ("/", "/metrics", "/openapi.json") else "/api/v1"
        async with worker.session.get(base + path, headers=worker.headers) as answer:
            answers[path] = await answer.read()
    for job in jobs:
        accept = worker.headers | {"Accept": "application/x-ndjson"}
        async with worker.session.get(f"/api/v1/jobs/{job}/log", headers=accept) as answer:
            answers[f"{job} as records"] = await answer.read()
    return answers


def on_disk(worker: Worker) -> Mapping[str, bytes]:
    files = {str(path): path.read_bytes() for path in worker.data_dir.rglob("*") if path.is_file()}
    return files | {"worker.log": worker.log.read_bytes(), "stored logs": stored_logs(worker)}


async def partials(worker: Worker, job: str) -> Sequence[str]:
    """What is shown of the unfinished lines, once both streams have one."""
    shown: dict[str, str] = {}
    async with asyncio.timeout(DEADLINE), worker.events(f"/jobs/{job}/events?now=1") as events:
        async for frame in events:
            if frame.event == "partial":
                shown |= {record["stream"]: record["text"] for record in frame.records}
                if len(shown) == 2:
                    break
    return list(shown.values())


@pytest.mark.slow
@pytest.mark.attacks(41)
async def test_no_secret_that_a_job_prints_is_anywhere_outside_of_it(secretive: Worker) -> None:
    worker = secretive
    await worker.start()
    files = {"print.py": PRINT}
    job = await worker.submit("python3 print.py", files, secrets=["GITHUB_TOKEN", "KEY"])
    await worker.wait_for_text(job, b"\nnow\n")

    container = await worker.container(job)
    assert found_in(await docker("inspect", container)) == []
    assert worker.process is not None
    assert found_in(command_lines(worker.process.pid)) == []
    shown = await partials(worker, job)
    assert found_in("".join(shown).encode()) == []
    assert "Token ***? " in shown

    await worker.stop(signal.SIGKILL)
    await worker.start()
    await let_go(worker, job)
    ended = await worker.wait(job)
    assert (ended["reason"], ended["log_incomplete"]) == ("passed", False)
    assert ended["spec"]["secrets"] == ["GITHUB_TOKEN", "KEY"]

    text = await worker.text(job)
    assert text.count(b"whole ***\n") > 10
    assert b"?*** ***\n" in text.replace(b"?\n***", b"?***")
    assert b"Token ***? ***\n" in text
    answers = await asked(worker, job)
    await worker.stop()
    for name, data in {**answers, **on_disk(worker)}.items():
        assert found_in(data) == [], name


@pytest.mark.attacks(41)
async def test_the_secret_of_a_setup_is_in_no_layer_and_in_no_key(secretive: Worker) -> None:
    worker = secretive
    await worker.start()
    spec: dict[str, Any] = {
        "setup": ['echo "index $INDEX"; echo made > /opt/made', 'test -n "$INDEX"'],
        "setup-secrets": ["INDEX"],
    }
    run = 'cat /opt/made; echo "job has <$INDEX>"'
    first = await worker.run(run, **spec)
    assert (await worker.text(first["id"])).decode().splitlines()[-2:] == ["made", "job has <>"]
    assert b"index ***\n" in await worker.text(first["id"])

    for image in await worker.images():
        assert found_in(await docker("history", "--no-trunc", image)) == []
        assert found_in(await docker("image", "inspect", image)) == []
        assert found_in(await docker("save", image)) == []
    secrets_file(Path(worker.settings["secrets_file"]).parent, INDEX="another-value")
    again = await worker.run(run, **spec)
    assert b"Set up the environment" not in await worker.text(again["id"])

    answers = await asked(worker, first["id"])
    await worker.stop()
    for name, data in {**answers, **on_disk(worker)}.items():
        assert found_in(data) == [], name


async def test_a_client_names_the_secrets_that_a_job_wants(
    secretive: Worker, tmp_path: Path
) -> None:
    await secretive.start()
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / ".ciworker.toml").write_text("secrets = ['KEY']")
    words = ["ciclient", "submit", str(folder), "--secret", "GITHUB_TOKEN", "--", "env"]
    code, out, err = await command(*words, env=secretive.client_environment)
    assert code == 0, err
    assert b"GITHUB_TOKEN=***\n" in out
    assert b"\nKEY=***\n***\n" in out
    assert found_in(out + err) == []


async def test_a_secret_that_a_job_may_not_have_refuses_the_submit_in_words(
    secretive: Worker,
) -> None:
    names = ["KEY", {"name": "GITHUB_TOKEN", "roles": ["admin"]}, {"name": "INDEX", "sources": []}]
    secretive.set(secret_names=json.dumps(names))
    await secretive.start()
    words = ["ciworker", "token", "create", "s", "--role", "submit"]
    _, out, _ = await command(*words, env=secretive.environment)
    submitter = {"Authorization": f"Bearer {out.decode().split()[-1]}"}
    mine = await secretive.run("true", secrets=["GITHUB_TOKEN"])

    for spec, said in (
        ({"secrets": ["NONE"]}, "the secret 'NONE' is not passed on by this worker: it knows"),
        ({"secrets": ["INDEX"]}, "the secret INDEX is not for jobs whose tree comes by upload"),
        ({"setup-secrets": ["KEY"]}, "the secret KEY may not be had by a setup on this worker"),
        ({"secrets": ["A B"]}, "no name of an environment variable"),
    ):
        status, problem = await secretive.post(tree({"x": "x"}), spec)
        assert (status, said in problem["detail"]) == (422, True), problem

    status, problem = await secretive.call("POST", f"/jobs/{mine['id']}/retry", headers=submitter)
    assert status == 422
    assert "the secret GITHUB_TOKEN is not for jobs of a token with the role" in problem["detail"]
    status, _ = await secretive.call("POST", f"/jobs/{mine['id']}/retry")
    assert status == 202


async def test_a_file_that_others_can_read_keeps_the_worker_from_starting(
    secretive: Worker,
) -> None:
    path = Path(secretive.settings["secrets_file"])
    path.chmod(0o644)
    code, _, err = await command("ciworker", "serve", env=secretive.environment)
    assert code != 0
    assert f"others can read or write secrets_file {path}: chmod 600 {path}" in err.decode()
    assert b"Traceback" not in err


async def test_doctor_tells_of_the_file_and_of_names_without_a_value(secretive: Worker) -> None:
    path = Path(secretive.settings["secrets_file"])
    names = ["GITHUB_TOKEN", "NONE", "SHORT"]
    secretive.set(secret_names=json.dumps(names))

    async def seen(**more: str) -> Mapping[str, object]:
        environment = secretive.environment | more
        _, out, _ = await command("ciworker", "doctor", "--json", env=environment)
        assert found_in(out) == []
        (found,) = [f for f in json.loads(out) if f["check"] == "secrets"]
        return dict(found)

    fine = await seen()
    assert fine["ok"]
    assert fine["detail"] == (
        "with a value: GITHUB_TOKEN; without one, as this shell sees it: NONE, SHORT"
    )
    short = await seen(SHORT="12345")
    assert not short["ok"]
    assert "the value of SHORT has no line of 6 characters" in str(short["detail"])
    path.chmod(0o640)
    access = await seen()
    assert not access["ok"]
    assert str(access["mend"]).startswith(f"chmod 600 {path}")


ASK = """
import os, socket
with socket.socket(socket.AF_UNIX) as agent:
    agent.connect(os.environ["SSH_AUTH_SOCK"])
    print(os.environ["SSH_AUTH_SOCK"], agent.recv(100).decode())
"""


@pytest.fixture
async def agent(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """A socket that says hello to everyone who may open it."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()

    with tempfile.TemporaryDirectory(prefix="ciw-") as folder:
        path = f"{folder}/agent"
        async with await asyncio.start_unix_server(greet, path):
            Path(path).chmod(0o666)
            monkeypatch.setenv("SSH_AUTH_SOCK", path)
            yield path


async def test_an_agents_socket_is_in_a_job_only_where_the_operator_allows_it(
    new_worker: WorkerFactory, agent: str, image: str
) -> None:
    member = {"name": "tea", "size": 1, "memory": "128m"}
    worker = new_worker(pool=json.dumps([member]), job_memory="128m")
    await worker.start()
    files = {"ask.py": ASK}
    status, problem = await worker.post(tree(files), {"secrets": ["SSH_AUTH_SOCK"]})
    assert (status, "SSH_AUTH_SOCK is for the worker's own" in problem["detail"]) == (422, True)
    without = await worker.run('test -z "$SSH_AUTH_SOCK"; ls /run/ciworker', files)
    assert without["exit_code"] != 0

    await worker.stop()
    worker.set(secret_names=json.dumps([{"name": "SSH_AUTH_SOCK", "mount": True}]))
    await worker.start()
    job = await worker.run("python3 ask.py", files, secrets=["SSH_AUTH_SOCK"])
    assert await worker.text(job["id"]) == b"/run/ciworker/ssh-agent hello\n"

    Path(agent).unlink()
    job = await worker.run('echo "<$SSH_AUTH_SOCK>"', files, secrets=["SSH_AUTH_SOCK"])
    assert await worker.text(job["id"]) == (
        b"ciworker: SSH_AUTH_SOCK names no socket here that this job may have: it is left out of "
        b"the job's environment\n<>\n"
    )
