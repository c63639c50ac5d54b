"""Which jobs forges are told of, and how they are named beside their commit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ciworker.control.statuses import Statuses
from ciworker.domain.job import Git, Job
from ciworker.domain.webhook import DeliveryKind, Message
from ciworker.settings import Settings
from tests.store.lab import NOW, new_job

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HOOK = {"kind": "git", "hook": {"forge": "github", "event": "push", "branch": "main"}}
HOST = {"forge": "github", "status_token": "STATUS_TOKEN"}


@pytest.fixture
def statuses(tmp_path: Path) -> Statuses:
    return Statuses(Settings(data_dir=tmp_path, git_hosts={"github.com": HOST}), lambda _: "t")


def git_job(
    source: dict[str, Any], url: str = "https://github.com/acme/tea.git", **git: Any
) -> Job:
    job = new_job(source=source)
    return replace(job, spec=replace(job.spec, git=Git(url, "main", **{"commit": COMMIT, **git})))


def test_the_forge_is_told_of_what_its_hook_made_and_of_nothing_else(statuses: Statuses) -> None:
    told = Message(DeliveryKind.STATUS, "github.com", "job.queued", git_job(HOOK).id, b"")
    assert statuses.tell(git_job(HOOK), NOW) == [told]
    for job in (
        git_job({"kind": "git"}),
        git_job(HOOK, commit=None),
        git_job(HOOK, url="https://github.com:8443/acme/tea.git"),
        new_job(source={"kind": "upload"}),
    ):
        assert statuses.tell(job, NOW) == ()
