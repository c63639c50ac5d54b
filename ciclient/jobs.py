"""From what is written on the command line to a job: an id, a prefix, `-`, or nothing."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ciclient.errors import Refused, Usage
from ciclient.sanitise import clean
from ciclient.state import newest
from ciclient.wire import Job, Page

if TYPE_CHECKING:
    from ciclient.api import Api

ID_LENGTH = 26
SHORTEST_PREFIX = 6
_ID_PART = re.compile(r"[0-9A-HJKMNP-TV-Z]+")  # Crockford's base 32, as in a ULID
PAGE = 500


def find_job(api: "Api", reference: str | None) -> Job:
    """Raises Usage for a job that is unknown, ambiguous or not named at all."""
    if reference is None:
        return find_named(api, _newest_here(api.access.server))
    words = expand([reference])
    if len(words) != 1:
        raise Usage(f"one job is needed, but stdin holds {len(words)} words")
    return find_named(api, words[0])


def newest_jobs(api: "Api", limit: int, *, status: str | None, project: str | None) -> Page:
    """Reads as many pages as `limit` needs; `next` is the cursor behind the last one."""
    jobs: list[Job] = []
    cursor: str | None = None
    while True:
        wanted = min(limit - len(jobs), PAGE)
        params = {"limit": wanted, "cursor": cursor, "status": status, "project": project}
        page = api.jobs(params)
        jobs += page.jobs
        cursor = page.next
        if cursor is None or not page.jobs or len(jobs) >= limit:
            return Page(tuple(jobs), cursor)


def expand(references: list[str]) -> list[str]:
    """`-` becomes the words on stdin, repeated ones are dropped."""
    words: list[str] = []
    for reference in references:
        words += sys.stdin.read().split() if reference == "-" else [reference]
    return list(dict.fromkeys(words))


def _newest_here(server: str) -> str:
    job_id = newest(server, Path.cwd())
    if job_id is None:
        raise Usage(
            f"no job was submitted from this folder to {server}: name one "
            "(`ciclient list` shows them)"
        )
    return job_id


def find_named(api: "Api", word: str) -> Job:
    """Of an id or a prefix, in capitals or not."""
    wanted = word.upper()
    if not _ID_PART.fullmatch(wanted) or not SHORTEST_PREFIX <= len(wanted) <= ID_LENGTH:
        raise Usage(
            f"{word!r} is no job id; a job is named by its {ID_LENGTH} letters and digits, "
            f"or at least the first {SHORTEST_PREFIX} of them"
        )
    if len(wanted) < ID_LENGTH:
        return _find_by_prefix(api, wanted)
    try:
        return api.job(wanted)
    except Refused as error:
        if error.status == 404:
            raise Usage(
                f"there is no job {wanted} on {api.access.server}: see `ciclient list`"
            ) from error
        raise


def _find_by_prefix(api: "Api", prefix: str) -> Job:
    """Reads the list, newest first, until ids sort before the prefix: ids are monotonic."""
    matches: list[Job] = []
    cursor: str | None = None
    while True:
        page = api.jobs({"limit": PAGE, "cursor": cursor})
        matches += [job for job in page.jobs if job.id.startswith(prefix)]
        cursor = page.next
        if cursor is None or not page.jobs or page.jobs[-1].id < prefix:
            return _only(matches, prefix)


def _only(matches: list[Job], prefix: str) -> Job:
    if not matches:
        raise Usage(f"no job's id begins with {prefix}")
    if len(matches) > 1:
        names = "\n".join(f"  {clean(job.id)}  {clean(job.status)}" for job in matches)
        raise Usage(f"{prefix} begins the ids of {len(matches)} jobs:\n{names}")
    return matches[0]
