"""EventWatch against the fake: connections that break, an engine that is restarted."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest

from ciworker.engine import events
from ciworker.engine.events import EventWatch
from ciworker.engine.port import Event
from ciworker.errors import EngineUnavailable
from tests.engine.fake import FakeEngine
from tests.engine.lab import PATIENCE, Lab


@dataclass
class Story:
    """What the watch told, in order."""

    lab: Lab
    engine: FakeEngine
    told: list[str] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    more: asyncio.Event = field(default_factory=asyncio.Event)
    blocked: asyncio.Event | None = None
    in_sight: bool = False
    witnesses: list[Event | None] = field(default_factory=list)
    watch: EventWatch = field(init=False)
    running: asyncio.Task[None] = field(init=False)

    def on_event(self, event: Event) -> None:
        self.events.append(event)
        self.more.set()

    async def on_connected(self) -> None:
        assert self.engine._streams, "the stream is open before everything is listed"
        await self.engine.list()
        self._tell("connected")
        if self.blocked:
            await self.blocked.wait()

    async def on_restarted(self) -> None:
        assert not self.in_sight, "nothing is concluded before that is told"
        self._tell("restarted")

    def on_sight(self, seen: bool) -> None:
        self.in_sight = seen
        self.more.set()

    def _tell(self, what: str) -> None:
        self.told.append(what)
        self.more.set()

    async def until(self, happened: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not happened():
                self.more.clear()
                await self.more.wait()

    async def connections(self, number: int) -> None:
        await self.until(lambda: self.told.count("connected") == number)

    async def life(self, name: str) -> str:
        """A container from start to destroy."""
        container = await self.engine.create(self.lab.spec(name=name))
        await self.engine.start(container)
        await self.lab.down(container)
        await self.engine.remove(container)
        return container

    def actions(self, container: str) -> list[str]:
        found = dict.fromkeys(event for event in self.events if event.container == container)
        return [event.action for event in found]


LIFE = ["start", "die", "destroy"]


@contextlib.asynccontextmanager
async def watching(
    story: Story, monkeypatch: pytest.MonkeyPatch | None = None, witness: Event | None = None
) -> AsyncIterator[None]:
    """A running watch; with a monkeypatch its pauses are noted and take no time."""
    story.watch = watch = EventWatch(
        story.engine,
        on_event=story.on_event,
        on_connected=story.on_connected,
        on_restarted=story.on_restarted,
        on_sight=story.on_sight,
        on_witness=story.witnesses.append,
        witness=witness,
    )

    async def pause() -> None:
        story.pauses.append(watch._backoff)
        story.more.set()
        await asyncio.sleep(0)

    if monkeypatch is not None:
        monkeypatch.setattr(watch, "_pause", pause)
    story.running = running = asyncio.create_task(watch.run())
    await asyncio.wait_for(watch.connected.wait(), PATIENCE)
    yield
    assert running.cancelling() or not running.done(), "it ends only when it is cancelled"
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running


@pytest.fixture
async def story(fake_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Story]:
    assert isinstance(fake_lab.engine, FakeEngine)
    story = Story(fake_lab, fake_lab.engine)
    async with watching(story, monkeypatch):
        yield story


async def test_events_are_told_as_they_come(story: Story) -> None:
    container = await story.life("one")
    await story.until(lambda: story.actions(container) == LIFE)

    assert story.told == ["connected"]


async def test_it_connects_again_after_a_cut_and_lists_again(story: Story) -> None:
    await story.life("one")
    story.engine.cut_events()
    await story.connections(2)
    container = await story.life("two")
    await story.until(lambda: story.actions(container) == LIFE)

    assert story.told == ["connected", "connected"]  # and not restarted


async def test_each_connection_looks_at_the_engines_clock(story: Story) -> None:
    for number in (1, 2, 3):
        await story.connections(number)
        assert [call for call, _ in story.engine.calls].count("info") == number
        await story.life(f"before cut {number}")
        story.engine.cut_events()


async def test_a_cut_before_any_event_is_no_restart(story: Story) -> None:
    story.engine.cut_events()
    await story.connections(2)

    assert story.told == ["connected", "connected"]


async def test_what_happened_during_a_cut_is_told_after_it(story: Story) -> None:
    before = await story.life("before")
    await story.until(lambda: story.actions(before) == LIFE)
    gate = story.engine.hold("events")
    story.engine.cut_events()
    meanwhile = await story.life("meanwhile")
    assert story.actions(meanwhile) == []
    gate.set()

    await story.until(lambda: story.actions(meanwhile) == LIFE)

    assert story.told == ["connected", "connected"]


async def test_events_of_the_same_moment_as_the_last_are_not_lost(story: Story) -> None:
    """`since` is inclusive: the last event comes twice, its neighbour at least once."""
    story.engine.drop_events = lambda event: event.action == "die"
    container = await story.life("one")
    await story.until(lambda: "destroy" in story.actions(container))
    destroy = story.events[-1]
    story.engine.cut_events()
    await story.connections(2)

    assert [event for event in story.events if event == destroy] == [destroy, destroy]


async def test_no_event_is_lost_over_many_cuts(story: Story) -> None:
    containers = []
    for number in range(10):
        containers.append(await story.life(f"job-{number}"))
        story.engine.cut_events()
    await story.until(lambda: all(story.actions(one) == LIFE for one in containers))

    assert "restarted" not in story.told


async def test_events_are_drained_while_everything_is_listed(story: Story) -> None:
    story.blocked = asyncio.Event()
    story.engine.cut_events()
    await story.connections(2)

    container = await story.life("one")
    await story.until(lambda: story.actions(container) == LIFE)

    story.blocked.set()


async def test_a_silent_stream_is_given_up_and_what_it_kept_back_is_told(story: Story) -> None:
    story.engine.events_paused = True
    container = await story.life("one")
    story.watch.reconnect()
    await story.connections(2)
    await story.until(lambda: story.actions(container) == LIFE)

    assert story.told == ["connected", "connected"]


async def test_an_engine_that_tells_nothing_is_asked_whether_it_is_there(story: Story) -> None:
    await story.watch.check()
    assert ("ping", "") in story.engine.calls
    container = await story.life("one")
    await story.until(lambda: story.actions(container) == LIFE)
    story.engine.calls.clear()
    await story.watch.check()
    assert story.engine.calls == [], "an event has just proven it"


async def test_an_engine_that_is_found_not_to_answer_loses_its_stream(story: Story) -> None:
    story.engine.fail("ping", EngineUnavailable("no"))
    with pytest.raises(EngineUnavailable, match="no"):
        await story.watch.check()
    await story.connections(2)


async def test_while_there_is_no_stream_the_engine_counts_as_away(story: Story) -> None:
    await story.engine.crash()
    await story.until(lambda: not story.in_sight)
    with pytest.raises(EngineUnavailable, match="start it"):
        await story.watch.check()
    story.engine.boot()
    await story.connections(2)
    await story.watch.check()


async def test_a_restart_of_the_engine_is_told_before_the_listing(story: Story) -> None:
    container = await story.life("one")
    await story.until(lambda: story.actions(container) == LIFE)
    await story.engine.restart()
    await story.connections(2)

    assert story.told == ["connected", "restarted", "connected"]


async def test_a_restart_is_told_once_though_the_next_connection_breaks_too(story: Story) -> None:
    container = await story.life("one")
    await story.until(lambda: story.actions(container) == LIFE)
    await story.engine.restart()
    await story.connections(2)
    second = await story.life("two")
    await story.until(lambda: story.actions(second) == LIFE)
    story.engine.cut_events()
    await story.connections(3)

    assert story.told.count("restarted") == 1


async def test_it_waits_longer_each_time_up_to_a_bound_and_starts_over(story: Story) -> None:
    story.engine.fail("events", EngineUnavailable("no"), times=8)
    story.engine.cut_events()
    await story.connections(2)
    first = list(story.pauses)
    story.engine.cut_events()
    await story.connections(3)

    assert first == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0]
    assert story.pauses[len(first) :] == [0.1]


@pytest.fixture
async def pausing(fake_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Story]:
    """The stream was lost, and the watch pauses for longer than a test lasts."""
    monkeypatch.setattr(events, "BACKOFF_FIRST", 10 * PATIENCE)
    assert isinstance(fake_lab.engine, FakeEngine)
    story = Story(fake_lab, fake_lab.engine)
    async with watching(story):
        container = await story.life("one")
        await story.until(lambda: story.actions(container) == LIFE)
        await story.engine.crash()
        await story.until(lambda: not story.in_sight)
        story.told.clear()
        yield story


async def test_whoever_is_in_a_hurry_ends_the_pause_and_a_restart_is_told(pausing: Story) -> None:
    pausing.engine.boot()
    await asyncio.wait_for(pausing.watch.hurry(), PATIENCE)

    assert pausing.in_sight
    assert pausing.told[0] == "restarted"
    await asyncio.wait_for(pausing.watch.hurry(), PATIENCE)
    assert pausing.told.count("connected") <= 1, "an open stream is not opened again"


async def test_whoever_is_in_a_hurry_hears_of_a_try_that_fails(
    pausing: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOMENT", 10 * PATIENCE)
    await asyncio.wait_for(pausing.watch.hurry(), PATIENCE)

    assert not pausing.in_sight


async def test_a_try_that_began_before_the_hurry_is_not_the_one_that_is_waited_for(
    pausing: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOMENT", 10 * PATIENCE)
    pausing.engine.boot()
    pausing.engine.fail("events", EngineUnavailable("no"))
    gate = pausing.engine.hold("events")
    first = asyncio.create_task(pausing.watch.hurry())
    while ("events", "") not in pausing.engine.calls[-1:]:
        await asyncio.sleep(0)
    second = asyncio.create_task(pausing.watch.hurry())
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait_for(asyncio.gather(first, second), PATIENCE)

    assert pausing.in_sight


async def test_nobody_waits_for_a_stream_that_is_neither_opened_nor_refused(
    pausing: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "MOMENT", 0.05)
    pausing.engine.boot()
    pausing.engine.hold("events")
    await asyncio.wait_for(pausing.watch.hurry(), PATIENCE)

    assert not pausing.in_sight


async def test_an_engine_that_is_down_is_tried_again_until_it_is_up(story: Story) -> None:
    await story.engine.crash()
    await story.until(lambda: len(story.pauses) > 3)
    story.engine.boot()
    await story.connections(2)
    container = await story.life("one")
    await story.until(lambda: story.actions(container) == LIFE)


@pytest.mark.parametrize("call", ["restarted_since", "list"])
async def test_a_connection_whose_first_calls_fail_is_opened_again(story: Story, call: str) -> None:
    container = await story.life("one")
    await story.until(lambda: story.actions(container) == LIFE)
    story.engine.fail(call, EngineUnavailable("no"), times=2)
    story.engine.cut_events()
    await story.connections(2)

    assert story.pauses == [0.1, 0.2, 0.4]
    assert story.told == ["connected", "connected"]


async def test_a_restart_is_told_though_new_events_came_before_it_could_be_found(
    story: Story,
) -> None:
    container = await story.life("one")
    await story.until(lambda: story.actions(container) == LIFE)
    gate = story.engine.hold("restarted_since")
    story.engine.fail("restarted_since", EngineUnavailable("no"))
    await story.engine.restart()
    second = await story.life("two")
    await story.until(lambda: story.actions(second) == LIFE)
    assert {event.container for event in story.witnesses if event} == {container}
    gate.set()
    await story.connections(2)

    assert story.told == ["connected", "restarted", "connected"]


async def test_a_restart_is_not_told_again_by_the_next_connection(story: Story) -> None:
    container = await story.life("one")
    await story.until(lambda: story.actions(container) == LIFE)
    await story.engine.restart()
    await story.connections(2)
    assert story.witnesses[-1] is None
    story.engine.cut_events()
    await story.connections(3)

    assert story.told == ["connected", "restarted", "connected", "connected"]


async def test_a_restart_before_this_life_of_the_worker_is_told(
    fake_lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(fake_lab.engine, FakeEngine)
    story = Story(fake_lab, fake_lab.engine)
    async with watching(story, monkeypatch):
        container = await story.life("one")
        await story.until(lambda: story.actions(container) == LIFE)
    monkeypatch.setattr(events, "OVERLAP", 0.0)
    witness = story.witnesses[-1]
    assert witness == story.events[-1]

    async with watching(again := Story(fake_lab, story.engine), monkeypatch, witness):
        assert again.told == ["connected"]
        await story.engine.restart()
        await again.connections(2)
        assert again.told == ["connected", "restarted", "connected"], "it stays a witness"
    async with watching(again := Story(fake_lab, story.engine), monkeypatch, witness):
        assert again.told == ["restarted", "connected"]


async def test_whoever_finds_the_stream_silent_meanwhile_changes_nothing(story: Story) -> None:
    for _ in range(3):
        story.watch.reconnect()
        await asyncio.sleep(0)  # to each step of giving it up
        story.watch.reconnect()
    await story.connections(2)


async def test_a_cancellation_is_heard_though_the_stream_breaks_at_that_moment(
    story: Story,
) -> None:
    story.engine.cut_events()
    story.running.cancel()
    await asyncio.wait_for(asyncio.wait([story.running]), PATIENCE)

    assert story.running.cancelled()
