"""Workers that the tests of one module share: for what does not interfere."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests.driver import Worker


class Tuned(Worker):
    """A real worker some of whose deadlines are constants of its modules, and short here."""

    constants: Mapping[str, float] = {}

    async def spawn(self) -> None:
        lines = ["import ciworker.app, ciworker.web.sse, ciworker.web.streaming"]
        lines += [f"{name} = {value}" for name, value in self.constants.items()]
        lines += ["from ciworker.__main__ import main", "main()"]
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", "\n".join(lines), "serve",
                env=self.environment, stdout=log, stderr=log, stdin=asyncio.subprocess.DEVNULL,
            )  # fmt: skip


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[Worker]:
    """The worker, started; afterwards nothing of it is left."""
    try:
        await worker.start()
        yield worker
    finally:
        await worker.destroy()


def module_settings(request: pytest.FixtureRequest) -> dict[str, str]:
    found: dict[str, str] = getattr(request.module, "SETTINGS", {})
    return found


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, image: str
) -> AsyncIterator[Worker]:
    """A worker with the module's SETTINGS; no request may be a surprise to it."""
    folder = tmp_path_factory.mktemp("shared") / "worker"
    settings = {"default_image": image, **module_settings(request)}
    async with running(Worker(folder, settings)) as worker:
        yield worker
        assert "Traceback" not in worker.log.read_text()


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def hasty(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, image: str
) -> AsyncIterator[Worker]:
    """A worker with the module's HASTE: constants of its modules, by dotted name."""
    folder = tmp_path_factory.mktemp("hasty") / "worker"
    worker = Tuned(folder, {"default_image": image, **module_settings(request)})
    worker.constants = request.module.HASTE
    async with running(worker):
        yield worker
        assert "Traceback" not in worker.log.read_text()


def spooled(worker: Worker) -> list[Path]:
    """What lies in the folder of the stored workspaces."""
    return sorted((worker.data_dir / "spool").iterdir())
