"""`/metrics` of a real worker: what happens to jobs, and around them, is seen there."""

import asyncio
import json
from collections.abc import Callable

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, docker
from tests.e2e.follower import WAIT, following, let_go
from tests.e2e.proxy import Fault
from tests.e2e.test_resync import end_unheard, proxied, resync

CREATE = "POST /containers/create"
ATTACH = "POST /containers/{id}/attach"
LOGS = "GET /containers/{id}/logs"
ENDED = "ciworker_jobs_ended_total"
SETUP = [WAIT, "head -c 10000 /dev/zero > /opt/tea"]
MANY = 60_000
BIG = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i of many, each with some text; done"


class Seen:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.families: list[Metric] = list(text_string_to_metric_families(text))
        self._samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        return self._samples[name, frozenset(labels.items())]

    def ended(self, reason: str, status: str = "completed") -> float:
        return self.value(ENDED, kind="job", status=status, reason=reason)


async def scrape(worker: Worker) -> Seen:
    async with worker.session.get("/metrics", headers=worker.headers) as answer:
        assert answer.status == 200
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        return Seen(await answer.text())


async def scraped(worker: Worker, wanted: Callable[[Seen], bool]) -> Seen:
    """The first scrape that is as wanted."""
    async with asyncio.timeout(DEADLINE):
        while not wanted(seen := await scrape(worker)):
            await asyncio.sleep(0.02)
    return seen


@pytest.mark.parametrize("authorization", [None, "Bearer wrong", "Basic Zm9vOmJhcg=="])
async def test_nobody_reads_them_without_a_token(worker: Worker, authorization: str | None) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    async with worker.session.get("/metrics", headers=headers) as answer:
        assert answer.status == 401
        assert "ciworker_" not in await answer.text()


async def test_a_token_that_may_read_reads_them(worker: Worker) -> None:
    status, made = await worker.call("POST", "/tokens", json={"name": "scraper", "role": "read"})
    assert status == 201, made
    headers = {"Authorization": f"Bearer {made['token']}"}
    async with worker.session.get("/metrics", headers=headers) as answer:
        assert answer.status == 200
        assert "ciworker_engine_connected 1.0" in await answer.text()


async def test_each_end_of_a_job_is_counted_and_what_it_took_is_timed(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker(max_jobs="4", stop_grace="1s")
    await worker.start()
    before = await scrape(worker)
    jobs = [await worker.submit(run) for run in ("exit 0", "exit 3", "exit 5")]
    jobs.append(await worker.submit("sleep 60", timeout="1s"))
    for job_id in jobs:
        await worker.wait(job_id)
    cancelled, lost = await worker.submit("sleep 60"), await worker.submit("sleep 60")
    for job_id in (cancelled, lost):
        await worker.wait(job_id, "running")
    running = await scrape(worker)
    assert running.value("ciworker_jobs", state="running") == 2
    await worker.call("POST", f"/jobs/{cancelled}/cancel")
    await docker("kill", await worker.container(lost))
    await asyncio.gather(worker.wait(cancelled), worker.wait(lost))
    await worker.nothing_left()

    seen = await scraped(
        worker, lambda seen: seen.value("ciworker_engine_events_total", action="destroy") == 6
    )
    for reason in ("passed", "tests_failed", "no_tests", "timed_out"):
        assert (before.ended(reason), seen.ended(reason)) == (0, 1)
    assert seen.ended("cancelled", "cancelled") == 1
    assert seen.ended("killed_outside", "failed") == 1
    totals = [s.value for f in seen.families for s in f.samples if s.name == ENDED]
    assert sum(totals) == 6
    assert seen.value("ciworker_jobs", state="completed") == 4
    assert seen.value("ciworker_jobs", state="running") == 0
    assert seen.value("ciworker_queue_wait_seconds_count", kind="job") == 6
    assert 1 <= seen.value("ciworker_event_to_state_seconds_count") <= 6  # an event may be late
    assert 0 < seen.value("ciworker_event_to_state_seconds_sum") < DEADLINE
    assert seen.value("ciworker_engine_events_total", action="die") == 6
    assert seen.value("ciworker_engine_call_seconds_count", call="create") == 6
    assert seen.value("ciworker_store_commit_seconds_count", kind="state") > 6 * 3
    assert seen.value("process_cpu_seconds_total") > 0
    assert seen.value("process_resident_memory_bytes") > 2**20
    assert 0 < seen.value("process_open_fds") < seen.value("process_max_fds")
    for disk in ("data", "engine"):
        free = seen.value("ciworker_disk_free_bytes", disk=disk)
        assert 0 < free < seen.value("ciworker_disk_size_bytes", disk=disk)


async def test_queued_jobs_are_told_by_what_they_wait_for(new_worker: WorkerFactory) -> None:
    worker = new_worker(max_jobs="1", max_setups="1")
    await worker.start()
    first = await worker.submit(WAIT)
    await worker.wait(first, "running")
    second = await worker.submit("exit 0")
    third = await worker.submit("exit 0", setup=SETUP)
    seen = await scraped(worker, lambda seen: seen.value("ciworker_jobs", state="running") == 2)
    assert seen.value("ciworker_queue_jobs", kind="job", waits_for="slot") == 1
    assert seen.value("ciworker_queue_jobs", kind="job", waits_for="environment") == 1
    assert seen.value("ciworker_queue_jobs", kind="setup", waits_for="slot") == 0
    assert seen.value("ciworker_jobs", state="queued") == 2
    for job_id in (first, (await worker.job(third))["waits_for"]):
        await let_go(worker, job_id)
    for job_id in (first, second, third):
        assert (await worker.wait(job_id))["reason"] == "passed"
    again = await worker.run("exit 0", setup=SETUP)
    assert again["reason"] == "passed"
    seen = await scrape(worker)
    assert seen.value("ciworker_environment_uses_total", result="miss") == 1
    assert seen.value("ciworker_environment_uses_total", result="hit") == 1
    assert seen.value("ciworker_setup_seconds_count", result="ready") == 1
    assert seen.value("ciworker_environments_bytes") >= 10_000
    assert seen.value(ENDED, kind="setup", status="completed", reason="passed") == 1


async def test_watchers_are_counted_and_the_lines_they_got_are_timed(worker: Worker) -> None:
    job_id = await worker.submit(f"echo ready; {WAIT}; {BIG}")
    async with following(worker, job_id) as one, following(worker, job_id) as two:
        async with worker.events("/events") as _:
            await one.has(1)
            await two.has(1)
            seen = await scrape(worker)
            assert seen.value("ciworker_sse_subscribers", stream="job") == 2
            assert seen.value("ciworker_sse_subscribers", stream="all") == 1
            assert seen.value("ciworker_sse_most_behind_lines") == 0
        before = seen.value("ciworker_line_latency_seconds_count")
        await let_go(worker, job_id)
    seen = await scraped(
        worker, lambda seen: seen.value("ciworker_sse_subscribers", stream="job") == 0
    )
    assert seen.value("ciworker_line_latency_seconds_count") > before
    assert 0 < seen.value("ciworker_line_latency_seconds_sum") < DEADLINE
    assert seen.value("ciworker_sse_subscribers", stream="all") == 0


async def test_the_lines_of_a_job_that_is_over_are_not_timed(worker: Worker) -> None:
    job = await worker.run(f"seq -f 'line %g of so many that one read does not bring all' {MANY}")
    before = (await scrape(worker)).value("ciworker_line_latency_seconds_count")
    async with following(worker, job["id"]) as follower:
        await follower.has(MANY)
    assert (await scrape(worker)).value("ciworker_line_latency_seconds_count") == before


async def test_who_does_not_read_is_seen_to_be_behind(worker: Worker) -> None:
    lines = 200_000
    flood = f"seq -f 'a line that fills the buffers %g' {lines}"
    job_id = await worker.submit(f"echo ready; {WAIT}; {flood}; sleep 60")
    reader, writer = await asyncio.open_connection("127.0.0.1", worker.port, limit=2**12)
    request = f"GET /api/v1/jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1:{worker.port}\r\n"
    writer.write(f"{request}Authorization: Bearer {worker.token}\r\n\r\n".encode())
    try:
        await reader.readuntil(b'"text":"ready"')
        await let_go(worker, job_id)
        seen = await scraped(
            worker, lambda seen: seen.value("ciworker_sse_most_behind_lines") > lines / 4
        )
        assert seen.value("ciworker_sse_most_behind_lines") <= lines
    finally:
        writer.transport.abort()
    await scraped(worker, lambda seen: seen.value("ciworker_sse_most_behind_lines") == 0)


async def test_errors_of_the_engine_missed_events_and_reconnects_are_counted(
    new_worker: WorkerFactory,
) -> None:
    async with proxied(new_worker) as (worker, between):
        between.faults[CREATE] = [Fault.FAIL, Fault.LOSE]
        assert (await worker.run("exit 3"))["reason"] == "tests_failed"
        seen = await scrape(worker)
        assert seen.value("ciworker_engine_errors_total", call="create") == 2
        assert seen.value("ciworker_engine_errors_total", call="start") == 0
        assert seen.value("ciworker_engine_connected") == 1
        assert seen.value("ciworker_engine_events_missed_total") == 0
        reconnects = seen.value("ciworker_engine_reconnects_total")
        resyncs = seen.value("ciworker_resync_seconds_count")

        await end_unheard(worker, between)
        assert (await scrape(worker)).value("ciworker_engine_connected") == 0
        assert (await resync(worker))["repairs"] == 1
        between.refused.clear()
        await worker.ready()
        seen = await scraped(worker, lambda seen: seen.value("ciworker_engine_connected") == 1)
        assert seen.value("ciworker_engine_events_missed_total") == 1
        assert seen.value("ciworker_resync_repairs_total") == 1
        assert seen.value("ciworker_resync_seconds_count") > resyncs
        assert seen.value("ciworker_engine_reconnects_total") > reconnects
        assert seen.value("ciworker_orphans_removed_total") == 0


async def test_a_container_that_nobody_owns_up_to_is_counted_as_an_orphan(worker: Worker) -> None:
    await resync(worker)  # the one after connecting is over
    image = worker.settings["default_image"]
    labels = [f"ciworker.instance={worker.instance}", "ciworker.job=NOBODYS", "ciworker.attempt=1"]
    words = [word for label in labels for word in ("--label", label)]
    await docker("create", *words, image, "true")
    assert len((await resync(worker))["removed"]) == 1
    assert (await scrape(worker)).value("ciworker_orphans_removed_total") == 1


async def test_every_line_about_a_job_in_the_workers_log_carries_its_id(
    new_worker: WorkerFactory,
) -> None:
    async with proxied(new_worker) as (worker, between):
        between.faults |= {CREATE: [Fault.FAIL], LOGS: [Fault.FAIL]}
        job_id = await worker.submit(f"echo up; {WAIT}; exit 3")
        await worker.wait_for_text(job_id, b"up\n")
        assert between.cut(ATTACH) == 1
        await let_go(worker, job_id)
        assert (await worker.wait(job_id))["reason"] == "tests_failed"
        await worker.nothing_left()
        lines = [json.loads(line) for line in worker.log.read_text().splitlines()]
    about = {"a look is tried again", "engine's log lost", "job ended"}
    found = [line for line in lines if line["event"] in about]
    assert {line["event"] for line in found} == about
    assert {line["job"] for line in found} == {job_id}
    for line in lines:
        assert (job_id in json.dumps(line)) == ("job" in line), line
