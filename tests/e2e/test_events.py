"""Server-sent events: frames, resuming, slow readers, and the worker going down."""

import asyncio
import json
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio

from ciworker.web import sse, streaming
from tests.driver import Frame, Worker, frames
from tests.e2e.raw import Answer, ask

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"max_jobs": "2"}
HASTE = {
    "ciworker.web.sse.COMMENT_INTERVAL": 0.2,
    "ciworker.web.streaming.WRITE_TIMEOUT": 0.5,
}
FLOOD = 150_000
SPELL = "seq -f 'line %.0f of a flood that is longer than what any buffer on the way takes'"
LINE = "line {} of a flood that is longer than what any buffer on the way takes"


async def collect(worker: Worker, path: str, last_id: str | None = None) -> list[Frame]:
    """All frames of a stream, until the worker closes it."""
    async with asyncio.timeout(60), worker.events(path, last_id) as events:
        return [frame async for frame in events]


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
    job = await shared.job(job_id)
    del job["history"]
    assert json.loads(final.removeprefix(b"data: ")) == job


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


@pytest.mark.parametrize("query", ["from=x", "tail=-1", "now=true", "from=1&from=1"])
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


# the worker goes down: last in this module


async def test_sigterm_closes_streams_without_end_and_they_resume_exactly(shared: Worker) -> None:
    job_id = await shared.submit("for i in $(seq 120); do echo $i; sleep 0.02; done")
    flooded = await shared.run(f"{SPELL} {FLOOD}")
    await shared.wait_for_text(job_id, b"20\n")
    streams = [asyncio.ensure_future(collect(shared, f"/jobs/{job_id}/events")) for _ in range(20)]
    states = asyncio.ensure_future(collect(shared, "/events"))
    async with deaf(shared, f"/jobs/{flooded['id']}/events"):
        await asyncio.sleep(0.2)
        assert await shared.stop(signal.SIGTERM) < 3
    assert not [frame for frame in await states if frame.event == "end"]
    await shared.start()
    for stream in streams:
        found = await stream
        assert "end" not in names(found)
        seen = lines(found)
        assert len(seen) >= 20
        again = await collect(shared, f"/jobs/{job_id}/events", str(seen[-1][0]))
        assert seen + lines(again) == [(n, str(n)) for n in range(1, 121)]
        assert again[-1].event == "end"
