"""Who watches: the open event streams, and how far behind the slowest of them is."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, Protocol

Stream = Literal["job", "all"]


class Watcher(Protocol):
    """One job's lines in somebody's stream."""

    @property
    def behind(self) -> int:
        """How many of the lines that were shown are not in its socket."""


class Watchers:
    """The open streams, by what they are of, each with what it watches."""

    def __init__(self) -> None:
        self._open: dict[Stream, dict[object, Sequence[Watcher]]] = {"job": {}, "all": {}}

    @contextlib.contextmanager
    def watching(self, stream: Stream, watchers: Sequence[Watcher]) -> Iterator[None]:
        """Within the block the stream is open."""
        key = object()
        self._open[stream][key] = watchers
        try:
            yield
        finally:
            del self._open[stream][key]

    @property
    def subscribers(self) -> Mapping[Stream, int]:
        return {stream: len(streams) for stream, streams in self._open.items()}

    @property
    def most_behind(self) -> int:
        """Lines; 0 when nobody watches."""
        streams = (watchers for opened in self._open.values() for watchers in opened.values())
        return max((watcher.behind for watchers in streams for watcher in watchers), default=0)
