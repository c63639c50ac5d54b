"""The body of a submit, as it comes in: its parts in their order, and a bound on its time.

`client_max_size` does not cover a body that is streamed and aiohttp has no deadline for one
(engine-facts, rules 23 and 24): size is bounded by who takes the parts, time is bounded here.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Self, TypeVar

from aiohttp import BodyPartReader, MultipartReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from ciworker.errors import Invalid
from ciworker.web.problems import Refused

T = TypeVar("T")

READ_TIMEOUT = 30.0
SLOWEST = 4 * 2**10  # bytes a second, on the whole
READ_SIZE = 256 * 2**10

_UNREADABLE = (ValueError, AssertionError, RuntimeError, HttpProcessingError)
_FORM = "multipart/form-data"


class Upload:
    """A multipart body: `part` after `part`, then `end`.

    They raise Invalid when the body is not as it should be, Refused when it comes too slowly.
    """

    def __init__(self, reader: MultipartReader) -> None:
        self._reader = reader
        self._received = 0
        self._began = asyncio.get_running_loop().time()

    @classmethod
    async def of(cls, request: web.Request) -> Self:
        """The request's body.

        Raises:
            Refused: it is something else than a plain form.
        """
        if request.content_type != _FORM:
            raise Refused(
                415, f"send {_FORM} with the parts `spec` (JSON) and `archive`, in this order"
            )
        if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
            raise Refused(415, "send the body as it is: only the archive may be compressed")
        try:
            return cls(await request.multipart())
        except _UNREADABLE as error:
            raise _unreadable(error) from error

    async def part(self, name: str) -> AsyncIterator[bytes]:
        """The contents of the next part, which has to have this name."""
        part = await self._in_time(self._reader.next())
        if not isinstance(part, BodyPartReader) or part.name != name:
            raise Invalid(
                f"the part {name!r} is missing: send `spec` (JSON), then `archive`, or `git` in "
                "`spec` alone"
            )
        while not part.at_eof():  # an empty chunk may also mean that the body was cut
            chunk = await self._in_time(part.read_chunk(READ_SIZE))
            self._received += len(chunk)
            yield chunk

    async def end(
        self, refusal: str = "a part follows `archive`: send `spec` (JSON), then `archive`"
    ) -> None:
        """Nothing may follow."""
        if await self._in_time(self._reader.next()) is not None:
            raise Invalid(refusal)

    async def _in_time(self, read: Awaitable[T]) -> T:
        now = asyncio.get_running_loop().time()
        due = min(now, self._began + self._received / SLOWEST) + READ_TIMEOUT
        try:
            async with asyncio.timeout_at(due):
                return await read
        except TimeoutError:
            raise _too_slow() from None
        except _UNREADABLE as error:
            raise _unreadable(error) from error


async def small_body(request: web.Request) -> bytes:
    """The whole of a body that `client_max_size` bounds."""
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            return await request.read()
    except TimeoutError:
        raise _too_slow() from None


async def drain(request: web.Request, most: int) -> None:
    """Read a body that is not needed, so that its sender sees the answer."""
    try:
        async with asyncio.timeout(READ_TIMEOUT + most / SLOWEST):
            while most > 0:
                async with asyncio.timeout(READ_TIMEOUT):
                    data = await request.content.readany()
                if not data:
                    return
                most -= len(data)
    except TimeoutError:
        return


def _too_slow() -> Refused:
    return Refused(408, "the upload stalled or came too slowly: submit again")


def _unreadable(error: Exception) -> Invalid:
    return Invalid(f"the upload cannot be read, submit again: {error}")
