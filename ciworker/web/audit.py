"""Who did what: noted by what handlers do, and read by the operator."""

from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from ciworker.errors import Invalid
from ciworker.store.audit import Action, Deed, Recorded
from ciworker.store.schema import instant, microseconds
from ciworker.store.tokens import Token
from ciworker.web.access import TOKEN, address
from ciworker.web.answers import json_answer, limited, parameter
from ciworker.web.context import CONTEXT
from ciworker.web.models import AuditEntry, AuditPage

PAGE = 50
MOST_PER_PAGE = 500


def deed(request: web.Request, action: Action, subject: str = "", detail: str = "") -> Deed:
    """What this request does, by its token."""
    return deed_of(request, request[TOKEN], action, subject, detail)


def deed_of(
    request: web.Request, token: Token, action: Action, subject: str = "", detail: str = ""
) -> Deed:
    """What this request does, by this token."""
    return Deed(
        at=request.app[CONTEXT].now(),
        action=action,
        by=token.name,
        address=address(request),
        token_id=token.id,
        subject=subject,
        detail=detail,
    )


async def record(request: web.Request, action: Action, subject: str = "") -> None:
    """Write down what is to be done next, which no transaction does."""
    await request.app[CONTEXT].audit.record(deed(request, action, subject))


async def list_deeds(request: web.Request) -> web.Response:
    """Who did what, newest first."""
    limit = limited(request, PAGE, MOST_PER_PAGE)
    found = await request.app[CONTEXT].audit.page(
        limit=limit + 1, since=_since(request), before=_before(request)
    )
    items, more = found[:limit], len(found) > limit
    return json_answer(
        AuditPage(
            items=[AuditEntry(**_fields(each.deed)) for each in items],
            next=_cursor(items[-1]) if more else None,
        )
    )


def _fields(told: Deed) -> dict[str, Any]:
    return {name: getattr(told, name) for name in AuditEntry.model_fields}


def _since(request: web.Request) -> datetime | None:
    text = parameter(request, "since")
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise Invalid("since has to be an instant, such as 2026-01-31T12:00:00Z") from None


def _before(request: web.Request) -> tuple[datetime, int] | None:
    text = parameter(request, "cursor")
    if text is None:
        return None
    try:
        at, _, number = text.partition(".")
        return instant(int(at)), int(number)
    except (ValueError, OverflowError):
        raise Invalid("cursor has to be the `next` of the page before") from None


def _cursor(last: Recorded) -> str:
    return f"{microseconds(last.deed.at)}.{last.id}"
