"""Submit, list, show, cancel, retry and the log, as any client sees them."""

import asyncio
import gzip
import io
import json
import re
import zipfile
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import pytest
import pytest_asyncio
import zstandard

from ciworker.web import jobs
from tests.driver import Worker, tree
from tests.e2e.conftest import spooled
from tests.e2e.raw import FORM, ask, form, problem_detail

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"max_jobs": "1"}
FIELDS = {
    "id", "status", "success", "reason", "message", "exit_code", "project", "image", "source",
    "spec", "priority", "attempt", "retry_of", "container_id", "created_at", "started_at",
    "finished_at", "deadline_at", "log_lines", "log_incomplete", "waits_for", "container",
    "exit_words", "tests",
}  # fmt: skip
INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")


def zipped(files: dict[str, str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


async def refused(worker: Worker, method: str, path: str, **more: Any) -> tuple[int, str]:
    """Status and detail of a problem."""
    headers = worker.headers | more.pop("headers", {})
    async with worker.session.request(method, f"/api/v1{path}", headers=headers, **more) as answer:
        body = await answer.read()
        return answer.status, problem_detail(answer.status, answer.headers["Content-Type"], body)


async def cancelled(worker: Worker, *jobs: str) -> None:
    for job in jobs:
        assert (await worker.call("POST", f"/jobs/{job}/cancel"))[0] == 202
        await worker.wait(job)


@pytest_asyncio.fixture(loop_scope="module")
async def queued(shared: Worker) -> AsyncIterator[list[str]]:
    """Jobs that wait behind one that runs: that one is the first."""
    jobs = [await shared.submit("sleep 60", project="waiting")]
    await shared.wait(jobs[0], "running")
    jobs += [await shared.submit("true", project="waiting", timeout="7s") for _ in range(2)]
    yield jobs
    for job in reversed(jobs):
        await shared.call("POST", f"/jobs/{job}/cancel")
        await shared.wait(job)


# submit


async def test_an_accepted_job_is_201_with_its_place_and_the_contracts_fields(
    shared: Worker, image: str
) -> None:
    vcs = {"commit": "c0ffee", "branch": "feature/é", "describe": "v1-2-gc0ffee", "dirty": True}
    spec = {
        "run": "true", "timeout": "90s", "memory": "64m", "cpus": 0.5, "network": False,
        "project": "tea", "env": {"TZ": "UTC"}, "priority": -3, "vcs": vcs,
    }  # fmt: skip
    body = form(tree({"a": "12345", "b/c": "678"}), spec)
    headers = shared.headers | {"Content-Type": FORM}
    answer = await ask(shared, "POST", "/api/v1/jobs", headers, body)
    job = json.loads(answer.body)
    assert (answer.status, answer.headers["content-type"]) == (201, "application/json")
    assert set(job) == FIELDS
    assert ULID.fullmatch(job["id"])
    assert answer.headers["location"] == f"/api/v1/jobs/{job['id']}"
    assert INSTANT.fullmatch(job["created_at"])
    assert job["spec"] == {
        "image": image, "run": "true", "timeout": 90, "memory": 64 << 20, "cpus": 0.5,
        "network": False, "project": "tea", "env": {"TZ": "UTC"}, "setup": [], "setup_inputs": {},
        "backend": None, "cache": "use", "git": None, "secrets": [], "setup_secrets": [],
    }  # fmt: skip
    assert job["source"] == {"kind": "upload", "files": 2, "bytes": 8, "vcs": vcs}
    nothing_yet = FIELDS - {
        "id", "status", "project", "image", "spec", "source", "priority", "attempt",
        "created_at", "log_lines", "log_incomplete",
    }  # fmt: skip
    assert {name: job[name] for name in nothing_yet} == dict.fromkeys(nothing_yet)
    assert (job["status"], job["project"], job["image"]) == ("queued", "tea", image)
    counted = ("priority", "attempt", "log_lines", "log_incomplete")
    assert [job[name] for name in counted] == [-3, 0, 0, False]
    ended = await shared.wait(job["id"])
    assert (ended["status"], ended["success"]) == ("completed", True)


async def test_a_job_that_ended_has_the_same_fields_and_its_history(shared: Worker) -> None:
    job = await shared.run("echo one; echo two; exit 3")
    assert set(job) == FIELDS | {"history", "phases", "place", "last_lines"}
    assert (job["exit_code"], job["log_lines"], job["attempt"]) == (3, 2, 1)
    assert (job["retry_of"], job["tests"], job["log_incomplete"]) == (None, None, False)
    moments = [job[f"{name}_at"] for name in ("created", "started", "finished", "deadline")]
    assert all(INSTANT.fullmatch(moment) for moment in moments)
    assert moments == sorted(moments)
    assert {frozenset(step) for step in job["history"]} == {
        frozenset({"at", "from", "to", "reason", "message"})
    }
    assert [(step["from"], step["to"]) for step in job["history"]] == [
        (None, "queued"),
        ("queued", "starting"),
        ("starting", "running"),
        ("running", "completed"),
    ]
    last = job["history"][-1]
    assert (last["reason"], last["message"]) == (job["reason"], job["message"])
    assert [step["at"] for step in job["history"]] == sorted(step["at"] for step in job["history"])


FILES = {"dir/file.txt": "what was sent\n", ".ciworker.toml": 'run = "cat dir/file.txt"'}


@pytest.mark.parametrize(
    "archive",
    [
        pytest.param(tree(FILES), id="tar"),
        pytest.param(gzip.compress(tree(FILES)), id="tar.gz"),
        pytest.param(zstandard.compress(tree(FILES)), id="tar.zst"),
        pytest.param(zipped(FILES), id="zip"),
    ],
)
async def test_each_kind_of_archive_arrives_as_it_was(shared: Worker, archive: bytes) -> None:
    status, job = await shared.post(archive)
    assert status == 201
    assert (await shared.wait(job["id"]))["reason"] == "passed"
    assert await shared.text(job["id"]) == b"what was sent\n"


async def test_the_job_file_is_read_and_what_the_request_says_comes_first(shared: Worker) -> None:
    table = 'run = "echo file"\ntimeout = "20s"\nproject = "file"\nenv = {A = "file"}\n'
    own = {".ciworker.toml": table, "pyproject.toml": "[tool.ciworker]\nrun = 'echo no'\n"}
    project = {"pyproject.toml": f"[project]\nname = 'named'\n[tool.ciworker]\n{table}"}
    named = {"pyproject.toml": "[project]\nname = 'named'\n"}
    said = {"run": "echo request", "timeout": 30, "project": "said", "env": {"B": "request"}}
    cases: list[tuple[Any, Any, Any]] = [
        (own, {}, ("echo file", 20, "file", {"A": "file"})),
        (project, {}, ("echo file", 20, "file", {"A": "file"})),
        (named, {}, ("python -m pytest", 900, "named", {})),
        ({"x": ""}, {}, ("python -m pytest", 900, "unnamed", {})),
        (own, said, ("echo request", 30, "said", {"A": "file", "B": "request"})),
        (own, {"command": ["printf", "%s|", "a b", "$HOME"]},
         ("printf '%s|' 'a b' '$HOME'", 20, "file", {"A": "file"})),
    ]  # fmt: skip
    for files, spec, wanted in cases:
        status, job = await shared.post(tree(files), spec)
        assert status == 201, job
        found = job["spec"]
        assert tuple(found[name] for name in ("run", "timeout", "project", "env")) == wanted
        await shared.call("POST", f"/jobs/{job['id']}/cancel")
        await shared.wait(job["id"])


async def test_a_command_keeps_its_words(shared: Worker) -> None:
    words = ["printf", "%s|", "a b", "$HOME", "é'\"", ""]
    status, job = await shared.post(tree({"x": ""}), {"command": words, "run": "false"})
    assert status == 201
    await shared.wait(job["id"])
    assert await shared.text(job["id"]) == "a b|$HOME|é'\"||".encode()


# Idempotency-Key


async def submit_with_key(worker: Worker, key: str, **headers: str) -> tuple[int, str]:
    body = form(tree({"x": "x" * 10_000}), {"run": "true"})
    fields = {"Content-Type": FORM, "Idempotency-Key": key} | headers
    status, job = await worker.call("POST", "/jobs", data=body, headers=fields)
    return status, job["id"]


async def test_the_same_key_gives_the_same_job(shared: Worker) -> None:
    first = await submit_with_key(shared, "once")
    assert first[0] == 201
    before = spooled(shared)
    assert await submit_with_key(shared, "once") == (200, first[1])
    await shared.wait(first[1])
    assert await submit_with_key(shared, "once") == (200, first[1])
    assert set(spooled(shared)) <= set(before)
    other = await submit_with_key(shared, "twice")
    assert (other[0], other[1] != first[1]) == (201, True)


async def test_another_token_s_same_key_is_another_job(shared: Worker) -> None:
    body = {"name": "another", "role": "submit"}
    _, token = await shared.call("POST", "/tokens", json=body)
    first = await submit_with_key(shared, "mine")
    second = await submit_with_key(shared, "mine", Authorization=f"Bearer {token['token']}")
    assert (first[0], second[0]) == (201, 201)
    assert first[1] != second[1]


async def test_submits_with_one_key_at_the_same_time_make_one_job(
    shared: Worker, queued: list[str]
) -> None:
    before = set(spooled(shared))
    body = form(tree({"x": "x" * 300_000}), {"run": "true", "project": "racing"})
    together = asyncio.Barrier(3)

    async def halves() -> AsyncIterator[bytes]:
        yield body[:290_000]
        await asyncio.sleep(0.1)  # all are past the look for an earlier job
        await together.wait()
        yield body[290_000:]

    fields = {"Content-Type": FORM, "Idempotency-Key": "at once"}
    answers = await asyncio.gather(
        *(shared.call("POST", "/jobs", data=halves(), headers=fields) for _ in range(3))
    )
    assert sorted(status for status, _ in answers) == [200, 200, 201]
    ids = {job["id"] for _, job in answers}
    assert len(ids) == 1
    _, listed = await shared.call("GET", "/jobs?project=racing")
    assert [job["id"] for job in listed["items"]] == list(ids)
    assert {path.name.partition(".")[0] for path in set(spooled(shared)) - before} == ids
    await cancelled(shared, *ids)
    assert len(queued) == 3


# list


async def test_the_list_is_newest_first_and_paging_meets_every_job_once(shared: Worker) -> None:
    old = [await shared.submit("true", project="paged") for _ in range(7)]
    seen: list[str] = []
    cursor, pages = "", 0
    while cursor is not None:
        query = f"/jobs?project=paged&limit=3{cursor and f'&cursor={cursor}'}"
        status, page = await shared.call("GET", query)
        assert (status, set(page)) == (200, {"items", "next"})
        assert all(set(job) == FIELDS for job in page["items"])
        seen += [job["id"] for job in page["items"]]
        cursor, pages = page["next"], pages + 1
        await shared.submit("true", project="paged")
    assert seen == old[::-1]
    assert pages == 3
    for limit, more in ((10, False), (9, True), (1, True), (500, False), (99999, False)):
        _, page = await shared.call("GET", f"/jobs?project=paged&limit={limit}")
        assert (len(page["items"]), page["next"] is not None) == (min(limit, 10), more)
    _, page = await shared.call("GET", "/jobs?project=paged")
    await shared.wait(page["items"][0]["id"])


async def test_the_list_is_cut_at_50_when_nothing_is_said(
    shared: Worker, queued: list[str]
) -> None:
    more = await asyncio.gather(*(shared.submit("true", project="fifty") for _ in range(51)))
    _, page = await shared.call("GET", "/jobs")
    newest = sorted(more, reverse=True)[:50]
    assert [job["id"] for job in page["items"]] == newest
    assert page["next"] == newest[-1]
    _, page = await shared.call("GET", f"/jobs?cursor={page['next']}&limit=4")
    assert [job["id"] for job in page["items"]] == [min(more), *queued[::-1]]
    await asyncio.gather(*(cancelled(shared, job) for job in more))
    assert (jobs.PAGE, jobs.MOST_PER_PAGE) == (50, 500)


async def test_the_list_can_be_filtered(shared: Worker, queued: list[str]) -> None:
    async def ids(query: str) -> list[str]:
        status, page = await shared.call("GET", f"/jobs?{query}")
        assert status == 200, page
        return [job["id"] for job in page["items"]]

    assert await ids("project=waiting&status=running") == queued[:1]
    assert await ids("project=waiting&status=queued") == queued[:0:-1]
    assert await ids("status=queued") == queued[:0:-1]
    assert await ids("project=waiting&limit=3") == queued[::-1]
    assert await ids("project=none%20such%E2%80%A8") == []
    assert await ids("project=") == []
    done = await ids("status=completed&limit=500")
    assert done
    assert not set(done) & set(queued)


@pytest.mark.parametrize(
    "query",
    [
        "limit=0", "limit=-1", "limit=x", "limit=1e3", "limit=", "limit=%D9%A3", "limit=1.5",
        "limit=99999999999999999999999999", "limit=1&limit=2", "cursor=x", "cursor=",
        "cursor=../../etc/passwd", "cursor=01ARZ3NDEKTSV4RRFFQ69G5FAV0", "status=done",
        "status=Queued", "status=", "status=queued&status=running", "project=a&project=b",
    ],
)  # fmt: skip
async def test_a_query_that_is_wrong_is_422_and_names_the_parameter(
    shared: Worker, query: str
) -> None:
    status, detail = await refused(shared, "GET", f"/jobs?{query}")
    assert (status, query.partition("=")[0] in detail) == (422, True)


async def test_a_project_that_is_no_text_is_no_job_s(shared: Worker) -> None:
    for project in ("%ff", "%00", "%ed%a0%80", "x" * 5000):
        answer = await ask(shared, "GET", f"/api/v1/jobs?project={project}", shared.headers)
        assert (answer.status, json.loads(answer.body)["items"]) == (200, [])


# show, cancel, retry


async def test_a_job_that_is_not_there_is_404_on_each_of_its_routes(shared: Worker) -> None:
    for job_id in ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "nope", "81ARZ3NDEKTSV4RRFFQ69G5FAV"):
        for method, rest in (
            ("GET", ""), ("GET", "/log"), ("GET", "/events"), ("POST", "/cancel"),
            ("POST", "/retry"),
        ):  # fmt: skip
            status, detail = await refused(shared, method, f"/jobs/{job_id}{rest}")
            assert (status, job_id in detail) == (404, True)


async def test_a_queued_job_is_cancelled_and_never_starts(
    shared: Worker, queued: list[str]
) -> None:
    status, answer = await shared.call("POST", f"/jobs/{queued[1]}/cancel")
    assert (status, set(answer)) == (202, FIELDS)
    job = await shared.wait(queued[1])
    assert (job["status"], job["success"], job["attempt"]) == ("cancelled", None, 0)
    assert [step["to"] for step in job["history"]] == ["queued", "queued", "cancelled"]
    assert "first admin" in job["message"]


async def test_an_ended_job_cannot_be_cancelled(shared: Worker, queued: list[str]) -> None:
    await cancelled(shared, queued[2])
    status, detail = await refused(shared, "POST", f"/jobs/{queued[2]}/cancel")
    assert (status, "ended already: cancelled" in detail) == (409, True)
    await cancelled(shared, queued[0])
    await shared.wait(queued[1])
    status, detail = await refused(shared, "POST", f"/jobs/{queued[1]}/cancel")
    assert (status, "ended already: passed" in detail) == (409, True)


async def test_a_second_cancel_of_a_job_that_is_being_stopped_is_202_and_noted_once(
    shared: Worker,
) -> None:
    run = "trap 'sleep 0.5; exit' TERM; echo up; while :; do sleep 0.05; done"
    job_id = await shared.submit("sh a.sh", {"a.sh": run})
    await shared.wait_for_text(job_id, b"up\n")
    assert [(await shared.call("POST", f"/jobs/{job_id}/cancel"))[0] for _ in range(3)] == [202] * 3
    job = await shared.wait(job_id)
    asked = [step for step in job["history"] if "cancel asked" in (step["message"] or "")]
    assert (job["status"], len(asked)) == ("cancelled", 1)


async def test_a_retry_is_a_new_job_of_the_same_tree_and_spec(shared: Worker) -> None:
    spec = {"priority": 2, "project": "again", "timeout": "33s", "vcs": {"commit": "abc"}}
    old = await shared.run("cat f; exit 1", {"f": "same tree\n"}, **spec)
    headers = shared.headers
    answer = await ask(shared, "POST", f"/api/v1/jobs/{old['id']}/retry", headers)
    new = json.loads(answer.body)
    assert (answer.status, set(new)) == (202, FIELDS)
    assert answer.headers["location"] == f"/api/v1/jobs/{new['id']}"
    assert new["id"] > old["id"]
    assert (new["retry_of"], new["status"], new["attempt"]) == (old["id"], "queued", 0)
    for name in ("spec", "priority", "source", "project", "image"):
        assert new[name] == old[name]
    await shared.wait(new["id"])
    assert await shared.text(new["id"]) == b"same tree\n"
    status, newest = await shared.call("POST", f"/jobs/{new['id']}/retry")
    assert (status, newest["retry_of"]) == (202, new["id"])
    await shared.wait(newest["id"])


async def test_what_has_not_ended_cannot_be_retried(shared: Worker, queued: list[str]) -> None:
    before = spooled(shared)
    for job_id, state in ((queued[0], "running"), (queued[1], "queued")):
        status, detail = await refused(shared, "POST", f"/jobs/{job_id}/retry")
        assert (status, state in detail) == (409, True)
    assert spooled(shared) == before


async def test_a_retry_whose_tree_is_gone_is_409_and_leaves_nothing(shared: Worker) -> None:
    job = await shared.run("true", project="gone")
    for path in spooled(shared):
        if path.name.startswith(job["id"]):
            path.unlink()
    before = spooled(shared)
    status, detail = await refused(shared, "POST", f"/jobs/{job['id']}/retry")
    assert (status, "submit it again" in detail) == (409, True)
    assert spooled(shared) == before
    _, page = await shared.call("GET", "/jobs?project=gone")
    assert [item["id"] for item in page["items"]] == [job["id"]]


# the log

BYTES = (
    b"plain\n\xff\xfe caf\xe9 \xc3\xa9\ncr\r\nlone\rcr\n\n"
    b"\0nul\x1b[31mred\nline\xe2\x80\xa8sep\nlast"
)


async def records(worker: Worker, job_id: str, query: str = "") -> list[dict[str, Any]]:
    headers = worker.headers | {"Accept": "application/x-ndjson"}
    async with worker.session.get(f"/api/v1/jobs/{job_id}/log{query}", headers=headers) as answer:
        body = await answer.read()
        assert (answer.status, answer.content_type) == (200, "application/x-ndjson"), body
    assert body == b"" or body.endswith(b"\n")
    return [json.loads(line) for line in body.split(b"\n")[:-1]]


async def text_and_length(worker: Worker, job_id: str, query: str) -> tuple[bytes, int | None]:
    """What comes, and how much was told to come."""
    path = f"/api/v1/jobs/{job_id}/log{query}"
    async with worker.session.get(path, headers=worker.headers) as answer:
        assert answer.status == 200
        return await answer.read(), answer.content_length


async def test_a_log_that_grows_while_it_is_read_comes_as_long_as_it_was_told(
    shared: Worker,
) -> None:
    job_id = await shared.submit("while :; do seq 1000; done")
    try:
        await shared.wait_for_text(job_id, b"1000\n")
        for _ in range(20):
            text, length = await text_and_length(shared, job_id, "")
            assert len(text) == length
            assert text.splitlines()[:3] == [b"1", b"2", b"3"]
    finally:
        await shared.call("POST", f"/jobs/{job_id}/cancel")
        await shared.wait(job_id)


async def test_the_log_is_the_exact_bytes_and_records_are_text(shared: Worker) -> None:
    job = await shared.run("cat bytes", {"bytes": BYTES})
    async with shared.session.get(
        f"/api/v1/jobs/{job['id']}/log", headers=shared.headers
    ) as answer:
        assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Content-Length"] == str(len(BYTES))
        assert await answer.read() == BYTES
    lines = BYTES.split(b"\n")
    found = await records(shared, job["id"])
    assert [line["n"] for line in found] == list(range(1, len(lines) + 1))
    assert [line["text"] for line in found] == [line.decode(errors="replace") for line in lines]
    assert [line.get("end") for line in found] == [None] * (len(lines) - 1) + [False]
    assert all(INSTANT.fullmatch(line["at"]) for line in found)
    assert {line["stream"] for line in found} == {"stdout"}


async def test_parts_of_the_log(shared: Worker) -> None:
    run = "for i in 1 2 3; do echo out $i; sleep 0.05; echo err $i >&2; sleep 0.05; done"
    job_id = (await shared.run(run))["id"]
    whole = [f"{name} {i}" for i in (1, 2, 3) for name in ("out", "err")]
    for query, wanted in {
        "": whole, "?from=1": whole, "?from=0": whole, "?from=5": whole[4:], "?from=6": whole[5:],
        "?from=7": [], "?from=999999999999": [], "?tail=0": [], "?tail=1": whole[5:],
        "?tail=4": whole[2:], "?tail=99": whole, "?stream=stdout": whole[::2],
        "?stream=stderr": whole[1::2], "?stream=stderr&from=4": whole[3::2],
        "?stream=stdout&tail=3": whole[4:5], "?timestamps=0": whole, "?timestamps=false": whole,
    }.items():  # fmt: skip
        text = "".join(line + "\n" for line in wanted).encode()
        assert await text_and_length(shared, job_id, query) in {(text, None), (text, len(text))}
        assert [line["text"] for line in await records(shared, job_id, query)] == wanted, query
    whole_ones = {"", "?from=1", "?from=0", "?tail=99", "?timestamps=0"}
    for query in {*whole_ones, "?from=2", "?tail=5", "?limit=5", "?stream=stdout", "?timestamps=1"}:
        _, length = await text_and_length(shared, job_id, query)
        assert (length is not None) == (query in whole_ones), query
    for query in ("?timestamps=1", "?timestamps=true&from=3"):
        timed = (await shared.text(job_id, query)).decode().splitlines()
        pairs = [line.split(" ", 1) for line in timed]
        assert [text for _, text in pairs] == whole[-len(timed) :]
        assert [at for at, _ in pairs] == sorted(at for at, _ in pairs if INSTANT.fullmatch(at))
    streams = [line["stream"] for line in await records(shared, job_id)]
    assert streams == ["stdout", "stderr"] * 3


async def test_long_lines_come_in_pieces_and_are_whole_as_text(shared: Worker) -> None:
    lengths = (65_535, 65_536, 65_537, 200_000)
    data = b"".join(b"x" * length + b"\n" for length in lengths) + b"short\n" + b"y" * 70_000
    job_id = (await shared.run("cat long", {"long": data}))["id"]
    assert await shared.text(job_id) == data
    found = await records(shared, job_id)
    assert [line["n"] for line in found] == list(range(1, len(found) + 1))
    assert max(len(line["text"]) for line in found) <= 64 * 1024
    joined = "".join(line["text"] + ("\n" if line.get("end", True) else "") for line in found)
    assert joined.encode() == data
    assert any(line.get("end") is False for line in found[:-1])
    timed = await shared.text(job_id, "?timestamps=1")
    assert len(timed) == len(data) + 6 * len("2026-01-01T00:00:00.000Z ")
    middle = next(line["n"] for line in found if line["text"] == "short")
    assert await shared.text(job_id, f"?from={middle}") == b"short\n" + b"y" * 70_000


async def test_an_empty_log_is_empty(shared: Worker, queued: list[str]) -> None:
    for job_id in queued:
        assert await shared.text(job_id) == b""
        assert await shared.text(job_id, "?tail=5&timestamps=1&stream=stderr") == b""
        assert await records(shared, job_id) == []


async def test_a_part_of_the_log_that_is_none_is_422(shared: Worker) -> None:
    job_id = await shared.submit("true")
    for query in (
        "from=x", "from=-1", "tail=x", "tail=-5", "stream=both", "stream=", "timestamps=yes",
        "from=1&from=2", "tail=99999999999999999999",
    ):  # fmt: skip
        status, detail = await refused(shared, "GET", f"/jobs/{job_id}/log?{query}")
        assert (status, query.partition("=")[0] in detail) == (422, True)
    await shared.wait(job_id)


# the document


async def test_what_is_answered_is_what_the_document_says(shared: Worker) -> None:
    async with shared.session.get("/openapi.json", headers=shared.headers) as answer:
        assert answer.headers["Content-Type"] == "application/json"
        document = await answer.json()
    job = await shared.run("echo out; exit 1", {"x": "x"}, vcs={"dirty": True})
    cancelled_one = await shared.submit("sleep 60")
    await cancelled(shared, cancelled_one)
    _, token = await shared.call("POST", "/tokens", json={"name": "t", "role": "read"})
    one = f"/jobs/{job['id']}"
    answers: list[tuple[str, str, str, Any]] = [
        ("get", "/api/v1/jobs", "200", await shared.call("GET", "/jobs")),
        ("get", "/api/v1/jobs", "422", await shared.call("GET", "/jobs?limit=x")),
        ("get", "/api/v1/jobs/{id}", "200", await shared.call("GET", one)),
        ("get", "/api/v1/jobs/{id}", "200", await shared.call("GET", f"/jobs/{cancelled_one}")),
        ("get", "/api/v1/jobs/{id}", "404", await shared.call("GET", "/jobs/x")),
        ("post", "/api/v1/jobs", "201", await shared.post(tree({"x": ""}), {"run": "true"})),
        ("post", "/api/v1/jobs", "422", await shared.post(b"")),
        ("post", "/api/v1/jobs", "415", await shared.call("POST", "/jobs")),
        ("post", "/api/v1/jobs/{id}/cancel", "409", await shared.call("POST", f"{one}/cancel")),
        ("post", "/api/v1/jobs/{id}/retry", "202", await shared.call("POST", f"{one}/retry")),
        ("post", "/api/v1/resync", "200", await shared.call("POST", "/resync")),
        ("get", "/api/v1/tokens", "200", await shared.call("GET", "/tokens")),
        ("post", "/api/v1/tokens", "201", (201, token)),
    ]
    for method, path, status, (found, body) in answers:
        assert str(found) == status, (method, path, body)
        described = document["paths"][path][method]["responses"][status]["content"]
        problem = int(status) >= 400
        schema = described["application/problem+json" if problem else "application/json"]["schema"]
        checker(document, schema).validate(body)
    line = document["paths"]["/api/v1/jobs/{id}/log"]["get"]["responses"]["200"]["content"]
    for record in await records(shared, job["id"]):
        checker(document, line["application/x-ndjson"]["schema"]).validate(record)


def checker(document: Any, schema: Any) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        {**schema, "components": document["components"]},
        format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER,
    )
