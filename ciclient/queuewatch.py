"""Where a queued job stands in the queue: asked from time to time."""

import threading
from collections.abc import Callable

from ciclient.api import Api
from ciclient.config import Access
from ciclient.errors import ClientError, TryAgain
from ciclient.wire import Job, Place

FIRST_PAUSE = 0.3  # seconds; most jobs begin sooner, and nothing is asked for them
PAUSE = 2.0


class QueueWatch:
    """Asks in a thread of its own, over connections of its own: the stream's belongs to another.

    What can't be had is told as not known, so that no failure here is worth a word.
    """

    def __init__(self, access: Access, job: Job, tell: Callable[[Place | None], None]) -> None:
        self._access, self._job, self._tell = access, job, tell
        self._changed = threading.Condition()
        self._stopped = self._paused = self._poked = False
        self._thread = threading.Thread(target=self._watch, name="queue watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Asks no more. Does not wait for an answer that is under way; it may still be told."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def pause(self) -> None:
        """Asks nothing until the next poke."""
        with self._changed:
            self._paused = True

    def poke(self) -> None:
        """Something has changed: asks now, or as soon as the server wants to be asked again."""
        with self._changed:
            self._poked, self._paused = True, False
            self._changed.notify_all()

    def _watch(self) -> None:
        wish = until = FIRST_PAUSE
        while self._may_ask(wish, until):
            wish = self._ask()
            until = max(wish, PAUSE)

    def _may_ask(self, wish: float, until: float) -> bool:
        """Waits so many seconds, a poke or not, then for a poke or the rest; False once stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped, wish)
            self._changed.wait_for(lambda: self._stopped or self._poked, until - wish)
            self._changed.wait_for(lambda: self._stopped or not self._paused)
            self._poked = False
            return not self._stopped

    def _ask(self) -> float:
        """The seconds that the server wants to be left alone."""
        try:
            with Api(self._access) as api:
                self._tell(api.job(self._job.id).place())
        except ClientError as error:
            self._tell(None)
            return (error.retry_after or 0.0) if isinstance(error, TryAgain) else 0.0
        return 0.0
