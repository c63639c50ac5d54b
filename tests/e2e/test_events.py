"""Server-sent events: frames, resuming, slow readers, and the worker going down."""

import asyncio
import contextlib
import json
import re
import signal
import socket
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import cast

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from ciworker.feed.feed import Signal
from ciworker.web import sse, streaming
from ciworker.web.context import CONTEXT, Context
from tests.driver import Frame, Worker, frames
from tests.e2e.follower import WAIT, let_go
from tests.e2e.raw import Answer, ask
from tests.e2e.visitor import cookie_of, follow, link_through, log_in, log_out, new_link

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"max_jobs": "2"}
HASTE = {
    "ciworker.web.sse.COMMENT_INTERVAL": 0.2,
    "ciworker.web.streaming.WRITE_TIMEOUT": 0.5,
}
FLOOD = 150_000
SPELL = "seq -f 'line %.0f of a flood that is longer than what any buffer on the way takes'"
LINE = "line {} of a flood that is longer than what any buffer on the way takes"


async def collect(
    worker: Worker, path: str, last_id: str | None = None, found: list[Frame] | None = None
) -> list[Frame]:
    """All frames of a stream, until the worker closes it; `found` has them as they come."""
    found = [] if found is None else found
    async with asyncio.timeout(60), worker.events(path, last_id) as events:
        async for frame in events:
            found.append(frame)
    return found


def lines(found: Sequence[Frame]) -> list[tuple[int, str]]:
    """Number and text of each line; fails if a frame's id is not its last line's number."""
    logs = [frame for frame in found if frame.event == "log"]
    assert [frame.id for frame in logs] == [str(frame.records[-1]["n"]) for frame in logs]
    return [(record["n"], record["text"]) for frame in logs for record in frame.records]


def names(found: Sequence[Frame]) -> list[str]:
    """The frames' events in order, repeats left out."""
    events = [frame.event for frame in found]
    return [name for name, before in zip(events, [None, *events], strict=False) if name != before]


async def raw_stream(worker: Worker, path: str) -> Answer:
    """A stream to its end in HTTP/1.0, so that its bytes are not cut into chunks."""
    return await ask(worker, "GET", f"/api/v1{path}", worker.headers, version="1.0")


# the frames


async def test_a_stream_s_head_and_its_frames_are_the_contract_s(shared: Worker) -> None:
    text = "a\u2028b\u2029c\u0085d\re\r\nid: 999\nevent: end\ndata: x\n\n: y\n\ufeffz\0\x0b\x0c\x1e"
    job_id = (await shared.run("cat text", {"text": text + "\n"}))["id"]
    path = f"/jobs/{job_id}/events"
    async with shared.session.get(f"/api/v1{path}", headers=shared.headers) as answer:
        headers = answer.headers
    assert headers["Content-Type"].startswith("text/event-stream")
    assert headers["Cache-Control"] == "no-cache, no-transform"
    assert headers["X-Accel-Buffering"] == "no"
    body = (await raw_stream(shared, path)).body
    assert b"\r" not in body
    assert body.endswith(b"\n\n")
    first, log, end = body.removesuffix(b"\n\n").split(b"\n\n")
    retry = re.fullmatch(rb"retry: (\d+)", first)
    assert retry is not None
    assert 1000 <= int(retry[1]) <= 3000
    name, *data, number = log.split(b"\n")
    assert (name, number) == (b"event: log", b"id: 7")
    assert all(line.startswith(b"data: {") for line in data)
    texts = [json.loads(line.removeprefix(b"data: "))["text"] for line in data]
    assert texts == text.split("\n")
    name, number, final = end.split(b"\n")
    assert (name, number) == (b"event: end", b"id: end")
    assert json.loads(final.removeprefix(b"data: ")) == await shared.job(job_id)


async def test_records_are_those_of_the_log(shared: Worker) -> None:
    run = "echo out; echo err >&2; head -c 70000 /dev/zero | tr '\\0' x; printf '\\nlast\\377'"
    job_id = (await shared.run(run))["id"]
    async with shared.session.get(
        f"/api/v1/jobs/{job_id}/log",
        headers=shared.headers | {"Accept": "application/x-ndjson"},
    ) as answer:
        stored = [json.loads(line) for line in (await answer.text()).split("\n")[:-1]]
    found = await collect(shared, f"/jobs/{job_id}/events")
    assert [record for frame in found[:-1] for record in frame.records] == stored
    assert stored[-1]["text"] == "last\ufffd"
    assert [record.get("end", True) for record in stored].count(False) == 2


async def test_states_are_told_as_they_change_and_end_is_last(shared: Worker) -> None:
    blockers = [await shared.submit("sleep 60") for _ in range(2)]
    for job_id in blockers:
        await shared.wait(job_id, "running")
    job_id = await shared.submit("echo up; sleep 0.3; echo down")
    found: list[Frame] = []
    async with asyncio.timeout(30), shared.events(f"/jobs/{job_id}/events") as events:
        async for frame in events:
            found.append(frame)
            if len(found) == 1:
                await shared.call("POST", f"/jobs/{blockers[0]}/cancel")
    states = [frame.json["status"] for frame in found if frame.event == "status"]
    assert states[0] == "queued"
    assert states[-1] == "running"
    assert states == sorted(states, key=["queued", "starting", "running"].index)
    assert all(frame.id is None for frame in found if frame.event == "status")
    assert names(found)[0] == "status"
    assert [frame.event for frame in found].count("end") == 1
    assert (found[-1].event, found[-1].json["status"]) == ("end", "completed")
    assert lines(found) == [(1, "up"), (2, "down")]
    await shared.call("POST", f"/jobs/{blockers[1]}/cancel")
    await shared.wait(blockers[1])


async def test_whoever_comes_late_sees_what_the_early_ones_saw(shared: Worker) -> None:
    run = "for i in $(seq 40); do echo line $i; echo error $i >&2; sleep 0.01; done"
    job_id = await shared.submit(run)
    early = asyncio.ensure_future(collect(shared, f"/jobs/{job_id}/events"))
    await shared.wait_for_text(job_id, b"line 20\n")
    late = asyncio.ensure_future(collect(shared, f"/jobs/{job_id}/events"))
    seen = lines(await early)
    assert [number for number, _ in seen] == list(range(1, 81))
    assert {text for _, text in seen} == {
        f"{w} {i}" for w in ("line", "error") for i in range(1, 41)
    }
    assert lines(await late) == seen
    assert lines(await collect(shared, f"/jobs/{job_id}/events")) == seen


# where a stream starts


async def test_a_stream_resumes_exactly_after_every_number(shared: Worker) -> None:
    job_id = (await shared.run("seq 25; sleep 0.1; seq 26 40"))["id"]
    for last in range(41):
        found = await collect(shared, f"/jobs/{job_id}/events", str(last))
        assert lines(found) == [(n, str(n)) for n in range(last + 1, 41)]
        assert (found[-1].event, found[-1].id) == ("end", "end")


async def test_a_running_stream_resumes_exactly(shared: Worker) -> None:
    job_id = await shared.submit("for i in $(seq 60); do echo $i; sleep 0.01; done")
    seen: list[tuple[int, str]] = []
    last_id, connections = "0", 0
    while True:
        async with shared.events(f"/jobs/{job_id}/events", last_id) as events:
            connections += 1
            async for frame in events:
                if frame.event == "log":
                    seen += lines([frame])
                    last_id = frame.id or ""
                    break
                if frame.event == "end":
                    break
        if frame.event == "end":
            break
    assert seen == [(n, str(n)) for n in range(1, 61)]
    assert connections > 10


async def test_a_stream_starts_where_it_is_asked_to(shared: Worker) -> None:
    job_id = (await shared.run("seq 9"))["id"]
    for query, wanted in {
        "": range(1, 10), "?from=1": range(1, 10), "?from=0": range(1, 10), "?from=9": [9],
        "?from=10": [], "?from=99": [], "?tail=3": range(7, 10), "?tail=0": [],
        "?tail=99": range(1, 10), "?now=1": [], "?now=0": range(1, 10), "?now=1&from=2": [],
    }.items():  # fmt: skip
        found = await collect(shared, f"/jobs/{job_id}/events{query}")
        assert [number for number, _ in lines(found)] == list(wanted), query
        assert found[-1].event == "end"
    found = await collect(shared, f"/jobs/{job_id}/events?from=1", "7")
    assert [number for number, _ in lines(found)] == [8, 9]


async def test_now_means_the_lines_from_now_on_and_from_may_lie_ahead(shared: Worker) -> None:
    job_id = await shared.submit("seq 5; sleep 0.6; seq 6 9")
    await shared.wait_for_text(job_id, b"5\n")
    now, ahead = await asyncio.gather(
        collect(shared, f"/jobs/{job_id}/events?now=1"),
        collect(shared, f"/jobs/{job_id}/events?from=8"),
    )
    assert [number for number, _ in lines(now)] == [6, 7, 8, 9]
    assert [number for number, _ in lines(ahead)] == [8, 9]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def nine(shared: Worker) -> str:
    """A job that has ended with nine lines."""
    return str((await shared.run("seq 9"))["id"])


@pytest.mark.parametrize(
    ("last_id", "status"),
    [
        ("end", 204), ("10", 400), ("99999999999999999999", 400), ("-1", 400), ("x", 400),
        ("1.0", 400), ("END", 400), ("end ", 204), ("1 2", 400), ("٣", 400), (b"\xff", 400),
        ("9", 200), ("", 200), ("009", 200),
    ],
)  # fmt: skip
async def test_a_last_event_id_that_is_none_is_refused(
    shared: Worker, nine: str, last_id: str | bytes, status: int
) -> None:
    headers = shared.headers | {"Last-Event-ID": last_id}
    answer = await ask(shared, "GET", f"/api/v1/jobs/{nine}/events", headers)
    assert answer.status == status
    if status == 400:
        assert "Last-Event-ID" in answer.problem
    if status == 204:
        assert answer.body == b""


@pytest.mark.parametrize("query", ["from=x", "tail=-1", "now=soon", "from=1&from=1"])
async def test_a_start_that_is_none_is_422(shared: Worker, nine: str, query: str) -> None:
    answer = await ask(shared, "GET", f"/api/v1/jobs/{nine}/events?{query}", shared.headers)
    assert (answer.status, query.partition("=")[0] in answer.problem) == (422, True)


# all jobs


async def test_the_states_of_all_jobs_are_told_and_can_be_resumed(shared: Worker) -> None:
    seen: list[tuple[int, str, str]] = []
    async with asyncio.timeout(30), shared.events("/events") as events:
        jobs = [await shared.submit("true") for _ in range(3)]
        ended: set[str] = set()
        async for frame in events:
            assert frame.event == "status"
            job = frame.json
            seen.append((int(frame.id or ""), job["id"], job["status"]))
            if job["status"] == "completed":
                ended.add(job["id"])
            if ended == set(jobs):
                break
    numbers = [number for number, _, _ in seen]
    assert numbers == list(range(numbers[0], numbers[0] + 12))
    for job_id in jobs:
        assert [job for _, job, _ in seen].count(job_id) == 4
    async with asyncio.timeout(30), shared.events("/events", str(numbers[4])) as events:
        again = [(int(frame.id or ""), frame.json["id"]) async for frame in first(events, 7)]
    assert again == [(number, job) for number, job, _ in seen[5:]]
    for last_id in (str(numbers[-1] + 1), "end", "x"):
        headers = shared.headers | {"Last-Event-ID": last_id}
        answer = await ask(shared, "GET", "/api/v1/events", headers)
        assert (answer.status, "Last-Event-ID" in answer.problem) == (400, True)


async def first(events: AsyncIterator[Frame], count: int) -> AsyncIterator[Frame]:
    for _ in range(count):
        yield await anext(events)


async def test_a_state_comes_with_the_number_of_lines_there_are(shared: Worker) -> None:
    job_id = await shared.submit(f"seq 20; {WAIT}")
    await shared.wait_for_text(job_id, b"20\n")
    for path, last_id in ((f"/jobs/{job_id}/events", None), ("/events", "0")):
        async with asyncio.timeout(30), shared.events(path, last_id) as events:
            async for frame in events:
                if frame.event == "status" and frame.json["id"] == job_id:
                    break
        assert frame.json["log_lines"] == 20 == (await shared.job(job_id))["log_lines"]
    await let_go(shared, job_id)
    await shared.wait(job_id)


# the lines of several jobs in one stream


def several(jobs: Mapping[str, int]) -> str:
    """The path of a stream that follows these jobs after these lines."""
    return "/events?" + "&".join(f"follow={job_id}.{after}" for job_id, after in jobs.items())


async def until_all_end(worker: Worker, jobs: Mapping[str, int]) -> list[Frame]:
    """All frames until each of these jobs has ended."""
    found, left = [], {job_id.upper() for job_id in jobs}
    async with asyncio.timeout(60), worker.events(several(jobs)) as events:
        async for frame in events:
            found.append(frame)
            left.discard(frame.event.removeprefix("end."))
            if not left:
                return found
    raise AssertionError(left)


def lines_of(job_id: str, found: Sequence[Frame]) -> list[tuple[int, str]]:
    logs = [frame for frame in found if frame.event == f"log.{job_id}"]
    assert all(frame.id is None for frame in logs)
    return [(record["n"], record["text"]) for frame in logs for record in frame.records]


async def test_one_stream_has_the_lines_of_several_jobs_and_the_states_of_all(
    shared: Worker,
) -> None:
    ended = (await shared.run("seq 5"))["id"]
    run = "for i in $(seq 40); do echo line $i; echo error $i >&2; sleep 0.01; done"
    running = [await shared.submit(run) for _ in range(2)]
    other = await shared.submit("echo not followed")
    found = await until_all_end(shared, {ended: 3, running[0]: 0, running[1].lower(): 0})
    assert lines_of(ended, found) == [(4, "4"), (5, "5")]
    for job_id in running:
        assert lines_of(job_id, found) == lines(await collect(shared, f"/jobs/{job_id}/events"))
        assert len(lines_of(job_id, found)) == 80
    for job_id in (ended, *running):
        [end] = [frame for frame in found if frame.event == f"end.{job_id}"]
        assert (end.id, end.json) == (None, await shared.job(job_id))
        events = [frame.event for frame in found]
        assert f"log.{job_id}" not in events[found.index(end) :]
    states = [frame for frame in found if frame.event == "status"]
    numbers = [int(frame.id or "") for frame in states]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert {frame.json["id"] for frame in states} >= set(running)
    assert {frame.event.partition(".")[0] for frame in found} <= {"status", "log", "end", "partial"}
    assert not [frame for frame in found if frame.event.endswith(f".{other}")]
    await shared.wait(other)


async def test_a_stream_of_several_jobs_resumes_exactly(shared: Worker) -> None:
    run = "for i in $(seq 60); do echo $i; sleep 0.01; done"
    places = {await shared.submit(run): 0 for _ in range(2)}
    seen: dict[str, list[tuple[int, str]]] = {job_id: [] for job_id in places}
    connections = 0
    async with asyncio.timeout(60):
        while places:
            connections += 1
            async with shared.events(several(places)) as events:
                async for frame in events:
                    name, _, job_id = frame.event.partition(".")
                    if name == "end":
                        del places[job_id]
                    if name == "log":
                        seen[job_id] += lines_of(job_id, [frame])
                        places[job_id] = seen[job_id][-1][0]
                    if name in ("log", "end"):
                        break
    assert list(seen.values()) == [[(n, str(n)) for n in range(1, 61)]] * 2
    assert connections > 20


async def test_a_flood_leaves_other_jobs_their_turn(shared: Worker) -> None:
    flooding = (await shared.run(f"{SPELL} {FLOOD}"))["id"]
    quiet = (await shared.run("seq 9"))["id"]
    found = await until_all_end(shared, {flooding: 0, quiet: 0})
    assert lines_of(flooding, found) == list(flood())
    assert lines_of(quiet, found) == [(n, str(n)) for n in range(1, 10)]
    before = [frame.event for frame in found].index(f"end.{quiet}")
    told = sum(len(text) for _, text in lines_of(flooding, found[:before]))
    assert 0 < told < 4 * sse.BYTES_PER_TURN


@pytest.mark.parametrize(
    ("query", "status", "word"),
    [
        ("follow={id}.9", 200, ""), ("follow={id}.10", 400, "past"), ("follow={id}", 422, "follow"),
        ("follow={id}.", 422, "follow"), ("follow={id}.-1", 422, "follow"),
        ("follow={id}.x", 422, "follow"), ("follow={id}.٣", 422, "follow"), ("follow=", 422, "dot"),
        ("follow={id}.1&follow={id}.1", 422, "twice"), ("follow=x.1", 422, "follow"),
        ("follow=01ARZ3NDEKTSV4RRFFQ69G5FAV.0", 404, "no job"),
        ("&".join(f"follow=01ARZ3NDEKTSV4RRFFQ69G5F{n:02}.0" for n in range(33)), 422, "32"),
        ("&".join(f"follow=01ARZ3NDEKTSV4RRFFQ69G5F{n:02}.0" for n in range(32)), 404, "no job"),
    ],
)  # fmt: skip
async def test_what_cannot_be_followed_is_refused(
    shared: Worker, nine: str, query: str, status: int, word: str
) -> None:
    target = f"/api/v1/events?{query.format(id=nine)}"
    async with shared.session.get(target, headers=shared.headers) as answer:
        assert answer.status == status
        if status != 200:
            assert word in (await answer.json())["detail"]


# readers that don't read


@asynccontextmanager
async def deaf(worker: Worker, path: str) -> AsyncIterator[asyncio.StreamReader]:
    """A subscriber with a small buffer that has read nothing but the head so far."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", worker.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=16_384)
    fields = worker.headers | {"Host": f"127.0.0.1:{worker.port}"}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    writer.write(f"GET /api/v1{path} HTTP/1.0\r\n{head}\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    try:
        yield reader
    finally:
        writer.close()


def flood() -> Iterator[tuple[int, str]]:
    return ((n, LINE.format(n)) for n in range(1, FLOOD + 1))


async def test_a_reader_that_stops_slows_nobody_and_misses_nothing(shared: Worker) -> None:
    job_id = await shared.submit(f"sleep 0.3; {SPELL} {FLOOD}")
    async with deaf(shared, f"/jobs/{job_id}/events") as reader:
        quick = await collect(shared, f"/jobs/{job_id}/events")
        assert (await shared.job(job_id))["reason"] == "passed"
        assert lines(quick) == list(flood())
        slow = [frame async for frame in frames(reader)]
    assert lines(slow) == list(flood())
    assert slow[-1].event == "end"


async def test_a_reader_that_takes_nothing_for_long_is_let_go(hasty: Worker) -> None:
    job_id = await hasty.submit(f"sleep 0.3; {SPELL} {FLOOD}")
    async with deaf(hasty, f"/jobs/{job_id}/events") as reader:
        quick = await collect(hasty, f"/jobs/{job_id}/events")
        assert lines(quick) == list(flood())
        await gone(hasty, reader)
        assert b"event: end" not in await reader.read()


async def gone(worker: Worker, reader: asyncio.StreamReader) -> None:
    """Wait until the worker has given up the connection of this reader."""
    assert worker.process is not None
    local = f":{worker.port:04X} "
    async with asyncio.timeout(10):
        while open_connections(worker.process.pid, local) > 1:  # the driver's own session
            await asyncio.sleep(0.05)
    assert not reader.at_eof()


def open_connections(pid: int, local: str) -> int:
    """Established connections to this port, as the kernel tells them."""
    with open(f"/proc/{pid}/net/tcp") as table:  # noqa: PTH123 # no file of a disk
        rows = [row.split() for row in table][1:]
    return sum(f"{row[1]} ".endswith(local) and row[3] == "01" for row in rows)


async def test_a_quiet_stream_gets_comments(hasty: Worker) -> None:
    job_id = await hasty.submit("sleep 1")
    body = (await raw_stream(hasty, f"/jobs/{job_id}/events")).body
    assert body.count(b"\n:\n") >= 3
    assert names([frame async for frame in frames(reader_of(body))]) == ["status", "end"]


def reader_of(body: bytes) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(body)
    reader.feed_eof()
    return reader


async def test_the_times_that_were_shortened_here_are_a_quarter_and_half_a_minute() -> None:
    assert (sse.COMMENT_INTERVAL, streaming.WRITE_TIMEOUT) == (15, 30)


async def test_watchers_that_vanish_are_no_error(hasty: Worker) -> None:
    job_id = await hasty.submit("for i in $(seq 30); do echo $i; sleep 0.02; done")
    for _ in range(10):
        async with hasty.events(f"/jobs/{job_id}/events") as events:
            await anext(events)
    await hasty.wait(job_id)
    await hasty.text(job_id)


# the reader's access ends


@asynccontextmanager
async def watched(
    worker: Worker, job_id: str, headers: Mapping[str, str]
) -> AsyncIterator[list[asyncio.Task[list[Frame]]]]:
    """Whoever sends these headers watches the job in every way, and each told of its start."""
    paths = (f"/jobs/{job_id}/events", "/events", several({job_id: 0}))
    begun = [asyncio.Event() for _ in paths]
    async with asyncio.TaskGroup() as readers:
        streams = [
            readers.create_task(watch(worker, path, headers, told))
            for path, told in zip(paths, begun, strict=True)
        ]
        async with asyncio.timeout(30):
            await asyncio.gather(*(told.wait() for told in begun))
        yield streams


async def watch(
    worker: Worker, path: str, headers: Mapping[str, str], told: asyncio.Event
) -> list[Frame]:
    """All frames until the worker closes the stream; `told` is set at the first."""
    found = []
    async with worker.session.get(
        f"/api/v1{path}", headers={"Last-Event-ID": "0", **headers}
    ) as answer:
        assert answer.status == 200
        async for frame in frames(answer.content):
            found.append(frame)
            told.set()
    return found


async def revoke(worker: Worker, token: Mapping[str, str], _session: Mapping[str, str]) -> None:
    assert (await worker.call("DELETE", f"/tokens/{token['id']}"))[0] == 204


async def leave(worker: Worker, _token: Mapping[str, str], session: Mapping[str, str]) -> None:
    assert (await log_out(worker, session)).status == 303


async def enter(worker: Worker, _token: Mapping[str, str], session: Mapping[str, str]) -> None:
    await follow(worker, await new_link(worker), session)


@pytest.mark.parametrize(
    ("by", "end"),
    [
        ("token", revoke), ("session", revoke), ("session", leave), ("session", enter),
        ("session made by the session", leave),
    ],
)  # fmt: skip
async def test_a_stream_ends_with_the_access_of_its_reader(
    shared: Worker,
    by: str,
    end: Callable[[Worker, Mapping[str, str], Mapping[str, str]], Awaitable[None]],
) -> None:
    job_id = await shared.submit(f"echo begun; {WAIT}")
    await shared.wait_for_text(job_id, b"begun\n")
    _, token = await shared.call("POST", "/tokens", json={"name": "visitor", "role": "read"})
    session = await log_in(shared, token["token"])
    headers = {
        "token": {"Authorization": f"Bearer {token['token']}"},
        "session": session,
        "session made by the session": await follow(shared, await link_through(shared, session)),
    }[by]
    other = asyncio.ensure_future(collect(shared, f"/jobs/{job_id}/events"))
    async with watched(shared, job_id, headers) as streams:
        await end(shared, token, session)
        async with asyncio.timeout(3):
            founds = await asyncio.gather(*streams)
    assert not [frame for found in founds for frame in found if frame.event.startswith("end")]
    await let_go(shared, job_id)
    assert names(await other)[-1] == "end"  # whoever else was there saw it to its end


class ClosingGate(sse.Gate):
    """Open for so many looks."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    async def open(self) -> bool:
        self._left -= 1
        return self._left >= 0


async def test_who_was_shut_out_while_its_stream_was_prepared_is_told_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def is_still_in(_request: web.Request) -> bool:
        return False

    monkeypatch.setattr(sse, "is_still_in", is_still_in)
    signals = SimpleNamespace(closing=Signal(), access_ended=Signal())
    app = web.Application()
    app[CONTEXT] = cast(Context, signals)
    gate = sse.Gate(make_mocked_request("GET", "/", app=app))
    assert [frame async for frame in sse.stream(gate, [Brief()])][1:] == []


class Brief:
    """A part that has several frames to say at once, and then no more."""

    changed = Signal()
    more, done = False, True

    async def turn(self) -> list[bytes]:
        return [b"one", b"two", b"three"]

    def handed_over(self) -> None:
        raise AssertionError("its reader was shut out before")


async def test_a_slow_reader_does_not_get_the_rest_of_a_turn_once_its_access_ended() -> None:
    stream = sse.stream(ClosingGate(2), [Brief()])
    assert [frame async for frame in stream][1:] == [b"one", b"two"]


async def test_a_stream_ends_when_its_reader_s_session_expires(hasty: Worker) -> None:
    runs = (WAIT, "while :; do echo busy; sleep 0.01; done")
    jobs = [await hasty.submit(f"echo begun; {run}") for run in runs]
    for job_id in jobs:
        await hasty.wait_for_text(job_id, b"begun\n")
    session = await log_in(hasty)
    with contextlib.closing(sqlite3.connect(hasty.data_dir / "ciworker.db")) as store, store:
        soon = (time.time_ns() // 1000 + 3_000_000, cookie_of(session).partition("_")[0])
        store.execute("UPDATE session SET expires_at = ? WHERE id = ?", soon)
    async with watched(hasty, jobs[0], session) as quiet, watched(hasty, jobs[1], session) as busy:
        async with asyncio.timeout(6):
            founds = await asyncio.gather(*quiet, *busy)
    assert time.time_ns() // 1000 >= soon[0]
    assert not [frame for found in founds for frame in found if frame.event.startswith("end")]
    for job_id in jobs:
        await hasty.call("POST", f"/jobs/{job_id}/cancel")
        await hasty.wait(job_id)


# the worker goes down: last in this module


async def test_sigterm_closes_streams_without_end_and_they_resume_exactly(shared: Worker) -> None:
    flooded = await shared.run(f"{SPELL} {FLOOD}")
    job_id = await shared.submit(
        f"for i in $(seq 60); do echo $i; sleep 0.02; done; {WAIT}; seq 61 120"
    )
    paths = [f"/jobs/{job_id}/events"] * 20 + [several({job_id: 0})]
    founds: list[list[Frame]] = [[] for _ in paths]
    streams = [
        asyncio.ensure_future(collect(shared, path, found=found))
        for path, found in zip(paths, founds, strict=True)
    ]
    async with deaf(shared, f"/jobs/{flooded['id']}/events"), asyncio.timeout(60):
        while not all("log" in str(names(found)) for found in founds):
            await asyncio.sleep(0.01)
        assert await shared.stop(signal.SIGTERM) < 3
    await asyncio.gather(*streams)
    assert not [frame for found in founds for frame in found if frame.event.startswith("end")]
    await shared.start()
    await let_go(shared, job_id)
    wanted = [(n, str(n)) for n in range(1, 121)]
    for path, found in zip(paths[:20], founds, strict=False):
        seen = lines(found)
        again = await collect(shared, path, str(seen[-1][0]))
        assert seen + lines(again) == wanted
        assert again[-1].event == "end"
    seen = lines_of(job_id, founds[-1])
    again = await until_all_end(shared, {job_id: len(seen)})
    assert seen + lines_of(job_id, again) == wanted
