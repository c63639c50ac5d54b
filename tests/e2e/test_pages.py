"""The pages and their files: who may see which, under which headers, and nothing besides."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

import pytest

import ciworker.web
from ciworker.web.routes import PAGES
from tests.driver import Worker
from tests.e2e.raw import ask
from tests.e2e.visitor import assert_secured, log_in, log_out, origin, press, shown

pytestmark = pytest.mark.asyncio(loop_scope="module")

STATIC = Path(ciworker.web.__file__).parent / "static"
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FILES = sorted(path for path in STATIC.iterdir() if path.suffix in TYPES)
SHELLS = sorted(STATIC.glob("*.html"))
ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
PRIVATE = ("/", "/?status=failed&project=a%20b", f"/jobs/{ID}", "/jobs/nope")
OVER = "Your session is over."
NOBODY = "That page is for whoever is logged in: you are not, or not any more."


def login_for(page: str) -> str:
    """Where a page leads that needs a session: the same as `encodeURIComponent` makes of it."""
    return f"/login?next={quote(page, safe='')}"


async def test_these_are_all_pages() -> None:
    assert {(method, path) for method, path, _ in PAGES} == {
        ("GET", "/"),
        ("GET", "/jobs/{id}"),
        ("GET", "/static/{name}"),
        ("GET", "/login"),
        ("POST", "/login"),
        ("POST", "/logout"),
    }


@pytest.mark.parametrize("target", PRIVATE)
async def test_without_a_session_one_is_led_to_the_login(shared: Worker, target: str) -> None:
    over = await log_in(shared)
    await log_out(shared, over)
    for headers in ({}, over, {"Authorization": "Bearer nonsense"}):
        answer = await ask(shared, "GET", target, headers)
        location = answer.headers["location"]
        assert (answer.status, location, answer.body) == (303, login_for(target), b"")
        assert answer.headers["cache-control"] == "no-store"
        assert_secured(answer.headers)


@pytest.mark.parametrize("target", PRIVATE)
async def test_with_a_session_one_sees_the_page(shared: Worker, target: str) -> None:
    answer = await ask(shared, "GET", target, await log_in(shared))
    shell = "jobs.html" if target.partition("?")[0] == "/" else "job.html"
    body = re.sub(rb'\n  <meta name="version" content="[0-9a-f]+">', b"", answer.body)
    assert (answer.status, body) == (200, (STATIC / shell).read_bytes())
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert_secured(answer.headers)


async def test_the_login_page_is_open_and_says_how_to_come_in(shared: Worker) -> None:
    bodies = set()
    for target in ("/login", "/login?code=x", "/login?code=<script>alert(1)</script>"):
        answer = await ask(shared, "GET", target)
        said = shown(answer)
        assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
        assert not [words for words in (OVER, NOBODY, "$") if words in said]
        for words in ("ciclient open On the machine", "ciworker token link"):
            assert words in said
        bodies.add(answer.body)
    assert len(bodies) == 1


@pytest.mark.parametrize(
    ("page", "command"),
    [
        ("/", "ciclient open"),
        ("/?status=failed", "ciclient open"),
        (f"/jobs/{ID}", f"ciclient open {ID}"),
        (f"/jobs/{ID.lower()}", f"ciclient open {ID}"),
        (f"/jobs/{ID}?x=y#L10-L20", f"ciclient open {ID}"),
        (f"/jobs/{ID}/x", "ciclient open"),
        (f"/jobs/{ID}x", "ciclient open"),
        ("/jobs/x;rm", "ciclient open"),
        ("/jobs/<script>alert(1)</script>", "ciclient open"),
    ],
)
async def test_the_login_page_says_why_one_is_there_and_what_leads_back(
    shared: Worker, page: str, command: str
) -> None:
    over = await log_in(shared)
    await log_out(shared, over)
    for headers, why in (({}, NOBODY), (over, OVER)):
        answer = await ask(shared, "GET", login_for(page), headers)
        said = shown(answer)
        assert (answer.status, why in said) == (200, True)
        assert f"Where you submit jobs {command} On the machine" in said
        assert b"alert" not in answer.body


async def test_whoever_is_in_by_now_is_led_back_to_the_page(shared: Worker) -> None:
    cookie = await log_in(shared)
    for page in PRIVATE:
        answer = await ask(shared, "GET", login_for(page), cookie)
        assert (answer.status, answer.headers["location"]) == (303, page)
        assert_secured(answer.headers)


@pytest.mark.parametrize(
    "page", ["", "//evil.example", "/\\evil.example", "https://evil.example", "/\r\nX: y", "/\x00"]
)
async def test_the_login_leads_to_no_other_site(shared: Worker, page: str) -> None:
    for headers in ({}, await log_in(shared)):
        answer = await ask(shared, "GET", login_for(page), headers)
        said = shown(answer)
        assert (answer.status, "location" in answer.headers) == (200, False)
        assert "ciclient open On the machine" in said
        assert NOBODY not in said
    assert (await ask(shared, "GET", "/login?next=%ff%fe", await log_in(shared))).status == 200


async def test_what_a_form_is_answered_is_secured_as_pages_are(shared: Worker) -> None:
    refused = await press(shared, "wrong")
    left = await ask(shared, "POST", "/logout", origin(shared))
    assert (refused.status, left.status) == (403, 303)
    for answer in (refused, left):
        assert_secured(answer.headers)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
async def test_every_file_is_open_and_comes_as_it_is(shared: Worker, path: Path) -> None:
    answer = await ask(shared, "GET", f"/static/{path.name}")
    assert (answer.status, answer.body) == (200, path.read_bytes())
    assert answer.headers["content-type"] == f"{TYPES[path.suffix]}; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert_secured(answer.headers)


async def test_there_are_scripts_styles_and_pictures() -> None:
    assert {path.suffix for path in FILES} == set(TYPES)
    assert {path.suffix for path in STATIC.iterdir()} <= {*TYPES, ".html"}


async def test_what_the_browser_has_already_is_not_sent_again(shared: Worker) -> None:
    target = "/static/login.js"
    first = await ask(shared, "GET", target)
    tag = first.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{32}"', tag)
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        again = await ask(shared, "GET", target, {"If-None-Match": known})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
        assert_secured(again.headers)
    for other in ('"other"', tag.strip('"'), "nonsense", ""):
        again = await ask(shared, "GET", target, {"If-None-Match": other})
        assert (again.status, again.body) == (200, first.body)
    page = await ask(shared, "GET", "/", await log_in(shared) | {"If-None-Match": tag})
    assert page.status == 200
    assert page.headers["etag"] != tag


# the shells themselves


class Shell(HTMLParser):
    """What a policy without inline code and without other sites allows or not."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.links: list[str] = []
        self._script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self._script = tag in ("script", "style")
        self.inline += [name for name in given if name == "style" or name.startswith("on")]
        self.links += [given[name] or "" for name in ("src", "href", "action") if name in given]

    def handle_data(self, data: str) -> None:
        if self._script and data.strip():
            self.inline.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._script = False


@pytest.mark.parametrize("path", SHELLS, ids=lambda path: path.name)
async def test_a_shell_has_nothing_inline_and_names_what_is_there(path: Path) -> None:
    shell = Shell(path.read_text())
    assert shell.inline == []
    assert shell.links
    for link in shell.links:
        target = link.partition("#")[0]
        if target.startswith("/static/"):
            assert (STATIC / target.removeprefix("/static/")).is_file(), link
        else:
            assert target in ("", "/", "/login", "/logout"), link


async def test_the_check_of_shells_sees_what_is_inline() -> None:
    bad = '<p style="x" onclick="y">a</p><script>z()</script><style>b{}</style><script src="/c">'
    assert Shell(bad).inline == ["style", "onclick", "z()", "b{}"]
