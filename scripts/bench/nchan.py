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

MODULES = Path("/usr/lib/nginx/modules")
SUBSCRIBE = "/subscribe"
PATIENCE = 10.0

_CONFIG = """\
load_module {modules}/ngx_nchan_module.so;
user root;
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 32768; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  scgi_temp_path {folder}/scgi;
  uwsgi_temp_path {folder}/uwsgi;
  keepalive_requests 10000000;
  nchan_shared_memory_size 512M;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /publish {{ nchan_publisher; nchan_channel_id log; nchan_message_buffer_length 50000;
                           client_body_buffer_size 64k; client_max_body_size 1m; }}
    location = {subscribe} {{ nchan_subscriber eventsource; nchan_channel_id log;
                              nchan_subscriber_first_message newest; }}
  }}
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
    port, config = free_port(), folder / "nginx.conf"
    config.write_text(
        _CONFIG.format(modules=MODULES, folder=folder, port=port, subscribe=SUBSCRIBE)
    )
    process = await asyncio.create_subprocess_exec(
        "nginx", "-p", str(folder), "-c", str(config), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        pid = await _worker_of(process.pid)
        async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
            yield Nchan(port, pid, session)
    finally:
        process.terminate()
        await process.wait()


async def _worker_of(master: int) -> int:
    deadline = time.monotonic() + PATIENCE
    children = Path(f"/proc/{master}/task/{master}/children")
    while time.monotonic() < deadline:
        if children.exists() and (pids := children.read_text().split()):
            return int(pids[0])
        await asyncio.sleep(0.02)
    raise Broken("nginx did not start: see error.log in its folder")
