"""Who watches: the open event streams, and how far behind the slowest of them is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Stream = Literal["job", "all"]


class Watcher(Protocol):
    """One job's lines in somebody's stream."""

    @property
    def behind(self) -> int:
        """How many of the lines that were shown are not in its socket."""


@dataclass(frozen=True, slots=True, eq=False)
class Watching:
    """A stream that is open within the block. opened: where it stands meanwhile."""

    opened: set["Watching"]
    watchers: Sequence[Watcher]

    def __enter__(self) -> None:
        self.opened.add(self)

    def __exit__(self, *_error: object) -> None:
        self.opened.remove(self)


class Watchers:
    """The open streams, by what they are of, each with what it watches."""

    def __init__(self) -> None:
        self._open: dict[Stream, set[Watching]] = {"job": set(), "all": set()}

    def watching(self, stream: Stream, watchers: Sequence[Watcher]) -> Watching:
        """Within its block the stream is open."""
        return Watching(self._open[stream], watchers)

    @property
    def subscribers(self) -> Mapping[Stream, int]:
        return {stream: len(streams) for stream, streams in self._open.items()}

    @property
    def most_behind(self) -> int:
        """Lines; 0 when nobody watches."""
        streams = (stream for opened in self._open.values() for stream in opened)
        return max((each.behind for stream in streams for each in stream.watchers), default=0)
