"""What several handlers need: the job that a path names, query parameters, JSON answers."""

import re
from collections.abc import Sequence
from typing import TypeVar, overload

from aiohttp import web
from pydantic import BaseModel, ValidationError

from ciworker.domain.job import Job
from ciworker.errors import Invalid, Unknown
from ciworker.web.context import CONTEXT
from ciworker.web.problems import Refused
from ciworker.web.upload import small_body

M = TypeVar("M", bound=BaseModel)

_ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.ASCII)
_NUMBER = re.compile(r"\d{1,15}", re.ASCII)


def json_answer(
    body: BaseModel, *, status: int = 200, headers: dict[str, str] | None = None
) -> web.Response:
    return web.Response(
        status=status,
        body=body.model_dump_json().encode(),
        content_type="application/json",
        headers=headers,
    )


async def json_body(request: web.Request, model: type[M]) -> M:
    """The body as a model.

    Raises:
        Refused: it does not call itself JSON. Invalid: it is none, or not this model's.
    """
    if request.content_type != "application/json":
        raise Refused(415, "send application/json")
    try:
        return model.model_validate_json(await small_body(request))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise Invalid(": ".join((*map(str, first["loc"]), first["msg"]))) from error


def named(request: web.Request) -> str:
    """The id that the path gives; there need not be such a job."""
    return request.match_info["id"].upper()


async def found(request: web.Request) -> Job:
    """The job that the path names.

    Raises:
        Unknown: there is none.
    """
    job_id = named(request)
    job = await request.app[CONTEXT].jobs.get(job_id) if _ULID.fullmatch(job_id) else None
    if job is None:
        raise Unknown(f"there is no job {request.match_info['id']!r}: see `ciclient list`")
    return job


def parameter(request: web.Request, name: str) -> str | None:
    """A query parameter.

    Raises:
        Invalid: it is there twice.
    """
    texts = request.query.getall(name, [])
    if len(texts) > 1:
        raise Invalid(f"{name} is there {len(texts)} times: give it once")
    return texts[0] if texts else None


@overload
def number(request: web.Request, name: str, default: int) -> int: ...
@overload
def number(request: web.Request, name: str) -> int | None: ...
def number(request: web.Request, name: str, default: int | None = None) -> int | None:
    """A query parameter that is a whole number.

    Raises:
        Invalid: it is not.
    """
    text = parameter(request, name)
    if text is None:
        return default
    if not _NUMBER.fullmatch(text):
        raise Invalid(f"{name} has to be a whole number, not {text[:50]!r}")
    return int(text)


def choice(request: web.Request, name: str, allowed: Sequence[str]) -> str | None:
    """A query parameter that is one of a few words.

    Raises:
        Invalid: it is not.
    """
    text = parameter(request, name)
    if text is not None and text not in allowed:
        raise Invalid(f"{name} has to be one of {', '.join(allowed)}, not {text[:50]!r}")
    return text


def flag(request: web.Request, name: str, *, default: bool = False) -> bool:
    """A query parameter that is yes or no.

    Raises:
        Invalid: it is neither.
    """
    text = choice(request, name, ("0", "1", "false", "true"))
    return default if text is None else text in ("1", "true")


def limited(request: web.Request, default: int, most: int) -> int:
    """The query parameter `limit`: how many of something are wanted.

    Raises:
        Invalid: it is not 1 to `most`.
    """
    limit = number(request, "limit", default)
    if not 1 <= limit <= most:
        raise Invalid(f"limit has to be 1 to {most}")
    return limit


def before_first(request: web.Request, last: int) -> int:
    """The number of the line before the first that `tail`, else `from`, asks for."""
    tail = number(request, "tail")
    if tail is not None:
        return max(0, last - tail)
    return max(0, number(request, "from", 1) - 1)
