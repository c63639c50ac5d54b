"""Tokens, for the operator's commands."""

from typing import Any

from aiohttp import web
from pydantic import ValidationError

from ciworker.errors import Invalid
from ciworker.store.tokens import Role, Token
from ciworker.web.answers import json_answer
from ciworker.web.context import CONTEXT
from ciworker.web.models import NewToken, TokenList, TokenModel, TokenRequest
from ciworker.web.problems import Refused
from ciworker.web.upload import small_body


async def list_tokens(request: web.Request) -> web.Response:
    """All tokens, without their text."""
    tokens = await request.app[CONTEXT].tokens.list()
    return json_answer(TokenList(items=[TokenModel(**_fields(token)) for token in tokens]))


async def create_token(request: web.Request) -> web.Response:
    """Make a token; its text is in this answer alone."""
    if request.content_type != "application/json":
        raise Refused(415, "send application/json")
    try:
        wanted = TokenRequest.model_validate_json(await small_body(request))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise Invalid(": ".join((*map(str, first["loc"]), first["msg"]))) from error
    context = request.app[CONTEXT]
    token, text = await context.tokens.create(wanted.name, Role[wanted.role.upper()], context.now())
    return json_answer(NewToken(**_fields(token), token=text), status=201)


async def revoke_token(request: web.Request) -> web.Response:
    """From now on the token opens nothing."""
    context = request.app[CONTEXT]
    await context.tokens.revoke(request.match_info["id"], context.now())
    return web.Response(status=204)


def _fields(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "name": token.name,
        "role": token.role.label,
        "created_at": token.created_at,
        "revoked_at": token.revoked_at,
    }
