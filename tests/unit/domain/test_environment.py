"""Environments: their key, their table over all combinations, who waits for what, who has to go."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import permutations, product
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as some

from ciworker.domain.decide import Bucket
from ciworker.domain.environment import (
    Build,
    Environment,
    EnvironmentAction,
    EnvironmentFacts,
    EnvironmentStatus,
    Step,
    build_of,
    content_key,
    decide_environment,
    digest_of,
    is_outdated,
    need_of,
    to_evict,
    wants_build,
    watches,
    why_built,
)
from ciworker.domain.job import Cache, Job, Need, Reason, Spec, Status, status_of

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Row(NamedTuple):
    """A row of the README's table, as data; an axis that `when` does not name may be anything."""

    number: str
    status: tuple[str, ...]
    when: Mapping[str, tuple[object, ...]]
    step: Step
    bucket: Bucket = Bucket.UNCHANGED


ANY: Mapping[str, tuple[object, ...]] = {}
YES, NO = (True,), (False,)
ALL = tuple(status.value for status in EnvironmentStatus)

# fmt: off
TABLE = (
    Row("E1", ALL, {"committing": YES}, Step.NOTHING),
    Row("E9", ("building",), {"image": YES}, Step.RECORD_READY, Bucket.FINISHED),
    Row("E10", ("building",), {"build": (Build.ACTIVE,), "awaited": YES}, Step.NOTHING),
    Row("E11", ("building",), {"build": (Build.ACTIVE,)}, Step.CANCEL_BUILD, Bucket.CANCELLED),
    Row("E12 stored", ("building",), {"commit_failed": YES}, Step.RECORD_FAILED, Bucket.FAILED),
    Row("E12", ("building",), {"build": (Build.FAILED,)}, Step.RECORD_FAILED, Bucket.FAILED),
    Row("E13", ("building",), {"build": (Build.PASSED,), "container": YES},
        Step.COMMIT, Bucket.ADOPTED),
    Row("E14", ("building",), {"awaited": NO}, Step.RECORD_ABSENT, Bucket.REMOVED),
    Row("E15", ("building",), {"attempts_left": YES}, Step.BUILD, Bucket.CREATED),
    Row("E15 spent", ("building",), {"attempts_left": NO}, Step.RECORD_FAILED, Bucket.FAILED),
    Row("E2", ("absent", "ready", "failed"), {"stale": YES}, Step.REMOVE, Bucket.REMOVED),
    Row("E5", ("ready",), {"wanted": YES}, Step.BUILD, Bucket.CREATED),
    Row("E6", ("ready",), {"image": NO, "used": NO}, Step.RECORD_ABSENT, Bucket.REMOVED),
    Row("E7", ("ready",), {"removal": YES, "used": NO}, Step.REMOVE, Bucket.REMOVED),
    Row("E8", ("ready",), ANY, Step.NOTHING),
    Row("E3", ("absent", "failed"), {"image": YES}, Step.REMOVE, Bucket.REMOVED),
    Row("E4", ("absent", "failed"), {"wanted": YES}, Step.BUILD, Bucket.CREATED),
    Row("E4 removed", ("absent", "failed"), {"removal": YES, "used": NO}, Step.FORGET),
    Row("E4 nobody", ("absent", "failed"), ANY, Step.NOTHING),
)
# fmt: on

AXES: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(
        (
            "wanted", "awaited", "used", "image", "stale", "container", "attempts_left",
            "committing", "commit_failed", "removal",
        ),
        (True, False),
    ),
    "build": tuple(Build),
}  # fmt: skip


@cache
def answers() -> Mapping[str, frozenset[EnvironmentAction]]:
    """What `decide_environment` answers to every combination, by the row that it falls on."""
    found: dict[str, set[EnvironmentAction]] = defaultdict(set)
    for status in EnvironmentStatus:
        rows = [row for row in TABLE if status.value in row.status]
        for values in product(*AXES.values()):
            named = dict(zip(AXES, values, strict=True))
            facts = EnvironmentFacts(status=status, **named)  # type: ignore[arg-type] # by name
            matching = (r for r in rows if all(named[axis] in r.when[axis] for axis in r.when))
            found[next(matching).number].add(decide_environment(facts))
    return {number: frozenset(actions) for number, actions in found.items()}


def test_every_fact_is_an_axis() -> None:
    assert {*AXES, "status"} == {*EnvironmentFacts.__dataclass_fields__}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.number)
def test_the_table_says_what_is_decided_for_every_combination(row: Row) -> None:
    assert answers()[row.number] == {EnvironmentAction(row.step, row.bucket)}


def test_the_rows_have_the_numbers_of_the_readme() -> None:
    assert {row.number.split()[0] for row in TABLE} == {f"E{n}" for n in range(1, 16)}


# -- the key ---------------------------------------------------------------------------------------

KEY = ("sha256:base", ("pip install x",), {"a": "1", "b": "2"}, "operator")


def test_the_same_content_has_the_same_key_in_whatever_order_the_inputs_come() -> None:
    image, commands, _, operator = KEY
    assert content_key(*KEY) == content_key(image, commands, {"b": "2", "a": "1"}, operator)


@pytest.mark.parametrize(
    "other",
    [
        ("sha256:other", *KEY[1:]),
        (KEY[0], ("pip install y",), *KEY[2:]),
        (KEY[0], ("pip", "install x"), *KEY[2:]),
        (*KEY[:2], {"a": "1", "b": "3"}, KEY[3]),
        (*KEY[:2], {"a": "1", "c": "2"}, KEY[3]),
        (*KEY[:3], "other"),
        (*KEY, "a job's own"),
    ],
    ids=["image", "command", "split", "content", "name", "operator", "single"],
)
def test_other_content_has_another_key(other: tuple[str, ...]) -> None:
    assert content_key(*other) != content_key(*KEY)  # type: ignore[arg-type] # as in KEY


def test_another_way_of_running_setups_has_another_key() -> None:
    assert content_key(*KEY, version="2") != content_key(*KEY, version="1")


def test_the_order_of_commands_counts() -> None:
    image, _, inputs, operator = KEY
    keys = {content_key(image, commands, inputs, operator) for commands in permutations("abc")}
    assert len(keys) == 6


@given(some.dictionaries(some.text(), some.text()))
def test_a_digest_does_not_depend_on_the_order_of_a_mapping(value: dict[str, str]) -> None:
    assert digest_of(value) == digest_of(dict(reversed(value.items())))


# -- who waits for what ----------------------------------------------------------------------------


def environment(
    status: EnvironmentStatus, build: str | None = "B", **fields: object
) -> Environment:
    good = build if status is EnvironmentStatus.READY else None
    plain = Environment(
        key="k", status=status, project="tea", image="python:3.12", image_id="sha256:1",
        commands=("pip install x",), inputs={"requirements.txt": "1"}, operator="o",
        created_at=NOW, build=build, good=good,
    )  # fmt: skip
    return replace(plain, **fields)  # type: ignore[arg-type] # by name


def job(job_id: str = "C", cache_mode: Cache = Cache.USE, **fields: object) -> Job:
    spec = Spec("python:3.12", "true", 1.0, 1, 1.0, False, "tea", cache=cache_mode)
    plain = Job(job_id, Status.QUEUED, spec, NOW, "token", environment="k", waits=True)
    return replace(plain, **fields)  # type: ignore[arg-type] # by name


READY, FAILED = EnvironmentStatus.READY, EnvironmentStatus.FAILED
BUILDING, ABSENT = EnvironmentStatus.BUILDING, EnvironmentStatus.ABSENT


def test_a_job_that_does_not_wait_needs_nothing() -> None:
    assert need_of(job(waits=False), environment(FAILED), told=True) is Need.NOTHING


def test_a_job_whose_environment_is_not_known_has_to_find_out() -> None:
    assert need_of(job(), None, told=True) is Need.UNKNOWN


def test_a_ready_environment_will_do() -> None:
    assert need_of(job(), environment(READY), told=True) is Need.READY


def test_a_job_waits_until_all_lines_of_its_setup_are_in_its_log() -> None:
    for status in (READY, FAILED):
        assert need_of(job(build="B"), environment(status), told=False) is Need.WAITS


def test_only_a_setup_that_a_job_watched_can_fail_it() -> None:
    assert need_of(job(build="B"), environment(FAILED), told=True) is Need.FAILED
    assert need_of(job(build=None), environment(FAILED), told=True) is Need.WAITS
    assert need_of(job(build="A"), environment(FAILED), told=True) is Need.WAITS


@pytest.mark.parametrize("status", [BUILDING, ABSENT])
def test_what_is_not_there_is_waited_for(status: EnvironmentStatus) -> None:
    assert need_of(job(build="B"), environment(status), told=True) is Need.WAITS


def test_a_rebuild_is_served_only_by_a_setup_that_was_begun_after_it_was_asked_for() -> None:
    wish = job("C", Cache.REBUILD)
    assert need_of(wish, environment(READY, "B"), told=True) is Need.WAITS
    assert not watches(wish, environment(BUILDING, "B"))
    assert watches(wish, environment(BUILDING, "D"))
    assert need_of(replace(wish, build="D"), environment(READY, "D"), told=True) is Need.READY


def test_others_watch_whatever_setup_is_under_way() -> None:
    assert watches(job("C"), environment(BUILDING, "B"))
    assert not watches(job("C"), environment(READY, "B"))


def test_while_it_is_rebuilt_the_one_of_before_will_do_for_others() -> None:
    rebuilding = environment(BUILDING, "D", good="B")
    assert need_of(job("C"), rebuilding, told=True) is Need.READY
    assert not watches(job("C"), rebuilding)
    assert watches(job("C", Cache.REBUILD), rebuilding)


def test_a_rebuild_that_failed_fails_only_who_watched_it() -> None:
    after = environment(READY, "D", good="B")
    assert need_of(job("C", Cache.REBUILD, build="D"), after, told=True) is Need.FAILED
    assert need_of(job("C"), after, told=True) is Need.READY
    assert not wants_build(job("C"), after)
    assert not wants_build(job("C", Cache.REBUILD, build="D"), after)
    assert wants_build(job("E", Cache.REBUILD), after)


def test_the_row_of_one_that_is_gone_is_kept_for_a_month() -> None:
    for status, outdated in ((ABSENT, True), (FAILED, True), (READY, False), (BUILDING, False)):
        old = environment(status, last_used_at=NOW - timedelta(days=31))
        assert is_outdated(old, NOW) is outdated
        assert not is_outdated(replace(old, last_used_at=NOW - timedelta(days=29)), NOW)


def test_who_wants_another_build() -> None:
    assert wants_build(job(), environment(ABSENT))
    assert wants_build(job(), environment(FAILED))
    assert not wants_build(job(build="B"), environment(FAILED))
    assert not wants_build(job(), environment(READY))
    assert wants_build(job("C", Cache.REBUILD), environment(READY))
    assert not wants_build(job("C", Cache.REBUILD, build="B"), environment(READY))


@pytest.mark.parametrize("reason", list(Reason))
def test_each_end_of_a_setup_is_judged(reason: Reason) -> None:
    ended = job(status=status_of(reason), reason=reason)
    expected = {
        Reason.PASSED: Build.PASSED,
        Reason.CANCELLED: Build.CANCELLED,
        Reason.CONTAINER_LOST: Build.BROKEN,
        Reason.KILLED_OUTSIDE: Build.BROKEN,
        Reason.ENGINE_RESTARTED: Build.BROKEN,
        Reason.TRANSFER_FAILED: Build.BROKEN,
        Reason.WORKSPACE_INVALID: Build.BROKEN,
    }
    assert build_of(ended) is expected.get(reason, Build.FAILED)


def test_a_setup_that_has_not_ended_is_active_and_one_that_is_unknown_is_none() -> None:
    assert build_of(job()) is Build.ACTIVE
    assert build_of(None) is Build.NONE


# -- why -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"image": "python:3.13"}, "the image is python:3.13, before it was python:3.12"),
        ({"image_id": "sha256:2"}, "python:3.12 is another image than before: sha256:2"),
        ({"commands": ("pip install y",)}, "its commands changed"),
        (
            {"inputs": {"requirements.txt": "2", "pyproject.toml": "1"}},
            "changed: pyproject.toml, requirements.txt",
        ),
        ({"operator": "p"}, "the operator's variables, or the secrets that it names, changed"),
        ({"single": True}, "this job asked for one of its own"),
        ({"builds": 2}, "the one of before failed, was removed or is to be built anew"),
    ],
)
def test_the_log_says_why_an_environment_is_built(change: dict[str, object], why: str) -> None:
    before = environment(READY)
    assert why_built(replace(before, key="l", **change), [before]) == why  # type: ignore[arg-type] # by name


def test_the_first_one_of_a_project_is_called_so() -> None:
    assert why_built(environment(ABSENT), []) == "it is the first one of this project"


# -- eviction --------------------------------------------------------------------------------------


def stored(key: str, size: int, age: int) -> Environment:
    used = NOW - timedelta(days=age)
    return environment(READY, key=key, bytes=size, layer=f"sha256:{key}", last_used_at=used)


def test_the_least_recently_used_go_first_and_no_more_than_needed() -> None:
    kept = [stored("new", 50, 1), stored("old", 30, 9), stored("older", 30, 10)]
    assert to_evict(kept, frozenset(), 80) == ["older"]
    assert to_evict(kept, frozenset(), 60) == ["older", "old"]


def test_one_in_use_is_never_evicted() -> None:
    kept = [stored("new", 50, 1), stored("old", 30, 9)]
    assert to_evict(kept, frozenset({"old"}), 60) == ["new"]
    assert to_evict(kept, frozenset({"old", "new"}), 0) == []


def test_what_fits_stays_and_what_has_no_image_does_not_count() -> None:
    gone = environment(ABSENT, key="gone", bytes=10**9)
    assert to_evict([stored("a", 50, 1), gone], frozenset(), 50) == []


@given(some.lists(some.tuples(some.integers(0, 100), some.integers(0, 9), some.booleans())))
def test_what_is_left_fits_or_is_in_use(sizes: list[tuple[int, int, bool]]) -> None:
    kept = [stored(f"e{n}", size, age) for n, (size, age, _) in enumerate(sizes)]
    in_use = frozenset(f"e{n}" for n, (_, _, used) in enumerate(sizes) if used)
    evicted = to_evict(kept, in_use, 100)
    left = [e for e in kept if e.key not in evicted]
    assert not in_use & set(evicted)
    assert sum(e.bytes for e in left) <= 100 or all(e.key in in_use for e in left)
