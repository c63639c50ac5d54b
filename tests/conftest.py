"""What all tests share: the image, and real workers to drive."""

import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from tests.chaos.disks import small_disk
from tests.driver import Worker
from tests.rows import ATTACK, recorded

WorkerFactory = Callable[..., Worker]


class Attack(Protocol):
    """Report what a test tried for a row of the matrix; fails if any of it got through."""

    def __call__(self, number: int, *, tried: int, through: int = 0) -> None: ...


@pytest.fixture
def attack(request: pytest.FixtureRequest) -> Attack:
    def record(number: int, *, tried: int, through: int = 0) -> None:
        recorded(request, ATTACK, number, {"tried": tried, "through": through})

    return record


def pytest_configure() -> None:
    """What the host has set for a worker or a client of its own is not for the tests."""
    for name in list(os.environ):
        if name.startswith(("CIWORKER_", "CICLIENT_")):
            del os.environ[name]


@pytest.fixture(scope="session")
def image() -> str:
    """The base image that `scripts/test` brought; its absence is a failure, never a skip."""
    name = os.environ.get("CI_TEST_IMAGE")
    if not name:
        pytest.fail("CI_TEST_IMAGE is not set: run the tests by scripts/test")
    return name


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    with small_disk(tmp_path, 64 * 2**20) as mount:
        yield mount


@pytest.fixture
async def new_worker(tmp_path: Path, image: str) -> AsyncIterator[WorkerFactory]:
    """Makes workers that are not started yet; afterwards nothing of them is left."""
    made: list[Worker] = []

    def make(**settings: str) -> Worker:
        folder = tmp_path / f"worker-{len(made)}"
        made.append(Worker(folder, {"default_image": image, **settings}))
        return made[-1]

    yield make
    for worker in made:
        await worker.destroy()


@pytest.fixture
async def worker(new_worker: WorkerFactory) -> Worker:
    """A worker that answers."""
    running = new_worker()
    await running.start()
    return running
