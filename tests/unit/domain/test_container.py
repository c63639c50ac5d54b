"""Whose a container is."""

import pytest

from ciworker.domain.container import owner_of
from ciworker.domain.pool import member_name

JOB = "01JZ8V4T0000000000000000ZZ"
POOL = {"ciworker.kind": "pool"}


def test_labels_say_so_whatever_the_name_is() -> None:
    labels = {"ciworker.kind": "job", "ciworker.job": JOB, "ciworker.attempt": "3"}
    assert owner_of(labels, f"ci-{'0' * 26}-1") == (JOB, 3)


def test_of_a_member_of_the_pool_the_name_does() -> None:
    assert owner_of(POOL, f"ci-{JOB.lower()}-2") == (JOB, 2)
    labels = {**POOL, "ciworker.job": "another", "ciworker.attempt": "9"}
    assert owner_of(labels, f"ci-{JOB.lower()}-2") == (JOB, 2)


@pytest.mark.parametrize(
    "name",
    [
        member_name("tea", 1, "instance"),
        member_name(JOB.lower(), 1, "instance"),
        f"ci-{JOB.lower()}",
        f"ci-{JOB.lower()}-",
        f"ci-{JOB.lower()}-1-2",
        f"x-ci-{JOB.lower()}-1",
        "",
    ],
)
def test_a_member_that_no_job_took_is_nobody_s(name: str) -> None:
    assert owner_of(POOL, name) == ("", 0)


def test_a_label_that_we_did_not_write_counts_as_attempt_0() -> None:
    assert owner_of({"ciworker.job": JOB, "ciworker.attempt": "x"}, "n") == (JOB, 0)
    assert owner_of({}, "n") == ("", 0)
