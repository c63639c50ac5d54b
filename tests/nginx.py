"""Debian's nginx, one of a test's own: what every configuration begins with, and the process."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

_CONFIG = """\
{first}
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
{http}
}}
"""


@asynccontextmanager
async def nginx(
    folder: Path, http: str, first: str = ""
) -> AsyncIterator[asyncio.subprocess.Process]:
    """The master process, within the block; whoever calls waits until it listens.

    Args:
        folder: for its files, error.log among them; exists.
        http: directives of its block `http`.
        first: those before all others.
    """
    config = folder / "nginx.conf"
    config.write_text(_CONFIG.format(folder=folder, http=http, first=first))
    process = await asyncio.create_subprocess_exec(
        "nginx", "-p", str(folder), "-c", str(config), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # it has ended
            process.terminate()
        await process.wait()
