"""What the worker needs, looked at one by one; each trouble with the line that mends it."""

import asyncio
import os
import shutil
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from ciworker.cli.api import Refused, Unreachable, call
from ciworker.engine.docker import DockerEngine
from ciworker.engine.port import EngineInfo
from ciworker.errors import CiworkerError, EngineRefused, StoreRefused, Unknown
from ciworker.settings import Settings
from ciworker.store.lock import StoreLock, holder_of
from ciworker.store.session import Database
from ciworker.units import format_size

LEAST_FREE = 2 * 2**30
MOST_SKEW = 2.0
ENGINE_TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check saw. mend: the one line to do about it."""

    check: str
    ok: bool
    detail: str
    mend: str = ""

    def line(self) -> str:
        mark = "ok  " if self.ok else "FAIL"
        return f"{mark}  {self.check}: {self.detail}" + (
            f"\n      {self.mend}" if self.mend else ""
        )


async def examine(settings: Settings) -> list[Finding]:
    """All checks, in the order in which their troubles cause each other."""
    return [
        _permissions(settings),
        await _store(settings),
        *[finding async for finding in _engine(settings)],
        _disk("data disk", settings.data_dir),
        _worker(settings),
    ]


def _permissions(settings: Settings) -> Finding:
    check, folder = "data folder", settings.data_dir
    if not folder.exists():
        parent = next(path for path in folder.parents if path.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return Finding(check, True, f"{folder} will be made at the first start")
        return Finding(check, False, f"{folder} cannot be made", f"mkdir -p {folder}")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return Finding(check, False, f"{folder} cannot be written", f"chown {os.getuid()} {folder}")
    token = settings.admin_token
    if token.exists() and stat.S_IMODE(token.stat().st_mode) & 0o077:
        return Finding(check, False, f"others can read {token}", f"chmod 600 {token}")
    return Finding(check, True, f"{folder} is writable")


async def _store(settings: Settings) -> Finding:
    check = "store"
    if not settings.database.exists():
        return Finding(check, True, "will be made at the first start")
    try:
        with StoreLock(settings.data_dir, "ciworker doctor"):
            database = await Database.open(settings.database)
            try:
                trouble = await database.check_integrity()
            finally:
                await database.close()
    except StoreRefused as error:
        held = "is in use by" in str(error)
        return Finding(
            check, held, holder_of(settings.data_dir) + " holds it" if held else str(error)
        )
    except (CiworkerError, OSError) as error:
        return Finding(check, False, str(error), f"look at {settings.database}")
    if trouble:
        return Finding(check, False, f"damaged: {trouble}", "restore the last backup")
    return Finding(check, True, "whole, and no worker holds it")


async def _engine(settings: Settings) -> AsyncIterator[Finding]:
    check = "engine"
    try:
        async with DockerEngine(settings.docker_host, "doctor") as engine:
            mend = _socket_mend(engine.host)
            if mend:
                yield Finding(check, False, *mend)
                return
            async with asyncio.timeout(ENGINE_TIMEOUT):
                info = await engine.info()
            yield Finding(check, True, f"Docker {info.version} answers at {engine.host}")
            yield _clock(info)
            yield await _image(engine, settings)
            root = Path(str(info.details.get("DockerRootDir", "")))
            if root.is_dir():  # noqa: ASYNC240 # a stat, in a command that only looks
                yield _disk("engine's disk", root)
    except EngineRefused as error:
        yield Finding(check, False, str(error), "set docker_host to unix:///var/run/docker.sock")
    except (CiworkerError, TimeoutError) as error:
        yield Finding(
            check, False, str(error) or "does not answer in time", "systemctl start docker"
        )


def _socket_mend(host: str) -> tuple[str, str] | None:
    """Tell missing from forbidden; a stopped engine is found by asking it."""
    if not host.startswith("unix://"):
        return None
    path = Path(urlsplit(host).path)
    if not path.exists() and shutil.which("dockerd") is None:
        return "Docker is not installed", "apt-get install docker.io, or run scripts/engine"
    if not path.exists():
        return f"Docker is stopped: there is no {path}", "systemctl start docker"
    if not os.access(path, os.R_OK | os.W_OK):
        return f"{path} is forbidden to this user", "usermod -aG docker $USER, then log in again"
    return None


def _clock(info: EngineInfo) -> Finding:
    skew = abs(info.now - datetime.now(UTC).timestamp())
    detail = f"the engine's clock and ours differ by {skew:.1f} s"
    if skew > MOST_SKEW:
        return Finding("clock", False, detail, "run an NTP client on both machines")
    return Finding("clock", True, detail)


async def _image(engine: DockerEngine, settings: Settings) -> Finding:
    check, name = "default image", settings.default_image
    if await engine.image(name) is not None:
        return Finding(check, True, f"{name} is there")
    if settings.pull == "never":
        return Finding(check, False, f"{name} is missing, and pull is never", f"docker pull {name}")
    return Finding(
        check,
        False,
        f"{name} is missing: the first job waits for its pull",
        f"docker pull {name}, or run scripts/base-image and set default_image",
    )


def _disk(check: str, folder: Path) -> Finding:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{format_size(free)} free at {existing}"
    if free < LEAST_FREE:
        return Finding(check, False, detail, f"free at least {format_size(LEAST_FREE)}")
    return Finding(check, True, detail)


def _worker(settings: Settings) -> Finding:
    try:
        call(settings, "GET", "/jobs?limit=1")
    except Unreachable as error:
        return Finding("worker", False, str(error), "ciworker serve")
    except (Refused, Unknown) as error:
        mend = f"remove {settings.admin_token} only if another worker's is meant"
        return Finding("worker", False, str(error), mend)
    return Finding("worker", True, "answers and takes its admin token")
