"""Who did what: by every route that changes something, from where, without secrets."""

import asyncio
import json
from typing import Any

import pytest

from ciworker.store.audit import Action
from ciworker.web.models import AuditEntry
from tests.conftest import WorkerFactory
from tests.driver import Worker, command
from tests.e2e.raw import ask
from tests.e2e.test_access import new_token
from tests.e2e.visitor import code_of, cookie_of, log_in, log_out, new_link, press

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"trusted_proxies": json.dumps(["127.0.0.1"]), "max_jobs": "1"}
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


async def test_every_writing_route_leaves_who_what_and_from_where(shared: Worker) -> None:
    tea = await new_token(shared, "admin")
    client = {"X-Forwarded-For": "198.51.100.1"}
    mine = client | {"Authorization": f"Bearer {tea['token']}"}
    _, before = await shared.call("GET", "/audit")

    async def does(method: str, path: str, status: int, **more: Any) -> Any:
        found, body = await shared.call(method, path, headers=mine, **more)
        assert found == status, body
        return body

    job = await shared.wait(await shared.submit("true"))
    holding = await shared.submit("sleep 3600", timeout="2h")
    await shared.wait(holding, "running")  # a worker without jobs would end of the drain
    retried = await does("POST", f"/jobs/{job['id']}/retry", 202)
    await does("POST", f"/jobs/{retried['id']}/cancel", 202)
    await does("POST", "/resync", 200)
    for _ in range(2):
        await does("POST", "/drain", 200)
    for _ in range(2):
        await does("DELETE", "/drain", 200)
    await does("POST", "/pool/down", 200)
    await does("POST", "/pool/up", 200)
    await does("POST", "/environments/prune", 200)
    made = await does("POST", "/tokens", 201, json={"name": "coffee", "role": "read"})
    await does("DELETE", f"/tokens/{made['id']}", 204)
    link = await new_link(shared, tea["token"])
    cookie = await press(shared, code_of(link), client)
    assert cookie.status == 303

    found = [item for item in await entries(shared) if item["token_id"] == tea["id"]]
    assert [(item["action"], item["subject"]) for item in reversed(found)][:-1] == [
        ("retry", retried["id"]),
        ("cancel", retried["id"]),
        ("resync", ""),
        ("drain", ""),
        ("undo drain", ""),
        ("pool down", ""),
        ("pool up", ""),
        ("prune environments", ""),
        ("create token", made["id"]),
        ("revoke token", made["id"]),
    ]
    assert found[0]["action"] == "log in"
    assert {(item["by"], item["address"]) for item in found} == {("a admin", "198.51.100.1")}
    assert next(item for item in found if item["action"] == "retry")["detail"] == f"of {job['id']}"
    text = json.dumps(await entries(shared))
    for secret in (tea["token"], made["token"], shared.token, code_of(link)):
        assert secret not in text
        assert secret.rpartition("_")[2] not in text
    (submitted,) = [item for item in await entries(shared) if item["subject"] == job["id"]]
    assert (submitted["action"], submitted["by"]) == ("submit", "first admin")
    assert submitted["address"] == "127.0.0.1"
    assert before["items"][0]["subject"] == tea["id"]
    await shared.call("POST", f"/jobs/{holding}/cancel")


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


@pytest.mark.parametrize("words", [["--since", "soon"], ["--limit", "0"]])
async def test_what_is_no_question_is_told(new_worker: WorkerFactory, words: list[str]) -> None:
    worker = new_worker()
    code, out, err = await command("ciworker", "audit", *words, env=worker.environment)
    assert (code, out) == (2, b"")
    assert err
