"""Values as they were last committed, so that not every look at one asks the database.

One worker holds a store and everything it writes goes through here: so what is kept is what the
database has, unless a write failed.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

_Value = TypeVar("_Value")


class Kept(Generic[_Value]):
    """At most `most` values by key; the one that was put longest ago goes first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[str, _Value] = OrderedDict()
        self._writes = 0

    def __len__(self) -> int:
        return len(self._values)

    async def get(self, key: str, read: Callable[[str], Awaitable[_Value | None]]) -> _Value | None:
        """What is kept, else what `read` finds in the database."""
        if key in self._values:
            return self._values[key]
        writes = self._writes
        found = await read(key)
        if found is not None and writes == self._writes:  # else it may be older than a commit
            self._remember(key, found)
        return found

    def put(self, key: str, value: _Value) -> None:
        """It was committed so."""
        self._writes += 1
        self._remember(key, value)

    def drop(self, key: str) -> None:
        """Have the database asked for this one."""
        self._writes += 1
        self._values.pop(key, None)

    def clear(self) -> None:
        """Have the database asked for all: what a write that failed has left, only it knows."""
        self._writes += 1
        self._values.clear()

    def _remember(self, key: str, value: _Value) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        while len(self._values) > self._most:
            self._values.popitem(last=False)
