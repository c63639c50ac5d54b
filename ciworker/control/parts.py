"""What the control room works with."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from ciworker.control.clock import Clock
from ciworker.control.credentials import Credentials
from ciworker.control.keys import Key
from ciworker.control.look import Outcome
from ciworker.control.supervisor import Supervisor
from ciworker.control.tallies import Tallies
from ciworker.control.workqueue import WorkQueue
from ciworker.engine.port import Engine
from ciworker.feed.feed import Feed
from ciworker.metrics import ControlMetrics, Metrics
from ciworker.settings import Settings
from ciworker.source.access import Secret
from ciworker.store.environments import Environments
from ciworker.store.jobs import Jobs
from ciworker.store.logs import LogReader, LogWriter

Queue = WorkQueue[Key, list[Outcome]]


@dataclass(frozen=True, slots=True)
class Parts:
    """Made once, in `app.py`. new_id: a job's id, larger than all before. secret: gives the values
    of those that settings name.
    """

    settings: Settings
    instance: str
    clock: Clock
    engine: Engine
    jobs: Jobs
    environments: Environments
    logs: LogReader
    writer: LogWriter
    feed: Feed
    queue: Queue
    supervisor: Supervisor
    new_id: Callable[[], str]
    credentials: Credentials
    secret: Secret = os.environ.get
    metrics: ControlMetrics = field(default_factory=lambda: Metrics().control)
    tallies: Tallies = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tallies", Tallies(self.metrics, self.clock))
