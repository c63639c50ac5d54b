"""Who may come in: the Host that was asked for, the token, the role."""

from collections.abc import Collection
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ciworker.settings import Settings
from ciworker.store.tokens import Role, Token, Tokens
from ciworker.web.problems import Refused, problem

TOKEN: web.RequestKey[Token] = web.RequestKey("token", Token)


def allowed_hosts(settings: Settings, port: int) -> frozenset[str]:
    """Values of the Host header that are ours: a page of another name may not reach the API."""
    local = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
    public = {urlsplit(settings.public_url).netloc} if settings.public_url else set()
    return frozenset(host.lower() for host in (*local, *public, *settings.allowed_hosts))


def host_check(hosts: Collection[str]) -> Middleware:
    """403 for a foreign Host, on every route: it stops DNS rebinding."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host", "").lower()
        if host not in hosts:
            return problem(
                403, f"Host {host!r} is not this worker's: set public_url or allowed_hosts"
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
