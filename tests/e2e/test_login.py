"""How people come in and go out: one-time links, and the session cookie."""

import asyncio
import contextlib
import json
import sqlite3
from http.cookies import SimpleCookie

import pytest

from tests.driver import Worker, command
from tests.e2e.raw import ask, parsed
from tests.e2e.visitor import (
    FORM,
    code_of,
    cookie_of,
    follow,
    given,
    is_let_in,
    link_refusal,
    link_through,
    log_in,
    log_out,
    new_link,
    origin,
    press,
    refusal,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"allowed_hosts": json.dumps(["<b>.example"])}
HASTE = {
    "ciworker.web.upload.READ_TIMEOUT": 0.3,
    "ciworker.store.session.BUSY_TIMEOUT": 0.3,
}


async def new_token(worker: Worker, role: str, name: str = "somebody") -> dict[str, str]:
    status, token = await worker.call("POST", "/tokens", json={"name": name, "role": role})
    assert status == 201
    made: dict[str, str] = token
    return made


async def test_a_link_is_exchanged_for_a_cookie_that_opens_the_worker(shared: Worker) -> None:
    link = await new_link(shared)
    assert link.startswith(f"{shared.url}/login?code=")
    answer = await press(shared, code_of(link))
    assert (answer.status, answer.headers["location"], answer.body) == (303, "/", b"")
    assert answer.headers["cache-control"] == "no-store"
    ((name, cookie),) = SimpleCookie(answer.headers["set-cookie"]).items()
    assert name == f"ciworker-{shared.port}"
    assert {key: value for key, value in cookie.items() if value} == {
        "httponly": True,
        "samesite": "Lax",
        "path": "/",
        "max-age": str(30 * 24 * 3600),
    }
    assert await is_let_in(shared, given(answer))


async def test_to_look_at_a_link_does_not_use_it_up(shared: Worker) -> None:
    link = await new_link(shared)
    for _ in range(3):
        page = await ask(shared, "GET", link.removeprefix(shared.url))
        assert (page.status, b"Open ciworker" in page.body) == (200, True)
        assert "set-cookie" not in page.headers
    assert (await press(shared, code_of(link))).status == 303


async def test_a_login_ends_on_the_page_that_the_link_was_made_for(shared: Worker) -> None:
    page = "/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV#L10-L20"
    answer = await press(shared, code_of(await new_link(shared, page=page)))
    assert answer.headers["location"] == page


@pytest.mark.parametrize(
    "body",
    [
        *(
            {"next": path}
            for path in (
                "",
                "//evil.example",
                "/\\evil.example",
                "https://evil.example",
                "/\r\nX: y",
            )
        ),
        {"next": "/" + "x" * 500},
        {"next": 1},
        {"url": "/"},
        [],
    ],
)
async def test_no_link_leads_to_another_site(shared: Worker, body: object) -> None:
    status, answer = await shared.call("POST", "/login-codes", json=body)
    assert (status, bool(answer["detail"])) == (422, True)


async def test_a_link_can_be_had_without_saying_more(shared: Worker) -> None:
    status, answer = await shared.call("POST", "/login-codes")
    assert (status, set(answer)) == (201, {"url", "expires_at"})
    assert (await press(shared, code_of(answer["url"]))).headers["location"] == "/"


async def test_a_session_may_do_what_its_token_may_and_bears_its_name(shared: Worker) -> None:
    job_id = await shared.submit("sleep 60")
    tokens = {role: await new_token(shared, role, f"a {role}") for role in ("read", "submit")}
    found = {}
    for role, token in tokens.items():
        headers = await log_in(shared, token["token"]) | origin(shared)
        answer = await ask(shared, "POST", f"/api/v1/jobs/{job_id}/cancel", headers)
        found[role] = answer.status
    assert found == {"read": 403, "submit": 202}
    assert "a submit" in (await shared.wait(job_id))["message"]


async def test_a_link_opens_once(shared: Worker) -> None:
    code = code_of(await new_link(shared))
    assert (await press(shared, code)).status == 303
    assert "used up" in link_refusal(await press(shared, code))


async def test_of_many_who_press_at_once_one_is_let_in(shared: Worker) -> None:
    code = code_of(await new_link(shared))
    answers = await asyncio.gather(*(press(shared, code) for _ in range(20)))
    assert sorted(answer.status for answer in answers) == [303] + [403] * 19


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"code=",
        b"code=wrong",
        b"code=%00",
        b"code=%ff%fe",
        b"code=" + b"x" * 50_000,
        b"\xff\xfe\x00",
        b'{"code": "x"}',
        b"&" * 50_000,
        b"kode=" + b"x" * 43,
    ],
)
async def test_what_is_no_code_is_refused_in_words(shared: Worker, body: bytes) -> None:
    link_refusal(await ask(shared, "POST", "/login", FORM | origin(shared), body))


async def test_a_form_that_is_too_large_is_not_read(shared: Worker) -> None:
    answer = await ask(shared, "POST", "/login", FORM | origin(shared), b"code=" + b"x" * 100_000)
    assert "65536" in refusal(answer, 413)


async def test_a_form_that_stalls_is_refused_in_words(hasty: Worker) -> None:
    lines = {"Host": f"127.0.0.1:{hasty.port}", "Content-Length": "100"} | FORM | origin(hasty)
    fields = "".join(f"{name}: {text}\r\n" for name, text in lines.items())
    reader, writer = await asyncio.open_connection("127.0.0.1", hasty.port)
    writer.write(f"POST /login HTTP/1.1\r\n{fields}\r\ncode=".encode())
    async with asyncio.timeout(5):
        answer = await reader.readuntil(b"</html>")  # it is closed later, should the rest come
    writer.close()
    assert "too slowly" in refusal(parsed(answer), 408)


async def test_while_the_store_is_busy_a_form_is_refused_in_words(hasty: Worker) -> None:
    code, cookie = code_of(await new_link(hasty)), await log_in(hasty)
    database = sqlite3.connect(hasty.data_dir / "ciworker.db", isolation_level=None)
    with contextlib.closing(database) as store:
        store.execute("BEGIN IMMEDIATE")
        answers = [await press(hasty, code), await log_out(hasty, cookie)]
    assert ["right now" in refusal(answer, 503) for answer in answers] == [True, True]
    assert await is_let_in(hasty, cookie)


@pytest.mark.parametrize("sent", [None, "null", "http://evil.example", "http://127.0.0.1"])
async def test_no_other_site_can_log_anyone_in_or_out(shared: Worker, sent: str | None) -> None:
    code, cookie = code_of(await new_link(shared)), await log_in(shared)
    headers = FORM | ({} if sent is None else {"Origin": sent})
    entered = await ask(shared, "POST", "/login", headers, f"code={code}".encode())
    left = await ask(shared, "POST", "/logout", headers | cookie)
    for answer in (entered, left):
        said = refusal(answer)
        assert f"The Origin is missing or none of http://127.0.0.1:{shared.port}," in said
    assert await is_let_in(shared, cookie)
    assert (await press(shared, code)).status == 303


async def test_what_a_refusal_names_is_text_and_no_markup(shared: Worker) -> None:
    answer = await ask(shared, "POST", "/login", FORM | {"Host": "<b>.example"})
    assert "none of http://<b>.example, https://<b>.example:" in refusal(answer)


async def test_a_link_of_a_token_that_was_revoked_since_opens_nothing(shared: Worker) -> None:
    token = await new_token(shared, "admin")
    code = code_of(await new_link(shared, token["token"]))
    assert (await shared.call("DELETE", f"/tokens/{token['id']}"))[0] == 204
    link_refusal(await press(shared, code))


async def test_a_login_ends_the_session_that_the_browser_had(shared: Worker) -> None:
    mine, elsewhere = await log_in(shared), await log_in(shared)
    link_refusal(await press(shared, "wrong", mine))
    assert await is_let_in(shared, mine)
    new = await follow(shared, await new_link(shared), mine)
    found = [await is_let_in(shared, cookie) for cookie in (mine, elsewhere, new)]
    assert found == [False, True, True]


async def test_whoever_had_a_session_that_is_over_or_none_gets_a_new_one(shared: Worker) -> None:
    over = await log_in(shared)
    await log_out(shared, over)
    for cookie in (over, {"Cookie": f"ciworker-{shared.port}=_"}, {"Cookie": "other=x"}):
        assert await is_let_in(shared, await follow(shared, await new_link(shared), cookie))


async def test_a_session_stays_where_its_own_link_is_opened(shared: Worker) -> None:
    mine = await log_in(shared)
    link = await link_through(shared, mine)
    answer = await press(shared, code_of(link), mine)
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert "set-cookie" not in answer.headers
    assert await is_let_in(shared, mine)
    link_refusal(await press(shared, code_of(link), mine))


async def test_what_a_session_made_ends_with_it(shared: Worker) -> None:
    mine = await log_in(shared)
    unused = await link_through(shared, mine)
    made = await follow(shared, await link_through(shared, mine))
    assert await is_let_in(shared, made)
    await log_out(shared, mine)
    assert not await is_let_in(shared, made)
    link_refusal(await press(shared, code_of(unused)))
    for own in (mine, made):  # neither is a session any more by which the link could be its own
        link_refusal(await press(shared, code_of(unused), own))


async def test_a_session_can_make_a_link_for_another_device(shared: Worker) -> None:
    token = await new_token(shared, "read")
    first = await log_in(shared, token["token"])
    second = await follow(shared, await link_through(shared, first))
    assert await is_let_in(shared, second)
    refused = await ask(shared, "POST", "/api/v1/resync", second | origin(shared))
    assert (refused.status, "role" in refused.problem) == (403, True)


async def test_to_log_out_ends_this_session_alone(shared: Worker) -> None:
    mine, other = await log_in(shared), await log_in(shared)
    answer = await log_out(shared, mine)
    assert (answer.status, answer.headers["location"]) == (303, "/login")
    ((name, cookie),) = SimpleCookie(answer.headers["set-cookie"]).items()
    assert (name, cookie.value, cookie["max-age"]) == (f"ciworker-{shared.port}", "", "0")
    assert [await is_let_in(shared, cookie) for cookie in (mine, other)] == [False, True]
    assert (await log_out(shared, mine)).status == 303
    assert (await log_out(shared, {})).status == 303


async def test_neither_codes_nor_sessions_stand_in_the_log_or_the_store(shared: Worker) -> None:
    code = code_of(await new_link(shared))
    session = cookie_of(given(await press(shared, code)))
    unused = code_of(await new_link(shared))
    await ask(shared, "GET", f"/login?code={unused}")
    await ask(shared, "GET", f"/nope?code={unused}")
    await press(shared, f"{unused}x")
    await press(shared, code)
    await ask(shared, "GET", "/api/v1/jobs", {"Cookie": f"ciworker-{shared.port}={session}x"})
    secrets = [code, unused, session.partition("_")[2]]
    files = [shared.log, *(path for path in shared.data_dir.rglob("*") if path.is_file())]
    assert shared.data_dir / "ciworker.db" in files
    for path in files:
        data = path.read_bytes()
        assert not any(secret.encode() in data for secret in secrets), path


async def test_the_client_makes_a_link_to_a_jobs_page(shared: Worker) -> None:
    job_id = await shared.submit("true")
    words = ("open", job_id, "--print")
    code, out, _ = await command("ciclient", *words, env=shared.client_environment)
    assert code == 0
    (link,) = out.decode().splitlines()
    answer = await press(shared, code_of(link))
    assert (answer.status, answer.headers["location"]) == (303, f"/jobs/{job_id}")
    await shared.wait(job_id)
