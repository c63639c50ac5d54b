"""A worker with fail points: at every transition it can kill itself, before or after.

Run as a program in place of `ciworker` (see `Doomed`). The points lie around the calls by which
the worker changes something: the engine's calls that act, the commits, the files. They are put on
from outside, so that the product has none, and costs nothing.
"""

import asyncio
import functools
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from ciworker.__main__ import main
from ciworker.control import retention
from ciworker.engine.docker import DockerAttachment, DockerEngine
from ciworker.source.spool import SpoolWriter
from ciworker.store.environments import Environments
from ciworker.store.jobs import Jobs
from ciworker.store.packing import Packer
from ciworker.store.retention import Retention
from ciworker.store.session import Database
from tests.driver import Worker

POINT, HIT, HELD = "FAIL_POINT", "FAIL_HIT", "FAIL_HELD"
TREE = Path(__file__).parents[2]

# (class, method): a name for what the call changes, from the call's arguments
CALLS: dict[str, tuple[type, str, Callable[..., str]]] = {
    "create": (DockerEngine, "create", lambda *_: "create"),
    "attach": (DockerEngine, "attach", lambda *_: "attach"),
    "start": (DockerEngine, "start", lambda *_: "start"),
    "rename": (DockerEngine, "rename", lambda *_: "rename"),
    "update": (DockerEngine, "update", lambda *_: "update"),
    "signal": (DockerEngine, "signal", lambda *_: "signal"),
    "remove": (DockerEngine, "remove", lambda *_: "remove"),
    "inspect": (DockerEngine, "inspect", lambda *_: "inspect"),
    "send": (DockerAttachment, "write", lambda *_: "send"),
    "submit": (Jobs, "add", lambda *_: "submit"),
    "move": (Jobs, "move", lambda _self, _job, expect, to, *_: f"{expect.status}->{to}"),
    "note": (Jobs, "note", lambda *_: "note"),
    "sent": (Jobs, "note_quietly", lambda *_: "sent"),
    "lines": (Database, "insert", lambda *_: "lines"),
    "spool": (SpoolWriter, "commit", lambda *_: "spool"),
    "environment": (Environments, "change", lambda *_: "environment"),
    "commit": (DockerEngine, "commit", lambda *_: "commit"),
    "packed": (Packer, "done", lambda *_: "packed"),
    "hide": (Jobs, "hide", lambda *_: "hide"),
    "delete": (Retention, "_delete", lambda *_: "delete"),
}
OF_ANY_JOB = (
    "spool", "submit", "queued->starting", "create", "attach", "start", "sent", "send",
    "starting->running", "lines", "inspect", "running->completed", "remove", "packed",
)  # fmt: skip
OF_A_TAKING = (
    "queued->starting", "rename", "update", "send", "starting->running", "lines",
    "running->completed", "remove",
)  # fmt: skip
OF_A_CANCEL = ("note", "signal", "running->cancelled")
OF_A_SETUP = ("environment", "commit")
OF_A_REMOVAL = ("hide", "delete")
HASTE = {"PAUSE": 0.05, "INTERVAL": 0.5}  # of the retention


class Doomed(Worker):
    """A real worker that kills itself at `point`, as `name:before`, the `hit`th time.

    held: the name of calls that it never comes back from.
    """

    point = ""
    hit = 1
    held = ""

    async def spawn(self) -> None:
        environment = self.environment | {POINT: self.point, HIT: str(self.hit), HELD: self.held}
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.chaos.failpoints", "serve", cwd=TREE,
                env=environment, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip

    async def dies(self, within: float) -> bool:
        """Whether it killed itself; it is given so long."""
        assert self.process is not None
        try:
            async with asyncio.timeout(within):
                assert await self.process.wait() == -signal.SIGKILL, self.log.read_text()
        except TimeoutError:
            return False
        self.process = None
        return True


class _Point:
    """Counts the hits of one point, and kills; holds calls up."""

    def __init__(self, point: str, hit: int, held: str) -> None:
        self._point, self._left, self._held = point, hit, held

    def reached(self, point: str) -> None:
        if point != self._point:
            return
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def put_on(self, owner: type, method: str, name: Callable[..., str]) -> None:
        inner = getattr(owner, method)
        wrapped = self._around_await if asyncio.iscoroutinefunction(inner) else self._around
        setattr(owner, method, wrapped(inner, name))

    def _around(self, inner: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        @functools.wraps(inner)
        def call(*args: Any, **kwargs: Any) -> Any:
            self.reached(f"{name(*args)}:before")
            result = inner(*args, **kwargs)
            self.reached(f"{name(*args)}:after")
            return result

        return call

    def _around_await(
        self, inner: Callable[..., Awaitable[Any]], name: Callable[..., str]
    ) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(inner)
        async def call(*args: Any, **kwargs: Any) -> Any:
            self.reached(f"{name(*args)}:before")
            if self._held == name(*args):
                await asyncio.Event().wait()
            result = await inner(*args, **kwargs)
            self.reached(f"{name(*args)}:after")
            return result

        return call


if __name__ == "__main__":
    armed = _Point(os.environ[POINT], int(os.environ[HIT]), os.environ[HELD])
    for constant, seconds in HASTE.items():
        setattr(retention, constant, seconds)
    for owner, method, name in CALLS.values():
        armed.put_on(owner, method, name)
    main()
