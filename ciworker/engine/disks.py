"""The disks that can fill: the worker's own, and the engine's where it is on this machine."""

import asyncio
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ciworker.engine.port import Engine
from ciworker.errors import EngineUnavailable

ENGINE_WAIT = 2.0  # seconds; a frozen engine is asked again by whoever looks next


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes. free: of those that are not root's alone."""

    size: int
    free: int


class Disks:
    """Asks the file systems; the engine only once where its data lie."""

    def __init__(self, engine: Engine, host: str, data_dir: Path) -> None:
        """Take where to look.

        Args:
            engine: tells its folder.
            host: its address; only that of a Unix socket is surely this machine's.
            data_dir: the worker's folder.
        """
        self._engine, self._local = engine, host.startswith("unix://")
        self._folders = {"data": data_dir}

    async def usage(self) -> Mapping[str, Disk]:
        """By `data` and `engine`; one that cannot be seen from here is left out."""
        if self._local and "engine" not in self._folders:
            await self._find_engine()
        return await asyncio.to_thread(self._usage)

    async def _find_engine(self) -> None:
        try:
            async with asyncio.timeout(ENGINE_WAIT):
                root = (await self._engine.info()).details.get("DockerRootDir")
        except (EngineUnavailable, TimeoutError):
            return
        if isinstance(root, str) and root:
            self._folders["engine"] = Path(root)

    def _usage(self) -> Mapping[str, Disk]:
        found = {}
        for name, folder in list(self._folders.items()):
            try:
                usage = shutil.disk_usage(folder)
            except OSError:
                continue
            found[name] = Disk(usage.total, usage.free)
        return found
