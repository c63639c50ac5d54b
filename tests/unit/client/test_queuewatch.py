"""When a queued job is asked for, and when not."""

import queue
import time
from collections.abc import Iterator

import pytest

from ciclient import queuewatch
from ciclient.api import Api
from ciclient.config import Access
from ciclient.queuewatch import QueueWatch
from ciclient.wire import Place
from tests.unit.client.fakeworker import PATIENCE, FakeWorker, ulid

Told = queue.SimpleQueue[Place | None]
FOURTH = Place(4, 9)


@pytest.fixture
def told() -> Told:
    return queue.SimpleQueue()


@pytest.fixture
def watch(
    worker: FakeWorker, access: Access, told: Told, monkeypatch: pytest.MonkeyPatch
) -> Iterator[QueueWatch]:
    """Of a job that is the fourth; asks once, and then when it is poked."""
    monkeypatch.setattr(queuewatch, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(queuewatch, "PAUSE", 3600.0)
    job_id = worker.add_job(place={"number": 4, "queued": 9})
    with Api(access) as api:
        watch = QueueWatch(access, api.job(job_id), told.put)
    yield watch
    watch.stop()


def test_a_poke_asks_at_once(worker: FakeWorker, watch: QueueWatch, told: Told) -> None:
    watch.start()
    assert told.get(timeout=PATIENCE) == FOURTH
    worker.update(ulid(1), place={"number": 3, "queued": 9})
    watch.poke()
    assert told.get(timeout=PATIENCE) == Place(3, 9)


def test_a_poke_does_not_ask_before_the_server_wants_to_be_asked(
    worker: FakeWorker, watch: QueueWatch, told: Told
) -> None:
    worker.refusals[f"/api/v1/jobs/{ulid(1)}"] = [(429, "too many", {"Retry-After": "1"})]
    watch.start()
    assert told.get(timeout=PATIENCE) is None
    before = time.monotonic()
    watch.poke()
    assert told.get(timeout=PATIENCE) == FOURTH
    assert time.monotonic() - before > 0.9


@pytest.mark.parametrize("problem", [(503, "no", {}), (404, "gone", {})])
def test_a_failure_is_told_as_not_known(
    worker: FakeWorker, watch: QueueWatch, told: Told, problem: tuple[int, str, dict[str, str]]
) -> None:
    worker.refusals[f"/api/v1/jobs/{ulid(1)}"] = [problem]
    watch.start()
    assert told.get(timeout=PATIENCE) is None
    watch.poke()
    assert told.get(timeout=PATIENCE) == FOURTH
