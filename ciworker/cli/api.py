"""Calls to the worker that runs on this machine, with its own admin token."""

from typing import Any

import orjson
import urllib3

from ciworker.errors import CiworkerError, TryAgain, Unknown
from ciworker.settings import Settings

TIMEOUT = 90.0
ANY = ("0.0.0.0", "::", "")  # noqa: S104 # compared with, not bound to


class Unreachable(TryAgain):
    """No worker answers, or its engine does not."""


class Refused(CiworkerError):
    """The worker says no; the message is its own."""


def base_url(settings: Settings) -> str:
    """Where a worker with these settings listens, seen from this machine."""
    host = "127.0.0.1" if settings.host in ANY else settings.host
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


def call(
    settings: Settings,
    method: str,
    path: str,
    body: dict[str, str] | None = None,
    *,
    timeout: float = TIMEOUT,
) -> dict[str, Any]:
    """One call under /api/v1, of `timeout` seconds at most.

    Raises:
        Unreachable: there is no worker, or it does not answer in time, or with 503.
        Unknown: 404. Refused: any other refusal.
    """
    url = f"{base_url(settings)}/api/v1{path}"
    headers = {"Authorization": f"Bearer {_token(settings)}"}
    data = None
    if body is not None:
        data, headers["Content-Type"] = orjson.dumps(body), "application/json"
    try:
        answer = urllib3.request(
            method,
            url,
            body=data,
            headers=headers,
            timeout=urllib3.Timeout(total=timeout),
            retries=False,
        )
    except urllib3.exceptions.ReadTimeoutError as error:
        raise Unreachable(
            f"the worker at {base_url(settings)} does not answer within {timeout:g} s"
        ) from error
    except urllib3.exceptions.HTTPError as error:
        raise Unreachable(
            f"no worker answers at {base_url(settings)}: start it with `ciworker serve`"
        ) from error
    if answer.status < 300:
        found: dict[str, Any] = orjson.loads(answer.data) if answer.data else {}
        return found
    raise _refusal(answer.status, answer.data)


def _token(settings: Settings) -> str:
    try:
        return settings.admin_token.read_text().strip()
    except OSError as error:
        raise Unreachable(
            f"{settings.admin_token} cannot be read ({error.strerror}): the worker writes it at "
            "its first start; is data_dir the worker's own?"
        ) from error


def _refusal(status: int, data: bytes) -> CiworkerError:
    try:
        detail = str(orjson.loads(data)["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        detail = f"the answer was HTTP {status}, not the worker's own: is another program there?"
    kinds: dict[int, type[CiworkerError]] = {503: Unreachable, 404: Unknown}
    return kinds.get(status, Refused)(detail)
