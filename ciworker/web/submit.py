"""Taking a job in: validated while it streams to its spool file; refused, nothing stays."""

import asyncio
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import orjson
from aiohttp import web
from pydantic import BaseModel, ValidationError

from ciworker.domain.git import check_ref, check_subdirectory, parse_remote
from ciworker.domain.job import Cache, Git, Job, Kind, Spec, Status
from ciworker.domain.jobfile import check_bounds, resolve, unknown_key
from ciworker.domain.secrets import check_secrets
from ciworker.errors import Conflict, Invalid
from ciworker.source.archive import Workspace
from ciworker.source.bounds import bounds_of, upload_limits
from ciworker.source.inputs import with_setup
from ciworker.source.intake import Intake
from ciworker.source.secrets import rules_of
from ciworker.store.audit import Action, Deed
from ciworker.store.tokens import Role
from ciworker.web.access import TOKEN
from ciworker.web.answers import found, json_answer
from ciworker.web.audit import deed
from ciworker.web.context import CONTEXT, Context
from ciworker.web.diskguard import check_room
from ciworker.web.drain import check_taking
from ciworker.web.models import GitRequest, SpecRequest, Vcs, job_model
from ciworker.web.problems import Refused
from ciworker.web.throttle import too_many
from ciworker.web.upload import Upload, drain

MAX_SPEC = 256 * 2**10
MAX_KEY = 200
_NESTED: Mapping[str, type[BaseModel]] = {"vcs": Vcs, "git": GitRequest}


async def submit(request: web.Request) -> web.Response:
    """Submit a tree; it is queued when this answers 201."""
    context = request.app[CONTEXT]
    await context.engine_ready()
    key = _idempotency_key(request)
    if key and (earlier := await context.jobs.submitted(request[TOKEN].id, key, context.now())):
        await drain(request, context.settings.max_upload)
        return json_answer(job_model(earlier))
    _check_rate(request)
    check_taking(context)
    await check_room(context)
    job = await _take_in(await Upload.of(request), context, request[TOKEN].role)
    stored = await _store(context, job, key, deed(request, Action.SUBMIT, job.id))
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
    _check_rate(request)
    check_taking(context)
    await check_room(context)
    check_bounds(old.spec, bounds_of(context.settings))  # they may have changed since
    source, role = str(old.source.get("kind", "upload")), request[TOKEN].role
    _check_secrets(context, old.spec, source, role)  # it may be another's
    git = old.spec.git and replace(old.spec.git, role=role.label, allowed=())
    cache = Cache.USE if old.spec.cache is Cache.REBUILD else old.spec.cache
    job = _queued(
        context,
        context.new_id(),
        replace(old.spec, cache=cache, git=git),
        tar_length=old.tar_length,
        priority=old.priority,
        source=old.source,
        retry_of=old.id,
    )
    if not old.unfetched:
        await asyncio.to_thread(_link_spool, context, old.id, job.id)
    retried = deed(request, Action.RETRY, job.id, f"of {old.id}")
    return _accepted(context, await _store(context, job, None, retried), 202)


def _check_rate(request: web.Request) -> None:
    """Count a submit of this token.

    Raises:
        Refused: 429 when there are too many.
    """
    context, token = request.app[CONTEXT], request[TOKEN]
    if wait := context.submits.take(token.id):
        rate = context.settings.submit_rate
        raise too_many(wait, f"token {token.name!r} submits more than {rate} (submit_rate)")


def _accepted(context: Context, job: Job, status: int) -> web.Response:
    context.notify(job.id)
    return json_answer(
        job_model(job), status=status, headers={"Location": f"/api/v1/jobs/{job.id}"}
    )


async def _take_in(upload: Upload, context: Context, role: Role) -> Job:
    wanted = await _spec_part(upload)
    if wanted.git is None:
        return await _uploaded(upload, wanted, context, role)
    await upload.end("with `git` in the part `spec` no archive is sent: send one or the other")
    return to_fetch(wanted, wanted.git, context, role=role.label)


def to_fetch(
    wanted: SpecRequest,
    source: GitRequest,
    context: Context,
    *,
    role: str,
    allowed: Sequence[str] = (),
    more: Mapping[str, object] = MappingProxyType({}),
) -> Job:
    """A job whose tree the worker fetches, and whose job file it reads then.

    role, allowed: who may name which secrets, see `Git`. more: is told of its source besides.
    """
    remote = parse_remote(source.url)
    git = Git(
        url=remote.url,
        ref=check_ref(source.ref),
        subdirectory=check_subdirectory(source.subdirectory) if source.subdirectory else None,
        overrides=_overrides(wanted),
        role=role,
        allowed=allowed,
    )
    # setup: that of the job file is not known yet, and setup-inputs may be meant for it
    overrides = {"setup": [], **git.overrides}
    spec = resolve({}, overrides, bounds_of(context.settings), remote.name).spec
    check_secrets(spec, rules_of(context.settings), source="git", role=role, allowed=allowed)
    return _queued(
        context,
        context.new_id(),
        replace(spec, git=git),
        tar_length=0,
        priority=wanted.priority,
        source={"kind": "git", **more},
    )


async def _uploaded(upload: Upload, wanted: SpecRequest, context: Context, role: Role) -> Job:
    """Spool the archive and resolve the spec against the job file inside it."""
    settings, job_id = context.settings, context.new_id()
    spool = settings.spool_file(job_id)
    intake = Intake(spool, upload_limits(settings), context.now().timestamp())
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
    return wanted.model_dump(by_alias=True, exclude_none=True, exclude={"priority", "vcs", "git"})


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
        waits=bool(spec.setup) or (spec.git is not None and not tar_length),
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


async def _store(context: Context, job: Job, key: str | None, by: Deed) -> Job:
    """Store the row; the spool file goes if this is not the job that stays."""
    spool = context.settings.spool_file(job.id)
    try:
        stored = await asyncio.shield(context.jobs.add(job, by.token_id or "", key, deed=by))
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
        shown = ".".join([name, *inner]) if name in _NESTED else name
        return f"{shown} in the part `spec`: {first['msg']}"
    if inner:
        fields = list(_NESTED[name].model_fields)
        return unknown_key(inner[0], fields, f"`{name}` of the part `spec`")
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
