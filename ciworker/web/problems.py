"""Errors become RFC 9457 problem documents here, once, for every route."""

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
    """Whatever a handler raises, as a problem document; what nobody foresaw is logged."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        return _of_http(error)
    except Exception as error:  # noqa: BLE001 # the edge: aiohttp's own answer is no problem document
        return _of_error(error) or _unforeseen(request, error)


def _of_error(error: Exception) -> web.Response | None:
    if isinstance(error, Refused):
        return problem(error.status, str(error), error.headers)
    if isinstance(error, ArchiveRefused):
        return problem(413 if error.kind is Refusal.TOO_LARGE else 422, str(error))
    if isinstance(error, ConnectionError | web.RequestPayloadError):
        return problem(400, "the request broke off: send it again")
    if isinstance(error, OSError):  # handlers touch one folder, that of the stored workspaces
        logger().error("the data folder cannot be written", error=str(error))
        return problem(503, f"the worker's disk cannot be written: {error.strerror}")
    status = next((status for kind, status in _BY_TYPE if isinstance(error, kind)), None)
    return problem(status, str(error)) if status else None


def _unforeseen(request: web.Request, error: Exception) -> web.Response:
    logger().error("a request failed", method=request.method, path=request.path, exc_info=error)
    return problem(500, "the worker failed at this: its log says how")


def _of_http(error: web.HTTPException) -> web.Response:
    """What aiohttp itself answers: its router, and its bound on a body."""
    if isinstance(error, web.HTTPNotFound):
        return problem(404, "there is nothing here: see /openapi.json for what there is")
    if isinstance(error, web.HTTPMethodNotAllowed):
        allow = ", ".join(sorted(error.allowed_methods))
        return problem(405, f"this takes {allow}, not {error.method[:50]}", {"Allow": allow})
    return problem(error.status, error.text or error.reason)
