"""`decide_member` against the pool's table, transcribed: all combinations of all axes; which
environments places hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciworker.domain.container import KIND_POOL, Container, State
from ciworker.domain.decide import Bucket
from ciworker.domain.pool import (
    PREFIX,
    MemberAction,
    Move,
    Wanted,
    assign,
    decide_member,
    member_name,
)

WANTED = Wanted("hash", 2**30, 1.5)
MATCHING = Container(
    id="c", name="n", state=State.RUNNING, job="", attempt=0, kind=KIND_POOL,
    spec="hash", memory=2**30, cpus=1.5,
)  # fmt: skip

STATES = ("absent", *(state.value for state in State))
UP = ("running", "paused", "restarting")
STOPPED = ("created", "exited", "dead")
DIFFERS: Mapping[str, Mapping[str, Any]] = {
    "no": {},
    "spec": {"spec": "another"},
    "memory": {"memory": 2**29},
    "cpus": {"cpus": 1.0},
    "unknown limits": {"memory": None, "cpus": None},
}
WHOSE: Mapping[str, Mapping[str, Any]] = {
    "parked": {},
    "taken": {"job": "01JOB", "attempt": 1},
    "a job's": {"kind": "job", "job": "01JOB", "attempt": 1},
}
BOTH = (True, False)


class Row(NamedTuple):
    """Which values the axes may have, and what is to be done; first match wins."""

    number: str
    wanted: tuple[bool, ...]
    state: tuple[str, ...]
    whose: tuple[str, ...]
    differs: tuple[str, ...]
    held: tuple[bool, ...]
    move: Move
    bucket: Bucket


ANY, SAME = tuple(DIFFERS), ("no",)
OURS = ("parked",)
PRESENT = tuple(state for state in STATES if state != "absent")

# fmt: off
TABLE = (
    Row("P1", (False,), ("absent",), tuple(WHOSE), ANY, BOTH, Move.NOTHING, Bucket.UNCHANGED),
    Row("P2", (True,), ("absent",), tuple(WHOSE), ANY, BOTH, Move.CREATE, Bucket.CREATED),
    Row("P3", BOTH, ("removing",), tuple(WHOSE), ANY, BOTH, Move.NOTHING, Bucket.UNCHANGED),
    Row("P4", BOTH, PRESENT, ("taken", "a job's"), ANY, BOTH, Move.NOTHING, Bucket.UNCHANGED),
    Row("P5", (False,), PRESENT, OURS, ANY, BOTH, Move.REMOVE, Bucket.REMOVED),
    Row("P7", (True,), STOPPED, OURS, SAME, BOTH, Move.START, Bucket.STARTED),
    Row("P8", (True,), UP, OURS, SAME, (False,), Move.RESTART, Bucket.STARTED),
    Row("P8 paused", (True,), ("paused", "restarting"), OURS, SAME, (True,),
        Move.RESTART, Bucket.STARTED),
    Row("P9", (True,), ("running",), OURS, SAME, (True,), Move.NOTHING, Bucket.UNCHANGED),
    Row("P6", (True,), PRESENT, OURS, ANY, BOTH, Move.RECREATE, Bucket.RECREATED),
)
# fmt: on


def combinations() -> list[tuple[str, MemberAction, str]]:
    """By row: what `decide_member` answers, and where."""
    answers = []
    for wanted, state, whose, differs, held in product(BOTH, STATES, WHOSE, DIFFERS, BOTH):
        container = None
        if state != "absent":
            changes = {**WHOSE[whose], **DIFFERS[differs]}
            container = replace(MATCHING, state=State(state), **changes)
        action = decide_member(WANTED if wanted else None, container, held=held)
        row = next(
            row.number
            for row in TABLE
            if wanted in row.wanted
            and state in row.state
            and whose in row.whose
            and differs in row.differs
            and held in row.held
        )
        answers.append((row, action, f"{wanted=} {state=} {whose=} {differs=} {held=}"))
    return answers


def test_decide_member_agrees_with_the_table_on_every_combination() -> None:
    rows = {row.number: MemberAction(row.move, row.bucket) for row in TABLE}
    found = combinations()
    assert len(found) == 2 * len(STATES) * len(WHOSE) * len(DIFFERS) * 2
    assert {row for row, _, _ in found} == set(rows)
    assert [where for row, action, where in found if action != rows[row]] == []


def test_a_member_that_does_not_run_is_never_unchanged_where_it_is_wanted() -> None:
    for state in {*UP, *STOPPED} - {"running"}:
        container = replace(MATCHING, state=State(state))
        assert decide_member(WANTED, container, held=True).bucket is not Bucket.UNCHANGED


def test_limits_that_the_engine_rounds_are_the_same() -> None:
    third = replace(MATCHING, cpus=int(1 / 3 * 1e9) / 1e9)
    assert decide_member(replace(WANTED, cpus=1 / 3), third, held=True).move is Move.NOTHING


@pytest.mark.parametrize("entry", ["a", "pool-0", "01jzzzzzzzzzzzzzzzzzzzzzzz-1"])
def test_names_tell_entry_number_and_instance_apart(entry: str) -> None:
    names = {member_name(entry, n, instance) for n in (1, 2, 11) for instance in ("a", "b")}
    assert len(names) == 6
    assert all(name.startswith(f"{PREFIX}{entry}-") for name in names)


# -- which environments places hold --------------------------------------------------------------


def keys(text: str) -> list[str | None]:
    """A letter a place, `-` for none."""
    return [None if letter == "-" else letter for letter in text]


@pytest.mark.parametrize(
    ("held", "recent", "wanted"),
    [
        pytest.param("--", "", "--", id="none was used yet"),
        pytest.param("a-", "", "--", id="the only one was removed"),
        pytest.param("--", "ab", "ab", id="the last ones first"),
        pytest.param("--", "abc", "ab", id="no more than there are places"),
        pytest.param("ba", "ab", "ba", id="each stays where it is"),
        pytest.param("ba", "bac", "ba", id="an order that changes moves none"),
        pytest.param("ba", "cab", "ca", id="the one used longest ago makes way"),
        pytest.param("ba", "ac", "ca", id="one that was removed makes way"),
        pytest.param("--", "a", "aa", id="more places than keys"),
        pytest.param("-----", "ab", "ababa", id="more places, shared out evenly"),
        pytest.param("aa", "ba", "ab", id="a second one makes way for a first"),
        pytest.param("aba", "ba", "aba", id="but for no second one"),
        pytest.param("abaa", "cab", "abac", id="the last of those that have the most"),
        pytest.param("aa-", "bac", "acb", id="an empty place is taken before"),
        pytest.param("xyz", "abcd", "abc", id="all are others"),
        pytest.param("", "ab", "", id="no places"),
    ],
)
def test_places_hold_what_was_used_last(held: str, recent: str, wanted: str) -> None:
    assert list(assign(keys(held), list(recent))) == keys(wanted)


KEYS = st.sampled_from("abcdefgh")


@given(st.lists(st.none() | KEYS, max_size=6), st.lists(KEYS, unique=True, max_size=8))
def test_every_key_used_last_has_a_place_and_no_place_changes_without_need(
    held: Sequence[str | None], recent: Sequence[str]
) -> None:
    places = assign(held, recent)
    last = recent[: len(held)]
    assert len(places) == len(held)
    assert set(places) == (set(last) if last else {None} & set(places))
    missing = set(last) - set(held)
    for before, after in zip(held, places, strict=True):
        if before != after and before in last:
            assert after in missing
            assert held.count(before) > 1
            assert before in places
    assert assign(places, recent) == places


@given(st.lists(st.none() | KEYS, max_size=6), st.permutations("abcd"), st.permutations("abcd"))
def test_the_order_in_which_the_same_keys_are_used_moves_none(
    held: Sequence[str | None], one: Sequence[str], other: Sequence[str]
) -> None:
    """As long as each has a place."""
    places = assign([*held, *[None] * 4], one)
    assert assign(places, other) == places
