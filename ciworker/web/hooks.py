"""Webhooks in: pushes and pull requests of GitHub, GitLab and Forgejo make jobs.

Open without a token: whoever knows the secret of a rule of the settings is its forge. Nothing of a
body is looked at before that is known, nor read of one that nobody signed; whoever does not know it
is counted as with a wrong token.
"""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence

import orjson
from aiohttp import web

from ciworker.domain.forge import (
    Change,
    Forge,
    change_of,
    delivery_id,
    is_authentic,
    is_signed,
    signs_bodies,
)
from ciworker.domain.git import parse_remote
from ciworker.domain.job import Job
from ciworker.domain.secrets import HOOK
from ciworker.errors import Invalid, Unknown
from ciworker.settings import HookRule, Settings
from ciworker.store.audit import Action, Deed
from ciworker.telemetry import logger
from ciworker.web.access import address, count_failure
from ciworker.web.answers import json_answer
from ciworker.web.context import CONTEXT, Context
from ciworker.web.diskguard import check_room
from ciworker.web.drain import check_taking
from ciworker.web.models import GitRequest, HookAnswer, SpecRequest
from ciworker.web.problems import Refused
from ciworker.web.submit import to_fetch
from ciworker.web.upload import READ_TIMEOUT

MOST_BODY = 4 * 2**20


async def receive_hook(request: web.Request) -> web.Response:
    """Take a forge's delivery; the same one again makes no second job."""
    context, forge = request.app[CONTEXT], _forge(request)
    headers = {name.lower(): value for name, value in request.headers.items()}
    body, rules = await _taken(request, forge, headers)
    change = change_of(forge, headers, _payload(request, body))
    wanted = [rule for rule in rules if change and _concerns(rule, change)]
    if change is None or not wanted:
        return json_answer(HookAnswer(jobs=[], message="nothing to build: no rule wants it"))
    check_taking(context)
    await check_room(context)
    jobs = [await _make(request, rule, change, _keys(rule, headers, body)) for rule in wanted]
    return json_answer(HookAnswer(jobs=jobs, message=None), status=202)


def check_rules(settings: Settings) -> None:
    """See that the repositories of the setting `hooks` can be fetched.

    Raises:
        Invalid: one cannot.
    """
    for rule in settings.hooks:
        try:
            parse_remote(rule.repository)
        except Invalid as error:
            raise Invalid(f"setting hooks: {error}") from error


def _forge(request: web.Request) -> Forge:
    try:
        return Forge(request.match_info["id"])
    except ValueError:
        raise Unknown(f"deliveries are taken from {', '.join(Forge)}") from None


async def _taken(
    request: web.Request, forge: Forge, headers: Mapping[str, str]
) -> tuple[bytes, Sequence[HookRule]]:
    """The body, and the rules whose secret its sender knows; few are held at once until then.

    Raises:
        Refused: it is too large, comes too slowly, or no rule's forge sends it.
    """
    context = request.app[CONTEXT]
    if not is_signed(forge, headers):
        raise _unknown(request, forge)
    try:
        async with asyncio.timeout(READ_TIMEOUT), context.hook_turns:
            body = await _body(request)
            rules = await _trusted(context, forge, headers, body)
    except TimeoutError:
        raise Refused(408, "the delivery came too slowly: send it again") from None
    if not rules:
        raise _unknown(request, forge)
    return body, rules


async def _body(request: web.Request) -> bytes:
    found = bytearray()
    async for data in request.content.iter_any():
        found += data
        if len(found) > MOST_BODY:
            raise Refused(413, f"a delivery may have {MOST_BODY} bytes: push less at once")
    return bytes(found)


async def _trusted(
    context: Context, forge: Forge, headers: Mapping[str, str], body: bytes
) -> Sequence[HookRule]:
    """The rules whose secret the sender knows; all are compared, so that time tells nothing."""
    now = context.now().timestamp()
    own = [rule for rule in context.settings.hooks if rule.forge == forge]
    values = {r.secret: value for r in own if (value := context.secret(r.secret))}

    def compared() -> Mapping[str, bool]:
        """By the secret's name."""
        return {
            name: is_authentic(forge, headers, body, value, now) for name, value in values.items()
        }

    known = await asyncio.to_thread(compared)  # a body may have megabytes
    return [rule for rule in own if known.get(rule.secret)]


def _unknown(request: web.Request, forge: Forge) -> Refused:
    """The refusal of a delivery that no rule's secret signed, counted.

    Raises:
        Refused: 429, there were too many.
    """
    count_failure(request, "deliveries with a wrong signature")
    return Refused(
        401,
        f"no rule of the setting hooks has this {forge} signature: give the forge and the worker "
        "the same secret",
    )


def _payload(request: web.Request, body: bytes) -> object:
    if request.content_type != "application/json":
        raise Refused(415, "have the forge send application/json")
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Invalid(f"the delivery is no JSON: {error}") from error


def _concerns(rule: HookRule, change: Change) -> bool:
    name = parse_remote(rule.repository).full_name.lower()
    allowed = rule.forks or not change.fork
    return name == change.repository and change.event in rule.events and allowed


def _keys(rule: HookRule, headers: Mapping[str, str], body: bytes) -> Sequence[str]:
    """What a delivery is known by when it comes again.

    Its id is not signed: where the body is, that is known too.
    """
    forge = Forge(rule.forge)
    named = delivery_id(forge, headers)
    contents = [body] if signs_bodies(forge, headers) or not named else []
    keys = [*([f"id:{named}".encode()] if named else []), *contents]
    about = f"{rule.repository} {rule.project}\n".encode()
    return [hashlib.sha256(about + key).hexdigest() for key in keys]


async def _make(request: web.Request, rule: HookRule, change: Change, keys: Sequence[str]) -> str:
    """The job of this change, which may be there already; its id."""
    context, submitter = request.app[CONTEXT], f"hook:{rule.forge}"
    wanted = SpecRequest(
        project=rule.project, git=GitRequest(url=rule.repository, ref=change.commit)
    )
    assert wanted.git is not None
    hook = {
        "forge": rule.forge,
        "event": change.event.value,
        "branch": change.branch,
        "fork": change.fork,
    }
    job = to_fetch(
        wanted,
        wanted.git,
        context,
        role=HOOK,
        allowed=() if change.fork else rule.secrets,
        more={"hook": hook},
    )
    deed = Deed(job.created_at, Action.SUBMIT, submitter, address(request), subject=job.id)
    stored: Job = await context.jobs.add(job, submitter, keys[0], keys[1:], deed=deed)
    if stored.id == job.id:
        logger().info("made by a hook", job=job.id, forge=rule.forge, hook_event=change.event.value)
        context.notify(job.id)
    return stored.id
