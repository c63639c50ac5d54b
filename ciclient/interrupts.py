"""What Ctrl-C and the time limit of `wait` do to a command that only watches."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Never

from ciclient.errors import Detached, WaitTimeout
from ciclient.report import come_back

INTERRUPTED = 130


@contextmanager
def detachable(job_id: str) -> Iterator[None]:
    """The first Ctrl-C raises Detached, the second leaves at once, whatever blocks then.

    Where SIGINT is ignored (a background job of a shell) it stays ignored.
    """
    before = signal.getsignal(signal.SIGINT)
    if before == signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, _first_interrupt)
    try:
        yield
    except KeyboardInterrupt:
        # the handler for the second stays: to say goodbye may block too
        raise Detached(f"\ndetached, the job runs on\n{come_back(job_id)}") from None
    finally:
        if signal.getsignal(signal.SIGINT) is _first_interrupt:
            signal.signal(signal.SIGINT, before)


def _first_interrupt(signum: int, frame: FrameType | None) -> Never:
    signal.signal(signal.SIGINT, _second_interrupt)
    raise KeyboardInterrupt


def _second_interrupt(signum: int, frame: FrameType | None) -> Never:
    os._exit(INTERRUPTED)


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raises WaitTimeout in whatever blocks when the time is over."""
    if seconds is None:
        yield
        return

    def over(signum: int, frame: FrameType | None) -> Never:
        raise WaitTimeout(f"not ended after {seconds:g} s; the job runs on")

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
