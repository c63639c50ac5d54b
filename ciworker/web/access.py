"""Who may come in: the Host that was asked for, the token or the session, the role."""

import re
from collections.abc import Collection
from datetime import datetime

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ciworker.errors import Expired
from ciworker.settings import Settings
from ciworker.store.sessions import Session
from ciworker.store.tokens import Role, Token
from ciworker.web.context import CONTEXT
from ciworker.web.problems import Refused, problem
from ciworker.web.sessions import cookie_name
from ciworker.web.throttle import site, too_many

TOKEN: web.RequestKey[Token] = web.RequestKey("token", Token)

SESSION: web.RequestKey[Session] = web.RequestKey("session", Session)  # of who came by one

UNTIL: web.RequestKey[datetime] = web.RequestKey("until", datetime)  # where access has an end

LOCALHOST = "localhost"  # what whoever comes by a Unix socket asks for
_LOCAL = ("127.0.0.1", LOCALHOST, "[::1]")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_CHALLENGE = {"WWW-Authenticate": "Bearer"}
_READING = ("GET", "HEAD")
_ASK = "ask the operator for one (`ciworker token create`)"
_PORT = re.compile(r":\d+$", re.ASCII)


def allowed_hosts(settings: Settings, port: int) -> frozenset[str]:
    """Values of the Host header that are ours: a page of another name may not reach the API.

    Clients leave out the default port of their scheme. Names that the operator gave without a
    port are ours with our own port too. A Unix socket has no port.
    """
    local = set() if settings.unix_path else {f"{name}:{port}" for name in _LOCAL}
    is_default = port == _DEFAULT_PORTS[settings.scheme]
    bare = set(_LOCAL) if is_default or settings.unix_path else set()
    public = (settings.public_url or "").partition("://")[2]
    named = {host.lower() for host in (public, *settings.allowed_hosts) if host}
    with_port = {f"{host}:{port}" for host in named if not _PORT.search(host)}
    return frozenset(local | bare | named | with_port)


def host_check(hosts: Collection[str]) -> Middleware:
    """403 for a foreign Host, on every route: it stops DNS rebinding."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "").lower()
        if host not in hosts:
            return problem(
                403, f"Host {host[:100]!r} is not this worker's: set public_url or allowed_hosts"
            )
        return await handler(request)

    return check


async def authorise(request: web.Request, role: Role) -> None:
    """Let a request in whose token, or whose session's token, has at least `role`.

    Raises:
        Refused: 401 without a valid one, 429 after too many wrong ones from one address, whose
            good ones are let in all the same; 403 with one of a lower role, or when a session
            writes from a page that is not ours.
    """
    try:
        token = await _token(request)
    except _WrongToken:
        count_failure(request, "wrong tokens")
        raise
    if token.role < role:
        raise Refused(403, f"this needs a token of role {role.label}, yours is {token.role.label}")
    request[TOKEN] = token
    context = request.app[CONTEXT]
    context.token_uses.note(token.id, context.now())


def address(request: web.Request) -> str:
    """Whom the request came from, as far as it can be known; `unix` by our Unix socket.

    There `remote` is the path that the client bound its own end to, which may look like an address.
    """
    context = request.app[CONTEXT]
    peer = "" if context.settings.unix_path else request.remote or ""
    return context.proxies.client(peer, request.headers.getall("X-Forwarded-For", []))


def count_failure(request: web.Request, of: str) -> None:
    """Count a wrong credential against its address.

    Args:
        request: had it.
        of: what such are called, for whoever is refused.

    Raises:
        Refused: 429, there were too many.
    """
    asked_from = address(request)
    if wait := request.app[CONTEXT].failures.take(site(asked_from)):
        raise too_many(wait, f"too many {of} came from {asked_from}") from None


async def is_still_in(request: web.Request) -> bool:
    """Whether a request that was let in would be again: its token or session may have ended."""
    try:
        await _token(request)
    except Refused:
        return False
    return True


def check_origin(request: web.Request) -> None:
    """Browsers send cookies with what pages of other sites ask for, and say whose page it is.

    A proxy before us may speak TLS, which gives the page another scheme, and may ask by another
    Host, so that public_url alone tells what the browser asked.

    Raises:
        Refused: 403 unless the page has the origin that it asks.
    """
    host, public = request.headers.get("Host", "").lower(), request.app[CONTEXT].settings.public_url
    ours = dict.fromkeys((f"http://{host}", f"https://{host}", public or f"http://{host}"))
    if request.headers.get("Origin", "").lower() not in ours:
        raise Refused(
            403,
            f"the Origin is missing or none of {', '.join(ours)}: use the worker's own pages, or a "
            "token; behind a proxy set public_url to the address that browsers show",
        )


async def _token(request: web.Request) -> Token:
    """The request's token or its session's. One that is sent counts alone, whatever the cookie."""
    if "Authorization" in request.headers:
        return await _bearer(request)
    context = request.app[CONTEXT]
    text = request.cookies.get(cookie_name(context.port))
    if text is None:
        raise _no_token()
    session = await context.sessions.check(text, context.now())
    if session is None:
        raise _unauthorised(
            "the session is over: `ciclient open` or `ciworker token link` make one"
        )
    if request.method not in _READING:
        check_origin(request)
    request[SESSION] = session
    request[UNTIL] = session.expires_at
    return session.token


async def _bearer(request: web.Request) -> Token:
    scheme, _, text = request.headers["Authorization"].partition(" ")
    if scheme.lower() != "bearer":
        raise _no_token()
    context = request.app[CONTEXT]
    try:
        token = await context.tokens.check(text.strip(), context.now())
    except Expired as error:
        raise _WrongToken(f"{error}: {_ASK}") from error
    if token is None:
        raise _WrongToken(f"the token is wrong or revoked: {_ASK}")
    if token.expires_at is not None:
        request[UNTIL] = token.expires_at
    return token


def _no_token() -> Refused:
    return _unauthorised("no token: send `Authorization: Bearer …`, or use `ciclient login`")


def _unauthorised(detail: str) -> Refused:
    return Refused(401, detail, _CHALLENGE)


class _WrongToken(Refused):
    """A token was sent, and opens nothing."""

    def __init__(self, detail: str) -> None:
        super().__init__(401, detail, _CHALLENGE)
