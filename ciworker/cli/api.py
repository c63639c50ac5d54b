"""Calls to the worker that runs on this machine, with its own admin token."""

from collections.abc import Mapping
from typing import Any

import orjson
import urllib3

from ciworker.cli.connection import base_url, connection
from ciworker.errors import CiworkerError, TryAgain, Unknown
from ciworker.settings import Settings
from ciworker.store.lock import holder_of, is_held

TIMEOUT = 90.0


class Unreachable(TryAgain):
    """No worker answers, or its engine does not."""


class Refused(CiworkerError):
    """The worker says no; the message is its own."""


def call(
    settings: Settings,
    method: str,
    path: str,
    body: Mapping[str, object] | None = None,
    *,
    timeout: float = TIMEOUT,
) -> dict[str, Any]:
    """One call under /api/v1, of `timeout` seconds at most.

    Raises:
        Unreachable: there is no worker, it does not answer in time, or with 503; or its
            certificate, by which it is trusted, cannot be read.
        Unknown: 404. Refused: any other refusal.
    """
    headers = {"Authorization": f"Bearer {_token(settings)}"}
    data = None
    if body is not None:
        data, headers["Content-Type"] = orjson.dumps(body), "application/json"
    try:
        with connection(settings) as pool:
            answer = pool.urlopen(
                method,
                f"/api/v1{path}",
                body=data,
                headers=headers,
                timeout=urllib3.Timeout(total=timeout),
                retries=False,
            )
    except urllib3.exceptions.ReadTimeoutError as error:
        raise Unreachable(
            f"the worker at {base_url(settings)} does not answer within {timeout:g} s"
        ) from error
    except urllib3.exceptions.SSLError as error:
        raise Unreachable(
            f"what answers at {base_url(settings)} has not the certificate tls_cert: is it the "
            f"worker, and with these settings? ({error})"
        ) from error
    except urllib3.exceptions.HTTPError as error:
        raise Unreachable(_unanswered(settings)) from error
    except OSError as error:
        raise Unreachable(str(error)) from error
    if answer.status < 300:
        found: dict[str, Any] = orjson.loads(answer.data) if answer.data else {}
        return found
    raise _refusal(answer.status, answer.data)


def _unanswered(settings: Settings) -> str:
    said, folder = f"no worker answers at {base_url(settings)}", settings.data_dir
    if not is_held(folder):
        return f"{said}: start it with `ciworker serve`"
    return (
        f"{said}, but {holder_of(folder)} has {folder}: give its settings here too (`--config`, or "
        "the variables that it was started with)"
    )


def _token(settings: Settings) -> str:
    try:
        return settings.admin_token.read_text().strip()
    except OSError as error:
        raise Unreachable(
            f"{settings.admin_token} cannot be read ({error.strerror}): the worker writes it "
            "when it starts; is data_dir the worker's own?"
        ) from error


def _refusal(status: int, data: bytes) -> CiworkerError:
    try:
        detail = str(orjson.loads(data)["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        detail = f"the answer was HTTP {status}, not the worker's own: is another program there?"
    kinds: dict[int, type[CiworkerError]] = {503: Unreachable, 404: Unknown}
    return kinds.get(status, Refused)(detail)
