"""Environments, for the operator's commands: list, remove, prune."""

import re

from aiohttp import web

from ciworker.domain.environment import Environment, EnvironmentStatus
from ciworker.errors import Conflict, Unknown
from ciworker.store.audit import Action
from ciworker.web.access import TOKEN
from ciworker.web.answers import json_answer
from ciworker.web.audit import record
from ciworker.web.context import CONTEXT, Context
from ciworker.web.models import EnvironmentList, EnvironmentModel, EnvironmentNames

_KEY = re.compile(r"[0-9a-f]{64}", re.ASCII)


async def list_environments(request: web.Request) -> web.Response:
    """All environments, newest first, and what the cache of them was worth."""
    context = request.app[CONTEXT]
    everything = await context.environments.all()
    in_use = await context.jobs.environments_in_use()
    return json_answer(
        EnvironmentList(
            items=[_model(environment, in_use) for environment in everything],
            hits=sum(environment.hits for environment in everything),
            misses=sum(environment.misses for environment in everything),
            build_seconds=round(sum(environment.build_seconds for environment in everything), 3),
            bytes=sum(environment.bytes for environment in everything),
        )
    )


async def remove_environment(request: web.Request) -> web.Response:
    """Remove one that no job needs; the next job that does builds it anew."""
    context, key = request.app[CONTEXT], request.match_info["id"].lower()
    environment = await context.environments.get(key) if _KEY.fullmatch(key) else None
    if environment is None:
        raise Unknown(f"there is no environment {key[:80]!r}: see `ciworker env list`")
    if key in await context.jobs.environments_in_use():
        raise Conflict(f"environment {key[:12]} is in use: remove it once its jobs have ended")
    await record(request, Action.REMOVE_ENVIRONMENT, key)
    if not await _removed(context, environment, request[TOKEN].name):
        raise Conflict(
            f"environment {key[:12]} is still there: it was taken into use just now, is being "
            "built, or a container of someone else's uses its image: see `docker ps -a`"
        )
    return json_answer(EnvironmentNames(items=[key]))


async def prune_environments(request: web.Request) -> web.Response:
    """Remove all that no job needs."""
    context, by = request.app[CONTEXT], request[TOKEN].name
    await record(request, Action.PRUNE_ENVIRONMENTS)
    in_use = await context.jobs.environments_in_use()
    kept = [e for e in await context.environments.all() if e.layer is not None]
    unused = [environment for environment in kept if environment.key not in in_use]
    gone = [e.key for e in unused if await _removed(context, e, by)]
    return json_answer(EnvironmentNames(items=gone))


async def _removed(context: Context, environment: Environment, by: str) -> bool:
    await context.remove_environment(environment.key, f"removed by {by}")
    left = await context.environments.get(environment.key)
    return left is None or left.status in (EnvironmentStatus.ABSENT, EnvironmentStatus.FAILED)


def _model(environment: Environment, in_use: frozenset[str]) -> EnvironmentModel:
    return EnvironmentModel(
        key=environment.key,
        status=environment.status,
        project=environment.project,
        image=environment.image,
        image_id=environment.image_id,
        commands=list(environment.commands),
        inputs=sorted(environment.inputs),
        in_use=environment.key in in_use,
        build=environment.build,
        builds=environment.builds,
        build_seconds=round(environment.build_seconds, 3),
        bytes=environment.bytes,
        hits=environment.hits,
        misses=environment.misses,
        created_at=environment.created_at,
        ready_at=environment.ready_at,
        last_used_at=environment.last_used_at,
        exit_code=environment.exit_code,
        message=environment.message,
    )
