"""What the worker needs, looked at one by one; each trouble with the line that mends it.

A warning is something that works, and that the operator may want otherwise.
"""

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from ciworker.cli import webhooks
from ciworker.cli.api import Refused, Unreachable, call
from ciworker.cli.certificate import certificate
from ciworker.cli.finding import Finding
from ciworker.cli.probe import look_at_network
from ciworker.cli.reach import reach
from ciworker.cli.secrets import look_at_secrets
from ciworker.engine.docker import DockerEngine
from ciworker.engine.port import EngineInfo
from ciworker.errors import CiworkerError, EngineRefused, StoreRefused, Unknown
from ciworker.settings import Settings, bytes_of
from ciworker.source.git import missing_programs
from ciworker.store.lock import holder_of, is_held, writers_of
from ciworker.store.readonly import damage_of
from ciworker.units import format_size

MOST_SKEW = 2.0
ENGINE_TIMEOUT = 10.0
WORKER_TIMEOUT = 5.0
_LESS = (
    "free some of it: a smaller keep_jobs or store_size frees old workspaces; stop the worker and "
    "run `sqlite3 ciworker.db VACUUM` in the data folder to give back what the database left free"
)


async def examine(settings: Settings) -> list[Finding]:
    """All checks, in the order in which their troubles cause each other."""
    worker = _worker(settings)
    return [
        _permissions(settings),
        look_at_secrets(settings),
        _store(settings),
        _git(settings),
        *[finding async for finding in _engine(settings)],
        _disk("data disk", settings.data_dir, settings),
        worker,
        *certificate(settings),
        *reach(settings, running=worker.ok),
        *(webhooks.findings(settings) if worker.ok else ()),
    ]


def _permissions(settings: Settings) -> Finding:
    check, folder = "data folder", settings.data_dir
    if not folder.exists():
        parent = next(path for path in folder.parents if path.exists())
        if os.access(parent, os.W_OK | os.X_OK):
            return Finding(check, True, f"{folder} will be made at the first start")
        return Finding(check, False, f"{folder} cannot be made", f"mkdir -p {folder}")
    beside = [settings.database.with_name(f"{settings.database.name}-{x}") for x in ("wal", "shm")]
    ours = (settings.admin_token, settings.secrets_key)
    for path in (folder, settings.spool, settings.database, *beside, *ours):
        if path.exists() and (finding := _access(check, path)):
            return finding
    return Finding(check, True, f"{folder} is writable")


def _access(check: str, path: Path) -> Finding | None:
    """None: we can write it, and others cannot read what is for nobody else."""
    needed = os.R_OK | os.W_OK | (os.X_OK if path.is_dir() else 0)
    if not os.access(path, needed):
        mend = f"chown -R {os.getuid()} {path}, if its disk is not mounted read-only"
        return Finding(check, False, f"{path} cannot be written", mend)
    entered, read = path.parent.stat().st_mode & 0o011, path.stat().st_mode & 0o044
    if path.is_file() and entered and read:
        return Finding(check, False, f"others can read {path}", f"chmod 600 {path}")
    return None


def _store(settings: Settings) -> Finding:
    try:
        return _seen_in_store(settings)
    except StoreRefused as error:
        mend = "see what it says; or restore a backup, as `ciworker backup --help` tells"
        return Finding("store", False, str(error), mend)
    except (CiworkerError, OSError) as error:
        return Finding("store", False, str(error), f"look at {settings.database}")


def _seen_in_store(settings: Settings) -> Finding:
    """Seen without its lock: a worker that starts meanwhile is not kept from it."""
    check, path = "store", settings.database
    if not path.exists():
        return Finding(check, True, "will be made at the first start")
    if is_held(settings.data_dir):
        return Finding(check, True, f"{holder_of(settings.data_dir)} holds it")
    if damage := damage_of(path):
        mend = "restore the last backup, as `ciworker backup --help` tells"
        return Finding(check, False, f"damaged: {damage}", mend)
    if others := writers_of(path):
        return Finding(check, False, f"{others} holds it: no worker could write", "stop that")
    return Finding(check, True, "whole, and no worker holds it")


def _git(settings: Settings) -> Finding:
    """A trouble only where the operator means to have repositories fetched."""
    missing = missing_programs()
    if not missing:
        return Finding("git", True, "is installed: the worker can fetch repositories")
    detail = f"{', '.join(missing)} missing: jobs that name a repository fail"
    if not settings.git_hosts and not settings.git_folders:
        return Finding("git", True, detail)
    return Finding("git", False, detail, "apt-get install git openssh-client util-linux")


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
            if settings.pool:
                yield await _pool_images(engine, settings)
            yield await look_at_network(settings)
            root = Path(str(info.details.get("DockerRootDir", "")))
            local = engine.host.startswith("unix://")
            if local and root.is_dir():  # noqa: ASYNC240 # a stat, in a command that only looks
                yield _disk("engine's disk", root, settings)
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


async def _pool_images(engine: DockerEngine, settings: Settings) -> Finding:
    names = sorted({e.image for e in settings.parkings if e.size and e.image})
    missing = [name for name in names if await engine.image(name) is None]
    if not missing:
        return Finding("pool", True, f"all images are there: {', '.join(names) or 'none wanted'}")
    detail = f"{', '.join(missing)} missing: nothing of it is parked, its jobs start cold"
    return Finding("pool", False, detail, "; ".join(f"docker pull {name}" for name in missing))


def _disk(check: str, folder: Path, settings: Settings) -> Finding:
    """The worker takes no job below `min_free`."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    usage = shutil.disk_usage(existing)
    floor = bytes_of(settings.min_free, usage.total)
    detail = f"{format_size(usage.free)} free at {existing}"
    if usage.free >= floor:
        return Finding(check, True, detail)
    detail += f", less than min_free ({format_size(floor)}): no job is taken"
    if folder == settings.data_dir:
        return Finding(check, False, detail, _LESS)
    return Finding(check, False, detail, "ciworker env prune; docker image prune")


def _worker(settings: Settings) -> Finding:
    try:
        call(settings, "GET", "/jobs?limit=1", timeout=WORKER_TIMEOUT)
    except Unreachable as error:
        return Finding("worker", False, str(error), _worker_mend(settings))
    except (Refused, Unknown) as error:
        mend = f"restart it: it writes {settings.admin_token} anew, if that is in its own data_dir"
        return Finding("worker", False, str(error), mend)
    return Finding("worker", True, "answers and takes its admin token")


def _worker_mend(settings: Settings) -> str:
    """A second worker of the same store would be refused."""
    if is_held(settings.data_dir):
        return f"see the log of {holder_of(settings.data_dir)}, then restart it: jobs run on"
    return "ciworker serve"
