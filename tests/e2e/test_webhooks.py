"""Others are told of jobs by a real worker: whatever it, or they, go through meanwhile."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest

from ciworker.domain.webhook import trial_message
from ciworker.store.session import Database
from ciworker.store.webhooks import Deliveries
from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, command, touch
from tests.e2e.test_metrics import scrape
from tests.receiver import KEY, SECRET, Receiver, receiving

PUBLIC = "https://ci.example.org"
AWAY = 60.0  # seconds
LATEST = 180.0  # seconds after which a receiver that was away so long is tried again, and more


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


def hooks(receiver: Receiver, **entry: Any) -> str:
    return json.dumps([{"name": "tea", "url": receiver.url, "secret": SECRET, **entry}])


@pytest.fixture
async def telling(new_worker: WorkerFactory, receiver: Receiver) -> Worker:
    """A worker that tells the receiver of all that happens."""
    events = [f"job.{s}" for s in ("queued", "starting", "running", "completed", "cancelled")]
    worker = new_worker(webhooks=hooks(receiver, events=events), public_url=PUBLIC)
    await worker.start()
    return worker


async def run_until(end: float, worker: Worker) -> list[str]:
    """Run jobs that pass and jobs that fail, one by one, as long as it is not so late; their ids.

    end: on the monotonic clock.
    """
    jobs: list[str] = []
    while time.monotonic() < end:
        jobs.append((await worker.run(f"exit {len(jobs) % 2}"))["id"])
    return jobs


async def operator(worker: Worker, *words: str) -> tuple[int, str, str]:
    code, out, err = await command("ciworker", *words, env=worker.environment)
    return code, out.decode(), err.decode()


async def test_every_step_of_a_job_arrives_once_signed_and_in_full(
    telling: Worker, receiver: Receiver
) -> None:
    job = await telling.run("echo oops; exit 3")
    got = await receiver.has(4)
    types = ["job.queued", "job.starting", "job.running", "job.completed"]
    assert sorted(one.json["type"] for one in got) == sorted(types)
    assert all(one.signed for one in got)
    (end,) = [one.json["data"] for one in got if one.json["type"] == "job.completed"]
    for name in ("id", "project", "success", "reason", "message", "exit_code", "finished_at"):
        assert end[name] == job[name]
    assert end["url"] == f"{PUBLIC}/jobs/{job['id']}"


async def test_a_worker_that_is_killed_before_it_could_tell_tells_when_it_is_back(
    telling: Worker, receiver: Receiver
) -> None:
    receiver.status = None  # it takes the call and never answers: between commit and delivery
    jobs = [(await telling.run("exit 1"))["id"] for _ in range(2)]
    cut_off = (await receiver.has(1))[0].id
    await telling.kill()
    await receiver.down()
    await telling.start()
    jobs.append((await telling.run("true"))["id"])
    receiver.status, in_vain = 200, len(receiver.got)
    await receiver.up()
    got = await receiver.until(lambda got: len({one.id for one in got[in_vain:]}) >= 12)
    arrived = got[in_vain:]
    assert cut_off in {one.id for one in arrived}
    ends = [one.json["data"]["id"] for one in arrived if one.json["type"] == "job.completed"]
    assert sorted(set(ends)) == sorted(jobs)
    assert all(one.signed for one in arrived)


@pytest.mark.chaos
@pytest.mark.slow
@pytest.mark.timeout(500)
async def test_a_receiver_that_is_away_for_a_minute_gets_every_event_once_it_is_back(
    telling: Worker, receiver: Receiver
) -> None:
    """No order of arrival is promised, and more than once is allowed: all of them is."""
    await receiver.down()
    gone = time.monotonic()
    ends_later = await telling.submit("while [ ! -e /workspace/go ]; do sleep 0.05; done")
    await telling.wait(ends_later, "running")
    jobs = [ends_later, *await run_until(gone + AWAY / 2, telling)]
    await telling.kill()
    await telling.start()
    await touch(await telling.container(ends_later))
    jobs += await run_until(gone + AWAY, telling)
    await telling.wait(ends_later)
    await receiver.up()
    back = time.monotonic()
    wanted = {
        (job, f"job.{step['to']}", step["at"])
        for job in jobs
        for step in (await telling.job(job))["history"]
        if step["from"] != step["to"]
    }
    got = await receiver.until(lambda got: len({one.id for one in got}) >= len(wanted), LATEST)
    all_after = time.monotonic() - back
    arrived = [(one.json["data"]["id"], one.json["type"], one.json["timestamp"]) for one in got]
    assert set(arrived) == wanted
    assert all(one.signed for one in got)
    per_id = Counter(one.id for one in got)
    assert len(per_id) == len(wanted)
    print(
        f"{len(jobs)} jobs, {len(wanted)} events, {len(got)} arrivals, "
        f"all {all_after:.1f} s after it was back from {back - gone:.1f} s"
    )


async def test_the_operator_sees_tries_and_sends_again(telling: Worker, receiver: Receiver) -> None:
    code, out, err = await operator(telling, "webhook", "test")
    assert (code, err) == (0, "")
    (delivery,) = [line.split()[0] for line in out.splitlines()]
    assert "delivered  tea  webhook.test  1 try, answer 204" in out
    assert [one.id for one in receiver.got] == [delivery]

    assert (await operator(telling, "webhook", "redeliver", delivery))[0] == 0
    await receiver.until(lambda got: [one.id for one in got] == [delivery] * 2)
    code, out, _ = await operator(telling, "webhook", "list")
    assert out.splitlines()[0].startswith("tea: 127.0.0.1; job.queued, ")
    code, out, _ = await operator(telling, "webhook", "list", "--all", "--json")
    assert [item["id"] for item in json.loads(out)["deliveries"]] == [delivery]

    for words, sentence in (
        (("test", "pot"), "no webhook of the settings is called pot: there are tea"),
        (("redeliver", "msg_x"), "there is no delivery 'msg_x': see `ciworker webhook list`"),
    ):
        code, _, err = await operator(telling, "webhook", *words)
        assert (code, err) == (2, f"ciworker: {sentence}\n")


async def test_a_webhook_that_fails_is_seen_by_test_list_doctor_and_metrics(
    telling: Worker, receiver: Receiver
) -> None:
    assert "ok    webhook tea" in (await operator(telling, "doctor"))[1]
    receiver.status = 500
    code, out, _ = await operator(telling, "webhook", "test", "tea")
    assert code == 1
    assert "pending  tea  webhook.test  1 try, answer 500: the receiver answered 500" in out
    _, out, _ = await operator(telling, "webhook", "list")
    assert "1 pending (1 tried in vain), since " in out
    code, out, _ = await operator(telling, "doctor")
    assert code == 1
    assert "FAIL  webhook tea: 1 message tried in vain, 0 given up" in out
    assert "ciworker webhook test tea" in out
    seen = await scrape(telling)
    failed = {"kind": "webhook", "outcome": "failed"}
    assert seen.value("ciworker_webhook_deliveries_total", **failed) >= 1
    assert seen.value("ciworker_webhook_pending", kind="webhook") == 1
    assert seen.value("ciworker_webhook_oldest_pending_seconds", kind="webhook") > 0
    receiver.status = 200
    async with asyncio.timeout(DEADLINE):
        while (await scrape(telling)).value("ciworker_webhook_pending", kind="webhook"):
            await asyncio.sleep(0.05)


async def test_a_webhook_that_fails_is_seen_behind_any_number_of_messages_that_wait(
    new_worker: WorkerFactory, receiver: Receiver
) -> None:
    """The one that was tried is the oldest: the gate lets none of the others through."""
    receiver.status = 500
    worker = new_worker(webhooks=hooks(receiver))
    worker.data_dir.mkdir()
    database = await Database.open(worker.data_dir / "ciworker.db")
    try:
        store = Deliveries(database, lambda: None)
        now = datetime.now(UTC)
        made = [await store.add(trial_message("tea", now), now) for _ in range(60)]
    finally:
        await database.close()
    await worker.start()
    async with asyncio.timeout(DEADLINE):
        while not await failed_ones(worker):
            await asyncio.sleep(0.05)
    code, out, _ = await operator(worker, "doctor")
    assert code == 1
    assert "FAIL  webhook tea: " in out
    assert "the newest: the receiver answered 500" in out
    assert set(await failed_ones(worker)) < {delivery.id for delivery in made}


async def failed_ones(worker: Worker) -> list[str]:
    _, page = await worker.call("GET", "/webhooks/deliveries?failed=true&limit=500")
    return [item["id"] for item in page["items"]]


async def test_secret_and_address_are_in_no_answer_log_or_store(
    telling: Worker, receiver: Receiver
) -> None:
    receiver.status = 500
    await telling.run("true")
    await receiver.has(1)
    said = [json.dumps((await telling.call("GET", path))[1]) for path in (
        "/webhooks", "/webhooks/deliveries", "/jobs")]  # fmt: skip
    for words in (("webhook", "list", "--all"), ("webhook", "test"), ("doctor",)):
        said += (await operator(telling, *words))[1:]
    await telling.stop()
    said.append(telling.log.read_text())
    stored = b"".join(path.read_bytes() for path in telling.data_dir.glob("ciworker.db*"))
    for canary in (SECRET, SECRET.removeprefix("whsec_"), "s3cret-path", "s3cret-query"):
        assert not [text for text in said if canary in text]
        assert canary.encode() not in stored
    assert KEY not in stored
    assert "Traceback" not in telling.log.read_text()


async def test_only_an_admin_sees_or_changes_what_is_told(telling: Worker) -> None:
    _, made = await telling.call("POST", "/tokens", json={"name": "x", "role": "submit"})
    headers = {"Authorization": f"Bearer {made['token']}"}
    for method, path in (
        ("GET", "/webhooks"), ("GET", "/webhooks/deliveries"), ("POST", "/webhooks/test"),
        ("GET", "/webhooks/deliveries/msg_x"), ("POST", "/webhooks/deliveries/msg_x/redeliver"),
    ):  # fmt: skip
        status, _ = await telling.call(method, path, headers=headers)
        assert status == 403
