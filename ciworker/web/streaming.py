"""Answers that are written piece by piece, and what becomes of them when that fails midway."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Mapping

from aiohttp import web

WRITE_TIMEOUT = 30.0


async def streamed(
    request: web.Request, headers: Mapping[str, str], pieces: AsyncGenerator[bytes]
) -> web.StreamResponse:
    """Answer with these pieces.

    A reader that does not take a piece within WRITE_TIMEOUT seconds is let go, and one that has
    gone is no error. Between pieces others get their turn, however fast the reader is. Where a
    piece cannot be had the connection breaks, so that nobody takes what came for the whole. Both
    abort the connection: closing it would wait until the reader took the rest.
    """
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    try:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                if not await _written(response, piece):
                    _abort(request)
                    return response
                del piece  # the next one may be long in coming
                await asyncio.sleep(0)
        await response.write_eof()
    except ConnectionError:
        return response
    except BaseException:
        _abort(request)
        raise
    return response


async def drained(request: web.Request) -> None:
    """Until what was written to the connection beside the response, and left over, has gone.

    Raises:
        ConnectionError: the reader took nothing for too long and is let go, or it has gone.
    """
    try:
        async with asyncio.timeout(WRITE_TIMEOUT):
            await request.writer.drain()
    except TimeoutError:
        _abort(request)
        raise ConnectionResetError("the reader took nothing for too long") from None


async def _written(response: web.StreamResponse, piece: bytes) -> bool:
    """False when the reader took nothing for too long."""
    try:
        async with asyncio.timeout(WRITE_TIMEOUT):
            await response.write(piece)
    except TimeoutError:
        return False
    return True


def _abort(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()
