"""Draining: asked for, seen, undone; and why no job is taken meanwhile."""

from aiohttp import web

from ciworker.domain.job import Job
from ciworker.store.audit import Action
from ciworker.telemetry import logger
from ciworker.web.access import TOKEN
from ciworker.web.answers import json_answer
from ciworker.web.audit import record
from ciworker.web.context import CONTEXT, Context
from ciworker.web.models import AwaitedJob, DrainReport
from ciworker.web.problems import Refused

RETRY_AFTER = 60


async def drain(request: web.Request) -> web.Response:
    """Take no new jobs, wait for those that run, then exit; queued ones are the next worker's."""
    context = request.app[CONTEXT]
    awaited = await _all_awaited(context)  # first: a 503 for want of the store drains nothing
    if not context.drain.wanted:
        await record(request, Action.DRAIN)
        context.drain.begin()
        logger().info("draining", by=request[TOKEN].name)
    return _reported(context, awaited)


async def show_drain(request: web.Request) -> web.Response:
    """Whether the worker drains, and the jobs that it would wait for."""
    context = request.app[CONTEXT]
    return _reported(context, await _all_awaited(context))


async def undo_drain(request: web.Request) -> web.Response:
    """Take and start jobs again."""
    drain = request.app[CONTEXT].drain
    if drain.wanted:
        if not drain.over:
            await record(request, Action.UNDO_DRAIN)
        drain.undo()
        logger().info("draining no more", by=request[TOKEN].name)
    return await show_drain(request)


def check_taking(context: Context) -> None:
    """Let a job in only while there will be somebody to run it.

    Raises:
        Refused: 503 while the worker drains, with when to come back.
    """
    if context.drain.wanted:
        raise Refused(
            503,
            "the worker is draining: it takes no jobs until it is started again "
            "(or `ciworker drain --undo`); submit again then",
            {"Retry-After": str(RETRY_AFTER)},
        )


def _reported(context: Context, awaited: list[AwaitedJob]) -> web.Response:
    report = DrainReport(
        started_at=context.started_at, draining=context.drain.wanted, waits_for=awaited
    )
    return json_answer(report)


async def _all_awaited(context: Context) -> list[AwaitedJob]:
    found = [await context.jobs.current(job_id) for job_id in await context.jobs.active()]
    return [_awaited(job) for job in found if job is not None]


def _awaited(job: Job) -> AwaitedJob:
    return AwaitedJob(
        id=job.id, project=job.spec.project, status=job.status, deadline_at=job.deadline_at
    )
