"""Who receives webhooks: a real server at a fixed port, up, down, slow or refusing as told."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from tests.driver import free_port

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
PATIENCE = 60.0  # seconds after which a test fails instead of hanging


@dataclass(frozen=True)
class Received:
    """One request. path: with its query."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def signed(self) -> bool:
        """By the scheme's own words: an HMAC over `id.timestamp.body`, base64, after `v1,`."""
        content = f"{self.id}.{self.headers['webhook-timestamp']}.".encode() + self.body
        digest = hmac.new(KEY, content, hashlib.sha256).digest()
        return self.headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()


class Receiver:
    """Answers with `status`; None: never."""

    def __init__(self) -> None:
        self.port = free_port()
        self.status: int | None = 204
        self.headers: dict[str, str] = {}
        self.got: list[Received] = []
        self._changed = asyncio.Condition()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook/s3cret-path?key=s3cret-query"

    async def up(self) -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", self._receive)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True).start()

    async def down(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _receive(self, request: web.Request) -> web.Response:
        headers = {name.lower(): value for name, value in request.headers.items()}
        async with self._changed:
            self.got.append(Received(request.path_qs, headers, await request.read()))
            self._changed.notify_all()
        if self.status is None:
            await asyncio.Event().wait()
        return web.Response(status=self.status or 500, headers=self.headers)

    async def until(
        self, reached: Callable[[list[Received]], bool], within: float = PATIENCE
    ) -> list[Received]:
        """What came, once that is as wanted."""
        async with asyncio.timeout(within), self._changed:
            await self._changed.wait_for(lambda: reached(self.got))
            return list(self.got)

    async def has(self, count: int) -> list[Received]:
        return await self.until(lambda got: len({one.id for one in got}) >= count)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.up()
    try:
        yield receiver
    finally:
        await receiver.down()
