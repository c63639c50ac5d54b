"""Rates: wrong tokens by address, submits by token; refused with when to come back."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.driver import Worker, command, tree
from tests.e2e.conftest import spooled
from tests.e2e.raw import FORM, Answer, ask, form
from tests.e2e.test_access import new_token

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {
    "failed_token_rate": "4/h",
    "submit_rate": "3/h",
    "trusted_proxies": json.dumps(["127.0.0.1"]),
    "max_jobs": "1",
}
HOUR = 3600


def from_(client: str) -> dict[str, str]:
    """As a proxy on this machine tells of it."""
    return {"X-Forwarded-For": f"203.0.113.99, {client}"}


async def wrong(worker: Worker, headers: Mapping[str, str], token: str = "ciw_a_b") -> Answer:
    more = {"Authorization": f"Bearer {token}"}
    return await ask(worker, "GET", "/api/v1/jobs", {**headers, **more})


def assert_told_to_wait(answer: Answer, most: int) -> None:
    assert answer.status == 429
    seconds = int(answer.headers["retry-after"])
    assert 0 < seconds <= most
    assert f"try again in {seconds} s" in answer.problem


async def test_too_many_wrong_tokens_of_an_address_are_429_and_of_no_other(shared: Worker) -> None:
    for _ in range(4):
        assert (await wrong(shared, from_("198.51.100.1"))).status == 401
    for _ in range(3):
        answer = await wrong(shared, from_("198.51.100.1"))
        assert_told_to_wait(answer, HOUR // 4)
        assert "198.51.100.1" in answer.problem
    for other in ("198.51.100.2", "2001:db8::1"):
        assert (await wrong(shared, from_(other))).status == 401
    assert (await wrong(shared, {})).status == 401  # the proxy itself


async def test_a_good_token_from_such_an_address_is_let_in(shared: Worker) -> None:
    while (await wrong(shared, from_("198.51.100.3"))).status != 429:
        pass
    for path in ("/api/v1/jobs", "/openapi.json"):
        answer = await ask(shared, "GET", path, shared.headers | from_("198.51.100.3"))
        assert answer.status == 200
    assert (await wrong(shared, from_("198.51.100.3"))).status == 429


async def test_addresses_of_one_ipv6_site_count_as_one(shared: Worker) -> None:
    found = [(await wrong(shared, from_(f"2001:db8:7:7::{n}"))).status for n in range(1, 7)]
    assert found == [401] * 4 + [429] * 2


async def test_no_token_and_a_token_of_a_lower_role_are_no_failures(shared: Worker) -> None:
    reader, client = await new_token(shared, "read"), from_("198.51.100.4")
    for _ in range(10):
        assert (await ask(shared, "GET", "/api/v1/jobs", client)).status == 401
        low = client | {"Authorization": f"Bearer {reader['token']}"}
        assert (await ask(shared, "GET", "/api/v1/tokens", low)).status == 403
    assert (await wrong(shared, client)).status == 401


async def test_a_revoked_token_counts_and_an_open_route_is_open(shared: Worker) -> None:
    token, client = await new_token(shared, "read"), from_("198.51.100.5")
    assert (await shared.call("DELETE", f"/tokens/{token['id']}"))[0] == 204
    found = [(await wrong(shared, client, token["token"])).status for _ in range(6)]
    assert found == [401] * 4 + [429] * 2
    assert (await ask(shared, "GET", "/healthz", client)).status == 200


async def left(worker: Worker) -> tuple[set[str], list[Path]]:
    """Ids of the jobs, and what lies in the folder of the stored workspaces."""
    _, page = await worker.call("GET", "/jobs")
    return {item["id"] for item in page["items"]}, spooled(worker)


async def test_too_many_submits_of_a_token_are_429_and_leave_nothing(shared: Worker) -> None:
    mine, yours = [await new_token(shared, "submit") for _ in range(2)]

    async def submit(token: str, **more: str) -> Answer:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": FORM, **more}
        body = form(tree({"x": "x"}), {"run": "true"})
        return await ask(shared, "POST", "/api/v1/jobs", headers, body)

    first = await submit(mine["token"], **{"Idempotency-Key": "a"})
    assert first.status == 201
    for _ in range(2):
        assert (await submit(mine["token"])).status == 201
    job = json.loads(first.body)["id"]
    await shared.wait(job)
    before = await left(shared)
    for _ in range(3):
        answer = await submit(mine["token"])
        assert_told_to_wait(answer, HOUR // 3)
        assert "3 per hour (submit_rate)" in answer.problem
    headers = {"Authorization": f"Bearer {mine['token']}"}
    retried = await ask(shared, "POST", f"/api/v1/jobs/{job}/retry", headers)
    assert_told_to_wait(retried, HOUR // 3)
    assert await left(shared) == before
    again = await submit(mine["token"], **{"Idempotency-Key": "a"})  # a lost reply, asked for again
    assert (again.status, json.loads(again.body)["id"]) == (200, job)
    assert (await submit(yours["token"])).status == 201


async def test_the_client_says_when_to_try_again(shared: Worker) -> None:
    token = (await new_token(shared, "submit"))["token"]
    folder = shared.data_dir.parent / "project"
    folder.mkdir()
    (folder / "x").write_text("x")
    env = shared.client_environment | {"CICLIENT_TOKEN": token}
    words = ("ciclient", "submit", "--detach", str(folder), "--", "true")
    ended = [await command(*words, env=env) for _ in range(4)]
    assert [code for code, _, _ in ended] == [0, 0, 0, 5]
    assert ended[-1][2].count(b"try again in ") == 1
