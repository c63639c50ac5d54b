"""Where one-time links come from, and what becomes of them and of sessions over restarts."""

import asyncio
import contextlib
import json
import os
import pty
import re
import sqlite3
import sys

from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, command
from tests.e2e.raw import ask
from tests.e2e.visitor import (
    code_of,
    cookie_of,
    given,
    is_let_in,
    link_refusal,
    log_in,
    new_link,
    press,
)


async def test_sessions_outlive_the_worker_and_links_do_not(new_worker: WorkerFactory) -> None:
    worker = new_worker()
    await worker.start()
    code, cookie, old = code_of(await new_link(worker)), await log_in(worker), await log_in(worker)
    await worker.stop()
    database = worker.data_dir / "ciworker.db"
    with contextlib.closing(sqlite3.connect(database)) as store, store:
        expired = [cookie_of(old).partition("_")[0]]
        store.execute("UPDATE session SET expires_at = created_at WHERE id = ?", expired)
    await worker.start()
    assert [await is_let_in(worker, mine) for mine in (cookie, old)] == [True, False]
    link_refusal(await press(worker, code))
    with contextlib.closing(sqlite3.connect(database)) as store:
        left = store.execute("SELECT id FROM session").fetchall()
    assert left == [(cookie_of(cookie).partition("_")[0],)]


async def test_with_a_public_url_of_https_links_lead_there_and_cookies_need_tls(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker(public_url="https://ci.example.org")
    await worker.start()
    link = await new_link(worker)
    assert link.startswith("https://ci.example.org/login?code=")
    proxied = {"Host": "ci.example.org", "Origin": "https://ci.example.org"}
    answer = await press(worker, code_of(link), proxied)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert "; Secure" in answer.headers["set-cookie"]
    cookie = given(answer) | proxied
    assert (await ask(worker, "POST", "/api/v1/resync", cookie)).status == 200


# the commands


def links_in(log: str) -> list[str]:
    return [line["url"] for line in map(json.loads, log.splitlines()) if "/login" in str(line)]


async def test_the_first_start_logs_a_link_for_the_admin_and_no_later_one_does(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker()
    await worker.start()
    (link,) = links_in(worker.log.read_text())
    assert link.startswith(f"{worker.url}/login?code=")
    cookie = given(await press(worker, code_of(link)))
    assert (await ask(worker, "GET", "/api/v1/tokens", cookie)).status == 200
    await worker.stop()
    await worker.start()
    assert links_in(worker.log.read_text()) == [link]


async def test_on_a_terminal_the_first_link_is_shown_and_not_logged(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker()
    ours, its = pty.openpty()
    with worker.log.open("ab") as log:
        worker.process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ciworker", "serve",
            env=worker.environment, stdin=asyncio.subprocess.DEVNULL, stdout=its, stderr=log,
        )  # fmt: skip
    os.close(its)
    shown = b""
    async with asyncio.timeout(DEADLINE):
        while not shown.endswith(b"\n\r\n"):
            shown += await asyncio.to_thread(os.read, ours, 4096)
    os.close(ours)
    line = (
        r"\r\nOpen this once, within 5 minutes:  (http://127\.0\.0\.1:\d+/login\?code=\S+)\r\n\r\n"
    )
    found = re.fullmatch(line, shown.decode())
    assert found, shown
    assert links_in(worker.log.read_text()) == []
    await worker.ready()
    assert (await press(worker, code_of(found[1]))).status == 303


async def test_the_operator_gets_another_link_from_the_worker_that_runs(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker()
    await worker.start()
    code, out, err = await command("ciworker", "token", "link", env=worker.environment)
    assert (code, err) == (0, b"")
    (link,) = out.decode().splitlines()
    cookie = given(await press(worker, code_of(link)))
    assert (await ask(worker, "GET", "/api/v1/tokens", cookie)).status == 200
    await worker.stop()
    code, out, err = await command("ciworker", "token", "link", env=worker.environment)
    assert (code, out) == (3, b"")
    assert b"ciworker serve" in err
