"""A few places: who has one, who is next, and that none is lost."""

from hypothesis import given
from hypothesis import strategies as st

from ciworker.control.turns import Turns
from ciworker.domain.job import Job
from tests.store.lab import new_job

JOBS = [new_job(number, priority=number % 3) for number in range(6)]
RANKED = sorted(JOBS, key=lambda job: (-job.priority, job.id))


def test_the_next_are_the_highest_priority_then_the_oldest() -> None:
    turns = Turns(2)
    assert [turns.wait(job) for job in JOBS] == [True] * 6
    assert not turns.wait(JOBS[0])
    assert turns.next() == [job.id for job in RANKED[:2]]
    assert not turns.take(RANKED[2])
    assert turns.take(RANKED[1])
    assert turns.next() == [RANKED[0].id]
    assert turns.take(RANKED[0])
    assert turns.next() == []
    turns.give_back(RANKED[1])
    assert turns.leave(RANKED[2])
    assert not turns.leave(RANKED[2])
    assert turns.next() == [RANKED[3].id]


STEPS = st.lists(st.tuples(st.sampled_from(["wait", "go", "end", "leave"]), st.sampled_from(JOBS)))


@given(STEPS)
def test_however_they_come_and_go_no_place_is_lost_or_had_twice(
    steps: list[tuple[str, Job]],
) -> None:
    turns, waiting, held = Turns(2), set[str](), set[str]()
    for step, job in steps:
        if step == "wait" and job.id not in held:
            turns.wait(job)
            waiting.add(job.id)
        elif step == "go" and turns.take(job):
            waiting.remove(job.id)
            held.add(job.id)
        elif step == "end":
            turns.give_back(job)
            held.discard(job.id)
        elif step == "leave":
            turns.leave(job)
            waiting.discard(job.id)
        assert len(held) <= 2
        ranked = [one.id for one in RANKED if one.id in waiting]
        assert turns.next() == ranked[: 2 - len(held)]
