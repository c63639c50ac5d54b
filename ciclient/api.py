"""The worker's HTTP interface; only this module and `unixsocket` import urllib3.

Every failure leaves as one of `errors`: what may be tried again is a TryAgain, a problem document
(RFC 9457) becomes a Refused with its `detail`. The token goes into one header and nowhere else;
no redirect is followed, so it can't be carried to another host.
"""

import io
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Protocol, Self, cast
from urllib.parse import quote, urlencode, urlsplit

import urllib3
from urllib3 import exceptions as failures
from urllib3.connectionpool import HTTPConnectionPool, connection_from_url

from ciclient import tls
from ciclient.config import Access
from ciclient.errors import ClientError, Nonsense, Refused, TryAgain, Unavailable, Unreachable
from ciclient.unixsocket import unix_pool
from ciclient.wire import Job, Page, as_object, loads, parse_page

PREFIX = "/api/v1"
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 60.0
LONGEST_WAIT = 86400.0  # seconds that a server may ask for
SILENCE = 45.0  # the server sends a comment every 15 s: three missed are a dead connection
BLOCK = 256 * 1024
SUBMIT_ATTEMPTS = 4

Params = Mapping[str, str | int | None]


@dataclass(frozen=True, slots=True)
class Probe:
    """What a plain GET said, whatever the status; for `doctor`."""

    status: int
    detail: str
    date: str | None


class Listener(Protocol):
    """Hears how an upload goes."""

    def sent(self, done: int, total: int) -> None:
        """So many bytes of the archive have gone out."""

    def again(self, reason: str) -> None:
        """It failed, and begins anew."""


class Api:
    """A context manager; not for use by several threads."""

    def __init__(self, access: Access, *, silence: float = SILENCE) -> None:
        self.access = access
        self._base, self._pool = _pool(access.server)
        self._silence = silence
        self._headers = {"User-Agent": "ciclient"}
        if access.token is not None:
            self._headers["Authorization"] = f"Bearer {access.token}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.close()

    def job(self, job_id: str, *, patience: float = READ_TIMEOUT) -> Job:
        """In detail; `patience`: seconds to wait for a connection, and then for the answer."""
        path = f"{PREFIX}/jobs/{quote(job_id, safe='')}"
        return Job.parse(self._json("GET", path, patience=patience))

    def jobs(self, params: Params) -> Page:
        return parse_page(self._json("GET", f"{PREFIX}/jobs", params))

    def cancel(self, job_id: str) -> Job:
        return Job.parse(self._json("POST", f"{PREFIX}/jobs/{quote(job_id, safe='')}/cancel"))

    def retry(self, job_id: str) -> Job:
        return Job.parse(self._json("POST", f"{PREFIX}/jobs/{quote(job_id, safe='')}/retry"))

    def login_link(self, page: str) -> str:
        """A one-time link that ends on this page, such as `/jobs/ID`; raises Nonsense if none."""
        headers = {"Content-Type": "application/json"}
        body = json.dumps({"next": page}).encode()
        answer = self._json("POST", f"{PREFIX}/login-codes", headers=headers, body=body)
        link = as_object(answer).get("url")
        if not isinstance(link, str):
            raise Nonsense("the server sent no link: is this a ciworker?")
        return link

    def resync(self) -> Mapping[str, object]:
        return as_object(self._json("POST", f"{PREFIX}/resync"))

    def submit(
        self,
        spec: bytes,
        archive: IO[bytes] | None,
        size: int,
        key: str,
        *,
        listener: "Listener",
        sleep: Callable[[float], None] = time.sleep,
    ) -> Job:
        """Uploads `size` bytes of the archive from its start, if there is one.

        A reply that was lost is asked for again with the same key, which is why it can't make a
        second job. A server that can't be reached at the first attempt raises Unreachable.
        """
        for attempt in range(1, SUBMIT_ATTEMPTS + 1):
            try:
                return self._submit_once(Multipart(spec, archive, size, listener.sent), key)
            except Unreachable as error:
                first_contact = attempt == 1 and error.cause != "lost"
                if first_contact or attempt == SUBMIT_ATTEMPTS:
                    raise
                listener.again(str(error))
                sleep(0.25 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def log(self, job_id: str, params: Params) -> Iterator[Iterator[bytes]]:
        """The stored log as blocks of bytes."""
        path = f"{PREFIX}/jobs/{quote(job_id, safe='')}/log"
        with self._stream(path, params, {}, READ_TIMEOUT) as response:
            yield self._blocks(response, READ_TIMEOUT)

    @contextmanager
    def events(
        self, job_id: str, params: Params, last_id: int | None
    ) -> Iterator[Iterator[bytes] | None]:
        """The bytes of a job's event stream as they come; None if it says it has ended (204)."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
        if last_id is not None:
            headers["Last-Event-ID"] = str(last_id)
        path = f"{PREFIX}/jobs/{quote(job_id, safe='')}/events"
        with self._stream(path, params, headers, self._silence) as response:
            yield None if response.status == 204 else self._blocks(response, self._silence)

    def probe(self, path: str, params: Params | None = None) -> Probe:
        response = self._open(path, params)
        with _translated(READ_TIMEOUT):
            body = response.read()
            response.release_conn()
        return Probe(response.status, _detail(response, body), response.headers.get("Date"))

    def _submit_once(self, body: "Multipart", key: str) -> Job:
        headers = {
            "Content-Type": body.content_type,
            "Content-Length": str(body.length),
            "Idempotency-Key": key,
        }
        return Job.parse(self._json("POST", f"{PREFIX}/jobs", headers=headers, body=body))

    def _json(
        self,
        method: str,
        path: str,
        params: Params | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: "Multipart | bytes | None" = None,
        patience: float = READ_TIMEOUT,
    ) -> object:
        response = self._open(
            path, params, method=method, headers=headers, silence=patience, body=body
        )
        with _translated(patience):
            content = response.read()
            response.release_conn()
        self._raise_for(response, content)
        return loads(content)

    @contextmanager
    def _stream(
        self, path: str, params: Params, headers: Mapping[str, str], silence: float
    ) -> Iterator[urllib3.BaseHTTPResponse]:
        response = self._open(path, params, headers=headers, silence=silence)
        try:
            if response.status not in {200, 204}:
                with _translated(silence):
                    content = response.read()
                self._raise_for(response, content)
            yield response
        finally:
            # never back to the pool: what is unread of it belongs to this answer
            response.close()

    def _blocks(self, response: urllib3.BaseHTTPResponse, silence: float) -> Iterator[bytes]:
        with _translated(silence):
            while block := response.read1(BLOCK):
                yield block

    def _open(
        self,
        path: str,
        params: Params | None,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        silence: float = READ_TIMEOUT,
        body: "Multipart | bytes | None" = None,
    ) -> urllib3.BaseHTTPResponse:
        given = {name: value for name, value in (params or {}).items() if value is not None}
        target = self._base + path + ("?" + urlencode(given) if given else "")
        with _translated(silence, self.access.server):
            return self._pool.urlopen(
                method,
                target,
                body=cast(IO[bytes] | bytes | None, body),  # urllib3 calls read alone
                headers={**self._headers, **(headers or {})},
                retries=False,
                redirect=False,
                timeout=urllib3.Timeout(connect=min(CONNECT_TIMEOUT, silence), read=silence),
                preload_content=False,
            )

    def _raise_for(self, response: urllib3.BaseHTTPResponse, content: bytes) -> None:
        status = response.status
        if 200 <= status < 300:
            return
        detail = _detail(response, content)
        if 300 <= status < 400:
            target = response.headers.get("Location", "elsewhere")
            raise Nonsense(f"{self.access.server} redirects to {target}: name that to --server")
        if status == 401 and self.access.token is None:
            detail = f"no token was found; run: ciclient login {self.access.server}"
        if status in {408, 429} or status >= 500:
            wish = response.headers.get("Retry-After", "")
            retry_after = min(float(wish), LONGEST_WAIT) if wish.isdecimal() else None
            invitation = "" if retry_after is None else f"try again in {retry_after:.0f} s"
            if invitation not in detail:  # ciworker's own detail ends with it where a rate is over
                detail += f" ({invitation})"
            raise Unavailable(status, detail, retry_after)
        raise Refused(status, detail)


class Multipart:
    """The body of a submit as a stream of known length; the archive is never held in memory, and is
    no part where there is none.

    `tell` hears how many bytes of the archive have gone out, and how many there are.
    """

    def __init__(
        self, spec: bytes, archive: IO[bytes] | None, size: int, tell: Callable[[int, int], None]
    ) -> None:
        self._archive = io.BytesIO() if archive is None else archive
        self._archive.seek(0)
        boundary = f"ciclient-{secrets.token_hex(16)}"
        head = (
            f"--{boundary}\r\n"
            'Content-Disposition: form-data; name="spec"\r\n'
            "Content-Type: application/json\r\n\r\n"
        ).encode() + spec
        middle = (
            f"\r\n--{boundary}\r\n"
            'Content-Disposition: form-data; name="archive"; filename="archive"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        middle = b"" if archive is None else middle
        tail = f"\r\n--{boundary}--\r\n".encode()
        self.content_type = f"multipart/form-data; boundary={boundary}"
        self.length = len(head) + len(middle) + size + len(tail)
        self._before = io.BytesIO(head + middle)
        self._size = self._left = size
        self._tell = tell
        self._after = io.BytesIO(tail)

    def read(self, amount: int = BLOCK) -> bytes:
        if block := self._before.read(amount):
            return block
        self._tell(self._size - self._left, self._size)  # who asks for more has sent what it had
        if self._left == 0:
            return self._after.read(amount)
        block = self._archive.read(min(amount, self._left))
        if not block:
            raise ClientError("the archive became shorter while it was sent")
        self._left -= len(block)
        return block


def _pool(server: str) -> tuple[str, HTTPConnectionPool]:
    """The path before the API's own, and the connections."""
    parts = urlsplit(server)
    if parts.scheme == "unix":
        return "", unix_pool(parts.path, maxsize=2, blocksize=BLOCK)
    origin = f"{parts.scheme}://{parts.netloc}"
    return parts.path, connection_from_url(origin, maxsize=2, blocksize=BLOCK)


def _detail(response: urllib3.BaseHTTPResponse, content: bytes) -> str:
    """The sentence of a problem document; for another answer, its status."""
    fallback = f"the server answered {response.status} {response.reason or ''}".rstrip()
    if "json" not in response.headers.get("Content-Type", ""):
        return fallback
    try:
        problem = as_object(loads(content))
    except Nonsense:
        return fallback
    detail = problem.get("detail") or problem.get("title")
    return detail if isinstance(detail, str) else fallback


@contextmanager
def _translated(silence: float, server: str = "the server") -> Iterator[None]:
    """Turns what urllib3 and the sockets below it raise into ours."""
    try:
        yield
    except (failures.HTTPError, OSError) as error:
        raise _unreachable(error, silence, server) from error


def _unreachable(error: Exception, silence: float, server: str) -> TryAgain:
    match error:
        case failures.NameResolutionError():
            return Unreachable("dns", f"{server}: its host name is not known")
        case failures.NewConnectionError():
            reason = error.__cause__
            words = reason.strerror if isinstance(reason, OSError) else None
            return Unreachable("refused", f"can't connect to {server}: {words or error}")
        case failures.ConnectTimeoutError():  # the base class of NewConnectionError, too
            return Unreachable("timeout", f"{server} did not answer in {CONNECT_TIMEOUT:g} s")
        case failures.SSLError():
            return tls.failure(error, server)
        case failures.ReadTimeoutError():
            return Unreachable("lost", f"nothing came from {server} for {silence:g} s")
        case _:
            return _lost(server)


def _lost(server: str) -> Unreachable:
    if server.startswith("http:") and tls.is_spoken(server):
        return tls.missing(server)
    return Unreachable("lost", f"the connection to {server} was lost")
