"""When tokens were last used: noted without a write, stored once an interval at most."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta

from ciworker.errors import StoreUnavailable
from ciworker.web.tokenuse import INTERVAL, TokenUses

NOW = datetime(2026, 1, 2, tzinfo=UTC)
LATER = NOW + timedelta(seconds=1)


class Store:
    """Keeps what it is told; `deaf`: it cannot, just now."""

    def __init__(self) -> None:
        self.stored: list[dict[str, datetime]] = []
        self.deaf = False
        self.told = asyncio.Event()

    async def __call__(self, uses: Mapping[str, datetime], /) -> None:
        self.told.set()
        if self.deaf:
            raise StoreUnavailable("it is locked")
        self.stored.append(dict(uses))


@asynccontextmanager
async def running(uses: TokenUses) -> AsyncIterator[None]:
    task = asyncio.create_task(uses.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_the_first_use_is_stored_and_the_next_wait_for_their_time() -> None:
    store = Store()
    uses = TokenUses(store)
    async with running(uses):
        uses.note("a", NOW)
        await store.told.wait()
        for _ in range(1000):
            uses.note("a", LATER)
            uses.note("b", LATER)
            await asyncio.sleep(0)
        assert store.stored == [{"a": NOW}]
        assert (uses.last("a"), uses.last("b"), uses.last("c")) == (LATER, LATER, None)
        await uses.flush()
    assert store.stored == [{"a": NOW}, {"a": LATER, "b": LATER}]
    assert uses.last("a") is None
    assert INTERVAL == 60


async def test_while_no_token_is_used_nothing_is_stored() -> None:
    store = Store()
    uses = TokenUses(store, interval=0)
    async with running(uses):
        uses.note("a", NOW)
        await store.told.wait()
        for _ in range(100):
            await asyncio.sleep(0)
        await uses.flush()
    assert store.stored == [{"a": NOW}]


async def test_what_cannot_be_stored_is_stored_the_next_time() -> None:
    store = Store()
    store.deaf = True
    uses = TokenUses(store, interval=0)
    async with running(uses):
        uses.note("a", NOW)
        await store.told.wait()
        store.deaf = False
        async with asyncio.timeout(60):
            while not store.stored:
                await asyncio.sleep(0)
    assert store.stored == [{"a": NOW}]


async def test_a_use_during_a_write_is_not_lost() -> None:
    noted: list[Mapping[str, datetime]] = []

    async def store(at_once: Mapping[str, datetime], /) -> None:
        if not noted:
            uses.note("a", LATER)
        noted.append(dict(at_once))

    uses = TokenUses(store)
    uses.note("a", NOW)
    await uses.flush()
    await uses.flush()
    assert noted == [{"a": NOW}, {"a": LATER}]
