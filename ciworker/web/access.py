"""Who may come in: the Host that was asked for, the token, the role."""

import re
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ciworker.settings import Settings
from ciworker.store.tokens import Role, Token, Tokens
from ciworker.web.problems import Refused, problem

TOKEN: web.RequestKey[Token] = web.RequestKey("token", Token)

_LOCAL = ("127.0.0.1", "localhost", "[::1]")
_HTTP = 80
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_PORT = re.compile(r":\d+$", re.ASCII)


def allowed_hosts(settings: Settings, port: int) -> frozenset[str]:
    """Values of the Host header that are ours: a page of another name may not reach the API.

    Clients leave out the default port of their scheme. Names that the operator gave without a
    port are ours with our own port too.
    """
    local = {f"{name}:{port}" for name in _LOCAL}
    bare = set(_LOCAL) if port == _HTTP else set()
    named = {host.lower() for host in (*_public_host(settings), *settings.allowed_hosts)}
    with_port = {f"{host}:{port}" for host in named if not _PORT.search(host)}
    return frozenset(local | bare | named | with_port)


def _public_host(settings: Settings) -> Sequence[str]:
    url = urlsplit(settings.public_url or "")
    host = url.netloc.rpartition("@")[2].removesuffix(_DEFAULT_PORTS.get(url.scheme, ":"))
    return [host] if host else []


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


async def authorise(request: web.Request, tokens: Tokens, role: Role) -> None:
    """Let a request in whose token has at least `role`.

    Raises:
        Refused: 401 without a valid token, 403 with one of a lower role.
    """
    scheme, _, text = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        raise _unauthorised("no token: send `Authorization: Bearer …`, or use `ciclient login`")
    token = await tokens.check(text.strip())
    if token is None:
        raise _unauthorised(
            "the token is wrong or revoked: ask the operator for one (`ciworker token create`)"
        )
    if token.role < role:
        raise Refused(403, f"this needs a token of role {role.label}, yours is {token.role.label}")
    request[TOKEN] = token


def _unauthorised(detail: str) -> Refused:
    return Refused(401, detail, {"WWW-Authenticate": "Bearer"})
