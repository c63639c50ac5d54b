"""What signals do to a command that only watches: Ctrl-C, Ctrl-Z, SIGTERM, the limit of `wait`."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from types import FrameType
from typing import Never

from ciclient import echo
from ciclient.errors import Detached, WaitTimeout
from ciclient.options import duration
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
        echo.restore()  # the view may have been interrupted before it was open
        # the handler for the second stays: to say goodbye may block too
        raise Detached(f"\ndetached, the job runs on\n{come_back(job_id)}") from None
    finally:
        if signal.getsignal(signal.SIGINT) is _first_interrupt:
            signal.signal(signal.SIGINT, before)


def _first_interrupt(signum: int, frame: FrameType | None) -> Never:
    signal.signal(signal.SIGINT, _second_interrupt)
    raise KeyboardInterrupt


def _second_interrupt(signum: int, frame: FrameType | None) -> Never:
    echo.restore()
    os._exit(INTERRUPTED)


@contextmanager
def tidying(
    tidied: Callable[[], AbstractContextManager[None]], go_on: Callable[[], None]
) -> Iterator[None]:
    """SIGTERM ends the process, and Ctrl-Z stops it, within `tidied`; SIGCONT calls `go_on`.

    Where one of them is ignored, or another's, it stays so.
    """

    def leave(signum: int, frame: FrameType | None) -> None:
        with tidied():
            signal.signal(signum, signal.SIG_DFL)
            signal.raise_signal(signum)
            signal.signal(signum, leave)  # it was stopped, and goes on

    def continued(signum: int, frame: FrameType | None) -> None:
        go_on()

    handlers = {signal.SIGTERM: leave, signal.SIGTSTP: leave, signal.SIGCONT: continued}
    with ExitStack() as restored:
        for signum, handler in handlers.items():
            if signal.getsignal(signum) == signal.SIG_DFL:
                signal.signal(signum, handler)
                restored.callback(signal.signal, signum, signal.SIG_DFL)
        yield


@contextmanager
def time_limit(timeout: str | None) -> Iterator[None]:
    """Raises WaitTimeout in whatever blocks when the time, such as `10m`, is over."""
    if timeout is None:
        yield
        return

    def over(signum: int, frame: FrameType | None) -> Never:
        raise WaitTimeout(f"not ended after {written}; the job runs on")

    seconds = duration(timeout)
    written = f"{timeout}s" if timeout.isdecimal() else timeout
    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
