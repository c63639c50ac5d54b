"""Others are told at least once, whatever they, the store or the worker do meanwhile."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from ciworker.control import deliveries as module
from ciworker.control.deliveries import Deliverer
from ciworker.control.webhooks import Webhooks
from ciworker.domain.webhook import Delivery, DeliveryKind, DeliveryState, trial_message
from ciworker.errors import StoreUnavailable
from ciworker.feed.feed import Signal
from ciworker.metrics import Metrics
from ciworker.settings import Settings
from ciworker.store.session import Database
from ciworker.store.webhooks import Deliveries
from tests.receiver import PATIENCE, SECRET, Receiver, receiving
from tests.unit.control.lab import SteppedClock


class Desk:
    """A deliverer at work on a store of its own, and what it counts."""

    def __init__(self, folder: Path, database: Database, entries: Mapping[str, Any]) -> None:
        hooks = [{"name": name, "secret": SECRET, **entry} for name, entry in entries.items()]
        settings = Settings(data_dir=folder, webhooks=hooks)
        self.environ: dict[str, str] = {}
        self.clock, self.changed, self.metrics = SteppedClock(), Signal(), Metrics()
        self.store = Deliveries(database, self.changed.fire)
        self.webhooks = Webhooks(settings, self.environ.get)
        self.deliverer = Deliverer(
            self.store,
            {DeliveryKind.WEBHOOK: self.webhooks.request},
            self.clock,
            self.changed,
            self.metrics.deliveries,
        )
        self.operator = Deliveries(database, self.deliverer.hurry)

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """A life of the deliverer, cut off at its end."""
        task = asyncio.create_task(self.deliverer.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def tell(self, endpoint: str = "tea", *, asked: bool = False) -> str:
        """asked: by an operator, who waits for it."""
        now, store = self.clock.now(), self.operator if asked else self.store
        return (await store.add(trial_message(endpoint, now), now)).id

    def pass_time(self, **time: float) -> None:
        self.clock.advance(timedelta(**time).total_seconds())
        self.changed.fire()

    async def until(self, delivery_id: str, state: DeliveryState, tries: int = 0) -> Delivery:
        """The delivery, once it is in this state and was tried so often."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = await self.store.get(delivery_id)
                if found.state is state and found.tries >= tries:
                    return found
                await asyncio.sleep(0.005)

    async def failed(self, times: int) -> None:
        """Until so many tries did, and the endpoint is left alone for that."""
        async with asyncio.timeout(PATIENCE):
            while self.counted("failed") < times:
                await asyncio.sleep(0.005)

    def counted(self, outcome: str) -> float:
        labels = {"kind": "webhook", "outcome": outcome}
        name = "ciworker_webhook_deliveries_total"
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


PENDING, DELIVERED, GIVEN_UP = DeliveryState


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    opened = await Database.open(tmp_path / "ciworker.db")
    yield opened
    await opened.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest.fixture
def desk(tmp_path: Path, database: Database, receiver: Receiver) -> Desk:
    return Desk(tmp_path, database, {"tea": {"url": receiver.url}})


async def test_a_message_arrives_signed_and_is_told_once(desk: Desk, receiver: Receiver) -> None:
    async with desk.at_work():
        delivery = await desk.tell()
        found = await desk.until(delivery, DELIVERED)
        (got,) = receiver.got
    assert (found.tries, found.answer, found.error, found.next_try_at) == (1, 204, None, None)
    assert got.signed
    assert got.id == delivery
    assert got.path == "/hook/s3cret-path?key=s3cret-query"
    assert got.headers["content-type"] == "application/json"
    assert got.json["type"] == "webhook.test"
    assert desk.counted("delivered") == 1


@pytest.mark.parametrize("how", ["refuses connections", "answers 503", "redirects"])
async def test_a_receiver_that_was_away_gets_everything_once_it_is_back(
    desk: Desk, receiver: Receiver, how: str
) -> None:
    if how == "refuses connections":
        await receiver.down()
    else:
        receiver.status = 503 if how == "answers 503" else 307
        receiver.headers = {"Location": "/elsewhere"} if how == "redirects" else {}
    async with desk.at_work():
        made = [await desk.tell() for _ in range(30)]
        first = await desk.until(made[0], PENDING, tries=1)
        assert first.error
        assert "s3cret" not in first.error
        for _ in range(3):
            before = desk.counted("failed")
            desk.pass_time(minutes=1)
            async with asyncio.timeout(PATIENCE):
                while desk.counted("failed") == before:
                    await asyncio.sleep(0.005)
        in_vain = len(receiver.got)
        receiver.status = 200
        if how == "refuses connections":
            await receiver.up()
        desk.pass_time(minutes=5)
        for delivery in made:
            await desk.until(delivery, DELIVERED)
    arrived = receiver.got[in_vain:]
    assert sorted(got.id for got in arrived) == sorted(made)
    assert all(got.signed for got in arrived)
    assert {got.path for got in receiver.got} == {"/hook/s3cret-path?key=s3cret-query"}
    assert in_vain <= 8  # while it was away it was asked now and then, not for each message


async def test_one_message_that_is_refused_keeps_no_other_waiting(
    desk: Desk, receiver: Receiver
) -> None:
    receiver.status = 400
    async with desk.at_work():
        refused = await desk.tell()
        await desk.until(refused, PENDING, tries=1)
        other = await desk.tell()
        receiver.status = 200
        desk.pass_time(seconds=10)
        await desk.until(other, DELIVERED)
        await desk.until(refused, DELIVERED)
    assert desk.counted("failed") == 1


async def test_what_an_operator_asks_for_waits_behind_no_endpoint_that_failed(
    desk: Desk, receiver: Receiver
) -> None:
    receiver.status = 500
    async with desk.at_work():
        waits = await desk.tell()
        for times in range(1, 13):  # by then the endpoint is left alone for most of an hour
            await desk.failed(times)
            desk.pass_time(hours=2)
        await desk.failed(13)
        failed = await desk.until(waits, PENDING, tries=13)
        receiver.status = 200
        tested = await desk.tell(asked=True)
        assert (await desk.until(tested, DELIVERED)).tries == 1
        await desk.operator.again(tested, desk.clock.now())
        await desk.until(tested, DELIVERED)
        assert failed.next_try_at is not None
        assert failed.next_try_at > desk.clock.now()
    assert [got.id for got in receiver.got if got.id == tested] == [tested] * 2


async def test_after_three_days_a_message_is_given_up_and_can_be_sent_again(
    desk: Desk, receiver: Receiver
) -> None:
    receiver.status = 500
    async with desk.at_work():
        delivery = await desk.tell()
        await desk.until(delivery, PENDING, tries=1)
        desk.pass_time(days=2, hours=23)
        await desk.until(delivery, PENDING, tries=2)
        desk.pass_time(hours=2)
        given_up = await desk.until(delivery, GIVEN_UP)
        assert (given_up.answer, given_up.error) == (500, "the receiver answered 500")
        assert desk.counted("given_up") == 1
        receiver.status = 200
        await desk.store.again(delivery, desk.clock.now())
        desk.pass_time(hours=2)
        await desk.until(delivery, DELIVERED)
    assert {got.id for got in receiver.got} == {delivery}


async def test_a_receiver_that_wants_no_more_and_an_endpoint_that_is_gone_are_not_tried_again(
    desk: Desk, receiver: Receiver
) -> None:
    receiver.status = 410
    async with desk.at_work():
        gone = await desk.until(await desk.tell(), GIVEN_UP)
        unknown = await desk.until(await desk.tell("pot"), GIVEN_UP)
    assert (gone.tries, len(receiver.got)) == (1, 1)
    assert "no webhook of the settings is called 'pot'" in (unknown.error or "")


async def test_a_receiver_that_never_answers_is_not_waited_for_and_holds_up_no_other(
    tmp_path: Path, database: Database, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.3)
    receiver.status = None
    async with receiving() as other:
        desk = Desk(tmp_path, database, {"tea": {"url": receiver.url}, "pot": {"url": other.url}})
        async with desk.at_work():
            stuck, told = await desk.tell("tea"), await desk.tell("pot")
            await desk.until(told, DELIVERED)
            failed = await desk.until(stuck, PENDING, tries=1)
    assert failed.error == "no answer within 0.3 s"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"garbage\r\n\r\n", "ClientResponseError"),
        (b"HTTP/1.1 301 x\r\nLocation: /s3cret~path\r\n", "ServerDisconnectedError"),
    ],
)
async def test_what_a_receiver_answers_that_speaks_no_http_tells_nothing_of_its_address(
    tmp_path: Path, database: Database, answer: bytes, told: str
) -> None:
    """aiohttp's error has the URL, but not as the settings write it."""

    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(answering, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        url = f"http://LOCALHOST:{port}/s3cret%7Epath?key=s3cret"
        desk = Desk(tmp_path, database, {"tea": {"url": url}})
        async with desk.at_work():
            failed = await desk.until(await desk.tell(), PENDING, tries=1)
    assert failed.error == told


async def test_a_deliverer_that_is_cut_off_in_mid_call_tells_it_again_with_the_same_id(
    desk: Desk, receiver: Receiver
) -> None:
    receiver.status = None
    async with desk.at_work():
        delivery = await desk.tell()
        await receiver.has(1)
    assert (await desk.store.get(delivery)).state is PENDING
    receiver.status = 200
    async with desk.at_work():
        await desk.until(delivery, DELIVERED)
    assert [got.id for got in receiver.got] == [delivery, delivery]


async def test_a_secret_may_be_named_and_is_waited_for(
    tmp_path: Path, database: Database, receiver: Receiver
) -> None:
    desk = Desk(tmp_path, database, {"tea": {"url": receiver.url, "secret": "TEA_SECRET"}})
    async with desk.at_work():
        delivery = await desk.tell()
        missing = await desk.until(delivery, PENDING, tries=1)
        assert missing.error == (
            "the secret TEA_SECRET has no value: set it in the worker's environment"
        )
        desk.environ["TEA_SECRET"] = "whsec_nonsense"
        desk.pass_time(minutes=1)
        wrong = await desk.until(delivery, PENDING, tries=2)
        assert re.match(r"the secret TEA_SECRET has to be whsec_ and", wrong.error or "")
        assert "nonsense" not in (wrong.error or "")
        desk.environ["TEA_SECRET"] = SECRET
        desk.pass_time(minutes=1)
        await desk.until(delivery, DELIVERED)
    assert [got.signed for got in receiver.got] == [True]


async def test_while_the_store_is_away_nothing_ends_and_then_it_goes_on(
    desk: Desk, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY", 0.01)
    failures = 0
    record = desk.store.record

    async def unavailable(delivery: Delivery) -> None:
        nonlocal failures
        failures += 1
        raise StoreUnavailable("locked")

    monkeypatch.setattr(desk.store, "record", unavailable)
    async with desk.at_work():
        delivery = await desk.tell()
        async with asyncio.timeout(PATIENCE):
            while failures < 2:
                await asyncio.sleep(0.005)
        monkeypatch.setattr(desk.store, "record", record)
        await desk.until(delivery, DELIVERED)
    assert {got.id for got in receiver.got} == {delivery}


async def test_neither_secret_nor_address_is_in_the_settings_own_words(desk: Desk) -> None:
    settings = Settings(webhooks=[{"url": "http://h/s3cret", "secret": SECRET}])
    assert "s3cret" not in repr(settings)
    assert SECRET not in repr(settings)
    assert SECRET not in json.dumps(settings.model_dump(mode="json"))
