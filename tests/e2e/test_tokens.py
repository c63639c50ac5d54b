"""Tokens over the wire and on the command line: how long they are good, when they were used."""

import asyncio
import contextlib
import json
import sqlite3
from typing import Any

import pytest

from ciworker.web.models import TokenModel
from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, command
from tests.e2e.raw import Answer, ask
from tests.e2e.visitor import is_let_in, log_in

pytestmark = pytest.mark.asyncio(loop_scope="module")

HASTE = {"ciworker.web.sse.COMMENT_INTERVAL": 0.2}


async def made(worker: Worker, **wanted: Any) -> dict[str, Any]:
    status, token = await worker.call(
        "POST", "/tokens", json={"name": "tea", "role": "read", **wanted}
    )
    assert status == 201, token
    found: dict[str, Any] = token
    return found


async def listed(worker: Worker, token_id: str) -> dict[str, Any]:
    _, answer = await worker.call("GET", "/tokens")
    (found,) = [item for item in answer["items"] if item["id"] == token_id]
    assert set(found) == set(TokenModel.model_fields)
    return dict(found)


def end(worker: Worker, token_id: str) -> None:
    """The token's time is over, as if it had gone by."""
    with contextlib.closing(sqlite3.connect(worker.data_dir / "ciworker.db")) as store, store:
        store.execute("UPDATE token SET expires_at = created_at WHERE id = ?", [token_id])


async def asked(worker: Worker, text: str, target: str = "/api/v1/jobs") -> Answer:
    return await ask(worker, "GET", target, {"Authorization": f"Bearer {text}"})


@pytest.mark.attacks(37)
async def test_an_expired_token_and_its_sessions_open_nothing_and_the_answer_says_why(
    shared: Worker,
) -> None:
    token = await made(shared, expires_in=3600)
    cookie = await log_in(shared, token["token"])
    assert (await asked(shared, token["token"])).status == 200
    assert await is_let_in(shared, cookie)
    end(shared, token["id"])
    for target in ("/api/v1/jobs", "/api/v1/events", "/metrics", "/openapi.json"):
        answer = await asked(shared, token["token"], target)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert "the token expired at 20" in answer.problem
        assert "ciworker token create" in answer.problem
    wrong = await asked(shared, token["token"] + "x")
    assert (wrong.status, "wrong or revoked" in wrong.problem) == (401, True)
    assert not await is_let_in(shared, cookie)


async def test_without_a_time_a_token_is_good_until_it_is_revoked(shared: Worker) -> None:
    token = await made(shared)
    assert token["expires_at"] is None
    assert (await listed(shared, token["id"]))["expires_at"] is None


@pytest.mark.parametrize("wrong", [0, -1, 1e30, "30d", [], True])
async def test_a_time_that_is_none_is_refused(shared: Worker, wrong: object) -> None:
    body = {"name": "tea", "role": "read", "expires_in": wrong}
    status, problem = await shared.call("POST", "/tokens", json=body)
    assert (status, "expires_in" in problem["detail"]) == (422, True)


@pytest.mark.attacks(37)
async def test_a_stream_ends_when_its_token_expires(hasty: Worker) -> None:
    job = await hasty.submit("sleep 3600", timeout="2h")
    await hasty.wait(job, "running")
    for path in ("/api/v1/events", f"/api/v1/jobs/{job}/events"):
        token = await made(hasty, expires_in=3)
        headers = {"Authorization": f"Bearer {token['token']}"}
        async with (
            asyncio.timeout(DEADLINE),
            hasty.session.get(path, headers=headers) as answer,
        ):
            assert answer.status == 200
            await answer.content.read()
        assert (await asked(hasty, token["token"])).status == 401
    await hasty.call("POST", f"/jobs/{job}/cancel")
    await hasty.wait(job)


async def test_the_list_tells_when_a_token_was_last_used(shared: Worker) -> None:
    token = await made(shared)
    assert (await listed(shared, token["id"]))["last_used_at"] is None
    await asked(shared, token["token"], "/api/v1/tokens")  # 403: it may not do that
    assert (await listed(shared, token["id"]))["last_used_at"] is None
    await asked(shared, token["token"])
    used = (await listed(shared, token["id"]))["last_used_at"]
    assert used >= token["created_at"]
    await ask(shared, "GET", "/api/v1/jobs", await log_in(shared, token["token"]))
    assert (await listed(shared, token["id"]))["last_used_at"] > used


async def test_the_last_use_outlives_the_worker(new_worker: WorkerFactory) -> None:
    worker = new_worker()
    await worker.start()
    await worker.call("GET", "/jobs")

    def stored() -> object:
        with contextlib.closing(sqlite3.connect(worker.data_dir / "ciworker.db")) as store:
            return store.execute("SELECT last_used_at FROM token").fetchone()[0]

    async with asyncio.timeout(DEADLINE):
        while stored() is None:
            await asyncio.sleep(0.02)
    await worker.kill()
    code, out, _ = await command("ciworker", "token", "list", env=worker.environment)
    assert (code, b"first admin" in out, b"last used 20" in out) == (0, True, True)


async def test_a_stop_loses_no_use(new_worker: WorkerFactory) -> None:
    """The first is stored at once, what comes within the minute after that later."""
    worker = new_worker()
    await worker.start()
    for token in [await made(worker) for _ in range(2)]:
        assert (await asked(worker, token["token"])).status == 200
    await worker.stop()
    code, out, _ = await command("ciworker", "token", "list", "--json", env=worker.environment)
    items = json.loads(out)
    assert (code, len(items)) == (0, 3)
    assert all(item["last_used_at"] for item in items), items


async def test_the_operator_makes_tokens_that_expire_of_a_worker_that_runs_or_is_stopped(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker()
    await worker.start()
    words = ("ciworker", "token", "create", "tea", "--role", "read", "--expires")
    assert (await command(*words, "30d", env=worker.environment))[0] == 0
    await worker.stop()
    assert (await command(*words, "1", env=worker.environment))[0] == 0
    code, out, _ = await command("ciworker", "token", "list", "--json", env=worker.environment)
    _, long, short = json.loads(out)
    assert code == 0
    assert [long[key] for key in ("name", "role", "revoked_at")] == ["tea", "read", None]
    async with asyncio.timeout(DEADLINE):
        while b"expired 20" not in out:
            _, out, _ = await command("ciworker", "token", "list", env=worker.environment)
    first, later, over = out.decode().splitlines()
    assert "(valid, " in first
    assert f"(until {long['expires_at']}, never used)" in later
    assert f"(expired {short['expires_at']}, never used)" in over


@pytest.mark.parametrize("wrong", ["0", "soon", "-3d", "40000d", ""])
async def test_a_time_that_is_none_makes_no_token(new_worker: WorkerFactory, wrong: str) -> None:
    worker = new_worker()
    words = ("ciworker", "token", "create", "tea", "--expires", wrong)
    code, out, err = await command(*words, env=worker.environment)
    assert (code, out) == (2, b"")
    assert b"30d" in err
    assert not worker.data_dir.exists()
