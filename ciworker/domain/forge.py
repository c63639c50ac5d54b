"""What GitHub, GitLab and Forgejo say of pushes and pull requests, and how they are answered: pure.

Signatures and payloads as their documentation has them:
https://docs.github.com/webhooks, https://docs.gitlab.com/user/project/integrations/webhook_events,
https://forgejo.org/docs/latest/user/webhooks. Statuses: `POST …/statuses/{commit}` of each's API.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple
from urllib.parse import quote

from ciworker.domain.git import is_commit
from ciworker.domain.job import Job, Status
from ciworker.domain.webhook import signature
from ciworker.errors import Invalid
from ciworker.units import KEY_PREFIX, key_of

TOLERANCE = 300  # seconds that a signed timestamp may differ from our clock: the scheme's own
CONTEXT = "ciworker"  # begins what a status is called beside others of its commit
MOST_DESCRIPTION = 140  # characters that GitHub takes


class Forge(StrEnum):
    GITHUB = "github"
    GITLAB = "gitlab"
    FORGEJO = "forgejo"


class HookEvent(StrEnum):
    PUSH = "push"
    PULL_REQUEST = "pull_request"  # a merge request too


@dataclass(frozen=True, slots=True)
class Change:
    """A commit that is to be built. repository: its path on the forge, lower case.

    branch: what was pushed, or is to be merged. fork: the commit comes from somebody else's
    repository.
    """

    event: HookEvent
    repository: str
    commit: str
    branch: str
    fork: bool = False


_EVENT_HEADERS = {
    Forge.GITHUB: ("x-github-event",),
    Forge.GITLAB: ("x-gitlab-event",),
    Forge.FORGEJO: ("x-forgejo-event", "x-gitea-event"),
}
_DELIVERY_HEADERS = {
    Forge.GITHUB: ("x-github-delivery",),
    Forge.GITLAB: ("idempotency-key", "x-gitlab-event-uuid"),
    Forge.FORGEJO: ("x-forgejo-delivery", "x-gitea-delivery"),
}
_SIGNATURE_HEADERS = {
    Forge.GITHUB: ("x-hub-signature-256",),
    Forge.GITLAB: ("webhook-signature", "x-gitlab-token"),
    Forge.FORGEJO: ("x-forgejo-signature", "x-gitea-signature"),
}
_NEW_COMMITS = {"opened", "open", "reopened", "reopen", "synchronize", "synchronized"}


def delivery_id(forge: Forge, headers: Mapping[str, str]) -> str | None:
    """Names a delivery, however often it is sent. headers: by lower-case name."""
    return _first(headers, _DELIVERY_HEADERS[forge])


def is_signed(forge: Forge, headers: Mapping[str, str]) -> bool:
    """Whether there is anything that may authenticate a delivery. headers: by lower-case name."""
    return _first(headers, _SIGNATURE_HEADERS[forge]) is not None


def signs_bodies(forge: Forge, headers: Mapping[str, str]) -> bool:
    """Whether what authenticates a delivery covers its body: GitLab's token does not."""
    return forge is not Forge.GITLAB or "webhook-signature" in headers


def is_authentic(
    forge: Forge, headers: Mapping[str, str], body: bytes, secret: str, now: float
) -> bool:
    """Whether who knows the secret sent this, compared in constant time.

    Args:
        forge: whose scheme it is.
        headers: by lower-case name.
        body: as it came.
        secret: the text that the forge was given.
        now: seconds since the epoch.
    """
    if forge is Forge.GITLAB:
        return _is_gitlabs(headers, body, secret, now)
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    wanted = f"sha256={digest}" if forge is Forge.GITHUB else digest
    return _same(wanted, _first(headers, _SIGNATURE_HEADERS[forge]))


def _is_gitlabs(headers: Mapping[str, str], body: bytes, secret: str, now: float) -> bool:
    """Its signing token is one of Standard Webhooks; its secret token is sent as it is."""
    if "webhook-signature" not in headers:
        return not secret.startswith(KEY_PREFIX) and _same(secret, headers.get("x-gitlab-token"))
    try:
        key, at = key_of(secret), int(headers.get("webhook-timestamp", ""))
    except ValueError:
        return False
    wanted = signature(key, headers.get("webhook-id", ""), at, body)
    found = [_same(wanted, given) for given in headers["webhook-signature"].split(" ")]
    return any(found) and abs(now - at) <= TOLERANCE


def _same(wanted: str, given: str | None) -> bool:
    return hmac.compare_digest(wanted.encode(), (given or "").encode(errors="replace"))


def _first(headers: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    return next((headers[name] for name in names if headers.get(name)), None)


def change_of(forge: Forge, headers: Mapping[str, str], payload: Any) -> Change | None:
    """What a delivery means; None: nothing that is to be built.

    Raises:
        Invalid: it is not as the forge's documentation has it.
    """
    event = (_first(headers, _EVENT_HEADERS[forge]) or "").lower()
    try:
        if forge is Forge.GITLAB:
            return _gitlab_change(payload)
        if event == "push":
            return _push(payload["repository"]["full_name"], payload["ref"], payload["after"])
        return _pull_request(payload) if event == "pull_request" else None
    except (KeyError, TypeError, AttributeError) as error:
        raise Invalid(f"this is no {forge} delivery: it lacks {error}") from error


def _push(repository: str, ref: str, commit: str | None) -> Change | None:
    """None where a branch or tag was deleted."""
    if commit is None or not commit.strip("0"):
        return None
    branch = ref.removeprefix("refs/heads/").removeprefix("refs/tags/")
    return _change(HookEvent.PUSH, repository, commit, branch)


def _pull_request(payload: Any) -> Change | None:
    if payload["action"] not in _NEW_COMMITS:
        return None
    repository, head = payload["repository"]["full_name"], payload["pull_request"]["head"]
    origin = (head.get("repo") or {}).get("full_name")  # none where the fork was deleted
    return _change(
        HookEvent.PULL_REQUEST, repository, head["sha"], head["ref"], fork=origin != repository
    )


def _gitlab_change(payload: Any) -> Change | None:
    kind = payload["object_kind"]
    if kind in {"push", "tag_push"}:
        repository = payload["project"]["path_with_namespace"]
        return _push(repository, payload["ref"], payload["checkout_sha"])
    if kind != "merge_request":
        return None
    request = payload["object_attributes"]
    action = request.get("action")
    if action not in _NEW_COMMITS and not (action == "update" and "oldrev" in request):
        return None
    return _change(
        HookEvent.PULL_REQUEST,
        payload["project"]["path_with_namespace"],
        request["last_commit"]["id"],
        request["source_branch"],
        fork=request["source_project_id"] != request["target_project_id"],
    )


def _change(
    event: HookEvent, repository: str, commit: str, branch: str, *, fork: bool = False
) -> Change:
    if not is_commit(commit):
        raise Invalid("the delivery names no whole commit id")
    return Change(event, repository.lower(), commit, str(branch), fork)


def hook_event(job: Job) -> HookEvent | None:
    """What made the job; None where no hook did."""
    hook = job.source.get("hook")
    return HookEvent(hook["event"]) if isinstance(hook, Mapping) else None


class StatusCall(NamedTuple):
    """A POST of JSON. path: below the API's address."""

    path: str
    body: Mapping[str, str]


_STATES: Mapping[Status, str] = {
    Status.QUEUED: "pending",
    Status.STARTING: "pending",
    Status.RUNNING: "pending",
    Status.CANCELLED: "error",
    Status.FAILED: "error",
}
_GITLAB_STATES: Mapping[Status, str] = {
    Status.RUNNING: "running",
    Status.CANCELLED: "canceled",
    Status.FAILED: "failed",
}


def api_of(forge: Forge, place: str) -> str:
    """Where the forge at this host, and port, has its API."""
    if forge is Forge.GITHUB:
        return "https://api.github.com" if place == "github.com" else f"https://{place}/api/v3"
    return f"https://{place}/api/{'v4' if forge is Forge.GITLAB else 'v1'}"


def status_call(
    forge: Forge, repository: str, commit: str, job: Job, page: str | None
) -> StatusCall:
    """What tells the forge how a job of this commit stands.

    A push and a pull request of one commit are two jobs, and each has a status of its own.

    Args:
        forge: who is told.
        repository: its path there.
        commit: the whole id.
        job: as it is now; made by a hook.
        page: the address of the job's page, if it has a public one.
    """
    link = {"target_url": page} if page else {}
    description = (job.message or job.status.value)[:MOST_DESCRIPTION]
    event = hook_event(job)
    assert event is not None
    context = f"{CONTEXT}/{event}"
    body = {"state": _state(forge, job), "context": context, "description": description, **link}
    if forge is Forge.GITLAB:
        return StatusCall(f"/projects/{quote(repository, safe='')}/statuses/{commit}", body)
    return StatusCall(f"/repos/{quote(repository)}/statuses/{commit}", body)


def token_header(forge: Forge, token: str) -> Mapping[str, str]:
    """How a token that may set statuses is sent."""
    if forge is Forge.GITLAB:
        return {"PRIVATE-TOKEN": token}
    return {"Authorization": f"{'Bearer' if forge is Forge.GITHUB else 'token'} {token}"}


def _state(forge: Forge, job: Job) -> str:
    if job.status is Status.COMPLETED:
        failed = "failed" if forge is Forge.GITLAB else "failure"
        return "success" if job.success else failed
    own = _GITLAB_STATES if forge is Forge.GITLAB else {}
    return own.get(job.status, _STATES[job.status])
