"""One-time codes, the links that hold them, and the cookie that follows, as values."""

import hmac
from datetime import UTC, datetime, timedelta

import pytest
from aiohttp import web

from ciworker.settings import Settings
from ciworker.store.tokens import Role, Token
from ciworker.web.sessions import (
    CODE_LIFETIME,
    MOST_CODES,
    Codes,
    Login,
    is_local_path,
    login_url,
    set_cookie,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
MINE = Login(Token("mine", "me", Role.READ, NOW), "/jobs/x", None)
YOURS = Login(Token("yours", "you", Role.ADMIN, NOW), "/", "a session")


def test_a_code_stands_for_its_login_once() -> None:
    codes = Codes()
    mine, yours = codes.issue(MINE), codes.issue(YOURS)
    assert codes.take(mine) == MINE
    assert codes.take(mine) is None
    assert codes.take(yours) == YOURS


@pytest.mark.parametrize(("age", "good"), [(0, True), (299.9, True), (300, False), (1e9, False)])
def test_a_code_is_good_for_five_minutes_whoever_sets_the_clock(age: float, good: bool) -> None:
    assert timedelta(minutes=5) == CODE_LIFETIME
    monotonic = 1000.0
    codes = Codes(lambda: monotonic)
    code = codes.issue(MINE)
    monotonic += age
    assert bool(codes.take(code)) == good


def test_codes_that_expired_are_forgotten() -> None:
    monotonic = 1000.0
    codes = Codes(lambda: monotonic)
    for login in (MINE, YOURS):
        codes.issue(login)
        monotonic += 300
    assert str(vars(codes)).count("Login(") == 1


def test_a_wrong_code_opens_nothing_and_uses_nothing_up() -> None:
    codes = Codes()
    code = codes.issue(MINE)
    for wrong in ("", code[:-1], f"{code}x", f" {code}", code.swapcase(), "\udcff", "x" * 10**6):
        assert codes.take(wrong) is None, wrong[:60]
    assert codes.take(code)


def test_codes_are_long_and_no_two_are_alike() -> None:
    made = [Codes().issue(MINE) for _ in range(100)]
    assert len(set(made)) == 100
    assert min(map(len, made)) >= 43  # 256 bits


def test_a_token_has_so_many_codes_at_a_time_and_costs_no_other_its_own() -> None:
    codes = Codes()
    yours = codes.issue(YOURS)
    mine = [codes.issue(MINE) for _ in range(MOST_CODES + 5)]
    good = [codes.take(code) is not None for code in mine]
    assert good == [False] * 5 + [True] * MOST_CODES
    assert codes.take(yours)


@pytest.mark.attacks(43)
def test_codes_are_compared_in_constant_time_by_their_digests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    codes = Codes()
    code = codes.issue(MINE)
    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert codes.take(f"{code}x") is None
    assert codes.take(code)
    assert [(len(a), len(b)) for a, b in compared] == [(32, 32)] * 2
    assert code not in repr(vars(codes))


@pytest.mark.parametrize(
    "path", ["/", "/jobs/01ARZ", "/jobs/01ARZ#L10-L20", "/?status=failed&project=a%20b", "/a//b"]
)
def test_a_path_of_this_site_may_follow_a_login(path: str) -> None:
    assert is_local_path(path)


FOREIGN = [
    "",
    "jobs/x",
    "//evil.example",
    "///evil.example",
    "/\\evil.example",
    "\\\\evil.example",
    "https://evil.example/",
    "https:/evil.example",
    "javascript:alert(1)",
    "/\t/evil.example",
    "\t//evil.example",
    "/ /evil.example",
    "/x\r\nSet-Cookie: a=b",
    "/x\n",
    "/\x00",
    "/é",
    "/\u2028",
]


@pytest.mark.parametrize("path", FOREIGN)
def test_nothing_else_may(path: str) -> None:
    assert not is_local_path(path)


@pytest.mark.parametrize(
    ("public_url", "url"),
    [
        (None, "http://127.0.0.1:8480/login?code=x"),
        ("", "http://127.0.0.1:8480/login?code=x"),
        ("https://ci.example.org", "https://ci.example.org/login?code=x"),
        ("https://ci.example.org/", "https://ci.example.org/login?code=x"),
        ("http://ci:8480", "http://ci:8480/login?code=x"),
    ],
)
def test_a_link_leads_to_the_public_url_if_there_is_one(public_url: str | None, url: str) -> None:
    assert login_url(Settings(public_url=public_url), "http://127.0.0.1:8480", "x") == url


@pytest.mark.parametrize(
    ("public_url", "secure"),
    [(None, False), ("http://ci", False), ("https://ci", True), ("HTTPS://ci", True)],
)
def test_the_cookie_is_out_of_reach_for_scripts_other_sites_and_where_it_can_be_for_listeners(
    public_url: str | None, secure: bool
) -> None:
    answer = web.Response()
    set_cookie(answer, Settings(public_url=public_url), 8480, "text")
    cookie = answer.cookies["ciworker-8480"]
    wanted = {"httponly": True, "samesite": "Lax", "path": "/", "max-age": "2592000"}
    wanted |= {"secure": True} if secure else {}
    assert {name: value for name, value in cookie.items() if value} == wanted
    assert cookie.value == "text"
