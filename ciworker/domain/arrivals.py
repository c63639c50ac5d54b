"""Whether an engine may have let go of a container's last output, which nobody took in time.

An engine reads a container's output for 2 s after its exit and then lets go of the rest (seen on
20.10.24: 135 KB were in no log). It gets no further while a reader of attach is 1 MB behind.
"""

from collections import deque

CUT_OFF = 2.0  # seconds after a container's exit
BEHIND = 1_000_000  # bytes
_SPAN = CUT_OFF / 10  # seconds of reads that are told together
_SPANS = 32


class Arrivals:
    """When how many bytes came by an attached stream: exact enough for the last seconds of it.

    All times are seconds of one clock.
    """

    def __init__(self) -> None:
        self._spans: deque[tuple[float, float, int]] = deque([(0.0, 0.0, 0)], maxlen=_SPANS)
        self._dropped = 0.0

    def add(self, size: int, now: float) -> None:
        """So many more bytes were read."""
        began, _, before = self._spans[-1]
        if now - began < _SPAN:
            self._spans.pop()
        else:
            began = now
        self._spans.append((began, now, before + size))

    def drop(self, now: float) -> None:
        """The stream was given up while it had more."""
        self._dropped = now

    def held_up(self, exited: float) -> bool:
        """Whether the engine may have waited for its reader when it let go of the output of a
        container that had exited at that time.
        """
        then = exited + CUT_OFF
        before = max((size for _, ended, size in self._spans if ended <= then), default=0)
        return self._dropped > then or self._spans[-1][2] - before >= BEHIND
