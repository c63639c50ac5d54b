"""All routes: the lists that registration, access and `/openapi.json` are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler
from pydantic import BaseModel

from ciworker.domain.job import Status
from ciworker.domain.webhook import DeliveryState
from ciworker.store.tokens import Role
from ciworker.web import (
    audit,
    drain,
    environments,
    hooks,
    jobs,
    logs,
    metrics,
    pages,
    pool,
    search,
    sse,
    submit,
    tokens,
    webhooks,
)
from ciworker.web.access import authorise
from ciworker.web.models import (
    AuditPage,
    DeliveryList,
    DeliveryModel,
    DrainReport,
    EnvironmentList,
    EnvironmentNames,
    Health,
    HookAnswer,
    JobDetail,
    JobModel,
    JobPage,
    LoginCode,
    LoginCodeRequest,
    LogSearch,
    NewToken,
    PoolChange,
    PoolReport,
    ResyncReport,
    SubmitForm,
    TokenList,
    TokenRequest,
    WebhookList,
    WebhookTest,
)

API = "/api/v1"


@dataclass(frozen=True, slots=True)
class Parameter:
    """A query parameter or header of a route."""

    name: str
    description: str
    kind: Literal["query", "header"] = "query"
    type: Literal["string", "integer", "boolean", "array"] = "string"
    choices: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Route:
    """One route. role: the least that its token needs; None: open to all.

    answers: by status, a model, or the content type of what is streamed. refusals: statuses of
    problems besides those that every route may answer.
    """

    method: str
    path: str
    handler: Handler
    role: Role | None
    answers: Mapping[int, type[BaseModel] | str | None]
    refusals: Sequence[int] = ()
    parameters: Sequence[Parameter] = ()
    body: type[BaseModel] | None = None
    body_type: str = "application/json"
    body_required: bool = True
    errors: Sequence[int] = field(init=False)

    def __post_init__(self) -> None:
        access = (401, 403, 429) if self.role else (403,)
        unknown = (404,) if "{" in self.path else ()
        object.__setattr__(self, "errors", tuple(sorted({*access, *unknown, *self.refusals})))


DOCUMENT: web.AppKey[bytes] = web.AppKey("document", bytes)


async def openapi(request: web.Request) -> web.Response:
    """This document."""
    return web.Response(body=request.app[DOCUMENT], content_type="application/json")


_FROM = Parameter("from", "Number of the first line wanted; 1 if left out.", type="integer")
_TAIL = Parameter("tail", "Only this many last lines.", type="integer")
_LAST_ID = Parameter("Last-Event-ID", "Resume after this event.", kind="header")

ROUTES: Sequence[Route] = (
    Route(
        hdrs.METH_POST,
        f"{API}/jobs",
        submit.submit,
        Role.SUBMIT,
        {200: JobModel, 201: JobModel},
        refusals=(408, 413, 415, 422, 503),
        parameters=(
            Parameter(
                "Idempotency-Key", "The same key within 24 h gives the same job.", kind="header"
            ),
        ),
        body=SubmitForm,
        body_type="multipart/form-data",
    ),
    Route(
        hdrs.METH_GET,
        f"{API}/jobs",
        jobs.list_jobs,
        Role.READ,
        {200: JobPage},
        refusals=(422,),
        parameters=(
            Parameter(
                "status",
                "Only jobs of this status.",
                choices=tuple(Status),
            ),
            Parameter("project", "Only jobs of this project."),
            Parameter("limit", "At most 500; 50 if left out.", type="integer"),
            Parameter("cursor", "`next` of the page before."),
        ),
    ),
    Route(hdrs.METH_GET, f"{API}/jobs/{{id}}", jobs.show_job, Role.READ, {200: JobDetail}),
    Route(
        hdrs.METH_GET,
        f"{API}/jobs/{{id}}/log",
        logs.job_log,
        Role.READ,
        {200: "text/plain"},
        refusals=(422,),
        parameters=(
            _FROM,
            _TAIL,
            Parameter(
                "limit",
                "Only this many lines, the first of those; `stream` leaves out some of them.",
                type="integer",
            ),
            Parameter("stream", "Only lines of this stream.", choices=("stdout", "stderr")),
            Parameter("timestamps", "Put its time before each line.", type="boolean"),
        ),
    ),
    Route(
        hdrs.METH_GET,
        f"{API}/jobs/{{id}}/log/search",
        search.search_log,
        Role.READ,
        {200: LogSearch},
        refusals=(422, 429, 503),
        parameters=(
            Parameter(
                "q",
                "What to look for within lines, which have no escape sequences here. Without a "
                "capital letter it is found in capitals too.",
            ),
            Parameter(
                "regex",
                "`q` is a regular expression of RE2. In very long lines a large one does not find "
                "matches longer than some hundred bytes.",
                type="boolean",
            ),
            _FROM,
            Parameter("limit", "Hits wanted, at most 1000; 100 if left out.", type="integer"),
            Parameter(
                "total", "Count all hits; if left out, only the first page does.", type="boolean"
            ),
        ),
    ),
    Route(
        hdrs.METH_GET,
        f"{API}/jobs/{{id}}/events",
        sse.job_events,
        Role.READ,
        {200: "text/event-stream", 204: None},
        refusals=(400, 422),
        parameters=(
            _LAST_ID,
            _FROM,
            _TAIL,
            Parameter("now", "Only lines that come from now on.", type="boolean"),
        ),
    ),
    Route(
        hdrs.METH_GET,
        f"{API}/events",
        sse.all_events,
        Role.READ,
        {200: "text/event-stream"},
        refusals=(400, 404, 422),
        parameters=(
            _LAST_ID,
            Parameter(
                "follow",
                "`<job id>.<line number>`, at most 32 times: the job's lines after that one, as "
                "`log.<job id>`, `partial.<job id>` and `end.<job id>`.",
                type="array",
            ),
        ),
    ),
    Route(
        hdrs.METH_POST,
        f"{API}/jobs/{{id}}/cancel",
        jobs.cancel_job,
        Role.SUBMIT,
        {202: JobModel},
        refusals=(409, 503),
    ),
    Route(
        hdrs.METH_POST,
        f"{API}/jobs/{{id}}/retry",
        submit.retry,
        Role.SUBMIT,
        {202: JobModel},
        refusals=(409, 503),
    ),
    Route(
        hdrs.METH_POST,
        f"{API}/resync",
        jobs.resync,
        Role.ADMIN,
        {200: ResyncReport},
        refusals=(503,),
    ),
    Route(
        hdrs.METH_POST,
        f"{API}/drain",
        drain.drain,
        Role.ADMIN,
        {200: DrainReport},
        refusals=(503,),
    ),
    Route(
        hdrs.METH_GET,
        f"{API}/drain",
        drain.show_drain,
        Role.READ,
        {200: DrainReport},
        refusals=(503,),
    ),
    Route(
        hdrs.METH_DELETE,
        f"{API}/drain",
        drain.undo_drain,
        Role.ADMIN,
        {200: DrainReport},
        refusals=(409, 503),
    ),
    Route(
        hdrs.METH_GET,
        f"{API}/environments",
        environments.list_environments,
        Role.READ,
        {200: EnvironmentList},
    ),
    Route(
        hdrs.METH_POST,
        f"{API}/environments/prune",
        environments.prune_environments,
        Role.ADMIN,
        {200: EnvironmentNames},
        refusals=(503,),
    ),
    Route(
        hdrs.METH_DELETE,
        f"{API}/environments/{{id}}",
        environments.remove_environment,
        Role.ADMIN,
        {200: EnvironmentNames},
        refusals=(409, 503),
    ),
    Route(
        hdrs.METH_GET, f"{API}/pool", pool.show_pool, Role.READ, {200: PoolReport}, refusals=(503,)
    ),
    Route(
        hdrs.METH_POST,
        f"{API}/pool/up",
        pool.pool_up,
        Role.ADMIN,
        {200: PoolChange},
        refusals=(503,),
    ),
    Route(
        hdrs.METH_POST,
        f"{API}/pool/down",
        pool.pool_down,
        Role.ADMIN,
        {200: PoolChange},
        refusals=(503,),
    ),
    Route(
        hdrs.METH_POST,
        f"{API}/hooks/{{id}}",
        hooks.receive_hook,
        None,
        {200: HookAnswer, 202: HookAnswer},
        refusals=(401, 408, 413, 415, 422, 429, 503),
    ),
    Route(hdrs.METH_GET, f"{API}/webhooks", webhooks.list_webhooks, Role.ADMIN, {200: WebhookList}),
    Route(
        hdrs.METH_POST,
        f"{API}/webhooks/test",
        webhooks.test_webhooks,
        Role.ADMIN,
        {202: DeliveryList},
        refusals=(404, 408, 413, 415, 422, 503),
        body=WebhookTest,
    ),
    Route(
        hdrs.METH_GET,
        f"{API}/webhooks/deliveries",
        webhooks.list_deliveries,
        Role.ADMIN,
        {200: DeliveryList},
        refusals=(422,),
        parameters=(
            Parameter("state", "Only those in this state.", choices=tuple(DeliveryState)),
            Parameter("failed", "Only those whose last try failed.", type="boolean"),
            Parameter("limit", "At most 500; 50 if left out.", type="integer"),
        ),
    ),
    Route(
        hdrs.METH_GET,
        f"{API}/webhooks/deliveries/{{id}}",
        webhooks.show_delivery,
        Role.ADMIN,
        {200: DeliveryModel},
    ),
    Route(
        hdrs.METH_POST,
        f"{API}/webhooks/deliveries/{{id}}/redeliver",
        webhooks.redeliver,
        Role.ADMIN,
        {202: DeliveryModel},
        refusals=(409, 503),
    ),
    Route(hdrs.METH_GET, f"{API}/tokens", tokens.list_tokens, Role.ADMIN, {200: TokenList}),
    Route(
        hdrs.METH_POST,
        f"{API}/tokens",
        tokens.create_token,
        Role.ADMIN,
        {201: NewToken},
        refusals=(408, 413, 415, 422, 503),
        body=TokenRequest,
    ),
    Route(
        hdrs.METH_DELETE,
        f"{API}/tokens/{{id}}",
        tokens.revoke_token,
        Role.ADMIN,
        {204: None},
        refusals=(503,),
    ),
    Route(
        hdrs.METH_GET,
        f"{API}/audit",
        audit.list_deeds,
        Role.ADMIN,
        {200: AuditPage},
        refusals=(422,),
        parameters=(
            Parameter("since", "None that are older than this instant (RFC 3339)."),
            Parameter("limit", "At most 500; 50 if left out.", type="integer"),
            Parameter("cursor", "`next` of the page before."),
        ),
    ),
    Route(
        hdrs.METH_POST,
        f"{API}/login-codes",
        tokens.create_login_code,
        Role.READ,
        {201: LoginCode},
        refusals=(408, 409, 413, 415, 422),
        body=LoginCodeRequest,
        body_required=False,
    ),
    Route(hdrs.METH_GET, "/healthz", jobs.healthz, None, {200: Health}),
    Route(hdrs.METH_GET, "/readyz", jobs.readyz, None, {200: Health}, refusals=(503,)),
    Route(hdrs.METH_GET, "/metrics", metrics.metrics, Role.READ, {200: metrics.TEXT}),
    Route(hdrs.METH_GET, "/openapi.json", openapi, Role.READ, {200: "application/json"}),
)


PAGES: Sequence[tuple[str, str, Handler]] = (
    (hdrs.METH_GET, "/", pages.private(pages.jobs_page)),
    (hdrs.METH_GET, "/jobs/{id}", pages.private(pages.job_page)),
    (hdrs.METH_GET, "/static/{name}", pages.static_file),
    (hdrs.METH_GET, "/login", pages.login_page),
    (hdrs.METH_POST, "/login", pages.login),
    (hdrs.METH_POST, "/logout", pages.logout),
)


def guarded(handler: Handler, role: Role | None) -> Handler:
    """The handler behind the check of who asks."""
    if role is None:
        return handler

    async def check(request: web.Request) -> web.StreamResponse:
        await authorise(request, role)
        return await handler(request)

    return check
