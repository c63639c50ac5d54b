"""Taking a job in: validated while it streams to its spool file; refused, nothing stays."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import orjson
from aiohttp import BodyPartReader, MultipartReader, web
from pydantic import ValidationError

from ciworker.domain.job import Job, Status
from ciworker.domain.jobfile import resolve, unknown_key
from ciworker.errors import Conflict, Invalid
from ciworker.source.archive import Limits, Workspace
from ciworker.source.intake import Intake
from ciworker.web.access import TOKEN
from ciworker.web.answers import found, json_answer
from ciworker.web.context import CONTEXT, Context, bounds_of
from ciworker.web.models import SpecRequest, job_model
from ciworker.web.problems import Refused

READ_TIMEOUT = 30.0
MAX_SPEC = 256 * 2**10
READ_SIZE = 256 * 2**10
MAX_KEY = 200


async def submit(request: web.Request) -> web.Response:
    """Submit a tree; it is queued when this answers 201."""
    context = request.app[CONTEXT]
    context.engine_ready()
    key = _idempotency_key(request)
    if key and (earlier := await context.jobs.submitted(request[TOKEN].id, key, context.now())):
        await _drain(request, context.settings.max_upload)
        return json_answer(job_model(earlier))
    reader = await _multipart(request)
    wanted = await _spec_part(reader)
    job = await _take_in(reader, wanted, context)
    stored = await _store(context, job, request[TOKEN].id, key)
    if stored.id != job.id:
        return json_answer(job_model(stored))
    context.notify(job.id)
    return json_answer(
        job_model(stored), status=201, headers={"Location": f"/api/v1/jobs/{job.id}"}
    )


async def retry(request: web.Request) -> web.Response:
    """Submit the same tree with the same spec again, as a new job."""
    context = request.app[CONTEXT]
    old = await found(request)
    if not old.status.terminal:
        raise Conflict(f"job {old.id} is {old.status}: it can be retried once it has ended")
    job = replace(
        _new_job(context, old),
        retry_of=old.id,
        priority=old.priority,
        source=old.source,
    )
    await asyncio.to_thread(_link_spool, context, old.id, job.id)
    stored = await _store(context, job, request[TOKEN].id, None)
    context.notify(stored.id)
    return json_answer(
        job_model(stored), status=202, headers={"Location": f"/api/v1/jobs/{stored.id}"}
    )


async def _take_in(reader: MultipartReader, wanted: SpecRequest, context: Context) -> Job:
    """Spool the archive and resolve the spec against the job file inside it."""
    settings, job_id = context.settings, context.new_id()
    limits = Limits(settings.max_upload, settings.max_unpacked, settings.max_members)
    intake = Intake(settings.spool_file(job_id), limits, context.now().timestamp())
    try:
        workspace = await _receive(await _archive_part(reader), intake)
        overrides = wanted.model_dump(exclude_none=True, exclude={"priority", "vcs"})
        spec = resolve(workspace.jobfiles, overrides, bounds_of(settings))
    except BaseException:
        intake.abort()
        raise
    return Job(
        id=job_id,
        status=Status.QUEUED,
        spec=spec,
        created_at=context.now(),
        mark_token=secrets.token_hex(16),
        tar_length=workspace.tar_length,
        priority=wanted.priority,
        source=_source(workspace, wanted),
    )


def _new_job(context: Context, like: Job) -> Job:
    return Job(
        id=context.new_id(),
        status=Status.QUEUED,
        spec=like.spec,
        created_at=context.now(),
        mark_token=secrets.token_hex(16),
        tar_length=like.tar_length,
    )


def _source(workspace: Workspace, wanted: SpecRequest) -> dict[str, Any]:
    source: dict[str, Any] = {
        "kind": "upload",
        "files": workspace.files,
        "bytes": workspace.unpacked,
    }
    if wanted.vcs is not None:
        source["vcs"] = wanted.vcs.model_dump(exclude_none=True)
    return source


async def _store(context: Context, job: Job, submitter: str, key: str | None) -> Job:
    """Store the row; the spool file goes if this is not the job that stays."""
    spool = context.settings.spool_file(job.id)
    try:
        stored = await asyncio.shield(context.jobs.add(job, submitter, key))
    except Exception:
        spool.unlink(missing_ok=True)
        raise
    if stored.id != job.id:
        spool.unlink(missing_ok=True)
    return stored


async def _receive(part: BodyPartReader, intake: Intake) -> Workspace:
    async for chunk in _chunks(part):
        await intake.feed(chunk)
    return await intake.finish()


async def _chunks(part: BodyPartReader) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(READ_TIMEOUT):
                chunk = await part.read_chunk(READ_SIZE)
        except TimeoutError:
            raise Refused(408, f"nothing came for {READ_TIMEOUT:g} s: submit again") from None
        except ValueError as error:
            raise Invalid("the upload broke off: submit again") from error
        if not chunk:
            return
        yield bytes(chunk)


async def _multipart(request: web.Request) -> MultipartReader:
    if not request.content_type.startswith("multipart/"):
        raise Refused(
            415,
            "send multipart/form-data with the parts `spec` (JSON) and `archive`, in this order",
        )
    try:
        return await request.multipart()
    except (ValueError, AssertionError) as error:
        raise Invalid(f"the multipart body cannot be read: {error}") from error


async def _next_part(reader: MultipartReader, name: str) -> BodyPartReader:
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            part = await reader.next()
    except (ValueError, AssertionError) as error:
        raise Invalid(f"the multipart body cannot be read: {error}") from error
    except TimeoutError:
        raise Refused(408, f"nothing came for {READ_TIMEOUT:g} s: submit again") from None
    if not isinstance(part, BodyPartReader) or part.name != name:
        raise Invalid(f"the part {name!r} is missing: send `spec` (JSON), then `archive`")
    return part


async def _archive_part(reader: MultipartReader) -> BodyPartReader:
    return await _next_part(reader, "archive")


async def _spec_part(reader: MultipartReader) -> SpecRequest:
    data = b""
    async for chunk in _chunks(await _next_part(reader, "spec")):
        data += chunk
        if len(data) > MAX_SPEC:
            raise Invalid(f"the part `spec` is larger than {MAX_SPEC} bytes")
    try:
        fields = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"the part `spec` is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise Invalid("the part `spec` has to be a JSON object")
    try:
        return SpecRequest.model_validate(fields)
    except ValidationError as error:
        raise Invalid(_sentence(error)) from error


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown_key(name, list(SpecRequest.model_fields), "the part `spec`")
    return f"{name} in the part `spec`: {first['msg']}"


def _idempotency_key(request: web.Request) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not 0 < len(key) <= MAX_KEY:
        raise Invalid(f"Idempotency-Key has to have 1 to {MAX_KEY} characters")
    return key


async def _drain(request: web.Request, most: int) -> None:
    """Read a body that is not needed, so that its sender sees the answer."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(READ_TIMEOUT):
            while most > 0 and (data := await request.content.readany()):
                most -= len(data)


def _link_spool(context: Context, old: str, new: str) -> None:
    source, target = context.settings.spool_file(old), context.settings.spool_file(new)
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise Conflict(f"the workspace of job {old} is no longer stored: submit it again") from None
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
