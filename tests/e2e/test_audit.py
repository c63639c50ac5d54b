"""Who did what: by every route that changes something, from where, without secrets."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ciworker.domain.forge import Forge
from ciworker.store.audit import Action
from ciworker.web.models import AuditEntry
from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, command, tree
from tests.e2e.conftest import running
from tests.e2e.raw import FORM, ask, form
from tests.e2e.test_access import new_token
from tests.e2e.test_route_walk import DEEDS, SIGNED, Route
from tests.e2e.visitor import code_of, cookie_of, given, log_in, log_out, press
from tests.forge import SECRETS, delivery
from tests.receiver import SECRET, Receiver, receiving

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"trusted_proxies": json.dumps(["127.0.0.1"]), "max_jobs": "1"}
ADDRESS = "198.51.100.1"
CLIENT = {"X-Forwarded-For": ADDRESS}
NOTHING = (
    ("DELETE", "/tokens/nobody", 404),
    ("DELETE", "/drain", 200),
    ("POST", "/webhooks/test", 404),
    ("POST", "/webhooks/deliveries/msg_x/redeliver", 404),
)


async def entries(worker: Worker, query: str = "") -> list[dict[str, Any]]:
    status, page = await worker.call("GET", f"/audit{query}")
    assert status == 200, page
    items: list[dict[str, Any]] = page["items"]
    for item in items:
        assert set(item) == set(AuditEntry.model_fields)
    return items


@dataclass
class Doer:
    """Somebody who does everything, by a token and from an address of their own. done: routes."""

    worker: Worker
    token: Mapping[str, Any]
    done: list[Route] = field(default_factory=list)

    async def does(self, method: str, path: str, status: int, **more: Any) -> Any:
        """Ask a route under /api/v1, by its path there; id: what for."""
        self.done.append((method, f"/api/v1{path}"))
        own = CLIENT | {"Authorization": f"Bearer {self.token['token']}"} | more.pop("headers", {})
        where = path.format(id=more.pop("id", ""))
        found, body = await self.worker.call(method, where, headers=own, **more)
        assert found == status, body
        return body


@pytest_asyncio.fixture(loop_scope="module")
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def doer(
    tmp_path: Path, image: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Doer]:
    """At a worker that has something of everything."""
    monkeypatch.setenv("HOOK", SECRETS[Forge.GITHUB])
    rule = {"forge": "github", "repository": "https://localhost/acme/tea.git", "secret": "HOOK"}
    settings = SETTINGS | {
        "default_image": image,
        "hooks": json.dumps([rule]),
        "webhooks": json.dumps([{"name": "tea", "url": receiver.url, "secret": SECRET}]),
        "public_url": "https://ci.example.org",
    }
    async with running(Worker(tmp_path / "worker", settings)) as worker:
        yield Doer(worker, await new_token(worker, "admin"))


async def test_every_writing_route_leaves_who_what_and_from_where(
    doer: Doer, receiver: Receiver
) -> None:
    worker, does = doer.worker, doer.does
    spec = {"run": "true", "setup": ["true"]}
    body, kind = form(tree({"x": "x"}), spec), {"Content-Type": FORM}
    job = await does("POST", "/jobs", 201, headers=kind, data=body)
    assert (await worker.wait(job["id"]))["reason"] == "passed"
    await worker.nothing_left()
    _, found = await worker.call("GET", "/environments")
    key = found["items"][0]["key"]
    await does("DELETE", "/environments/{id}", 200, id=key)
    await does("POST", "/environments/prune", 200)

    plain = (await worker.run("true"))["id"]
    holding = await worker.submit("sleep 3600", timeout="2h")
    await worker.wait(holding, "running")  # a worker without jobs would end of the drain
    retried = (await does("POST", "/jobs/{id}/retry", 202, id=plain))["id"]
    await does("POST", "/jobs/{id}/cancel", 202, id=retried)
    await does("POST", "/resync", 200)
    await does("POST", "/drain", 200)
    await does("DELETE", "/drain", 200)
    await does("POST", "/pool/down", 200)
    await does("POST", "/pool/up", 200)

    receiver.status = 410  # given up at once
    (sent,) = (await does("POST", "/webhooks/test", 202, json={}))["items"]
    async with asyncio.timeout(DEADLINE):
        while sent["state"] == "pending":
            await asyncio.sleep(0.02)
            _, sent = await worker.call("GET", f"/webhooks/deliveries/{sent['id']}")
    await does("POST", "/webhooks/deliveries/{id}/redeliver", 202, id=sent["id"])

    made = await does("POST", "/tokens", 201, json={"name": "coffee", "role": "read"})
    await does("DELETE", "/tokens/{id}", 204, id=made["id"])
    code = code_of((await does("POST", "/login-codes", 201, json={}))["url"])
    doer.done += [("POST", "/login"), ("POST", "/logout"), SIGNED]
    cookie = given(await press(worker, code, CLIENT))
    await log_out(worker, cookie | CLIENT)
    pushed = delivery(Forge.GITHUB, "push", "5e" * 20)
    target = "/api/v1/hooks/github"
    hooked = await ask(worker, "POST", target, pushed.headers | CLIENT, pushed.body)
    assert hooked.status == 202, hooked.body

    told = [item for item in reversed(await entries(worker)) if item["address"] == ADDRESS]
    assert set(doer.done) == set(DEEDS)
    assert [item["action"] for item in told] == [DEEDS[each] for each in doer.done if DEEDS[each]]
    *by_token, by_hook = told
    assert {(item["by"], item["token_id"]) for item in by_token} == {("a admin", doer.token["id"])}
    (hook_job,) = json.loads(hooked.body)["jobs"]
    assert (by_hook["by"], by_hook["token_id"]) == ("hook:github", None)
    session = cookie_of(cookie).partition("_")[0]
    assert [item["subject"] for item in told] == [
        job["id"], key, "", retried, retried, "", "", "", "", "",
        "tea", sent["id"], made["id"], made["id"], session, session, hook_job,
    ]  # fmt: skip
    assert next(item for item in told if item["action"] == "retry")["detail"] == f"of {plain}"
    text = json.dumps(await entries(worker))
    tokens = [each.split("_", 2)[2] for each in (doer.token["token"], made["token"], worker.token)]
    assert not [secret for secret in (*tokens, code, SECRET) if secret in text]
    (submitted,) = [item for item in await entries(worker) if item["subject"] == plain]
    assert (submitted["by"], submitted["address"]) == ("first admin", "127.0.0.1")


async def test_what_is_refused_or_changes_nothing_leaves_nothing(shared: Worker) -> None:
    reader = await new_token(shared, "read")
    before = await entries(shared)
    headers = {"Authorization": f"Bearer {reader['token']}"}
    for method, path in (("POST", "/resync"), ("POST", "/tokens"), ("DELETE", "/tokens/x")):
        assert (await shared.call(method, path, headers=headers))[0] == 403
    assert (await shared.post(b"nonsense"))[0] == 422
    for method, path, status in NOTHING:
        assert (await shared.call(method, path, json={"name": "pot"}))[0] == status, path
    assert (await shared.call("GET", "/jobs"))[0] == 200
    assert await entries(shared) == before


async def test_a_drain_that_is_asked_for_twice_is_told_once(shared: Worker) -> None:
    holding = await shared.submit("sleep 3600", timeout="2h")
    await shared.wait(holding, "running")  # a worker without jobs would end of the drain
    for method in ("POST", "DELETE"):
        for _ in range(2):
            assert (await shared.call(method, "/drain"))[0] == 200
    assert [item["action"] for item in await entries(shared, "?limit=3")] == [
        "undo drain", "drain", "submit",
    ]  # fmt: skip
    await shared.call("POST", f"/jobs/{holding}/cancel")
    await shared.wait(holding)


async def test_log_in_and_log_out_are_told_with_the_session(shared: Worker) -> None:
    cookie = await log_in(shared)
    await log_out(shared, cookie)
    session = cookie_of(cookie).partition("_")[0]
    over, begun = [item for item in await entries(shared) if item["subject"] == session]
    assert [over["action"], begun["action"]] == ["log out", "log in"]
    assert cookie_of(cookie).partition("_")[2] not in json.dumps([over, begun])


async def test_pages_and_since(shared: Worker) -> None:
    for _ in range(5):
        assert (await shared.call("POST", "/resync"))[0] == 200
    everything = await entries(shared, "?limit=500")
    met, query = [], "?limit=2"
    while True:
        _, page = await shared.call("GET", f"/audit{query}")
        met += page["items"]
        if page["next"] is None:
            break
        query = f"?limit=2&cursor={page['next']}"
    assert met == everything
    since = everything[2]["at"]
    recent = await entries(shared, f"?since={since}")
    assert recent == [item for item in everything if item["at"] >= since]


@pytest.mark.parametrize(
    "query",
    ["since=soon", "since=", "limit=0", "limit=501", "cursor=x", "cursor=1", "cursor=-1.x",
     "cursor=99999999999999999999999.1", "since=0001-01-01T00:00:00%2B14:00", "limit=2&limit=3"],
)  # fmt: skip
async def test_a_query_that_is_wrong_is_422(shared: Worker, query: str) -> None:
    answer = await ask(shared, "GET", f"/api/v1/audit?{query}", shared.headers)
    assert (answer.status, query[:5] in answer.problem) == (422, True)


async def test_the_operator_reads_it_of_a_worker_that_runs_or_is_stopped(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker()
    await worker.start()
    for name in ("one", "two"):
        made = ("ciworker", "token", "create", name)
        assert (await command(*made, env=worker.environment))[0] == 0
    running = await command("ciworker", "audit", "--json", env=worker.environment)
    await worker.stop()
    assert (await command("ciworker", "token", "create", "three", env=worker.environment))[0] == 0
    code, out, _ = await command("ciworker", "audit", "--json", env=worker.environment)
    items = json.loads(out)
    assert (running[0], code) == (0, 0)
    assert items[1:] == json.loads(running[1])
    assert [item["detail"] for item in items] == [
        "three (submit)", "two (submit)", "one (submit)", "first admin",
    ]  # fmt: skip
    assert [item["address"] for item in items] == ["local", "127.0.0.1", "127.0.0.1", "local"]
    assert {item["action"] for item in items} == {Action.CREATE_TOKEN}
    code, out, _ = await command(
        "ciworker", "audit", "--limit", "2", "--since", "1h", env=worker.environment
    )
    first, second = out.decode().splitlines()
    assert "from local: create token" in first
    assert f"first admin ({items[1]['token_id']}) from 127.0.0.1: create token" in second
    since = items[0]["at"]
    _, out, _ = await command("ciworker", "audit", "--since", since, env=worker.environment)
    assert len(out.splitlines()) == 1


async def test_what_does_not_fit_a_page_is_asked_for_page_by_page(shared: Worker) -> None:
    while len(await entries(shared, "?limit=500")) < 500:
        await asyncio.gather(*(shared.call("POST", "/resync") for _ in range(50)))
    for limit, found in (("499", 499), ("501", 501)):
        words = ("ciworker", "audit", "--json", "--limit", limit)
        code, out, _ = await command(*words, env=shared.environment)
        assert (code, len(json.loads(out))) == (0, found)


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        ("--since", "soon"),
        ("--since", "1000000d"),
        ("--since", "9999-12-31T23:59:59-14:00"),
        ("--since", "0001-01-01T00:00:00+14:00"),
        ("--limit", "0"),
        ("--limit", "99999999999999999999"),
    ],
)
async def test_what_is_no_question_is_told(
    new_worker: WorkerFactory, option: str, wrong: str
) -> None:
    worker = new_worker()
    words = ("ciworker", "audit", option, wrong)
    code, out, err = await command(*words, env=worker.environment)
    assert (code, out) == (2, b"")
    assert err.startswith(f"ciworker: {option} ".encode()), err
