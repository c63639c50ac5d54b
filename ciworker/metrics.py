"""What the worker counts and measures while it runs, for Prometheus.

Made once per worker, with a registry of its own, and handed to the rooms by their constructors.
Names follow Prometheus' conventions (https://prometheus.io/docs/practices/naming/): base units,
`_total` for what only grows. Labels are few words that are known beforehand: no ids, no names that
users give.

What only the store, the engine or the file system knows is asked for when somebody looks:
`ciworker.web.metrics`.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

PREFIX = "ciworker"
QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
WAITS = (0.01, 0.1, 0.5, 1, 5, 15, 60, 300, 900, 3600, 4 * 3600)
CALLS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 300)
SAMPLE_INTERVAL = 0.005  # seconds: of many watchers' lines a sample costs nearly nothing
SETUPS = (1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200, 1800)

# else each counter and histogram has another series beside it, which nobody asks for
disable_created_metrics()  # type: ignore[no-untyped-call] # the library leaves its type out


class Metrics:
    """The instruments, by the room that writes them. Seconds, bytes and plain counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.engine = EngineMetrics(self.registry)
        self.store = StoreMetrics(self.registry)
        self.control = ControlMetrics(self.registry)
        self.watchers = WatcherMetrics(self.registry)
        self.state = StateMetrics(self.registry)
        self.deliveries = DeliveryMetrics(self.registry)


class EngineMetrics:
    """Calls to the engine, by name, and its event stream."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = _histogram(
            registry, "engine_call_seconds", "Time that calls to the engine took", CALLS, "call"
        )
        self._errors = _counter(
            registry,
            "engine_errors",
            "Calls to the engine that it did not answer, or answered with an error of its own",
            "call",
        )
        self.events = _counter(
            registry, "engine_events", "Events of our containers that the engine told of", "action"
        )
        self.reconnects = _counter(
            registry, "engine_reconnects", "Times that the event stream was opened again"
        )

    def know(self, calls: Iterable[str], streams: Iterable[str], actions: Iterable[str]) -> None:
        """Show these at 0 from the start, so that the first error is a rise."""
        for call in calls:
            self._seconds.labels(call)
            self._errors.labels(call)
        for stream in streams:
            self._errors.labels(stream)
        for action in actions:
            self.events.labels(action)

    @contextmanager
    def call(self, name: str, failures: type[Exception]) -> Iterator[None]:
        """Time a call; what it raises of the type `failures` is an error of the engine's."""
        began = time.perf_counter()
        try:
            yield
        except failures:
            self._errors.labels(name).inc()
            raise
        finally:
            self._seconds.labels(name).observe(time.perf_counter() - began)

    @contextmanager
    def stream(self, name: str, failures: type[Exception]) -> Iterator[None]:
        """As `call`, for what has no end in sight: only its errors count."""
        try:
            yield
        except failures:
            self._errors.labels(name).inc()
            raise


class StoreMetrics:
    """Transactions, once it was their turn. state: durable. log: lines. upkeep: packing of logs
    and removal. The last two are not fsynced.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        commits = _histogram(
            registry,
            "store_commit_seconds",
            "Time that transactions took which write to the store; `log` and `upkeep` (packing, "
            "removal) are written without an fsync of their own",
            QUICK,
            "kind",
        )
        self.state, self.log = commits.labels("state"), commits.labels("log")
        self.upkeep = commits.labels("upkeep")


class ControlMetrics:
    """The queue, the controller, the resync, environments and the pool."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.ended = _counter(
            registry, "jobs_ended", "Jobs that came to their end", "kind", "status", "reason"
        )
        self.queue_wait = _histogram(
            registry,
            "queue_wait_seconds",
            "Time from when a job could have started (submitted, its environment ready) to when it "
            "was admitted",
            WAITS,
            "kind",
        )
        self.event_to_state = _histogram(
            registry,
            "event_to_state_seconds",
            "Time from the arrival of the event that a container ended to the commit of what that "
            "meant for its job",
            QUICK,
        )
        self.events_missed = _counter(
            registry,
            "engine_events_missed",
            "Changes of containers that no event had told of and that a resync found",
        )
        self.orphans = _counter(
            registry, "orphans_removed", "Containers of ours without a job that were removed"
        )
        self.resyncs = _histogram(registry, "resync_seconds", "Time that resyncs took", CALLS)
        self.resync_failures = _counter(
            registry, "resync_failures", "Resyncs that could not be done, or not to their end"
        )
        self.repairs = _counter(
            registry,
            "resync_repairs",
            "Differences that only a resync found: of missed events, strays, images that went away",
        )
        self.environment_uses = _counter(
            registry,
            "environment_uses",
            "Jobs that started in an environment: there already (hit) or waited for (miss)",
            "result",
        )
        self.setups = _histogram(
            registry, "setup_seconds", "Time that setups of environments ran", SETUPS, "result"
        )
        self.pool_taken = _counter(
            registry, "pool_taken", "Jobs that took a parked member of the pool", "entry"
        )
        self.pool_cold = _counter(
            registry,
            "pool_cold_starts",
            "Jobs that started a container of their own though there is a pool, as no member fit",
        )
        self.pool_refills = _histogram(
            registry,
            "pool_refill_seconds",
            "Time from when a place of the pool was free to when a member was parked there",
            CALLS,
        )
        for result in ("hit", "miss"):
            self.environment_uses.labels(result)
        for result in ("ready", "failed"):
            self.setups.labels(result)


class WatcherMetrics:
    """Those who watch logs and states live."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.line_latency = _histogram(
            registry,
            "line_latency_seconds",
            "Time from when the worker read a line to when it was in the socket of a watcher who "
            "waited for it; at most one sample every 5 ms",
            QUICK,
        )
        self._next_sample = 0.0
        self.subscribers = _gauge(
            registry, "sse_subscribers", "Open event streams: of one job, or of all", "stream"
        )
        self.most_behind = _gauge(
            registry, "sse_most_behind_lines", "Lines that the slowest watcher has not been sent"
        )

    def handed_over(self, read_at: float) -> None:
        """A line that was read at `read_at` (monotonic) is in a watcher's socket."""
        now = time.monotonic()
        if now >= self._next_sample:
            self._next_sample = now + SAMPLE_INTERVAL
            self.line_latency.observe(max(0.0, now - read_at))


class DeliveryMetrics:
    """Messages to others, of all kinds together."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.tries = _counter(
            registry,
            "webhook_deliveries",
            "Tries to tell others of jobs, by what came of them; a failed one is tried again until "
            "it is given up",
            "kind",
            "outcome",
        )
        self.pending = _gauge(
            registry, "webhook_pending", "Messages to others that wait to be delivered", "kind"
        )
        self.oldest = _gauge(
            registry,
            "webhook_oldest_pending_seconds",
            "Age of the oldest message that waits to be delivered; 0 where none does",
            "kind",
        )

    def know(self, kinds: Iterable[str]) -> None:
        """Show these at 0 from the start."""
        for kind in kinds:
            for outcome in ("delivered", "failed", "given_up"):
                self.tries.labels(kind, outcome)


class StateMetrics:
    """What is asked for when somebody looks."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.jobs = _gauge(registry, "jobs", "Jobs in the store, setups included", "state")
        self.queue = _gauge(
            registry,
            "queue_jobs",
            "Queued jobs, by what they wait for: a slot, or their environment",
            "kind",
            "waits_for",
        )
        self.work_queue = _gauge(
            registry, "work_queue_keys", "Jobs and containers that wait for a look of the worker"
        )
        self.connected = _gauge(
            registry, "engine_connected", "1 while the engine's event stream is open, else 0"
        )
        self.environments = _gauge(
            registry, "environments_bytes", "Bytes that the layers of all environments take"
        )
        self.pool = _gauge(
            registry,
            "pool_members",
            "Members of the pool: how many are wanted, and how many are in each state",
            "entry",
            "state",
        )
        self.pool_environments = _gauge(
            registry,
            "pool_environments",
            "Members of the pool that hold an environment, or are to, by the start of its key",
            "entry",
            "environment",
        )
        self.disk_free = _gauge(
            registry, "disk_free_bytes", "Free bytes of the disk with the worker's or the "
            "engine's data", "disk",
        )  # fmt: skip
        self.disk_size = _gauge(registry, "disk_size_bytes", "Bytes of that disk", "disk")
        self.tasks = _gauge(registry, "asyncio_tasks", "Tasks of the worker's event loop")


def _counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Counter:
    return Counter(f"{PREFIX}_{name}_total", text, labels, registry=registry)


def _gauge(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"{PREFIX}_{name}", text, labels, registry=registry)


def _histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: tuple[float, ...], *labels: str
) -> Histogram:
    return Histogram(f"{PREFIX}_{name}", text, labels, registry=registry, buckets=buckets)
