"""Labs, and short waits: what the control room waits for in real time is no more than 0.1 s."""

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from ciworker.control import controller, environments, logpump, steps
from ciworker.engine import events
from tests.engine.fake import FakeEngine
from tests.unit.control.lab import Lab, Life

NewLab = Callable[..., Lab]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "RETRY_FIRST", 0.01)
    monkeypatch.setattr(controller, "RETRY_MOST", 0.05)
    monkeypatch.setattr(steps, "REQUEUE_FIRST", 0.01)
    monkeypatch.setattr(steps, "SETTLE", 0.1)
    monkeypatch.setattr(logpump, "END_OF_STREAM_WAIT", 0.05)
    monkeypatch.setattr(logpump, "RETRY_DELAY", 0.02)
    monkeypatch.setattr(environments, "RETRY_COMMIT", 0.01)
    monkeypatch.setattr(environments, "RETRY_IN_USE", 0.05)
    monkeypatch.setattr(environments, "RETRY_BUILD", 0.01)
    monkeypatch.setattr(events, "BACKOFF_FIRST", 0.01)
    monkeypatch.setattr(events, "BACKOFF_MOST", 0.05)


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.fixture
async def engine(no_task_is_left: None) -> AsyncIterator[FakeEngine]:
    async with FakeEngine("fake", images=["fake"]) as made:
        yield made


@pytest.fixture
def new_lab(tmp_path: Path, engine: FakeEngine) -> NewLab:
    """Makes a lab with these settings."""

    def make(**settings: Any) -> Lab:
        return Lab(tmp_path / "data", engine, **settings)

    return make


@pytest.fixture
def lab(new_lab: NewLab) -> Lab:
    """One slot."""
    return new_lab()


@pytest.fixture
async def life(new_lab: NewLab) -> AsyncIterator[Life]:
    """A worker that has one slot; at the end nothing of its jobs is left."""
    async with new_lab().life() as running:
        yield running
