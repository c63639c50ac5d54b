"""Has the running worker drain, and waits until it is gone."""

import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ciworker.cli.api import TIMEOUT, Unreachable, call
from ciworker.errors import CiworkerError
from ciworker.harmless import harmless
from ciworker.settings import Settings
from ciworker.store.lock import is_held
from ciworker.store.readonly import active_jobs

POLL = 0.5
LEAST = 1.0  # seconds that a call may take, however soon the time is up
GOES_ON = (
    "the worker goes on draining: `ciworker drain` waits for it again, "
    "`ciworker drain --undo` has it take jobs again"
)


class NotDrained(CiworkerError):
    """It ended otherwise; the message says how."""


def drain(settings: Settings, timeout: float | None) -> Iterator[str]:
    """Begin, or join what has begun; then what there is to say, until the worker is gone.

    Raises:
        Unreachable: there was no worker, or none that answered in time.
        NotDrained: it takes jobs again, or ended before its jobs did.
        TimeoutError: it still drains after `timeout` seconds.
    """
    ends = time.monotonic() + (math.inf if timeout is None else timeout)
    begun = last = call(settings, "POST", "/drain", timeout=_patience(ends))
    answer: dict[str, Any] | None = begun
    told = ""
    while answer is None or answer["started_at"] == begun["started_at"]:
        if answer is None and _is_gone(settings):
            yield "drained: the worker has ended"
            return
        last = answer or last
        if (words := _waits_for(last)) != told:
            yield (told := words)
        left = ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        time.sleep(min(POLL, left))
        answer = _ask(settings, _patience(ends))
    if both := _ids(last) & _ids(answer):
        raise NotDrained(f"another worker runs already, and goes on with {', '.join(sorted(both))}")
    yield "drained: the worker has ended, and another one runs"


def undo(settings: Settings) -> None:
    """Have the worker take and start jobs again.

    Raises:
        Unreachable: there is none. Refused: it has drained and stops.
    """
    call(settings, "DELETE", "/drain")


def _patience(ends: float) -> float:
    """Seconds that a call may take; ends: monotonic."""
    return min(TIMEOUT, max(LEAST, ends - time.monotonic()))


def _ask(settings: Settings, timeout: float) -> dict[str, Any] | None:
    """None: it does not answer, for the moment or because it is gone."""
    try:
        return call(settings, "GET", "/drain", timeout=timeout)
    except Unreachable:
        return None


def _ids(answer: Mapping[str, Any]) -> set[str]:
    return {job["id"] for job in answer["waits_for"]}


def _waits_for(answer: Mapping[str, Any]) -> str:
    if not answer["draining"]:
        raise NotDrained("the worker takes jobs again: somebody called `ciworker drain --undo`")
    jobs = answer["waits_for"]
    named = ", ".join(f"{job['id']} ({harmless(job['project'])})" for job in jobs)
    return f"waits for {len(jobs)} job{'s' * (len(jobs) != 1)}: {named}" if jobs else "nothing runs"


def _is_gone(settings: Settings) -> bool:
    """Whether nobody holds the store any more, and no job was left running.

    Raises:
        NotDrained: one was.
    """
    if is_held(settings.data_dir):
        return False
    if left := active_jobs(settings.database):
        raise NotDrained(
            f"the worker ended before its jobs did ({', '.join(left)}): they run on in their "
            "containers, and `ciworker serve` goes on with them"
        )
    return True
