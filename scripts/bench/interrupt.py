"""Runs a measurement so that Ctrl-C and SIGTERM clean up too."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; a signal cancels it, which ends the process once it has cleaned up."""
    told: list[int] = []

    async def guarded() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def cancel(signum: int) -> None:
            told.append(signum)
            task.cancel()

        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signum, cancel, signum)
        return await work

    try:
        return asyncio.run(guarded())
    except asyncio.CancelledError:
        sys.exit(128 + told[0] if told else 1)
