"""Shows what a container has printed without a newline, beside its lines and never stored."""

import asyncio
from collections.abc import Mapping
from typing import NamedTuple, Protocol
from weakref import ref

from ciworker.domain.log import LineSplitter, Position, Stream, Unfinished
from ciworker.feed.feed import Topic

BYTES = 4 * 2**10  # of an unfinished line its end is shown
INTERVAL = 0.1  # seconds from its bytes to its being shown: most lines end sooner


class _Caught(NamedTuple):
    """What a stream's unfinished line was, behind a position of the stream."""

    text: Unfinished
    position: Position


class Source(Protocol):
    """Reads the streams."""

    @property
    def backlog(self) -> int:
        """Bytes of lines that were read and are not stored yet."""

    def shows(self, stream: Stream) -> bool:
        """Whether what a stream prints now is the job's, and will be its next line."""

    def tail(self, stream: Stream, size: int) -> str:
        """The last `size` bytes of what a stream has printed since its last newline, readable."""


class UnfinishedLines:
    """The unfinished lines of one container's streams.

    Some time after its bytes came an unfinished line is caught as it is then, and shown as soon
    as everything that was read before is stored: lines that are read meanwhile, of another stream
    that never rests, do not keep it waiting. Was it ended meanwhile, its line will be shown.
    """

    def __init__(
        self, topic: Topic, splitters: Mapping[Stream, LineSplitter], source: Source
    ) -> None:
        """Show nothing yet.

        Args:
            topic: shows them.
            splitters: hold them.
            source: fills them. Not kept alive: it has this, and with it the topic's ring.
        """
        self._topic, self._splitters = topic, splitters
        self._source = ref(source)
        self._read_at: dict[Stream, int] = {}  # when the last live bytes came
        self._timer: asyncio.TimerHandle | None = None
        self._caught: dict[Stream, _Caught] = {}
        self._ahead = 0  # bytes to be stored before what was caught is shown
        self._more = False  # than what was caught

    def read(self, stream: Stream, at: int) -> None:
        """Bytes of this stream came live, at this time, and the last of them are no line yet."""
        self._read_at[stream] = at
        if self._caught:
            self._more = True
        elif self._timer is None:
            self._set_timer()

    def stored(self, size: int) -> None:
        """So many bytes of lines are stored and shown."""
        if self._caught:
            self._ahead -= size
            self._show_once_stored()

    def hide(self) -> None:
        """What is unfinished will not be the next line of its stream."""
        self.stop()
        self._topic.show_unfinished({}, self._topic.last)

    def stop(self) -> None:
        """Show no more than is shown."""
        self._caught, self._more = {}, False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _set_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(INTERVAL, self._catch)

    def _catch(self) -> None:
        self._timer, source = None, self._source()
        if source is None:
            return
        self._ahead = source.backlog
        for stream, splitter in self._splitters.items():
            if source.shows(stream) and (tail := source.tail(stream, BYTES)):
                text = Unfinished(stream, self._read_at[stream], tail)
                self._caught[stream] = _Caught(text, splitter.position)
        self._show_once_stored()

    def _show_once_stored(self) -> None:
        if not self._caught or self._ahead > 0:
            return
        shown = dict(self._topic.unfinished(self._topic.last) or {})
        for stream, (text, position) in self._caught.items():
            if self._splitters[stream].position == position:
                shown[stream] = text
        again, self._caught, self._more = self._more, {}, False
        self._topic.show_unfinished(shown, self._topic.last)
        if again:
            self._set_timer()
