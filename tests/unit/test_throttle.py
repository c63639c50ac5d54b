"""Rates by who asks, and who that is behind proxies."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciworker.units import Rate
from ciworker.web.throttle import MOST_KEYS, Meter, Proxies, site, too_many


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_all_of_a_rate_may_come_at_once_and_the_next_has_to_wait(clock: Clock) -> None:
    meter = Meter(Rate(3, 60), clock)
    assert [meter.take("a") for _ in range(5)] == [0, 0, 0, pytest.approx(20), pytest.approx(20)]
    assert meter.take("b") == 0
    clock.now += 19.9
    assert meter.take("a") == pytest.approx(0.1)
    clock.now += 0.1
    assert [meter.take("a") for _ in range(2)] == [0, pytest.approx(20)]
    clock.now += 3600
    assert [meter.take("a") for _ in range(4)] == [0, 0, 0, pytest.approx(20)]


def test_a_rate_too_high_for_the_clock_allows_everything() -> None:
    """So long after the start of the machine a float has no such part of a second left."""
    clock = Clock()
    clock.now = 1e9
    meter = Meter(Rate(999_999_999, 1), clock)
    assert {meter.take("a") for _ in range(100)} == {0}


def test_without_a_rate_everything_may() -> None:
    meter = Meter(None)
    assert {meter.take("a") for _ in range(1000)} == {0}
    assert len(meter._used_up_at) == 0


@given(
    st.integers(1, 50),
    st.sampled_from([1, 60, 3600]),
    st.lists(st.floats(0, 100), max_size=200),
)
def test_never_more_than_the_rate_and_who_waits_as_told_is_let_in(
    count: int, seconds: int, pauses: list[float]
) -> None:
    clock = Clock()
    meter, let_in = Meter(Rate(count, seconds), clock), list[float]()
    for pause in pauses:
        clock.now += pause
        wait = meter.take("a")
        if wait:
            clock.now += wait + 1e-3
            assert meter.take("a") == 0
        let_in.append(clock.now)
    for first, at in zip(let_in, let_in[2 * count :], strict=False):
        assert at - first >= seconds * 0.99


def test_memory_is_bounded_whoever_comes(clock: Clock) -> None:
    meter = Meter(Rate(2, 60), clock)
    for n in range(3 * MOST_KEYS):
        assert meter.take(f"{n}") == 0
    assert len(meter._used_up_at) == MOST_KEYS
    assert sys.getsizeof(meter._used_up_at) < 2**20
    clock.now += 3600
    meter.take("x")
    assert len(meter._used_up_at) == 1


def test_who_was_counted_last_is_forgotten_last(clock: Clock) -> None:
    meter = Meter(Rate(2, 60), clock)
    for n in range(MOST_KEYS):
        meter.take(f"{n}")
    meter.take("0")
    meter.take("new")
    assert meter.take("0") > 0
    assert [meter.take("1"), meter.take("1")] == [0, 0]  # it was forgotten


def test_the_refusal_says_when_to_come_back() -> None:
    refused = too_many(19.2, "too many of them")
    assert (refused.status, refused.headers["Retry-After"]) == (429, "20")
    assert str(refused) == "too many of them: try again in 20 s"
    assert too_many(0.01, "x").headers["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("trusted", "peer", "forwarded", "client"),
    [
        ([], "192.0.2.1", [], "192.0.2.1"),
        ([], "192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        (["192.0.2.1"], "192.0.2.1", [], "192.0.2.1"),
        (["192.0.2.1"], "192.0.2.1", ["198.51.100.7"], "198.51.100.7"),
        (["192.0.2.1"], "192.0.2.2", ["198.51.100.7"], "192.0.2.2"),
        (["192.0.2.0/24"], "192.0.2.9", ["198.51.100.7, 192.0.2.8"], "198.51.100.7"),
        # whoever asked invented the first ones
        (["192.0.2.1"], "192.0.2.1", ["127.0.0.1, 192.0.2.1, 198.51.100.7"], "198.51.100.7"),
        (["192.0.2.1"], "192.0.2.1", ["203.0.113.5", "198.51.100.7"], "198.51.100.7"),
        (["192.0.2.0/24"], "192.0.2.1", ["198.51.100.7, nonsense, 192.0.2.8"], "192.0.2.8"),
        (["192.0.2.1"], "192.0.2.1", ["", " , "], "192.0.2.1"),
        (["192.0.2.1"], "192.0.2.1", ["unknown"], "192.0.2.1"),
        (["192.0.2.0/24"], "192.0.2.1", ["192.0.2.3, 192.0.2.2"], "192.0.2.3"),
        (["192.0.2.1"], "192.0.2.1", ["198.51.100.7:41234"], "198.51.100.7"),
        (["::1"], "::1", ["[2001:db8::7]:41234"], "2001:db8::7"),
        (["::1"], "::1", ["2001:db8::7"], "2001:db8::7"),
        (["127.0.0.0/8"], "::ffff:127.0.0.1", ["::ffff:198.51.100.7"], "198.51.100.7"),
        ([], "", ["198.51.100.7"], "unix"),
        (["127.0.0.1"], "", ["198.51.100.7"], "unix"),
        (["unix"], "", ["198.51.100.7"], "198.51.100.7"),
        (["unix"], "", [], "unix"),
        (["unix"], "192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        (["unix", "10.0.0.0/8"], "", ["198.51.100.7, 10.1.2.3"], "198.51.100.7"),
    ],
)
def test_who_asked_is_read_from_trusted_proxies_alone_from_the_right(
    trusted: list[str], peer: str, forwarded: list[str], client: str
) -> None:
    assert Proxies(trusted).client(peer, forwarded) == client


@given(st.text(max_size=60), st.lists(st.text(max_size=60), max_size=4))
def test_whatever_is_said_an_address_comes_of_it(peer: str, forwarded: list[str]) -> None:
    for trusted in ([], ["0.0.0.0/0", "::/0", "unix"]):
        assert Proxies(trusted).client(peer, forwarded)


@pytest.mark.parametrize(
    ("address", "known_by"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unix", "unix"),
    ],
)
def test_a_site_of_ipv6_counts_as_one(address: str, known_by: str) -> None:
    assert site(address) == known_by
