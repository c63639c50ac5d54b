"""The instruments: well named, bounded, cheap; and a dashboard that shows all of them."""

import asyncio
import json
import re
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from ciworker import metrics as module
from ciworker.control.clock import SystemClock
from ciworker.control.tallies import Tallies
from ciworker.domain.job import Job, Kind, Reason, Spec, Status
from ciworker.domain.log import Chunk, Run, Stream
from ciworker.domain.webhook import DeliveryKind
from ciworker.engine import disks as disks_module
from ciworker.engine import docker
from ciworker.engine.disks import Disk, Disks
from ciworker.engine.port import Engine, EngineInfo
from ciworker.errors import EngineUnavailable
from ciworker.feed.feed import Feed, Topic
from ciworker.metrics import Metrics
from ciworker.store.counts import Counts
from ciworker.store.jobs import HistoryEntry
from ciworker.store.webhooks import Backlog
from ciworker.web.context import CONTEXT
from ciworker.web.ends import Ends
from ciworker.web.metrics import metrics
from ciworker.web.sse import FollowedJob
from ciworker.web.watchers import Watchers

DASHBOARD = Path(__file__).parents[2] / "scripts" / "grafana.json"
NOW = datetime(2026, 1, 2, tzinfo=UTC)
NAME = re.compile(r"(?:ciworker|process)_[a-z_]+")
UNITS = ("_seconds", "_bytes", "_total")
COUNTED = {  # gauges of things that are counted, and of what is or is not
    "ciworker_jobs", "ciworker_queue_jobs", "ciworker_work_queue_keys", "ciworker_sse_subscribers",
    "ciworker_sse_most_behind_lines", "ciworker_engine_connected", "ciworker_asyncio_tasks",
    "ciworker_pool_environments", "ciworker_pool_members", "ciworker_webhook_pending",
}  # fmt: skip
LABELS = {
    "action", "call", "disk", "entry", "environment", "kind", "le", "outcome", "reason", "result",
    "state",
    "status", "stream", "waits_for",
}  # fmt: skip


class Counter:
    """Counts without a store."""

    async def counts(self) -> Counts:
        return Counts({"queued": 3, "failed": 2}, {"job": 2}, 1, 1024)


class Deliveries:
    """An outbox without a store."""

    async def backlogs(self) -> Sequence[Backlog]:
        since = NOW - timedelta(seconds=7)
        return [
            Backlog(DeliveryKind.WEBHOOK, "tea", 2, 1, NOW, NOW),
            Backlog(DeliveryKind.WEBHOOK, "pot", 3, 0, since, NOW),
        ]


class Pool:
    """Members without containers."""

    def __init__(self) -> None:
        self.held = {("oolong", "a" * 64): 1}

    def counts(self) -> Mapping[tuple[str, str], int]:
        return {("tea", "wanted"): 2, ("tea", "parked"): 1}

    def environments(self) -> Mapping[tuple[str, str], int]:
        return self.held


class Informant:
    """An engine that tells where its data are, once it answers."""

    def __init__(self, root: Path) -> None:
        self.asked, self.away, self._root = 0, True, root

    async def info(self) -> EngineInfo:
        self.asked += 1
        if self.away:
            raise EngineUnavailable("the Docker engine does not answer")
        return EngineInfo("fake", 0.0, {"DockerRootDir": str(self._root)})


class Lab:
    """`/metrics` with everything that a worker exports, around what a test sets."""

    def __init__(self) -> None:
        self.metrics = Metrics()
        self.counter = Counter()
        self.watchers = Watchers()
        self.pool = Pool()
        self.connected = True
        Tallies(self.metrics.control, SystemClock())
        self.metrics.control.pool_taken.labels("tea")
        self.metrics.deliveries.know(DeliveryKind)
        self.metrics.engine.know(docker._CALLS, docker._STREAMS, docker.EVENT_ACTIONS)

    async def disks(self) -> Mapping[str, Disk]:
        return {"data": Disk(100, 7)}

    async def text(self) -> str:
        """What Prometheus would get."""
        app = web.Application()
        app[CONTEXT] = cast(
            "Any",
            SimpleNamespace(
                metrics=self.metrics,
                counter=self.counter,
                pool=self.pool,
                deliveries=Deliveries(),
                now=lambda: NOW,
                watchers=self.watchers,
                work_queue=lambda: 4,
                connected=lambda: self.connected,
                disks=self.disks,
            ),
        )
        app.router.add_get("/metrics", metrics)
        async with TestClient(TestServer(app)) as client:
            answer = await client.get("/metrics")
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            return await answer.text()


def families(text: str) -> dict[str, Metric]:
    """By the name that `# TYPE` gives, which of a counter ends in `_total`."""
    found = {}
    for family in text_string_to_metric_families(text):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert name not in found
        found[name] = family
    return found


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


@pytest.fixture
def lab() -> Lab:
    return Lab()


async def test_every_metric_is_explained_typed_and_named_by_the_conventions(lab: Lab) -> None:
    found = families(await lab.text())
    assert len(found) > 25
    for name, family in found.items():
        assert family.documentation.strip(), name
        assert family.type in {"counter", "gauge", "histogram"}, name
        assert (family.type == "counter") == name.endswith("_total"), name
        assert name.endswith(UNITS) or name in COUNTED or name.endswith("_fds"), name
        assert family.type != "histogram" or name.endswith("_seconds"), name
        assert name.startswith(("ciworker_", "process_")), name


async def test_no_series_is_there_twice_and_labels_are_few_known_words(lab: Lab) -> None:
    samples = [s for family in families(await lab.text()).values() for s in family.samples]
    series = [(sample.name, *sorted(sample.labels.items())) for sample in samples]
    assert len(set(series)) == len(series)
    assert {name for sample in samples for name in sample.labels} == LABELS
    assert len(series) < 600


async def test_what_is_asked_for_is_what_there_is(lab: Lab) -> None:
    text = await lab.text()
    for line in (
        'ciworker_jobs{state="queued"} 3.0',
        'ciworker_jobs{state="failed"} 2.0',
        'ciworker_jobs{state="running"} 0.0',
        'ciworker_queue_jobs{kind="job",waits_for="slot"} 2.0',
        'ciworker_queue_jobs{kind="job",waits_for="environment"} 1.0',
        'ciworker_queue_jobs{kind="setup",waits_for="slot"} 0.0',
        'ciworker_webhook_pending{kind="webhook"} 5.0',
        'ciworker_webhook_oldest_pending_seconds{kind="webhook"} 7.0',
        'ciworker_webhook_deliveries_total{kind="webhook",outcome="given_up"} 0.0',
        "ciworker_environments_bytes 1024.0",
        "ciworker_work_queue_keys 4.0",
        "ciworker_engine_connected 1.0",
        'ciworker_disk_free_bytes{disk="data"} 7.0',
        'ciworker_disk_size_bytes{disk="data"} 100.0',
    ):
        assert line in text.splitlines()


async def test_an_environment_that_no_place_holds_any_more_is_not_told_of(lab: Lab) -> None:
    line = 'ciworker_pool_environments{entry="oolong",environment="%s"} 1.0'
    assert line % ("a" * 12) in (await lab.text()).splitlines()
    lab.pool.held = {("oolong", "b" * 64): 1}
    told = (await lab.text()).splitlines()
    assert line % ("b" * 12) in told
    assert line % ("a" * 12) not in told


async def test_without_the_engine_the_rest_is_told(lab: Lab) -> None:
    lab.connected = False
    text = await lab.text()
    assert "ciworker_engine_connected 0.0" in text.splitlines()
    assert "process_resident_memory_bytes " in text


async def test_every_end_and_call_is_shown_before_it_happens_first(lab: Lab) -> None:
    found = families(await lab.text())
    ends = {
        (sample.labels["kind"], sample.labels["reason"])
        for sample in found["ciworker_jobs_ended_total"].samples
    }
    assert ends == {(kind, reason) for kind in Kind for reason in Reason}
    errors = {s.labels["call"]: s.value for s in found["ciworker_engine_errors_total"].samples}
    assert {"create", "start", "inspect", "list", "attach", "log", "events"} <= set(errors)
    assert set(errors.values()) == {0.0}


def test_each_worker_has_its_own() -> None:
    one, two = Metrics(), Metrics()
    one.control.orphans.inc()
    assert value(one.registry, "ciworker_orphans_removed_total") == 1
    assert value(two.registry, "ciworker_orphans_removed_total") == 0
    assert b"_created" not in generate_latest(one.registry)


def test_a_call_counts_as_an_error_only_where_the_engine_is_at_fault() -> None:
    told = Metrics()
    for error in (EngineUnavailable("away"), ValueError("ours")):
        with pytest.raises(type(error)), told.engine.call("start", EngineUnavailable):
            raise error
    with told.engine.call("start", EngineUnavailable):
        pass
    with pytest.raises(EngineUnavailable), told.engine.stream("log", EngineUnavailable):
        raise EngineUnavailable("away")
    assert value(told.registry, "ciworker_engine_errors_total", call="start") == 1
    assert value(told.registry, "ciworker_engine_errors_total", call="log") == 1
    assert value(told.registry, "ciworker_engine_call_seconds_count", call="start") == 3
    assert value(told.registry, "ciworker_engine_call_seconds_count", call="log") is None


def test_however_many_watchers_there_are_few_samples_are_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, told = [100.0], Metrics()
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    for _ in range(10):
        for _ in range(200):
            told.watchers.handed_over(100.0 - 0.020)
        now[0] += module.SAMPLE_INTERVAL
    assert value(told.registry, "ciworker_line_latency_seconds_count") == 10
    total = value(told.registry, "ciworker_line_latency_seconds_sum")
    assert total == pytest.approx(10 * 0.020 + sum(range(10)) * module.SAMPLE_INTERVAL)


LATENCY = "ciworker_line_latency_seconds"


class Watched:
    """A job's log, stored and shown, and one who follows it; stamps of lines are ages ago."""

    def __init__(self, status: Status, stored: int = 0) -> None:
        self.metrics, self.stored = Metrics(), stored
        spec = Spec("fake", "true", 900.0, 2**28, 1.0, False, "tea")
        self.job = Job("01J", status, spec, datetime.now(UTC), "token")
        self.feed = Feed(self)
        context = SimpleNamespace(metrics=self.metrics, feed=self.feed, jobs=self, ends=Ends())
        self.part = FollowedJob(cast("Any", context), self.job.id, 0)

    async def chunks(self, _job_id: str, after: int, _limit: int, _size: int) -> list[Chunk]:
        return [chunk_at(after + 1)] if after < self.stored else []

    async def current(self, _job_id: str) -> Job:
        return self.job

    async def history(self, _job_id: str) -> list[HistoryEntry]:
        return []

    @property
    def topic(self) -> Topic:
        return self.feed.topic(self.job.id)

    def show(self, ago: float) -> None:
        """A line more, which the worker read so many seconds ago."""
        self.stored += 1
        self.topic.append(chunk_at(self.stored), time.monotonic() - ago)

    async def turn(self) -> None:
        for _ in await self.part.turn():
            pass
        self.part.handed_over()

    @property
    def timed(self) -> tuple[float | None, float | None]:
        registry = self.metrics.registry
        return value(registry, f"{LATENCY}_count"), value(registry, f"{LATENCY}_sum")


def chunk_at(number: int) -> Chunk:
    return Chunk(number, b"\n", (Run(Stream.STDOUT, 7, 1, 1, True),))


async def test_old_lines_are_not_timed_however_many_turns_they_take() -> None:
    watched = Watched(Status.COMPLETED, stored=5)
    while not watched.part.done:
        await watched.turn()
    assert watched.timed == (0, 0)
    watched = Watched(Status.RUNNING)
    watched.show(ago=1000)
    await watched.turn()
    assert watched.timed == (0, 0)


async def test_a_live_line_is_timed_from_when_the_worker_read_it() -> None:
    watched = Watched(Status.RUNNING)
    await watched.turn()
    watched.show(ago=20)  # its stamp, by the engine or of a setup, is far older
    await watched.turn()
    count, seconds = watched.timed
    assert count == 1
    assert seconds == pytest.approx(20, abs=5)


async def test_lines_on_their_way_to_the_socket_are_not_taken_yet() -> None:
    watched = Watched(Status.RUNNING)
    watched.show(ago=0)
    for _ in await watched.part.turn():
        assert watched.part.behind == 1
    watched.part.handed_over()
    assert watched.part.behind == 0


def test_the_slowest_watcher_counts_while_its_stream_is_open() -> None:
    watchers = Watchers()
    assert (watchers.most_behind, watchers.subscribers) == (0, {"job": 0, "all": 0})
    slow, quick = SimpleNamespace(behind=70), SimpleNamespace(behind=0)
    with watchers.watching("job", [quick]), watchers.watching("job", [quick]):
        with watchers.watching("all", [quick, slow]):
            assert (watchers.most_behind, watchers.subscribers) == (70, {"job": 2, "all": 1})
        assert (watchers.most_behind, watchers.subscribers) == (0, {"job": 2, "all": 0})
    assert watchers.subscribers == {"job": 0, "all": 0}


async def test_the_engines_disk_is_told_once_it_says_where_it_is(tmp_path: Path) -> None:
    informant = Informant(tmp_path)
    disks = Disks(cast("Engine", informant), "unix:///var/run/docker.sock", tmp_path / "gone")
    assert await disks.usage() == {}
    informant.away = False
    usage = (await disks.usage())["engine"]
    assert 0 < usage.free < usage.size
    await disks.usage()
    assert informant.asked == 2


async def test_a_frozen_engine_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Frozen:
        async def info(self) -> EngineInfo:
            never: asyncio.Future[EngineInfo] = asyncio.get_running_loop().create_future()
            return await never

    monkeypatch.setattr(disks_module, "ENGINE_WAIT", 0.01)
    disks = Disks(cast("Engine", Frozen()), "unix:///var/run/docker.sock", tmp_path)
    async with asyncio.timeout(5):
        assert set(await disks.usage()) == {"data"}


async def test_the_disk_of_an_engine_elsewhere_is_not_looked_for_here(tmp_path: Path) -> None:
    informant = Informant(tmp_path)
    disks = Disks(cast("Engine", informant), "tcp://10.0.0.1:2375", tmp_path)
    assert (set(await disks.usage()), informant.asked) == ({"data"}, 0)


# the dashboard


def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return read


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


async def test_the_dashboard_asks_for_what_is_exported_and_shows_all_of_it(lab: Lab) -> None:
    found = families(await lab.text())
    exported = {s.name: name for name, family in found.items() for s in family.samples}
    asked = {name for expression in expressions() for name in NAME.findall(expression)}
    assert asked <= set(exported)
    shown = {exported[name] for name in asked}
    assert {name for name in found if name.startswith("ciworker_")} <= shown


async def test_the_dashboard_sorts_by_labels_that_there_are(lab: Lab) -> None:
    found = families(await lab.text())
    labels: dict[str, set[str]] = {}
    for family in found.values():
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
    for panel in panels():
        for target in panel["targets"]:
            names = NAME.findall(target["expr"])
            known = set().union(*(labels[name] for name in names))
            by = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            used = {label for group in by for label in re.split(r", *", group) if label}
            used |= set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
            used |= set(re.findall(r"(\w+)=~?\"", target["expr"]))
            assert used <= known | {"instance"}, target


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    read = dashboard()
    assert read["schemaVersion"] >= 36
    assert read["title"] == "ciworker"
    variables = {variable["name"]: variable for variable in read["templating"]["list"]}
    datasource = variables["datasource"]
    assert (datasource["type"], datasource["query"]) == ("datasource", "prometheus")
    ids = [panel["id"] for panel in read["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references) > 0


def test_no_panel_lies_over_another() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
