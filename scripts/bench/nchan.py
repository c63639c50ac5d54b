"""The baseline of the fan-out: nginx with nchan, one worker process, as its manual sets it up."""

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp

from scripts.bench.rounds import Broken
from tests.driver import free_port
from tests.nginx import nginx

MODULES = Path("/usr/lib/nginx/modules")
SUBSCRIBE = "/subscribe"
PATIENCE = 10.0

_FIRST = f"load_module {MODULES}/ngx_nchan_module.so;"
_HTTP = """\
  keepalive_requests 10000000;
  nchan_shared_memory_size 512M;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /publish {{ nchan_publisher; nchan_channel_id log; nchan_message_buffer_length 50000;
                           client_body_buffer_size 64k; client_max_body_size 1m; }}
    location = {subscribe} {{ nchan_subscriber eventsource; nchan_channel_id log;
                              nchan_subscriber_first_message newest; }}
  }}
"""


def version() -> str:
    """Of nginx; nchan's own is its package's."""
    told = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    return told.strip().rpartition("nginx/")[2]


class Nchan:
    """A running one. pid: of the process that serves."""

    def __init__(self, port: int, pid: int, session: aiohttp.ClientSession) -> None:
        self.port, self.pid, self._session = port, pid, session

    async def publish(self, message: bytes) -> None:
        async with self._session.post("/publish", data=message) as answer:
            if answer.status not in {201, 202}:
                raise Broken(f"nchan refused a message with {answer.status}")


@contextlib.asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[Nchan]:
    """One of its own, within the block."""
    if shutil.which("nginx") is None or not (MODULES / "ngx_nchan_module.so").exists():
        raise Broken("nginx or its module nchan is missing: install nginx-light and "
                     "libnginx-mod-nchan, then try again")  # fmt: skip
    folder.mkdir()
    port = free_port()
    http = _HTTP.format(port=port, subscribe=SUBSCRIBE)
    async with nginx(folder, http, _FIRST) as process:
        pid = await _worker_of(process.pid)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield Nchan(port, pid, session)


async def _worker_of(master: int) -> int:
    deadline = time.monotonic() + PATIENCE
    children = Path(f"/proc/{master}/task/{master}/children")
    while time.monotonic() < deadline:
        if children.exists() and (pids := children.read_text().split()):
            return int(pids[0])
        await asyncio.sleep(0.02)
    raise Broken("nginx did not start: see error.log in its folder")
