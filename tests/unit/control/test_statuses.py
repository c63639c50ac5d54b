"""Which jobs forges are told of, and how they are named beside their commit."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from ciworker.control.deliveries import Undeliverable
from ciworker.control.statuses import Statuses
from ciworker.domain.job import Git, Job
from ciworker.domain.webhook import Delivery, DeliveryKind, Message
from ciworker.settings import Settings
from ciworker.store.jobs import Jobs
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


class Stored:
    """Has one job."""

    def __init__(self, job: Job) -> None:
        self._job = job

    async def current(self, _: str) -> Job:
        return self._job


def message_of(job: Job) -> Delivery:
    message = Message(DeliveryKind.STATUS, "github.com", "job.queued", job.id, b"")
    return Delivery("msg_1", message, NOW, NOW)


@pytest.mark.parametrize("event", ["push", "pull_request"])
async def test_each_event_of_a_commit_has_a_status_of_its_own(
    statuses: Statuses, event: str
) -> None:
    job = git_job({"kind": "git", "hook": {"event": event}})
    request = await statuses.request(message_of(job), cast(Jobs, Stored(job)))
    assert request.url == f"https://api.github.com/repos/acme/tea/statuses/{COMMIT}"
    assert json.loads(request.body)["context"] == f"ciworker/{event}"


async def test_a_message_of_an_earlier_release_about_any_other_job_is_given_up(
    statuses: Statuses,
) -> None:
    job = git_job({"kind": "git"})
    with pytest.raises(Undeliverable, match="made by no hook"):
        await statuses.request(message_of(job), cast(Jobs, Stored(job)))
