"""`decide` against the decision table, transcribed: all combinations of all axes.

The rows below say what the design's table says, first match wins. They are data on purpose:
nothing here repeats how `decide` gets to its answer. Where the table is silent the rows carry a
letter: 12/16/17 name the reason of a loss, 14/15/16 spell out what is known of the start mark. A
log that an engine's restart may have cut counts as unreadable: output after a crash is lost.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import pytest

from ciworker.domain.container import Container, State
from ciworker.domain.decide import Action, Bucket, Facts, Verb, admit, decide
from ciworker.domain.job import Mark, Need, Reason, Status

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECOND = timedelta(seconds=1)

# The container's axis: the engine's states, and what stands for "the engine has none".
CONTAINERS = ("absent", *(state.value for state in State))
UP = ("running", "paused", "restarting")
DOWN = ("exited", "dead")
PRESENT = ("created", *UP, *DOWN)  # all that are left after row 1

# The job's axis: its status, and what stands for a container of ours without a job.
JOBS = ("none", *(status.value for status in Status))
TERMINAL = ("completed", "cancelled", "failed")

# Every other axis: what the names in the rows stand for.
AXES: Mapping[str, Mapping[object, object]] = {
    "sent": {True: True, False: False},
    "connected": {True: True, False: False},
    "mark": {mark.value: mark for mark in Mark},
    "stop_due": {"no": None, "yes": Reason.TIMED_OUT},
    "cancel_asked": {True: True, False: False},
    "log_complete": {True: True, False: False},
    "keep_until": {"none": None, "past": NOW - SECOND, "future": NOW + SECOND},
    "transfer_due": {True: True, False: False},
    "attempts_left": {True: True, False: False},
    "killed": {True: True, False: False},
    "engine_restarted": {True: True, False: False},
    "need": {need.value: need for need in Need},
}
ADMITTED = (True, False)


class Row(NamedTuple):
    """A row of the table: which values its axes may have, and what is to be done.

    An axis that `when` does not name may have any value.
    """

    number: str
    job: tuple[str, ...]
    container: tuple[str, ...]
    when: Mapping[str, tuple[object, ...]]
    verb: Verb
    bucket: Bucket
    reason: Reason | None = None

    @property
    def action(self) -> Action:
        return Action(self.verb, self.bucket, self.reason)


ANY: Mapping[str, tuple[object, ...]] = {}
YES, NO = (True,), (False,)

# fmt: off
TABLE = (
    Row("1", JOBS, ("removing",), ANY, Verb.NOTHING, Bucket.UNCHANGED),
    Row("2", ("none",), PRESENT, ANY, Verb.REMOVE, Bucket.REMOVED),
    Row("3", TERMINAL, UP, ANY, Verb.KILL, Bucket.STOPPED),
    Row("4", TERMINAL, ("created", *DOWN), {"log_complete": YES, "keep_until": ("none", "past")},
        Verb.REMOVE, Bucket.REMOVED),
    Row("4 kept", TERMINAL, ("created", *DOWN), ANY, Verb.NOTHING, Bucket.UNCHANGED),
    Row("5", ("none", *TERMINAL), ("absent",), ANY, Verb.NOTHING, Bucket.UNCHANGED),
    Row("6", ("queued",), PRESENT, ANY, Verb.REMOVE, Bucket.REMOVED),
    Row("7", ("queued",), ("absent",), {"cancel_asked": YES},
        Verb.CANCEL, Bucket.CANCELLED, Reason.CANCELLED),
    Row("7a", ("queued",), ("absent",), {"need": ("unknown",)}, Verb.RESOLVE, Bucket.UNCHANGED),
    Row("7b", ("queued",), ("absent",), {"need": ("waits",)}, Verb.WATCH_SETUP, Bucket.UNCHANGED),
    Row("7c", ("queued",), ("absent",), {"need": ("ready",)}, Verb.RELEASE, Bucket.UNCHANGED),
    Row("7d", ("queued",), ("absent",), {"need": ("failed",)},
        Verb.FAIL, Bucket.FAILED, Reason.SETUP_FAILED),
    Row("7e", ("queued",), ("absent",), {"need": ("source",)}, Verb.FETCH, Bucket.UNCHANGED),
    Row("7f", ("queued",), ("absent",), {"need": ("no source",)},
        Verb.FAIL, Bucket.FAILED, Reason.SOURCE_FAILED),
    Row("8", ("queued",), ("absent",), {"admitted": NO}, Verb.NOTHING, Bucket.UNCHANGED),
    Row("9", ("queued",), ("absent",), {"admitted": YES}, Verb.LAUNCH, Bucket.CREATED),
    Row("10", ("starting",), ("absent", *PRESENT), {"cancel_asked": YES},
        Verb.CANCEL, Bucket.CANCELLED, Reason.CANCELLED),
    Row("11", ("starting",), ("absent",), {"sent": NO}, Verb.LAUNCH, Bucket.CREATED),
    Row("12 killed", ("starting",), ("absent",), {"sent": YES, "killed": YES},
        Verb.FAIL, Bucket.FAILED, Reason.KILLED_OUTSIDE),
    Row("12 engine", ("starting",), ("absent",), {"sent": YES, "engine_restarted": YES},
        Verb.FAIL, Bucket.FAILED, Reason.ENGINE_RESTARTED),
    Row("12", ("starting",), ("absent",), {"sent": YES},
        Verb.FAIL, Bucket.FAILED, Reason.CONTAINER_LOST),
    Row("13", ("starting",), ("created",), ANY, Verb.START, Bucket.STARTED),
    Row("14/15 seen", ("starting",), UP, {"mark": ("seen",)}, Verb.ENTER_RUNNING, Bucket.ADOPTED),
    Row("14/15 due", ("starting",), UP, {"transfer_due": YES}, Verb.KILL, Bucket.STOPPED),
    Row("14", ("starting",), UP, {"connected": YES}, Verb.NOTHING, Bucket.UNCHANGED),
    Row("15", ("starting",), UP, {"connected": NO}, Verb.WATCH, Bucket.UNCHANGED),
    Row("16 seen", ("starting",), DOWN, {"mark": ("seen",)}, Verb.ENTER_RUNNING, Bucket.ADOPTED),
    Row("16 unknown", ("starting",), DOWN, {"mark": ("unknown",)},
        Verb.LOOK_FOR_MARK, Bucket.UNCHANGED),
    Row("16 engine restarted", ("starting",), DOWN,
        {"mark": ("absent", "unreadable"), "sent": YES, "engine_restarted": YES},
        Verb.FAIL, Bucket.FAILED, Reason.ENGINE_RESTARTED),
    Row("16 no mark", ("starting",), DOWN, {"mark": ("absent",), "attempts_left": YES},
        Verb.REQUEUE, Bucket.REQUEUED),
    Row("16 no mark, spent", ("starting",), DOWN, {"mark": ("absent",), "attempts_left": NO},
        Verb.FAIL, Bucket.FAILED, Reason.TRANSFER_FAILED),
    Row("16 unreadable, as 11", ("starting",), DOWN,
        {"mark": ("unreadable",), "sent": NO, "attempts_left": YES},
        Verb.REQUEUE, Bucket.REQUEUED),
    Row("16 unreadable, spent", ("starting",), DOWN,
        {"mark": ("unreadable",), "sent": NO, "attempts_left": NO},
        Verb.FAIL, Bucket.FAILED, Reason.TRANSFER_FAILED),
    Row("16 unreadable, as 12 killed", ("starting",), DOWN,
        {"mark": ("unreadable",), "sent": YES, "killed": YES},
        Verb.FAIL, Bucket.FAILED, Reason.KILLED_OUTSIDE),
    Row("16 unreadable, as 12", ("starting",), DOWN, {"mark": ("unreadable",), "sent": YES},
        Verb.FAIL, Bucket.FAILED, Reason.CONTAINER_LOST),
    Row("17 killed", ("running",), ("absent", "created"), {"killed": YES},
        Verb.FAIL, Bucket.FAILED, Reason.KILLED_OUTSIDE),
    Row("17 engine", ("running",), ("absent", "created"), {"engine_restarted": YES},
        Verb.FAIL, Bucket.FAILED, Reason.ENGINE_RESTARTED),
    Row("17", ("running",), ("absent", "created"), ANY,
        Verb.FAIL, Bucket.FAILED, Reason.CONTAINER_LOST),
    Row("18", ("running",), UP, {"stop_due": ("yes",)},
        Verb.STOP, Bucket.STOPPED, Reason.TIMED_OUT),
    Row("19", ("running",), UP, ANY, Verb.READ_OUTPUT, Bucket.UNCHANGED),
    Row("20", ("running",), DOWN, {"log_complete": NO}, Verb.READ_OUTPUT, Bucket.UNCHANGED),
    Row("21", ("running",), DOWN, {"log_complete": YES}, Verb.RECORD_VERDICT, Bucket.FINISHED),
)
# fmt: on

UNMATCHED = "no row"


class Seen(NamedTuple):
    """What `decide` answered, by the row that a combination falls on; one example for each."""

    answers: Mapping[str, Mapping[Action, str]]
    combinations: int


def container(state: str) -> Container | None:
    if state == "absent":
        return None
    return Container(id="c" * 12, name="ci-a-1", state=State(state), job="A", attempt=1)


def facts(job: str, values: Mapping[str, Any]) -> Facts | None:
    if job == "none":
        return None
    return Facts(status=Status(job), **values)


def combinations_of(job: str) -> Iterator[tuple[dict[str, object], Facts | None]]:
    """Every combination of the facts of a job, as the rows name them and as `decide` does."""
    axes = {} if job == "none" else AXES  # who has no job has no facts of it
    if job != "queued":  # only who is queued needs anything: see the test of that below
        axes = {axis: values for axis, values in axes.items() if axis != "need"}
    for names in product(*(axis.keys() for axis in axes.values())):
        named = dict(zip(axes, names, strict=True))
        yield named, facts(job, {axis: AXES[axis][name] for axis, name in named.items()})


def first_match(rows: list[Row], named: Mapping[str, object]) -> str:
    for row in rows:
        if all(named[axis] in allowed for axis, allowed in row.when.items()):
            return row.number
    return UNMATCHED


@cache
def everything() -> Seen:
    """Ask `decide` about every combination there is; some 980,000."""
    answers: dict[str, dict[Action, str]] = defaultdict(dict)
    count = 0
    there = {state: container(state) for state in CONTAINERS}
    for job in JOBS:
        rows = {s: [r for r in TABLE if job in r.job and s in r.container] for s in CONTAINERS}
        for named, fact in combinations_of(job):
            for admitted in ADMITTED:
                named["admitted"] = admitted
                for state in CONTAINERS:
                    row = first_match(rows[state], named)
                    action = decide(fact, there[state], NOW, admitted)
                    count += 1
                    if action not in answers[row]:
                        answers[row][action] = f"{job}, {state}, {named}"
    return Seen(answers, count)


def disagreements(table: tuple[Row, ...], seen: Seen) -> list[str]:
    wanted = {row.number: row.action for row in table}
    return [
        f"row {number}: {action} instead of {wanted.get(number)} at {example}"
        for number, answers in seen.answers.items()
        for action, example in answers.items()
        if action != wanted.get(number)
    ]


def test_every_combination_of_all_axes_is_asked() -> None:
    facts_of_a_job = 2**9 * 4 * 3
    jobs = len(Status) - 1 + len(Need)
    expected = jobs * facts_of_a_job * len(CONTAINERS) * 2 + len(CONTAINERS) * 2
    assert everything().combinations == expected == 1_179_664


def test_what_a_job_needs_matters_only_while_it_is_queued() -> None:
    for status, state, need in product(set(Status) - {Status.QUEUED}, CONTAINERS, Need):
        without = decide(Facts(status), container(state), NOW, admitted=False)
        assert decide(Facts(status, need=need), container(state), NOW, admitted=False) == without


def test_every_fact_of_a_job_is_an_axis() -> None:
    assert {*AXES, "status"} == {*Facts.__dataclass_fields__}


def test_every_combination_falls_on_a_row_of_the_table() -> None:
    assert not everything().answers.get(UNMATCHED)


def test_decide_agrees_with_the_table_on_every_combination() -> None:
    assert disagreements(TABLE, everything()) == []


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.number)
def test_each_row_is_reached(row: Row) -> None:
    assert row.number in everything().answers


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.number)
def test_a_table_with_another_verb_bucket_or_reason_in_one_row_is_contradicted(row: Row) -> None:
    wrong = (
        [row._replace(verb=verb) for verb in Verb if verb is not row.verb]
        + [row._replace(bucket=bucket) for bucket in Bucket if bucket is not row.bucket]
        + [row._replace(reason=reason) for reason in (*Reason, None) if reason is not row.reason]
    )
    assert len(wrong) == len(Verb) + len(Bucket) + len(Reason) - 2
    for other in wrong:
        table = tuple(other if each is row else each for each in TABLE)
        assert disagreements(table, everything()), other


def test_rows_have_names_of_their_own_and_the_numbers_of_the_design() -> None:
    assert len({row.number for row in TABLE}) == len(TABLE)
    parts = [part for row in TABLE for part in row.number.split()[0].split("/")]
    numbers = {int(part.rstrip("abcdef")) for part in parts}
    assert numbers == set(range(1, 22))


@pytest.mark.parametrize("state", UP)
@pytest.mark.parametrize(
    "cause", [Reason.CANCELLED, Reason.TIMED_OUT, Reason.NO_OUTPUT, Reason.LOG_LIMIT]
)
def test_a_stop_carries_its_cause(state: str, cause: Reason) -> None:
    action = decide(Facts(Status.RUNNING, stop_due=cause), container(state), NOW, False)
    assert action == Action(Verb.STOP, Bucket.STOPPED, cause)


@pytest.mark.parametrize(
    ("keep_until", "verb"),
    [
        (NOW - timedelta(microseconds=1), Verb.REMOVE),
        (NOW, Verb.REMOVE),
        (NOW + timedelta(microseconds=1), Verb.NOTHING),
    ],
)
def test_a_container_is_kept_up_to_its_instant_and_no_longer(
    keep_until: datetime, verb: Verb
) -> None:
    job = Facts(Status.COMPLETED, log_complete=True, keep_until=keep_until)
    assert decide(job, container("exited"), NOW, False).verb is verb


def test_only_the_state_of_a_container_matters() -> None:
    """An exit code or an attempt says nothing before the log is complete and the verdict due."""
    for status, state in product(Status, State):
        plain = Container(id="c", name="n", state=state, job="A", attempt=1)
        other = Container(
            id="d", name="m", state=state, job="B", attempt=7, exit_code=137, oom_killed=True,
            changed_at=NOW, started_at=NOW, finished_at=NOW, error="x",
        )  # fmt: skip
        job = Facts(status)
        assert decide(job, plain, NOW, True) == decide(job, other, NOW, True)


@pytest.mark.parametrize(
    ("memory", "free_slots", "free_memory", "admitted"),
    [
        pytest.param(None, 4, 100, False, id="nothing waits"),
        pytest.param(100, 1, 100, True, id="it fits exactly"),
        pytest.param(100, 4, 1000, True, id="there is room"),
        pytest.param(100, 0, 1000, False, id="no slot"),
        pytest.param(100, -1, 1000, False, id="more run than there are slots"),
        pytest.param(101, 1, 100, False, id="one byte too many"),
        pytest.param(100, 1, -5, False, id="more promised than there is"),
    ],
)
def test_the_head_of_the_queue_is_admitted_when_a_slot_and_its_memory_are_free(
    memory: int | None, free_slots: int, free_memory: int, admitted: bool
) -> None:
    assert admit(memory, free_slots, free_memory) is admitted
