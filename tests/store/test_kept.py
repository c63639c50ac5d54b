"""What was committed last is kept, within bounds, and never older than the database."""

import asyncio

import pytest

from ciworker.store.kept import Kept


class Source:
    """A database of one table; its reads can be held back."""

    def __init__(self, **values: str) -> None:
        self.values = values
        self.reads: list[str] = []
        self.entered = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def read(self, key: str) -> str | None:
        self.reads.append(key)
        found = self.values.get(key)
        self.entered.set()
        await self.gate.wait()
        return found


async def test_what_was_put_or_read_is_not_asked_for_again() -> None:
    kept, source = Kept[str](9), Source(b="2")
    kept.put("a", "1")

    for _ in range(3):
        assert await kept.get("a", source.read) == "1"
        assert await kept.get("b", source.read) == "2"
    assert source.reads == ["b"]


async def test_what_is_not_there_is_asked_for_each_time() -> None:
    kept, source = Kept[str](9), Source()
    assert await kept.get("a", source.read) is None

    source.values["a"] = "1"

    assert await kept.get("a", source.read) == "1"


async def test_the_one_that_was_put_longest_ago_goes_first() -> None:
    kept, source = Kept[str](3), Source()
    for key in ("a", "b", "c", "d", "e"):
        kept.put(key, "1")
    kept.put("c", "2")
    kept.put("f", "1")

    found = {key: await kept.get(key, source.read) for key in ("c", "e", "f")}

    assert len(kept) == 3
    assert (found, source.reads) == ({"c": "2", "e": "1", "f": "1"}, [])


@pytest.mark.parametrize("forget", ["drop", "clear"])
async def test_what_is_dropped_is_asked_for(forget: str) -> None:
    kept, source = Kept[str](9), Source(a="2")
    kept.put("a", "1")

    kept.drop("a") if forget == "drop" else kept.clear()

    assert await kept.get("a", source.read) == "2"


@pytest.mark.parametrize("overtaker", ["put", "drop", "clear"])
async def test_a_read_that_a_commit_overtakes_is_not_kept(overtaker: str) -> None:
    kept, source = Kept[str](1), Source(a="before")
    source.gate.clear()
    reading = asyncio.create_task(kept.get("a", source.read))
    await source.entered.wait()

    source.values["a"] = "after"
    if overtaker == "put":
        kept.put("a", "after")
        kept.put("b", "makes it go")
    elif overtaker == "drop":
        kept.drop("a")
    else:
        kept.clear()
    source.gate.set()

    assert await reading == "before"
    assert await kept.get("a", source.read) == "after"
