"""Owns the tasks of single jobs, inside the worker's one TaskGroup.

The one place that catches whatever a task raises: an error in one job's task must end neither the
worker nor the other jobs. It is logged with its traceback and the job is looked at again.
"""

import asyncio
from collections.abc import Callable, Coroutine

from ciworker.telemetry import logger


class Supervisor:
    """Starts tasks, lets none of their errors out."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self._tasks = tasks
        self._running: set[asyncio.Task[None]] = set()
        self._closed = False

    def spawn(
        self,
        work: Coroutine[object, object, None],
        *,
        name: str,
        on_error: Callable[[], None] | None = None,
    ) -> asyncio.Task[None]:
        """Run `work`; if it raises, log that and call `on_error`."""
        task = self._tasks.create_task(self._guarded(work, name, on_error), name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        task.add_done_callback(lambda _: work.close())  # it never ran if cancelled at once
        if self._closed:
            task.cancel()
        return task

    async def cancel_all(self) -> None:
        """End the tasks of all jobs, and whatever is spawned from now on; containers go on."""
        self._closed = True
        running = set(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    async def _guarded(
        self,
        work: Coroutine[object, object, None],
        name: str,
        on_error: Callable[[], None] | None,
    ) -> None:
        try:
            await work
        except Exception:  # noqa: BLE001 # the supervisor: see the module's docstring
            logger().exception("a task failed", task=name)
            if on_error is not None:
                on_error()
