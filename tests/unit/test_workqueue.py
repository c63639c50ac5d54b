"""A key waits at most once and is worked on at most once; nothing asked for is missed."""

import asyncio
import random
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ciworker.control.workqueue import WorkQueue

Queue = WorkQueue[str, int]


@pytest.fixture
async def queue() -> Queue:
    return WorkQueue()


async def taken(queue: Queue) -> str:
    async with asyncio.timeout(5):
        return await queue.get()


async def test_a_key_that_is_added_often_waits_once(queue: Queue) -> None:
    for key in "abacab":
        queue.add(key)

    assert len(queue) == 3
    assert [await taken(queue) for _ in range(3)] == ["a", "b", "c"]
    assert len(queue) == 0


async def test_a_key_that_is_added_while_it_is_worked_on_comes_again_once(queue: Queue) -> None:
    queue.add("a")
    assert await taken(queue) == "a"
    queue.add("a")
    queue.add("a")
    assert len(queue) == 0  # not beside the one that is at work

    queue.done("a", 0)

    assert await taken(queue) == "a"
    queue.done("a", 0)
    assert len(queue) == 0


async def test_a_key_that_was_done_may_come_again(queue: Queue) -> None:
    for _ in range(3):
        queue.add("a")
        assert await taken(queue) == "a"
        queue.done("a", 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), max_size=60), st.integers())
async def test_no_two_workers_hold_one_key_and_every_add_is_followed_by_a_look(
    adds: list[tuple[str, int]], seed: int
) -> None:
    queue: Queue = WorkQueue()
    chosen = random.Random(seed)
    active: Counter[str] = Counter()
    clock = 0
    begun: dict[str, int] = defaultdict(lambda: -1)
    added: dict[str, int] = {}

    async def work() -> None:
        nonlocal clock
        while True:
            key = await queue.get()
            active[key] += 1
            assert active[key] == 1
            clock += 1
            begun[key] = clock
            for _ in range(chosen.randrange(4)):
                await asyncio.sleep(0)
            active[key] -= 1
            queue.done(key, clock)

    workers = [asyncio.create_task(work()) for _ in range(4)]
    for key, pause in adds:
        clock += 1
        added[key] = clock
        queue.add(key)
        for _ in range(pause):
            await asyncio.sleep(0)
    async with asyncio.timeout(5):
        while len(queue) or +active or any(begun[key] < at for key, at in added.items()):
            assert not any(worker.done() for worker in workers)
            await asyncio.sleep(0)
    for worker in workers:
        worker.cancel()
    await asyncio.wait(workers)

    assert all(begun[key] > at for key, at in added.items())


async def test_of_two_waiting_workers_each_gets_a_key(queue: Queue) -> None:
    waiting = [asyncio.create_task(taken(queue)) for _ in range(3)]
    await asyncio.sleep(0)
    for key in "abc":
        queue.add(key)

    assert sorted(await asyncio.gather(*waiting)) == ["a", "b", "c"]


async def test_a_cancelled_worker_takes_no_key_with_it(queue: Queue) -> None:
    waiting = [asyncio.create_task(taken(queue)) for _ in range(2)]
    await asyncio.sleep(0)
    queue.add("a")
    waiting[0].cancel()

    assert await waiting[1] == "a"


# -- later


async def test_the_earliest_of_several_delays_counts(queue: Queue) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    queue.add_after("a", 60)
    queue.add_after("a", 0.02)
    queue.add_after("a", 30)

    assert await taken(queue) == "a"
    assert loop.time() - began < 1
    assert not queue._timers


async def test_a_delayed_key_does_not_come_early(queue: Queue) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    queue.add_after("a", 0.05)
    queue.add_after("b", 0.01)

    assert [await taken(queue), await taken(queue)] == ["b", "a"]
    assert loop.time() - began >= 0.049


@pytest.mark.parametrize("delay", [0.0, -5.0])
async def test_a_delay_that_is_over_is_no_delay(queue: Queue, delay: float) -> None:
    queue.add_after("a", delay)

    assert await taken(queue) == "a"


async def test_a_timer_can_be_forgotten(queue: Queue) -> None:
    queue.add_after("a", 0.01)
    queue.forget_timer("a")
    queue.forget_timer("nothing")
    queue.add_after("b", 0.02)

    assert await taken(queue) == "b"
    assert len(queue) == 0


async def test_a_delay_that_ends_while_the_key_is_worked_on_brings_it_back(queue: Queue) -> None:
    queue.add("a")
    await taken(queue)
    queue.add_after("a", 0.0)
    await asyncio.sleep(0.01)
    assert len(queue) == 0

    queue.done("a", 0)

    assert await taken(queue) == "a"


# -- joining


async def test_who_joins_gets_the_result_of_a_look(queue: Queue) -> None:
    result = queue.join("a")
    assert await taken(queue) == "a"
    assert not result.done()

    queue.done("a", 7)

    assert await result == 7


async def test_who_joins_gets_no_look_that_had_begun_before(queue: Queue) -> None:
    queue.add("a")
    await taken(queue)
    result = queue.join("a")
    queue.done("a", 1)
    await asyncio.sleep(0)
    assert not result.done()

    assert await taken(queue) == "a"
    queue.done("a", 2)

    assert await result == 2


async def test_who_joins_a_waiting_key_gets_its_look(queue: Queue) -> None:
    queue.add("a")
    first, second = queue.join("a"), queue.join("a")
    assert len(queue) == 1
    await taken(queue)
    queue.done("a", 3)

    assert (await first, await second) == (3, 3)
    assert len(queue) == 0


async def test_who_gave_up_joining_hurts_nobody(queue: Queue) -> None:
    first, second = queue.join("a"), queue.join("a")
    first.cancel()
    await taken(queue)
    queue.done("a", 4)

    assert await second == 4


async def test_a_closed_queue_cancels_what_was_asked_for(queue: Queue) -> None:
    waiting = queue.join("a")
    await taken(queue)
    later = queue.join("b")
    queue.add_after("c", 0.01)

    queue.close()

    for result in (waiting, later):
        with pytest.raises(asyncio.CancelledError):
            await result
    queue.done("a", 1)  # its worker may still end
    await asyncio.sleep(0.02)
    assert not queue._timers
    assert [await taken(queue)] == ["b"]
