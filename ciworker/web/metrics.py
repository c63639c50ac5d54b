"""`/metrics`: what the instruments hold, and what is asked for when somebody looks."""

import asyncio

from aiohttp import web
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from ciworker.domain.environment import SHOWN
from ciworker.domain.job import Kind, Status
from ciworker.domain.webhook import DeliveryKind
from ciworker.store.counts import Counts
from ciworker.web.context import CONTEXT, Context

TEXT = "text/plain; version=0.0.4"


async def metrics(request: web.Request) -> web.Response:
    """What the worker measures, in Prometheus' text format.

    Without the store nothing is told: who asks for it is looked up there as well.
    """
    context = request.app[CONTEXT]
    await _refresh(context)
    body = await asyncio.to_thread(generate_latest, context.metrics.registry)
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


async def _refresh(context: Context) -> None:
    """Ask for what has no instrument of its own; a disk that cannot be seen is left out.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    _show_counts(context, await context.counter.counts())
    _show_watchers(context)
    await _show_deliveries(context)
    state = context.metrics.state
    state.work_queue.set(context.work_queue())
    state.connected.set(context.connected())
    state.tasks.set(len(asyncio.all_tasks()))
    for (entry, member_state), count in context.pool.counts().items():
        state.pool.labels(entry, member_state).set(count)
    state.pool_environments.clear()  # of others than those that it holds now
    for (entry, key), count in context.pool.environments().items():
        state.pool_environments.labels(entry, key[:SHOWN]).set(count)
    for name, disk in (await context.disks()).items():
        state.disk_free.labels(name).set(disk.free)
        state.disk_size.labels(name).set(disk.size)


def _show_counts(context: Context, counts: Counts) -> None:
    state = context.metrics.state
    for status in Status:
        state.jobs.labels(status).set(counts.by_status.get(status, 0))
    for kind in Kind:
        state.queue.labels(kind, "slot").set(counts.for_a_slot.get(kind, 0))
    state.queue.labels(Kind.JOB, "environment").set(counts.for_environments)
    state.environments.set(counts.environments)


async def _show_deliveries(context: Context) -> None:
    shown, now = context.metrics.deliveries, context.now()
    pending, ages = dict.fromkeys(DeliveryKind, 0), dict.fromkeys(DeliveryKind, 0.0)
    for backlog in await context.deliveries.backlogs():
        pending[backlog.kind] += backlog.pending
        age = (now - backlog.oldest).total_seconds()
        ages[backlog.kind] = max(ages[backlog.kind], age)
    for kind in DeliveryKind:
        shown.pending.labels(kind).set(pending[kind])
        shown.oldest.labels(kind).set(ages[kind])


def _show_watchers(context: Context) -> None:
    shown = context.metrics.watchers
    for stream, count in context.watchers.subscribers.items():
        shown.subscribers.labels(stream).set(count)
    shown.most_behind.set(context.watchers.most_behind)
