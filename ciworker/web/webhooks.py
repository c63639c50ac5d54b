"""What others are told of jobs, for the operator's commands: see it, try it, send it again."""

from urllib.parse import urlsplit

from aiohttp import web

from ciworker.domain.webhook import Delivery, DeliveryKind, DeliveryState, trial_message
from ciworker.errors import Unknown
from ciworker.store.audit import Action
from ciworker.web.answers import choice, flag, json_answer, json_body, limited
from ciworker.web.audit import deed, record
from ciworker.web.context import CONTEXT
from ciworker.web.models import (
    DeliveryList,
    DeliveryModel,
    WebhookList,
    WebhookModel,
    WebhookTest,
)

PAGE = 50
MOST_PER_PAGE = 500


async def list_webhooks(request: web.Request) -> web.Response:
    """The webhooks of the settings, with what waits for each."""
    context = request.app[CONTEXT]
    backlogs = {(b.kind, b.endpoint): b for b in await context.deliveries.backlogs()}
    items = []
    for entry in context.settings.webhooks:
        backlog = backlogs.get((DeliveryKind.WEBHOOK, entry.called))
        url = urlsplit(entry.url.get_secret_value())
        items.append(
            WebhookModel(
                name=entry.called,
                host=url.hostname or "",
                events=list(entry.events),
                pending=backlog.pending if backlog else 0,
                failing=backlog.failing if backlog else 0,
                oldest_pending_at=backlog.oldest if backlog else None,
            )
        )
    return json_answer(WebhookList(items=items))


async def list_deliveries(request: web.Request) -> web.Response:
    """Messages to others, newest first."""
    state = choice(request, "state", tuple(DeliveryState))
    found = await request.app[CONTEXT].deliveries.page(
        limited(request, PAGE, MOST_PER_PAGE),
        DeliveryState(state) if state else None,
        failed=flag(request, "failed"),
    )
    return json_answer(DeliveryList(items=[_model(delivery) for delivery in found]))


async def show_delivery(request: web.Request) -> web.Response:
    """One message, and how it fares."""
    found = await request.app[CONTEXT].deliveries.get(request.match_info["id"])
    return json_answer(_model(found))


async def test_webhooks(request: web.Request) -> web.Response:
    """Send a test message to one webhook, or to all."""
    context = request.app[CONTEXT]
    wanted = (await json_body(request, WebhookTest)).name
    names = [entry.called for entry in context.settings.webhooks]
    chosen = [name for name in names if wanted in (None, name)]
    if not chosen:
        there = f"there are {', '.join(names)}" if names else "they name none"
        raise Unknown(f"no webhook of the settings is called {wanted or 'anything'}: {there}")
    await record(request, Action.TEST_WEBHOOKS, ", ".join(chosen))
    now = context.now()
    made = [await context.deliveries.add(trial_message(name, now), now) for name in chosen]
    return json_answer(DeliveryList(items=[_model(delivery) for delivery in made]), status=202)


async def redeliver(request: web.Request) -> web.Response:
    """Send a message again that was delivered, or given up."""
    context, delivery_id = request.app[CONTEXT], request.match_info["id"]
    told = deed(request, Action.REDELIVER, delivery_id)
    again = await context.deliveries.again(delivery_id, context.now(), deed=told)
    return json_answer(_model(again), status=202)


def _model(delivery: Delivery) -> DeliveryModel:
    message = delivery.message
    return DeliveryModel(
        id=delivery.id,
        kind=message.kind,
        endpoint=message.endpoint,
        type=message.type,
        job=message.job,
        state=delivery.state,
        tries=delivery.tries,
        created_at=delivery.created_at,
        tried_at=delivery.tried_at,
        next_try_at=delivery.next_try_at,
        answer=delivery.answer,
        error=delivery.error,
    )
