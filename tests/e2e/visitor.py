"""A person with a browser, as far as HTTP goes: follows one-time links, keeps the cookie."""

import html
import json
import re
from collections.abc import Mapping
from http.cookies import SimpleCookie
from urllib.parse import urlencode

from tests.driver import Worker
from tests.e2e.raw import Answer, ask

FORM = {"Content-Type": "application/x-www-form-urlencoded"}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self'",
    "worker-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}


def origin(worker: Worker) -> dict[str, str]:
    """What a browser sends along with what a page of this worker posts."""
    return {"Origin": f"http://127.0.0.1:{worker.port}"}


async def new_link(worker: Worker, token: str | None = None, page: str = "/") -> str:
    """A one-time link, made with this token, else the admin's."""
    headers = {"Authorization": f"Bearer {token or worker.token}"}
    body = {"next": page}
    status, answer = await worker.call("POST", "/login-codes", headers=headers, json=body)
    assert status == 201, answer
    return str(answer["url"])


async def link_through(worker: Worker, cookie: Mapping[str, str]) -> str:
    """A one-time link, made through a session."""
    headers = {**origin(worker), **cookie}
    answer = await ask(worker, "POST", "/api/v1/login-codes", headers)
    assert answer.status == 201, answer.body
    return str(json.loads(answer.body)["url"])


def code_of(link: str) -> str:
    before, _, code = link.partition("/login?code=")
    assert before
    assert len(code) >= 43, code  # 256 bits
    return code


async def press(
    worker: Worker, code: str, headers: Mapping[str, str | bytes] | None = None
) -> Answer:
    """Press the button of the login page."""
    sent = FORM | origin(worker) | dict(headers or {})
    return await ask(worker, "POST", "/login", sent, urlencode({"code": code}).encode())


def given(answer: Answer) -> dict[str, str]:
    """The cookie that an answer sets, as the header that sends it back."""
    ((name, cookie),) = SimpleCookie(answer.headers["set-cookie"]).items()
    return {"Cookie": f"{name}={cookie.value}"}


def cookie_of(cookie: Mapping[str, str]) -> str:
    """The text of the session within the header."""
    return cookie["Cookie"].partition("=")[2]


async def log_in(worker: Worker, token: str | None = None) -> dict[str, str]:
    """A new session of this token's, else the admin's, as the header that sends it."""
    return await follow(worker, await new_link(worker, token))


async def follow(
    worker: Worker, link: str, cookie: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The session that a link opens in a browser, with the cookie that this has already."""
    answer = await press(worker, code_of(link), cookie)
    assert answer.status == 303, answer.body
    return given(answer)


async def log_out(worker: Worker, cookie: Mapping[str, str]) -> Answer:
    """Press the button that ends the session."""
    return await ask(worker, "POST", "/logout", {**FORM, **origin(worker), **cookie})


async def is_let_in(worker: Worker, cookie: Mapping[str, str]) -> bool:
    answer = await ask(worker, "GET", "/api/v1/jobs", cookie)
    assert answer.status in (200, 401)
    return answer.status == 200


def assert_secured(headers: Mapping[str, str]) -> None:
    policy = dict(
        part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";")
    )
    assert policy == POLICY
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"


def shown(answer: Answer) -> str:
    """What a person reads on a page."""
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert_secured(answer.headers)
    main = answer.body.decode().partition("<main>")[2]
    return " ".join(html.unescape(re.sub("<[^>]*>", " ", main)).split())


def refusal(answer: Answer, status: int = 403) -> str:
    """What the page says that refuses a form."""
    assert (answer.status, answer.headers["cache-control"]) == (status, "no-store")
    assert "set-cookie" not in answer.headers
    text = shown(answer)
    assert "$" not in text
    for words in ("ciclient open", "ciworker token link"):
        assert words in text
    return text


def link_refusal(answer: Answer) -> str:
    """What the page says that refuses a link."""
    text = refusal(answer)
    for words in ("opens nothing", "one use", "5 minutes"):
        assert words in text
    return text
