"""Jobs: list, one, cancel; resync; health."""

import re

from aiohttp import web

from ciworker.domain.job import Job, Kind, Status
from ciworker.errors import Conflict, Invalid
from ciworker.store.audit import Action
from ciworker.web.access import TOKEN
from ciworker.web.answers import choice, found, json_answer, number, parameter
from ciworker.web.audit import deed, record
from ciworker.web.context import CONTEXT
from ciworker.web.detail import detail
from ciworker.web.drain import check_taking
from ciworker.web.models import Health, JobPage, job_model

PAGE = 50
MOST_PER_PAGE = 500
_CURSOR = re.compile(r"[0-9A-Z]{26}", re.ASCII)


async def list_jobs(request: web.Request) -> web.Response:
    """Jobs, newest first."""
    limit = min(number(request, "limit", PAGE), MOST_PER_PAGE)
    if not limit:
        raise Invalid(f"limit has to be 1 to {MOST_PER_PAGE}")
    status = choice(request, "status", tuple(Status))
    cursor = parameter(request, "cursor")
    if cursor is not None and not _CURSOR.fullmatch(cursor):
        raise Invalid("cursor has to be the `next` of the page before")
    jobs = await request.app[CONTEXT].jobs.page(
        limit=limit + 1,
        before=cursor,
        status=Status(status) if status else None,
        project=parameter(request, "project"),
    )
    more = len(jobs) > limit
    items = [job_model(job) for job in jobs[:limit]]
    return json_answer(JobPage(items=items, next=items[-1].id if more else None))


async def show_job(request: web.Request) -> web.Response:
    """One job with its history."""
    return json_answer(await detail(request.app[CONTEXT], await found(request)))


async def cancel_job(request: web.Request) -> web.Response:
    """Ask for a stop; the answer does not wait for it."""
    context, job = request.app[CONTEXT], await found(request)
    if job.kind is Kind.SETUP:
        raise Conflict(f"{job.id} sets an environment up: cancel the jobs that wait for it")
    asked = job if job.cancel_asked and not job.status.terminal else await _ask(request, job)
    if asked is None:
        raise Conflict(f"job {job.id} has ended already: {job.reason or 'just now'}")
    context.notify(job.id)
    return json_answer(job_model(asked), status=202)


async def _ask(request: web.Request, job: Job) -> Job | None:
    """Note who wants the job stopped. None: it has ended."""
    context, by = request.app[CONTEXT], request[TOKEN].name
    return await context.jobs.note(
        job.id,
        context.now(),
        f"cancel asked for by {by}",
        deed=deed(request, Action.CANCEL, job.id),
        cancel_by=by,
    )


async def resync(request: web.Request) -> web.Response:
    """Compare everything with the engine now; joins a resync that runs."""
    await record(request, Action.RESYNC)
    return json_answer(await request.app[CONTEXT].resync())


async def healthz(_request: web.Request) -> web.Response:
    """The process is alive."""
    return json_answer(Health())


async def readyz(request: web.Request) -> web.Response:
    """Engine and store answer, and jobs are taken."""
    context = request.app[CONTEXT]
    check_taking(context)
    await context.engine_ready()
    await context.store_ready()
    return json_answer(Health())
