"""Search in a job's log, and parts of it by range."""

import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio

from ciworker.web import search as module
from tests.driver import Worker
from tests.e2e.follower import WAIT, let_go
from tests.e2e.raw import Answer, ask

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"log_limit": "200m"}
HASTE = {"ciworker.web.search.TIME_LIMIT": 0.0}
SOME = """\
printf 'one\\n\\033[31mTw\\033[0mo\\nthree\\n'
echo 'two on stderr' >&2
printf 'na\\303\\257ve \\377 two\\n%05000d two\\nlast two' 0
"""
MANY = 1_000_000
LONG = "head -c 65535 /dev/zero | tr '\\0' x"  # one line
WORST = "|".join(f"[xy]{{{n}}}z" for n in range(700, 740))  # RE2 takes 14 s for all of that line
SPELL = "seq -f 'line %.0f of a test run that is as long as lines of such runs are, more or less'"


async def search(worker: Worker, job_id: str, q: str, **more: Any) -> dict[str, Any]:
    status, body = await ask_for(worker, job_id, q, **more)
    assert status == 200, body
    assert set(body) == {"hits", "total", "next"}
    found: dict[str, Any] = body
    return found


async def ask_for(worker: Worker, job_id: str, q: str, **more: Any) -> tuple[int, Any]:
    query = "&".join(f"{name}={quote(str(text))}" for name, text in {"q": q, **more}.items())
    return await worker.call("GET", f"/jobs/{job_id}/log/search?{query}")


async def records(worker: Worker, job_id: str, query: str = "") -> list[dict[str, Any]]:
    headers = worker.headers | {"Accept": "application/x-ndjson"}
    async with worker.session.get(f"/api/v1/jobs/{job_id}/log{query}", headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return [json.loads(line) for line in (await answer.read()).splitlines()]


def numbers(found: dict[str, Any]) -> list[int]:
    return [hit["n"] for hit in found["hits"]]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def some(shared: Worker) -> str:
    """A job that has ended with seven lines; which of them stderr's is, is not certain."""
    return str((await shared.run(SOME))["id"])


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def hundred(shared: Worker) -> str:
    """A job that has ended with the numbers 1 to 100."""
    return str((await shared.run("seq 100"))["id"])


async def test_hits_are_lines_as_they_are_read_in_their_order(shared: Worker, some: str) -> None:
    lines = await records(shared, some)
    found = await search(shared, some, "two")
    without = [line["n"] for line in lines if line["text"] in ("one", "three")]
    assert numbers(found) == [n for n in range(1, 8) if n not in without]
    texts = {hit["text"] for hit in found["hits"]}
    [long] = [text for text in texts if text.startswith("\u2026000")]
    assert texts - {long} == {"Two", "two on stderr", "na\u00efve \ufffd two", "last two"}
    assert (long[-7:], len(long)) == ("000 two", 1001)
    assert (found["total"], found["next"]) == (5, None)


@pytest.mark.parametrize(
    ("q", "regex", "count"),
    [
        ("Two", "0", 1), ("TWO", "0", 0), ("\u00cfVE", "0", 0), ("\u00efve", "0", 1),
        ("t.o", "0", 0), ("t.o", "1", 5), ("^two", "true", 2), ("two$", "1", 4), ("[31m", "0", 0),
        ("0{999}", "1", 1), ("\ufffd", "0", 1), ("", "1", None),
    ],
)  # fmt: skip
async def test_a_text_or_an_expression_is_found(
    shared: Worker, some: str, q: str, regex: str, count: int | None
) -> None:
    if count is None:
        assert (await ask_for(shared, some, q, regex=regex))[0] == 422
        return
    found = await search(shared, some, q, regex=regex)
    assert (len(found["hits"]), found["total"], found["next"]) == (count, count, None)


async def test_hits_come_in_pages_and_the_total_with_the_first(
    shared: Worker, hundred: str
) -> None:
    seen: list[int] = []
    start: int | None = 1
    totals = []
    while start is not None:
        found = await search(shared, hundred, "7", limit=6, **{"from": start})
        assert len(found["hits"]) <= 6
        seen += numbers(found)
        totals.append(found["total"])
        start = found["next"]
    assert seen == [n for n in range(1, 101) if "7" in str(n)]
    assert totals == [19, None, None, 1]
    first, later = [
        await search(shared, hundred, "7", limit=6, total=asked, **{"from": start})
        for start, asked in ((1, "0"), (58, "1"))
    ]
    assert (first["total"], first["next"]) == (None, 67)
    assert (later["total"], later["next"]) == (13, 75)
    for start in (98, 101, 10**14):
        found = await search(shared, hundred, "7", **{"from": start})
        assert found == {"hits": [], "total": 0, "next": None}


async def test_a_log_that_grows_is_searched_as_far_as_it_goes(shared: Worker) -> None:
    job_id = await shared.submit(f"seq 5; {WAIT}; seq 6 20")
    await shared.wait_for_text(job_id, b"5\n")
    assert await search(shared, job_id, "1") == {
        "hits": [{"n": 1, "text": "1"}], "total": 1, "next": None,
    }  # fmt: skip
    await let_go(shared, job_id)
    await shared.wait(job_id)
    assert numbers(await search(shared, job_id, "1", **{"from": 2})) == list(range(10, 20))


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("", "q has to be"), ("q=", "q has to be"), ("q=a&q=b", "once"), ("q=%0A", "one line"),
        (f"q={'x' * 1001}", "1000"), ("q=a&regex=yes", "regex"), ("q=a&limit=0", "1 to 1000"),
        ("q=a&limit=1001", "1 to 1000"), ("q=a&total=2", "total"),
        ("q=a&limit=x", "limit"), ("q=a&from=-1", "from"), ("q=(&regex=1", "missing ): ("),
        ("q=%5CpL%7B999%7D&regex=1", "pattern too large"), ("q=(%3F%3Da)&regex=1", "(?="),
        ("q=%5CAa&regex=1", "^ and $"),
    ],
)  # fmt: skip
async def test_what_cannot_be_looked_for_is_422_with_the_reason(
    shared: Worker, hundred: str, query: str, word: str
) -> None:
    target = f"/api/v1/jobs/{hundred}/log/search?{query}"
    answer = await ask(shared, "GET", target, shared.headers)
    assert answer.status == 422
    assert word in answer.problem


@pytest.mark.parametrize("q", ["%ED%A0%80", "%FF", "%00", "a%1Bb"])
async def test_a_text_that_is_none_is_not_found_and_no_error(
    shared: Worker, hundred: str, q: str
) -> None:
    for regex in "01":
        target = f"/api/v1/jobs/{hundred}/log/search?q={q}&regex={regex}"
        answer = await ask(shared, "GET", target, shared.headers)
        assert answer.status == 200
        assert json.loads(answer.body)["hits"] == []


async def test_of_a_job_that_is_none_there_is_no_search(shared: Worker) -> None:
    assert (await ask_for(shared, "0" * 26, "x"))[0] == 404


# bounded in time


async def test_when_the_time_is_over_the_answer_says_where_to_go_on(hasty: Worker) -> None:
    job_id = (await hasty.run(f"{SPELL} 1500"))["id"]
    seen: list[int] = []
    calls, start = 0, 1
    while True:
        found = await search(hasty, job_id, "0 of", **{"from": start})
        calls += 1
        seen += numbers(found)
        if found["next"] is None:
            break
        assert found["total"] is None
        assert found["next"] > start
        start = found["next"]
    assert seen == list(range(10, 1501, 10))
    assert calls > 3
    assert isinstance(found["total"], int)


async def test_the_time_that_was_shortened_here_is_two_seconds() -> None:
    assert (module.TIME_LIMIT, module.AT_ONCE) == (2.0, 2)


async def test_the_worst_expression_in_the_longest_line_is_given_up_in_time(
    shared: Worker,
) -> None:
    job_id = (await shared.run(f"echo short; {LONG}; echo; seq 10"))["id"]
    began = time.monotonic()
    found = await search(shared, job_id, WORST, regex=1)
    assert time.monotonic() - began < module.TIME_LIMIT + 1
    assert found == {"hits": [], "total": None, "next": 2}

    began = time.monotonic()
    status, problem = await ask_for(shared, job_id, WORST, regex=1, **{"from": 2})
    assert time.monotonic() - began < module.TIME_LIMIT + 1
    assert status == 422
    assert problem["detail"] == (
        "q takes too long in line 2, which has 65535 bytes: make it simpler, or go on with from=3"
    )
    rest = await search(shared, job_id, WORST, regex=1, **{"from": 3})
    assert rest == {"hits": [], "total": 0, "next": None}


@asynccontextmanager
async def all_turns_taken(
    worker: Worker,
) -> AsyncIterator[tuple[str, Answer, set[asyncio.Task[Answer]]]]:
    """A job, and the answer to the first search in it that was too many; the others last."""
    job_id = (await worker.run(f"{LONG}; echo; {LONG}; echo"))["id"]
    target = f"/api/v1/jobs/{job_id}/log/search?q={quote(WORST)}&regex=1"
    many = module.AT_ONCE + module.MOST_WAITING + 1
    searching = [
        asyncio.create_task(ask(worker, "GET", target, worker.headers)) for _ in range(many)
    ]
    [first], others = await asyncio.wait(searching, return_when=asyncio.FIRST_COMPLETED)
    try:
        yield job_id, await first, others
    finally:
        for one in searching:
            one.cancel()
        await asyncio.gather(*searching, return_exceptions=True)


async def test_a_search_for_which_there_is_no_room_is_refused(shared: Worker) -> None:
    async with all_turns_taken(shared) as (_, refused, _):
        assert refused.status == 429
        assert refused.headers["retry-after"] == "2"
        assert refused.problem == "16 searches wait already: ask again in a few seconds"


async def test_searches_of_those_who_have_left_take_no_time(shared: Worker) -> None:
    async with all_turns_taken(shared) as (job_id, _, _):
        pass
    began = time.monotonic()
    while (answer := await ask_for(shared, job_id, "y"))[0] == 429:
        await asyncio.sleep(0.01)
    assert answer == (200, {"hits": [], "total": 0, "next": None})
    assert time.monotonic() - began < 2 * module.TIME_LIMIT  # eight times that if they took it


@pytest.mark.asyncio(loop_scope="function")
async def test_the_worker_ends_in_time_while_it_searches(worker: Worker) -> None:
    async with all_turns_taken(worker) as (_, _, others):
        assert await worker.stop() < 3
        answers = await asyncio.gather(*others)
    assert {(answer.status, answer.problem) for answer in answers} == {
        (503, "the worker is being stopped: ask again once it is back")
    }


@pytest.mark.slow
async def test_in_a_million_lines_one_is_found_while_others_are_served(
    shared: Worker,
) -> None:
    job = await shared.run(f"{SPELL} {MANY}")
    assert job["log_lines"] == MANY
    job_id = job["id"]
    seen: list[int] = []
    start: int | None = 1
    while start is not None:
        found = await search(shared, job_id, "line 999999 of", **{"from": start})
        seen += numbers(found)
        start = found["next"]
    assert seen == [999_999]

    hard = [search(shared, job_id, r"(l|[a-z ])[^z]{300}z", regex=1) for _ in range(4)]
    searching = asyncio.gather(*hard)
    waits = []
    while not searching.done():
        began = time.monotonic()
        assert (await shared.call("GET", "/jobs?limit=1"))[0] == 200
        waits.append(time.monotonic() - began)
    assert len(waits) > 5
    assert statistics.median(waits) < 0.5
    for one in await searching:
        assert one["hits"] == []


# parts of a log by range


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("from=11&limit=5", range(11, 16)), ("from=98&limit=5", range(98, 101)),
        ("limit=3", range(1, 4)), ("tail=10&limit=4", range(91, 95)),
        ("tail=3&limit=40", range(98, 101)), ("from=101&limit=5", []),
        ("from=100&limit=1", [100]), ("limit=100", range(1, 101)),
    ],
)  # fmt: skip
async def test_a_part_of_the_log_is_the_lines_of_its_range(
    shared: Worker, hundred: str, query: str, expected: range
) -> None:
    text = await shared.text(hundred, f"?{query}")
    assert text == b"".join(b"%d\n" % n for n in expected)
    lines = await records(shared, hundred, f"?{query}")
    assert [line["n"] for line in lines] == list(expected)


async def test_parts_side_by_side_are_the_whole_log(shared: Worker, some: str) -> None:
    for size in (1, 2, 3):
        parts = [await shared.text(some, f"?from={n}&limit={size}") for n in range(1, 8, size)]
        assert b"".join(parts) == await shared.text(some)
    parts = [await shared.text(some, f"?from={n}&limit=1&stream=stderr") for n in range(1, 8)]
    assert [part for part in parts if part] == [b"two on stderr\n"]


async def test_a_limit_that_is_none_is_422(shared: Worker, hundred: str) -> None:
    for query in ("limit=x", "limit=-1", "limit=1&limit=2", "limit=0", f"limit={10**9 + 1}"):
        answer = await ask(shared, "GET", f"/api/v1/jobs/{hundred}/log?{query}", shared.headers)
        assert (answer.status, "limit" in answer.problem) == (422, True)
