"""What was read and is not stored yet is bounded; whoever reads may wait for room, not for ever."""

from ciworker.control.logkeeper import BUFFER
from ciworker.domain.log import Stream
from tests.unit.control.test_logpump_unfinished import Bench

LINE = b"x" * 1023 + b"\n"


async def test_there_is_room_again_once_half_of_it_is_stored() -> None:
    bench = Bench(kept=2 * BUFFER)
    bench.begin()
    assert await bench.keeper.room(0)
    bench.keeper.feed(Stream.STDOUT, LINE * (BUFFER // len(LINE) + 1))
    assert bench.keeper.overflows
    assert not await bench.keeper.room(0.01)
    bench.store()
    assert await bench.keeper.room(0)
    assert not bench.keeper.overflows


async def test_lines_of_several_batches_are_timed_by_their_own_reading() -> None:
    bench = Bench()
    bench.begin()
    batches = []
    for text in (b"one\n", b"two\n"):
        bench.keeper.feed(Stream.STDOUT, text)
        batches.append(bench.take())
    for batch in batches:
        bench.keeper.stored(batch)
    first, second = bench.topic.read_at(1), bench.topic.read_at(2)
    assert first is not None
    assert second is not None
    assert first < second
