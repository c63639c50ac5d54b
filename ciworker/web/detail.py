"""A job in detail: with its history, what its time went into, and why it did not pass."""

from collections.abc import Sequence

from ciworker.domain.job import Job, Reason, Status
from ciworker.domain.log import Line
from ciworker.web.context import Context
from ciworker.web.models import JobDetail, job_detail

LINES = 100
BYTES = 32 * 2**10  # of the last lines' text, about; the last one is there however long
NO_FAILURES = (None, Reason.PASSED, Reason.CANCELLED)


async def detail(context: Context, job: Job) -> JobDetail:
    """Everything that is known of it."""
    jobs = context.jobs
    setup = await jobs.current(job.build) if job.build else None
    place = await jobs.place(job) if job.status is Status.QUEUED else None
    lines = await _last_lines(context, job)
    return job_detail(job, await jobs.history(job.id), setup, place, lines)


async def ended(context: Context, job: Job) -> bytes:
    """An ended job in detail, as JSON: made once for all who watched it."""

    async def told() -> bytes:
        return (await detail(context, job)).model_dump_json().encode()

    return await context.ends.get(job.id, told)


async def _last_lines(context: Context, job: Job) -> Sequence[Line]:
    if job.reason in NO_FAILURES:
        return ()
    return await context.feed.tail(job.id, job.log_lines, LINES, BYTES)
