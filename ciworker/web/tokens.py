"""Tokens, for the operator's commands; one-time links, for whoever has a token."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

from aiohttp import web

from ciworker.errors import Conflict
from ciworker.store.audit import Action
from ciworker.store.tokens import Role, Token
from ciworker.web.access import LOCALHOST, SESSION, TOKEN
from ciworker.web.answers import json_answer, json_body
from ciworker.web.audit import deed
from ciworker.web.context import CONTEXT, Context
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
    context = request.app[CONTEXT]
    tokens = [_as_used(token, context) for token in await context.tokens.list()]
    return json_answer(TokenList(items=[TokenModel(**_fields(token)) for token in tokens]))


async def create_token(request: web.Request) -> web.Response:
    """Make a token; its text is in this answer alone."""
    wanted = await json_body(request, TokenRequest)
    context = request.app[CONTEXT]
    now = context.now()
    token, text = await context.tokens.create(
        wanted.name,
        Role[wanted.role.upper()],
        now,
        expires_at=None
        if wanted.expires_in is None
        else now + timedelta(seconds=wanted.expires_in),
        deed=deed(request, Action.CREATE_TOKEN, detail=f"{wanted.name} ({wanted.role})"),
    )
    return json_answer(NewToken(**_fields(token), token=text), status=201)


async def revoke_token(request: web.Request) -> web.Response:
    """From now on the token opens nothing."""
    context = request.app[CONTEXT]
    token_id = request.match_info["id"]
    revoking = deed(request, Action.REVOKE_TOKEN, token_id)
    await context.tokens.revoke(token_id, context.now(), deed=revoking)
    context.end_access()
    return web.Response(status=204)


async def create_login_code(request: web.Request) -> web.Response:
    """Make a one-time link that logs in with the token of this request.

    What a session makes so ends with it.
    """
    context = request.app[CONTEXT]
    settings = context.settings
    if settings.unix_path and not settings.public_url and request.host == LOCALHOST:
        raise Conflict(
            "no browser opens a Unix socket: set public_url to the address of the proxy before it"
        )
    wanted = (
        await json_body(request, LoginCodeRequest) if request.body_exists else LoginCodeRequest()
    )
    session = request.get(SESSION)
    code = context.codes.issue(Login(request[TOKEN], wanted.next, session.id if session else None))
    url = login_url(settings, f"{settings.scheme}://{request.host}", code)
    expires_at = context.now() + CODE_LIFETIME
    return json_answer(LoginCode(url=url, expires_at=expires_at), status=201)


def _as_used(token: Token, context: Context) -> Token:
    """The token; its last use may not be stored yet."""
    return replace(token, last_used_at=context.token_uses.last(token.id) or token.last_used_at)


def _fields(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role.label,
        "created_at": token.created_at,
        "revoked_at": token.revoked_at,
        "expires_at": token.expires_at,
        "last_used_at": token.last_used_at,
    }
