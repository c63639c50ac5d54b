"""What a job's own script tells the project's build backend; that it runs, e2e tests show."""

import json
import re
import shlex
from typing import Any

import pytest

from ciworker.domain.job import Backend
from ciworker.domain.mark import marks_of
from ciworker.domain.version import NO_VERSION
from ciworker.source.shim import run_script

MARKS = marks_of("token", "01J", 1)
GIT = {"commit": "abcdef1234567890abcdef1234567890abcdef12", "describe": "v1.2.3"}


def plan_in(script: bytes) -> dict[str, Any]:
    (line,) = re.findall(rb"^.*project\.py install .*$", script, re.MULTILINE)
    plan: dict[str, Any] = json.loads(shlex.split(line.decode())[-1])
    return plan


def test_a_job_without_a_backend_installs_nothing() -> None:
    assert b"project.py" not in run_script("true", {}, MARKS, vcs=GIT)


@pytest.mark.parametrize(("vcs", "version"), [(GIT, "1.2.3"), ({}, NO_VERSION), (None, NO_VERSION)])
def test_a_backend_is_told_a_version_and_whether_it_is_the_real_one(
    vcs: dict[str, object] | None, version: str
) -> None:
    plan = plan_in(run_script("true", {}, MARKS, Backend("a'b", ("c d",), "x"), vcs))
    assert plan["backend"] == "a'b"
    assert plan["path"] == ["c d"]
    assert plan["known"] is (version != NO_VERSION)
    assert plan["variables"]["SETUPTOOLS_SCM_PRETEND_VERSION_FOR_X"] == version


def test_a_version_that_the_job_sets_itself_is_left_to_it() -> None:
    plan = plan_in(run_script("true", {"PBR_VERSION": "9"}, MARKS, Backend("b"), GIT))
    assert "PBR_VERSION" not in plan["variables"]
    assert plan["variables"]["PDM_BUILD_SCM_VERSION"] == "1.2.3"
