"""What a browser shows: fixed shells, scripts and styles; what they show comes through the API.

Only what has to do with coming in has something filled in.

The files are read once, when the worker starts: a request can only name one of them.
"""

import hashlib
import importlib.resources
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import PurePath
from string import Template
from types import MappingProxyType
from urllib.parse import parse_qs, urlencode

from aiohttp import web
from aiohttp.typedefs import Handler

from ciworker.store.audit import Action, Deed
from ciworker.store.sessions import Session
from ciworker.store.tokens import Role
from ciworker.web.access import authorise, check_origin
from ciworker.web.audit import deed_of
from ciworker.web.context import CONTEXT, Context
from ciworker.web.problems import TELL, Refused
from ciworker.web.sessions import Login, cookie_name, is_local_path, set_cookie
from ciworker.web.upload import small_body

_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("script", "style", "connect", "img", "worker")),
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_SECURITY = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    # Not no-referrer: with that the Origin of a form is `null`
    # (https://fetch.spec.whatwg.org/#append-a-request-origin-header).
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_LOGIN = "/login"
_JOB_PAGE = re.compile(r"/jobs/([0-9A-Z]{26})(?:[?#].*)?", re.ASCII | re.IGNORECASE)
_UNUSABLE = (
    "A link is good for one use, within 5 minutes, until the worker restarts, and no longer than "
    "what it was made with. This one is used up, too old or incomplete."
)
_NOBODY = "That page is for whoever is logged in: you are not, or not any more. "
_OVER = "Your session is over. "


@dataclass(frozen=True, slots=True)
class Asset:
    """A file as it is served. etag: changes with its bytes."""

    body: bytes
    content_type: str
    etag: str


Assets = Mapping[str, Asset]
ASSETS: web.AppKey[Assets] = web.AppKey("assets", Mapping)


def read_assets() -> Assets:
    """The files of the folder `static`, by name."""
    folder = importlib.resources.files("ciworker.web") / "static"
    served = [file for file in folder.iterdir() if PurePath(file.name).suffix in _TYPES]
    files = versioned({file.name: file.read_bytes() for file in served})
    return MappingProxyType({name: _asset(name, body) for name, body in files.items()})


def versioned(files: Mapping[str, bytes]) -> Mapping[str, bytes]:
    """The files; the pages tell in their heads which version of all of them they are of."""
    version = _digest("".join(_digest(files[name]) for name in sorted(files)).encode())
    head = f'<head>\n  <meta name="version" content="{version}">'.encode()
    return {name: body.replace(b"<head>", head, 1) for name, body in files.items()}


def _asset(name: str, body: bytes) -> Asset:
    return Asset(body, _TYPES[PurePath(name).suffix], _digest(body))


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:32]


def for_people(page: Handler) -> Handler:
    """The page; what is refused there is told by a page as well."""

    async def shown(request: web.Request) -> web.StreamResponse:
        def tell(refused: Refused) -> web.Response:
            detail = str(refused)
            text = f"{detail[:1].upper()}{detail[1:]}. Go back and try again."
            return _refusal(request, refused.status, "That did not work", text)

        request[TELL] = tell
        return await page(request)

    return shown


async def jobs_page(request: web.Request) -> web.Response:
    """All jobs."""
    return _shown(request, "jobs.html")


async def job_page(request: web.Request) -> web.Response:
    """One job with its log."""
    return _shown(request, "job.html")


async def static_file(request: web.Request) -> web.Response:
    """A script, a style or a picture."""
    name = request.match_info["name"]
    if name.endswith(".html") or name not in request.app[ASSETS]:
        raise web.HTTPNotFound
    return _shown(request, name)


@for_people
async def login_page(request: web.Request) -> web.Response:
    """Has the button that uses a code up, so that a look at the link does not.

    Whoever was led here from a page, and is in by now, is led back.
    """
    wanted = request.query.get("next", "")
    try:
        await authorise(request, Role.READ)
    except Refused:
        return _how_to_come_in(request, wanted)
    return _sent_to(wanted) if is_local_path(wanted) else _login_form(request)


@for_people
async def login(request: web.Request) -> web.Response:
    """Exchange a code for a session, in place of the one that the browser has."""
    check_origin(request)
    context = request.app[CONTEXT]
    login, own = context.codes.take(await _code(request)), _cookie(request)
    if login is None:
        return _unusable(request)
    if await _is_its_own(context, login, own):
        return _sent_to(login.next)
    deed = deed_of(request, login.token, Action.LOG_IN)
    session = await context.sessions.begin(login.token.id, context.now(), login.session, deed=deed)
    if session is None:
        return _unusable(request)
    await context.sessions.end(own, context.now(), lambda over: _logged_out(request, over))
    context.end_access()
    answer = _sent_to(login.next)
    set_cookie(answer, context.settings, context.port, session)
    return answer


@for_people
async def logout(request: web.Request) -> web.Response:
    """End the session, in the store and in the browser, and those that were made through it."""
    check_origin(request)
    context = request.app[CONTEXT]
    own = _cookie(request)
    await context.sessions.end(own, context.now(), lambda over: _logged_out(request, over))
    context.end_access()
    answer = _sent_to(_LOGIN)
    answer.del_cookie(cookie_name(context.port))
    return answer


def private(page: Handler) -> Handler:
    """The page for whoever may read; all others are sent to where they are told how to come in."""

    @for_people
    async def check(request: web.Request) -> web.StreamResponse:
        try:
            await authorise(request, Role.READ)
        except Refused:
            return _sent_to(f"{_LOGIN}?{urlencode({'next': request.path_qs})}")
        return await page(request)

    return check


async def _is_its_own(context: Context, login: Login, text: str) -> bool:
    """Whether the link was made through the very session that the browser has."""
    session = await context.sessions.check(text, context.now())
    return session is not None and session.id == login.session


def _logged_out(request: web.Request, over: Session) -> Deed:
    return deed_of(request, over.token, Action.LOG_OUT, over.id)


def _how_to_come_in(request: web.Request, wanted: str) -> web.Response:
    """The login page for whoever is not in: why, and the command that leads to the wanted page."""
    job = _JOB_PAGE.fullmatch(wanted)
    why = _OVER if _cookie(request) else _NOBODY if is_local_path(wanted) else ""
    return _login_form(request, why, f"ciclient open {job[1].upper()}" if job else "ciclient open")


def _login_form(
    request: web.Request, why: str = "", command: str = "ciclient open"
) -> web.Response:
    return _filled(request, "login.html", 200, why=why, command=command)


def _unusable(request: web.Request) -> web.Response:
    return _refusal(request, 403, "This link opens nothing", _UNUSABLE)


def _refusal(request: web.Request, status: int, title: str, text: str) -> web.Response:
    return _filled(request, "login-refused.html", status, title=title, text=text)


def _filled(request: web.Request, name: str, status: int, **texts: str) -> web.Response:
    """A shell with these texts in it."""
    shell = Template(request.app[ASSETS][name].body.decode())
    return web.Response(
        status=status,
        text=shell.substitute({key: escape(text) for key, text in texts.items()}),
        content_type="text/html",
        headers=_SECURITY | {"Cache-Control": "no-store"},
    )


def _cookie(request: web.Request) -> str:
    """The text of the browser's session, good or not; empty if there is none."""
    return request.cookies.get(cookie_name(request.app[CONTEXT].port), "")


async def _code(request: web.Request) -> str:
    """The field `code` of a form; empty if there is none."""
    fields = parse_qs((await small_body(request)).decode(errors="replace"))
    return fields.get("code", [""])[0]


def _shown(request: web.Request, name: str) -> web.Response:
    asset = request.app[ASSETS][name]
    known = request.if_none_match or ()
    if any(tag.value == asset.etag for tag in known):
        return _answer(asset, status=304)
    return _answer(asset)


def _answer(asset: Asset, *, status: int = 200) -> web.Response:
    answer = web.Response(status=status, headers=_SECURITY | {"Cache-Control": "no-cache"})
    answer.etag = asset.etag
    if status != 304:
        answer.body = asset.body
        answer.content_type, answer.charset = asset.content_type, "utf-8"
    return answer


def _sent_to(path: str) -> web.Response:
    headers = _SECURITY | {"Cache-Control": "no-store", "Location": path}
    return web.Response(status=303, headers=headers)
