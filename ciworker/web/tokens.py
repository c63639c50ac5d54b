"""Tokens, for the operator's commands; one-time links, for whoever has a token."""

from typing import Any

from aiohttp import web

from ciworker.store.tokens import Role, Token
from ciworker.web.access import SESSION, TOKEN
from ciworker.web.answers import json_answer, json_body
from ciworker.web.context import CONTEXT
from ciworker.web.models import (
    LoginCode,
    LoginCodeRequest,
    NewToken,
    TokenList,
    TokenModel,
    TokenRequest,
)
from ciworker.web.sessions import CODE_LIFETIME, Login, login_url


async def list_tokens(request: web.Request) -> web.Response:
    """All tokens, without their text."""
    tokens = await request.app[CONTEXT].tokens.list()
    return json_answer(TokenList(items=[TokenModel(**_fields(token)) for token in tokens]))


async def create_token(request: web.Request) -> web.Response:
    """Make a token; its text is in this answer alone."""
    wanted = await json_body(request, TokenRequest)
    context = request.app[CONTEXT]
    token, text = await context.tokens.create(wanted.name, Role[wanted.role.upper()], context.now())
    return json_answer(NewToken(**_fields(token), token=text), status=201)


async def revoke_token(request: web.Request) -> web.Response:
    """From now on the token opens nothing."""
    context = request.app[CONTEXT]
    await context.tokens.revoke(request.match_info["id"], context.now())
    context.end_access()
    return web.Response(status=204)


async def create_login_code(request: web.Request) -> web.Response:
    """Make a one-time link that logs in with the token of this request.

    What a session makes so ends with it.
    """
    context = request.app[CONTEXT]
    wanted = (
        await json_body(request, LoginCodeRequest) if request.body_exists else LoginCodeRequest()
    )
    session = request.get(SESSION)
    code = context.codes.issue(Login(request[TOKEN], wanted.next, session.id if session else None))
    url = login_url(context.settings, f"http://{request.host}", code)
    expires_at = context.now() + CODE_LIFETIME
    return json_answer(LoginCode(url=url, expires_at=expires_at), status=201)


def _fields(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role.label,
        "created_at": token.created_at,
        "revoked_at": token.revoked_at,
    }
