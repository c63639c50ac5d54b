"""Taking a job in: validated while it streams to its spool file; refused, nothing stays."""

import asyncio
import os
import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson
from aiohttp import web
from pydantic import ValidationError

from ciworker.domain.job import Cache, Job, Kind, Spec, Status
from ciworker.domain.jobfile import check_bounds, resolve, unknown_key
from ciworker.domain.secrets import check_secrets
from ciworker.errors import Conflict, Invalid
from ciworker.source.archive import Limits, Workspace
from ciworker.source.inputs import with_setup
from ciworker.source.intake import Intake
from ciworker.source.secrets import rules_of
from ciworker.store.tokens import Role
from ciworker.web.access import TOKEN
from ciworker.web.answers import found, json_answer
from ciworker.web.context import CONTEXT, Context, bounds_of
from ciworker.web.diskguard import check_room
from ciworker.web.drain import check_taking
from ciworker.web.models import SpecRequest, Vcs, job_model
from ciworker.web.problems import Refused
from ciworker.web.upload import Upload, drain

MAX_SPEC = 256 * 2**10
MAX_KEY = 200


async def submit(request: web.Request) -> web.Response:
    """Submit a tree; it is queued when this answers 201."""
    context = request.app[CONTEXT]
    await context.engine_ready()
    key = _idempotency_key(request)
    if key and (earlier := await context.jobs.submitted(request[TOKEN].id, key, context.now())):
        await drain(request, context.settings.max_upload)
        return json_answer(job_model(earlier))
    check_taking(context)
    await check_room(context)
    job = await _take_in(await Upload.of(request), context, request[TOKEN].role)
    stored = await _store(context, job, request[TOKEN].id, key)
    if stored.id != job.id:
        return json_answer(job_model(stored))
    return _accepted(context, stored, 201)


async def retry(request: web.Request) -> web.Response:
    """Submit the same tree with the same spec again, as a new job; it rebuilds no environment."""
    context = request.app[CONTEXT]
    await context.engine_ready()
    old = await found(request)
    if old.kind is Kind.SETUP:
        raise Conflict(f"{old.id} sets an environment up: retry the jobs that waited for it")
    if not old.status.terminal:
        raise Conflict(f"job {old.id} is {old.status}: it can be retried once it has ended")
    check_taking(context)
    await check_room(context)
    check_bounds(old.spec, bounds_of(context.settings))  # they may have changed since
    source = str(old.source.get("kind", "upload"))
    _check_secrets(context, old.spec, source, request[TOKEN].role)  # it may be another's
    cache = Cache.USE if old.spec.cache is Cache.REBUILD else old.spec.cache
    job = _queued(
        context,
        context.new_id(),
        replace(old.spec, cache=cache),
        tar_length=old.tar_length,
        priority=old.priority,
        source=old.source,
        retry_of=old.id,
    )
    await asyncio.to_thread(_link_spool, context, old.id, job.id)
    return _accepted(context, await _store(context, job, request[TOKEN].id, None), 202)


def _accepted(context: Context, job: Job, status: int) -> web.Response:
    context.notify(job.id)
    return json_answer(
        job_model(job), status=status, headers={"Location": f"/api/v1/jobs/{job.id}"}
    )


async def _take_in(upload: Upload, context: Context, role: Role) -> Job:
    """Spool the archive and resolve the spec against the job file inside it."""
    wanted = await _spec_part(upload)
    settings, job_id = context.settings, context.new_id()
    limits = Limits(settings.max_upload, settings.max_unpacked, settings.max_members)
    spool = settings.spool_file(job_id)
    intake = Intake(spool, limits, context.now().timestamp())
    try:
        workspace = await _receive(upload, intake)
        resolved = resolve(workspace.contents, _overrides(wanted), bounds_of(settings))
        _check_secrets(context, resolved.spec, "upload", role)
        spec = await asyncio.to_thread(with_setup, resolved, workspace, spool)
    except BaseException:
        intake.abort()
        raise
    return _queued(
        context,
        job_id,
        spec,
        tar_length=workspace.tar_length,
        priority=wanted.priority,
        source=_source(workspace, wanted.vcs),
    )


def _check_secrets(context: Context, spec: Spec, source: str, role: Role) -> None:
    check_secrets(spec, rules_of(context.settings), source=source, role=role.label)


def _overrides(wanted: SpecRequest) -> dict[str, Any]:
    return wanted.model_dump(by_alias=True, exclude_none=True, exclude={"priority", "vcs"})


async def _receive(upload: Upload, intake: Intake) -> Workspace:
    async for chunk in upload.part("archive"):
        await intake.feed(chunk)
    await upload.end()
    return await intake.finish()


def _queued(
    context: Context,
    job_id: str,
    spec: Spec,
    *,
    tar_length: int,
    priority: int,
    source: Mapping[str, object],
    retry_of: str | None = None,
) -> Job:
    return Job(
        id=job_id,
        status=Status.QUEUED,
        spec=spec,
        created_at=context.now(),
        mark_token=secrets.token_hex(16),
        tar_length=tar_length,
        priority=priority,
        source=source,
        retry_of=retry_of,
        waits=bool(spec.setup),
    )


def _source(workspace: Workspace, vcs: Vcs | None) -> dict[str, Any]:
    source: dict[str, Any] = {
        "kind": "upload",
        "files": workspace.files,
        "bytes": workspace.unpacked,
    }
    if vcs is not None:
        source["vcs"] = vcs.model_dump(exclude_none=True)
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


async def _spec_part(upload: Upload) -> SpecRequest:
    data = b""
    async for chunk in upload.part("spec"):
        data += chunk
        if len(data) > MAX_SPEC:
            raise Refused(413, f"the part `spec` is larger than {MAX_SPEC} bytes")
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
    name, *inner = map(str, first["loc"])
    if first["type"] != "extra_forbidden":
        return f"{name} in the part `spec`: {first['msg']}"
    if inner:
        return unknown_key(inner[0], list(Vcs.model_fields), f"`{name}` of the part `spec`")
    keys = [field.alias or key for key, field in SpecRequest.model_fields.items()]
    return unknown_key(name, keys, "the part `spec`")


def _idempotency_key(request: web.Request) -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
        raise Invalid(f"Idempotency-Key has to have 1 to {MAX_KEY} printable ASCII characters")
    return key


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
