"""Pushes and pull requests of forges make jobs, once; and their forges are told how those stand."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from ciworker.domain.forge import Forge
from ciworker.web.hooks import MOST_BODY
from tests.driver import DEADLINE, Worker, command
from tests.e2e.conftest import running
from tests.forge import EVENTS, SECRETS, FromForge, delivery
from tests.gitjobs import post
from tests.gitservers import Authority, Https, https
from tests.receiver import Receiver, receiving
from tests.repositories import Made, made

pytestmark = pytest.mark.asyncio(loop_scope="module")

PUBLIC = "https://ci.example.org"
TOKEN = "canary-of-a-token-9c2b"
LEAF = "canary-of-a-leaf-77f1"
WRONG_ONES = 20  # that an address may send at once
FILES = {
    "leaf.txt": "oolong\n",
    ".ciworker.toml": 'run = "cat leaf.txt; echo $GIT_COMMIT; exit 3"\n',
}


class Trusted(Worker):
    """A worker whose environment has the values of secrets."""

    @property
    def environment(self) -> dict[str, str]:
        named = {f"{forge.name}_HOOK": secret for forge, secret in SECRETS.items()}
        return super().environment | named | {"STATUS_TOKEN": TOKEN, "LEAF": LEAF}


@dataclass
class Tea:
    """A worker, a repository that it may fetch, and who is told of its commits."""

    worker: Worker
    https: Https
    repository: Made
    api: Receiver

    async def send(self, sent: FromForge, body: bytes | None = None) -> tuple[int, Any]:
        """As the forge does, without a token."""
        status, _, answer = await self.sent(sent, body)
        return status, answer

    async def sent(
        self, sent: FromForge, body: bytes | None = None, client: str | None = None
    ) -> tuple[int, Mapping[str, str], Any]:
        """Status, headers and body of the answer; client: whom a proxy tells that it came from."""
        told = {"X-Forwarded-For": client} if client else {}
        async with self.worker.session.post(
            f"/api/v1/hooks/{sent.forge}",
            headers=sent.headers | told,
            data=io.BytesIO(body or sent.body),
        ) as answer:
            return answer.status, answer.headers, await answer.json(content_type=None)

    async def delivery(
        self, job: str, state: str, wanted: Callable[[dict[str, Any]], object]
    ) -> dict[str, Any]:
        """A message about this job, once there is one as wanted."""
        async with asyncio.timeout(DEADLINE):
            while True:
                _, page = await self.worker.call("GET", f"/webhooks/deliveries?state={state}")
                for item in page["items"]:
                    if item["job"] == job and wanted(item):
                        found: dict[str, Any] = item
                        return found
                await asyncio.sleep(0.05)

    async def made(self) -> int:
        """How many jobs there are."""
        _, page = await self.worker.call("GET", "/jobs?limit=500")
        return len(page["items"])


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def tea(tmp_path_factory: pytest.TempPathFactory, image: str) -> AsyncIterator[Tea]:
    folder = tmp_path_factory.mktemp("tea")
    root = folder / "served"
    (root / "acme").mkdir(parents=True)
    repository = made(root / "acme")
    repository.commit(FILES)
    authority = Authority.made(folder / "authority")
    async with https(root, authority, "none") as served, receiving() as api:
        worker = Trusted(folder / "worker", settings(folder, image, served, authority, api))
        async with running(worker):
            yield Tea(worker, served, repository, api)
            log = worker.log.read_text()
            assert "Traceback" not in log
            assert not [secret for secret in (*SECRETS.values(), TOKEN, LEAF) if secret in log]


def settings(
    folder: Path, image: str, served: Https, authority: Authority, api: Receiver
) -> dict[str, str]:
    url = served.url("acme/tea.git")
    rules = [
        {
            "forge": forge,
            "repository": url,
            "secret": f"{forge.name}_HOOK",
            "project": f"by-{forge}",
            "secrets": ["LEAF"] if forge is Forge.GITHUB else [],
            "forks": forge is not Forge.FORGEJO,
        }
        for forge in Forge
    ]
    host = {
        "ca_file": str(authority.file),
        "forge": "github",
        "api": f"http://127.0.0.1:{api.port}",
        "status_token": "STATUS_TOKEN",
    }
    return {
        "default_image": image,
        "public_url": PUBLIC,
        "trusted_proxies": json.dumps(["127.0.0.1"]),
        "failed_token_rate": f"{WRONG_ONES}/h",
        "hooks": json.dumps(rules),
        "secret_names": json.dumps([{"name": "LEAF", "roles": ["admin"]}]),
        "git_hosts": json.dumps({served.place: host}),
        "git_allowed_addresses": json.dumps(["127.0.0.0/8", "::1"]),
    }


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("forge", Forge)
async def test_a_recorded_delivery_makes_one_job_and_a_replay_none(
    tea: Tea, forge: Forge, event: str
) -> None:
    commit = tea.repository.commit({**FILES, "more.txt": f"{forge} {event}\n"})
    sent = delivery(forge, event, commit)
    sent.id = f"{forge}-{event}"
    before = await tea.made()

    status, wrong = await tea.send(delivery(forge, event, commit).signed("wrong"))
    assert status == 401
    assert "no rule of the setting hooks has this" in wrong["detail"]
    status, answer = await tea.send(sent.signed())
    assert (status, answer["message"]) == (202, None)
    (job_id,) = answer["jobs"]
    assert await tea.send(sent) == (202, {"jobs": [job_id], "message": None})
    assert await tea.made() == before + 1

    job = await tea.worker.wait(job_id)
    assert (job["reason"], job["exit_code"]) == ("tests_failed", 3), job
    assert (job["project"], job["spec"]["git"]["commit"]) == (f"by-{forge}", commit)
    branch = "main" if event == "push" else "topic"
    assert job["source"]["hook"] == {
        "forge": forge, "event": event, "branch": branch, "fork": False,
    }  # fmt: skip
    assert (await tea.worker.text(job_id)).endswith(f"oolong\n{commit}\n".encode())


@pytest.mark.parametrize("forge", [Forge.GITHUB, Forge.FORGEJO])
async def test_a_replay_under_another_delivery_id_makes_none(tea: Tea, forge: Forge) -> None:
    sent = delivery(forge, "push", tea.repository.commit({"x": f"again {forge}"}))
    sent.id = f"{forge}-once"
    _, first = await tea.send(sent.signed())
    sent.id = f"{forge}-twice"
    before = await tea.made()
    assert await tea.send(sent.signed()) == (202, first)
    assert await tea.made() == before


ASKING = {".ciworker.toml": 'secrets = ["LEAF"]\nrun = "echo ${#LEAF}; echo $LEAF; exit 3"\n'}


async def test_jobs_of_a_hook_have_the_secrets_that_its_rule_names(tea: Tea) -> None:
    commit = tea.repository.commit(ASKING)
    _, answer = await tea.send(delivery(Forge.GITHUB, "push", commit))
    job = await tea.worker.wait(answer["jobs"][0])
    assert (job["reason"], job["spec"]["secrets"]) == ("tests_failed", ["LEAF"])
    assert (await tea.worker.text(job["id"])).endswith(f"{len(LEAF)}\n***\n".encode())


@pytest.mark.parametrize("forge", [Forge.GITHUB, Forge.GITLAB])
async def test_a_forks_commit_has_no_secrets_nor_has_one_of_a_rule_that_names_none(
    tea: Tea, forge: Forge
) -> None:
    commit = tea.repository.commit({**ASKING, "more.txt": f"{forge}\n"})
    if forge is Forge.GITHUB:
        sent = delivery(forge, "pull_request", commit, from_a_fork)
    else:
        sent = delivery(forge, "push", commit)
    _, answer = await tea.send(sent)
    job = await tea.worker.wait(answer["jobs"][0])
    assert job["reason"] == "source_failed"
    assert "the secret LEAF is not for jobs of this hook" in job["message"]


@pytest.mark.parametrize(("role", "reason"), [("submit", "source_failed"), ("admin", "passed")])
async def test_who_submits_a_repository_decides_which_secrets_its_job_file_may_name(
    tea: Tea, role: str, reason: str
) -> None:
    tea.repository.commit({".ciworker.toml": 'secrets = ["LEAF"]\nrun = "test -n $LEAF"\n'})
    _, made = await tea.worker.call("POST", "/tokens", json={"name": f"of-{role}", "role": role})
    headers = {"Authorization": f"Bearer {made['token']}"}
    wanted = {"url": tea.https.url("acme/tea.git"), "ref": "HEAD"}
    job_id = await submitted(tea.worker, {"git": wanted}, headers)
    job = await tea.worker.wait(job_id)
    assert job["reason"] == reason, job
    if reason == "source_failed":
        assert "not for jobs of a token with the role submit" in job["message"]


async def submitted(worker: Worker, spec: dict[str, Any], headers: dict[str, str]) -> str:
    with aiohttp.MultipartWriter("form-data") as form:
        part = form.append_json(spec)
        part.set_content_disposition("form-data", name="spec")
        async with worker.session.post("/api/v1/jobs", headers=headers, data=form) as answer:
            made = await answer.json()
    assert answer.status == 201, made
    return str(made["id"])


async def test_many_copies_at_once_make_one_job(tea: Tea) -> None:
    sent = delivery(Forge.GITHUB, "push", tea.repository.commit({"x": "at once"}))
    before = await tea.made()
    answers = await asyncio.gather(*(tea.send(sent) for _ in range(8)))
    assert len({(status, *answer["jobs"]) for status, answer in answers}) == 1
    assert await tea.made() == before + 1


def other_repository(payload: dict[str, Any]) -> None:
    payload["repository"]["full_name"] = "acme/coffee"


def deleted(payload: dict[str, Any]) -> None:
    payload |= {"deleted": True, "after": "0" * 40}


def from_a_fork(payload: dict[str, Any]) -> None:
    payload["pull_request"]["head"]["repo"] = {"full_name": "eve/tea"}


@pytest.mark.parametrize(
    ("event", "change"),
    [("push", other_repository), ("push", deleted), ("pull_request", from_a_fork)],
)
async def test_what_no_rule_wants_makes_none(tea: Tea, event: str, change: Any) -> None:
    before = await tea.made()
    status, answer = await tea.send(delivery(Forge.FORGEJO, event, "a" * 40, change))
    assert (status, answer["jobs"]) == (200, [])
    assert "no rule wants it" in answer["message"]
    assert await tea.made() == before


@pytest.mark.attacks(37)
async def test_too_many_wrong_signatures_of_an_address_are_429_and_a_good_one_is_let_in(
    tea: Tea,
) -> None:
    """As forges send from the same addresses for everybody, nobody locks another's out."""
    made_before, client = await tea.made(), "198.51.100.1"
    for at in range(WRONG_ONES):
        wrong = delivery(list(Forge)[at % 3], "push", "a" * 40).signed("wrong")
        assert (await tea.sent(wrong, client=client))[0] == 401
    wrong = delivery(Forge.GITLAB, "push", "a" * 40).signed("wrong")
    status, headers, problem = await tea.sent(wrong, client=client)
    assert status == 429
    assert 0 < int(headers["Retry-After"]) <= 3600 // WRONG_ONES
    assert f"too many deliveries with a wrong signature came from {client}" in problem["detail"]
    token = {"Authorization": "Bearer ciw_a_b", "X-Forwarded-For": client}
    assert (await tea.worker.call("GET", "/jobs", headers=token))[0] == 429
    good = delivery(Forge.GITHUB, "push", "a" * 40, other_repository)
    assert (await tea.sent(good, client=client))[0] == 200
    assert (await tea.sent(wrong, client="198.51.100.2"))[0] == 401
    assert await tea.made() == made_before


async def test_what_is_no_delivery_is_refused_in_words(tea: Tea) -> None:
    good = delivery(Forge.GITHUB, "push", "a" * 40)
    status, problem = await tea.send(good, good.body + b" ")
    assert status == 401
    status, problem = await tea.send(good, b"x" * (MOST_BODY + 1))
    assert (status, "a delivery may have" in problem["detail"]) == (413, True)
    empty = delivery(Forge.GITHUB, "push", "a" * 40, dict.clear)
    status, problem = await tea.send(empty)
    assert (status, problem["detail"]) == (422, "this is no github delivery: it lacks 'repository'")
    good.headers["Content-Type"] = "application/x-www-form-urlencoded"
    status, problem = await tea.send(good)
    assert (status, problem["detail"]) == (415, "have the forge send application/json")
    async with tea.worker.session.post("/api/v1/hooks/svn", data=b"{}") as answer:
        assert answer.status == 404
        assert "github, gitlab, forgejo" in await answer.text()


@pytest.mark.parametrize("forge", Forge)
async def test_of_what_nobody_signed_no_body_is_read(tea: Tea, forge: Forge) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", tea.worker.port)
    try:
        writer.write(
            f"POST /api/v1/hooks/{forge} HTTP/1.1\r\nHost: 127.0.0.1:{tea.worker.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {MOST_BODY}\r\n\r\n{{".encode()
        )
        async with asyncio.timeout(DEADLINE):
            answer = await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.close()
    assert answer.startswith(b"HTTP/1.1 401 ")


async def test_the_forge_is_told_how_the_commits_job_stands(tea: Tea) -> None:
    commit = tea.repository.commit({**FILES, "more.txt": "told"})
    _, answer = await tea.send(delivery(Forge.GITHUB, "push", commit))
    job = await tea.worker.wait(answer["jobs"][0])
    path = f"/repos/acme/tea/statuses/{commit}"
    got = await tea.api.until(
        lambda got: [r for r in got if r.path == path and r.json["state"] == "failure"] != []
    )
    told = [request for request in got if request.path == path]
    assert {request.json["state"] for request in told} <= {"pending", "failure"}
    last = told[-1]
    assert last.json == {
        "state": "failure",
        "context": "ciworker/push",
        "description": job["message"],
        "target_url": f"{PUBLIC}/jobs/{job['id']}",
    }
    assert last.headers["authorization"] == f"Bearer {TOKEN}"


async def test_a_job_of_the_same_commit_that_no_hook_made_is_told_nobody(tea: Tea) -> None:
    commit = tea.repository.commit({**FILES, "more.txt": "by a token"})
    wanted = {"git": {"url": tea.https.url("acme/tea.git"), "ref": commit}, "run": "true"}
    _, made = await post(tea.worker, wanted)
    job = await tea.worker.wait(made["id"])
    assert (job["reason"], job["spec"]["git"]["commit"]) == ("passed", commit)
    _, answer = await tea.send(delivery(Forge.GITHUB, "push", commit))
    by_hook = await tea.worker.wait(answer["jobs"][0])
    _, page = await tea.worker.call("GET", "/webhooks/deliveries?limit=500")
    told = {item["job"] for item in page["items"]}
    assert told & {job["id"], by_hook["id"]} == {by_hook["id"]}


async def test_a_status_that_was_held_up_says_how_the_job_stands_by_then(tea: Tea) -> None:
    commit = tea.repository.commit({**FILES, "more.txt": "held up"})
    path = f"/repos/acme/tea/statuses/{commit}"
    await tea.api.down()
    try:
        _, answer = await tea.send(delivery(Forge.GITHUB, "push", commit))
        await tea.worker.wait(answer["jobs"][0])
        waiting = await tea.delivery(answer["jobs"][0], "pending", lambda item: item["error"])
        assert TOKEN not in json.dumps(waiting)
        _, out, _ = await command("ciworker", "doctor", env=tea.worker.environment)
        assert f"FAIL  statuses at {tea.https.place}: " in out.decode()
    finally:
        await tea.api.up()
    await tea.api.until(lambda got: len([r for r in got if r.path == path]) >= 2)
    assert {r.json["state"] for r in tea.api.got if r.path == path} == {"failure"}


async def test_a_status_that_the_forge_refuses_for_good_is_given_up(tea: Tea) -> None:
    tea.api.status = 422
    try:
        commit = tea.repository.commit({**FILES, "more.txt": "refused"})
        _, answer = await tea.send(delivery(Forge.GITHUB, "push", commit))
        await tea.worker.wait(answer["jobs"][0])
        await tea.api.until(lambda got: commit in got[-1].path if got else False)
    finally:
        tea.api.status = 204
    found = await tea.delivery(answer["jobs"][0], "given_up", lambda _: True)
    assert (found["kind"], found["answer"]) == ("status", 422)
    assert found["error"] == "the receiver answered 422: it takes no such message"


async def test_doctor_tells_of_a_token_that_the_forge_shows_no_repository_to(tea: Tea) -> None:
    """Such a status is given up at once: the forge says 404, as of a commit that is not there."""
    tea.api.status = 404
    try:
        commit = tea.repository.commit({**FILES, "more.txt": "not shown"})
        _, answer = await tea.send(delivery(Forge.GITHUB, "push", commit))
        await tea.delivery(answer["jobs"][0], "given_up", lambda _: True)
        await tea.worker.wait(answer["jobs"][0])
    finally:
        tea.api.status = 204
    _, out, _ = await command("ciworker", "doctor", env=tea.worker.environment)
    assert f"FAIL  statuses at {tea.https.place}: " in out.decode()
    assert "the receiver answered 404" in out.decode()


async def test_a_rule_whose_repository_cannot_be_fetched_starts_no_worker(tea: Tea) -> None:
    rule = {"forge": "github", "repository": "ext::sh -c x", "secret": "X"}
    env = tea.worker.environment | {"CIWORKER_HOOKS": json.dumps([rule])}
    code, _, err = await command("ciworker", "serve", env=env)
    assert code == 2
    assert err.decode().startswith("ciworker: setting hooks: url in git has to be https://")
