"""Forges: who is one, what it says, and what it is told."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ciworker.domain.forge import (
    Change,
    Forge,
    HookEvent,
    api_of,
    change_of,
    delivery_id,
    hook_event,
    is_authentic,
    is_signed,
    signs_bodies,
    status_call,
    token_header,
)
from ciworker.domain.job import Reason, Status
from ciworker.domain.webhook import signature
from ciworker.errors import Invalid
from ciworker.units import key_of
from tests.forge import EVENTS, SECRETS, FromForge, delivery
from tests.receiver import SECRET
from tests.store.lab import new_job

COMMIT = "0123456789abcdef0123456789abcdef01234567"
BY_PUSH = {"kind": "git", "hook": {"event": "push"}}
NOW = 1_800_000_000.0


def means(sent: FromForge) -> Change | None:
    return change_of(sent.forge, sent.lower, sent.payload)


def authentic(sent: FromForge, secret: str, body: bytes | None = None, now: float = NOW) -> bool:
    return is_authentic(sent.forge, sent.lower, sent.body if body is None else body, secret, now)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("forge", Forge)
def test_a_recorded_delivery_means_its_commit(forge: Forge, event: str) -> None:
    sent = delivery(forge, event, COMMIT)
    branch = "main" if event == "push" else "topic"
    assert means(sent) == Change(HookEvent(event), "acme/tea", COMMIT, branch)
    assert delivery_id(forge, sent.lower) == sent.id


@pytest.mark.parametrize("forge", Forge)
def test_who_knows_the_secret_is_the_forge_and_nobody_else(forge: Forge) -> None:
    sent = delivery(forge, "push", COMMIT)
    assert is_signed(forge, sent.lower)
    assert authentic(sent, SECRETS[forge])
    assert not authentic(sent, "another")
    assert not authentic(sent.signed("another"), SECRETS[forge])
    assert not authentic(sent.signed(""), SECRETS[forge])
    sent.headers = {"Content-Type": "application/json"}
    assert not authentic(sent, SECRETS[forge])
    assert not is_signed(forge, sent.lower)


@pytest.mark.parametrize("forge", [Forge.GITHUB, Forge.FORGEJO])
def test_a_signature_covers_the_body(forge: Forge) -> None:
    sent = delivery(forge, "push", COMMIT)
    assert signs_bodies(forge, sent.lower)
    assert not authentic(sent, SECRETS[forge], sent.body + b" ")


def test_the_signature_of_github_is_that_of_its_documentation() -> None:
    headers = {
        "x-hub-signature-256": "sha256="
        "757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    }
    secret = "It's a Secret to Everybody"
    assert is_authentic(Forge.GITHUB, headers, b"Hello, World!", secret, NOW)


def gitlab_signed(at: float = NOW, secret: str = SECRET) -> FromForge:
    sent = delivery(Forge.GITLAB, "push", COMMIT)
    made = signature(key_of(secret), "msg_1", int(at), sent.body)
    sent.headers |= {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(at)),
        "webhook-signature": f"v1,bm9uc2Vuc2U= {made}",
    }
    return sent


def test_gitlabs_signing_token_is_one_of_standard_webhooks_and_old_ones_do_not_count() -> None:
    sent = gitlab_signed()
    assert is_signed(Forge.GITLAB, {"webhook-signature": sent.headers["webhook-signature"]})
    assert signs_bodies(Forge.GITLAB, sent.lower)
    assert not signs_bodies(Forge.GITLAB, delivery(Forge.GITLAB, "push", COMMIT).lower)
    assert authentic(sent, SECRET)
    assert authentic(sent, SECRET, now=NOW + 299)
    assert not authentic(sent, SECRET, now=NOW + 301)
    assert not authentic(sent, SECRET, now=NOW - 301)
    assert not authentic(sent, SECRET, sent.body + b" ")
    assert not authentic(sent, "whsec_nonsense")
    assert not authentic(sent, SECRETS[Forge.GITLAB])  # though the secret token is right


def test_a_signing_token_is_never_taken_for_a_secret_token() -> None:
    sent = delivery(Forge.GITLAB, "push", COMMIT).signed(SECRET)
    assert not authentic(sent, SECRET)


def fork(payload: dict[str, Any]) -> None:
    if "object_kind" in payload:
        payload["object_attributes"]["source_project_id"] = 16
    else:
        payload["pull_request"]["head"]["repo"] = {"full_name": "eve/tea"}


def deleted_fork(payload: dict[str, Any]) -> None:
    payload["pull_request"]["head"]["repo"] = None


@pytest.mark.parametrize(
    ("forge", "change"),
    [*((forge, fork) for forge in Forge), (Forge.GITHUB, deleted_fork)],
)
def test_a_commit_of_somebody_elses_repository_is_told_as_such(
    forge: Forge, change: Callable[[dict[str, Any]], None]
) -> None:
    found = means(delivery(forge, "pull_request", COMMIT, change))
    assert found is not None
    assert found.fork


def set_to(*path: str, value: object) -> Callable[[dict[str, Any]], None]:
    def change(payload: dict[str, Any]) -> None:
        for name in path[:-1]:
            payload = payload[name]
        payload[path[-1]] = value

    return change


def no_new_commits(payload: dict[str, Any]) -> None:
    del payload["object_attributes"]["oldrev"]


ZEROS = "0" * 40


@pytest.mark.parametrize(
    ("forge", "event", "change"),
    [
        (Forge.GITHUB, "push", set_to("after", value=ZEROS)),
        (Forge.FORGEJO, "push", set_to("after", value=ZEROS)),
        (Forge.GITLAB, "push", set_to("checkout_sha", value=None)),
        (Forge.GITHUB, "pull_request", set_to("action", value="closed")),
        (Forge.FORGEJO, "pull_request", set_to("action", value="label_updated")),
        (Forge.GITLAB, "pull_request", set_to("object_attributes", "action", value="merge")),
        (Forge.GITLAB, "pull_request", no_new_commits),
        (Forge.GITLAB, "push", set_to("object_kind", value="note")),
    ],
)
def test_what_brings_no_commit_means_nothing(
    forge: Forge, event: str, change: Callable[[dict[str, Any]], None]
) -> None:
    assert means(delivery(forge, event, COMMIT, change)) is None


@pytest.mark.parametrize("forge", [Forge.GITHUB, Forge.FORGEJO])
def test_other_events_mean_nothing(forge: Forge) -> None:
    sent = delivery(forge, "push", COMMIT)
    sent.event = "ping"
    assert means(sent.signed()) is None


@pytest.mark.parametrize("forge", Forge)
@pytest.mark.parametrize("commit", ["main", "--upload-pack=x", "", COMMIT[:10], 7])
def test_a_commit_that_is_none_is_refused(forge: Forge, commit: object) -> None:
    name = "checkout_sha" if forge is Forge.GITLAB else "after"
    sent = delivery(forge, "push", COMMIT, set_to(name, value=commit))
    if commit == "":
        assert means(sent) is None
    else:
        with pytest.raises(Invalid):
            means(sent)


@pytest.mark.parametrize("forge", Forge)
@pytest.mark.parametrize("payload", [[], {}, None, "x", {"object_kind": "push"}, {"ref": 1}])
def test_a_payload_that_is_none_is_refused(forge: Forge, payload: Any) -> None:
    sent = delivery(forge, "push", COMMIT)
    sent.payload = payload
    with pytest.raises(Invalid, match="it lacks"):
        means(sent)


PAGE = "https://ci.example.org/jobs/x"


@pytest.mark.parametrize(
    ("status", "reason", "states"),
    [
        (Status.STARTING, None, ("pending", "pending", "pending")),
        (Status.RUNNING, None, ("pending", "running", "pending")),
        (Status.COMPLETED, Reason.PASSED, ("success", "success", "success")),
        (Status.COMPLETED, Reason.TIMED_OUT, ("failure", "failed", "failure")),
        (Status.CANCELLED, Reason.CANCELLED, ("error", "canceled", "error")),
        (Status.FAILED, Reason.IMAGE_MISSING, ("error", "failed", "error")),
    ],
)
def test_each_forge_is_told_in_its_own_words(
    status: Status, reason: Reason | None, states: tuple[str, ...]
) -> None:
    job = replace(new_job(status=status, source=BY_PUSH), reason=reason, message="w" * 200)
    for forge, state in zip(Forge, states, strict=True):
        call = status_call(forge, "acme/tea", COMMIT, job, PAGE)
        assert call.body == {
            "state": state, "context": "ciworker/push", "target_url": PAGE,
            "description": "w" * 140,
        }  # fmt: skip
        assert "target_url" not in status_call(forge, "acme/tea", COMMIT, job, None).body


@pytest.mark.parametrize("event", HookEvent)
def test_what_made_a_job_names_its_status(event: HookEvent) -> None:
    """A push and a pull request of one commit do not fight over one status."""
    job = new_job(source={"kind": "git", "hook": {"event": event.value}})
    assert hook_event(job) is event
    body = status_call(Forge.GITHUB, "acme/tea", COMMIT, job, None).body
    assert body["context"] == f"ciworker/{event}"
    assert hook_event(new_job(source={"kind": "git"})) is None


def test_each_forge_is_asked_where_and_as_its_documentation_says() -> None:
    job = new_job(source=BY_PUSH)
    paths = {forge: status_call(forge, "acme/tea", COMMIT, job, None).path for forge in Forge}
    assert paths == {
        Forge.GITHUB: f"/repos/acme/tea/statuses/{COMMIT}",
        Forge.GITLAB: f"/projects/acme%2Ftea/statuses/{COMMIT}",
        Forge.FORGEJO: f"/repos/acme/tea/statuses/{COMMIT}",
    }
    assert api_of(Forge.GITHUB, "github.com") == "https://api.github.com"
    assert api_of(Forge.GITHUB, "ghe.example.org") == "https://ghe.example.org/api/v3"
    assert api_of(Forge.GITLAB, "g.example.org:8443") == "https://g.example.org:8443/api/v4"
    assert api_of(Forge.FORGEJO, "f.example.org") == "https://f.example.org/api/v1"
    assert token_header(Forge.GITHUB, "t") == {"Authorization": "Bearer t"}
    assert token_header(Forge.GITLAB, "t") == {"PRIVATE-TOKEN": "t"}
    assert token_header(Forge.FORGEJO, "t") == {"Authorization": "token t"}
