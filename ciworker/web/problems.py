"""Errors become answers here, once, for every route: RFC 9457 problem documents, or pages."""

from collections.abc import Callable
from http import HTTPStatus

from aiohttp import web
from aiohttp.typedefs import Handler

from ciworker.errors import CiworkerError, Conflict, Invalid, TryAgain, Unknown
from ciworker.source.archive import ArchiveRefused, Refusal
from ciworker.telemetry import logger
from ciworker.web.models import Problem

_BY_TYPE = ((Invalid, 422), (Unknown, 404), (Conflict, 409), (TryAgain, 503))


class Refused(CiworkerError):
    """An answer with this status; the message becomes the problem's `detail`."""

    def __init__(self, status: int, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}


Teller = Callable[[Refused], web.Response]
TELL: web.RequestKey[Teller] = web.RequestKey("tell")  # of requests that want no document


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> web.Response:
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return web.Response(
        status=status,
        body=body.model_dump_json().encode(),
        content_type="application/problem+json",
        headers=headers,
    )


@web.middleware
async def problems(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever a handler raises, as its request wants it told; what nobody foresaw is logged."""
    try:
        return await handler(request)
    except Exception as error:  # noqa: BLE001 # the edge: aiohttp's own answer is no problem document
        refused = _of_error(error) or _unforeseen(request, error)
    tell: Teller = request.get(TELL, _as_problem)
    return tell(refused)


def _as_problem(refused: Refused) -> web.Response:
    return problem(refused.status, str(refused), refused.headers)


def _of_error(error: Exception) -> Refused | None:
    if isinstance(error, Refused):
        return error
    if isinstance(error, web.HTTPException):
        return _of_http(error)
    if isinstance(error, ArchiveRefused):
        return Refused(413 if error.kind is Refusal.TOO_LARGE else 422, str(error))
    if isinstance(error, ConnectionError | web.RequestPayloadError):
        return Refused(400, "the request broke off: send it again")
    if isinstance(error, OSError):  # handlers touch one folder, that of the stored workspaces
        logger().error("the data folder cannot be written", error=str(error))
        return Refused(503, f"the worker's disk cannot be written: {error.strerror}")
    status = next((status for kind, status in _BY_TYPE if isinstance(error, kind)), None)
    return Refused(status, str(error)) if status else None


def _unforeseen(request: web.Request, error: Exception) -> Refused:
    logger().error("a request failed", method=request.method, path=request.path, exc_info=error)
    return Refused(500, "the worker failed at this: its log says how")


def _of_http(error: web.HTTPException) -> Refused:
    """What aiohttp itself answers: its router, and its bound on a body."""
    if isinstance(error, web.HTTPNotFound):
        return Refused(404, "there is nothing here: see /openapi.json for what there is")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allow = ", ".join(sorted(error.allowed_methods))
        return Refused(405, f"this takes {allow}, not {error.method[:50]}", {"Allow": allow})
    return Refused(error.status, error.text or error.reason)
