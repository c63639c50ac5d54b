"""A worker to talk to, an empty home, and the command line run in this process."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ciclient.cli import run
from ciclient.config import Access
from tests.unit.client.fakeworker import TOKEN, FakeWorker, serving


@dataclass(frozen=True)
class Result:
    code: int
    raw: bytes
    err: str

    @property
    def out(self) -> str:
        return self.raw.decode()


Ciclient = Callable[..., Result]


@pytest.fixture
def worker() -> Iterator[FakeWorker]:
    with serving() as worker:
        yield worker


@pytest.fixture
def access(worker: FakeWorker) -> Access:
    return Access(worker.url, "the test", TOKEN, "the test")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person who has never used ciclient."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith(("CICLIENT_", "CIWORKER_", "XDG_", "GIT_")) or name == "NO_COLOR":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("TERM", "xterm-256color")
    return home


@pytest.fixture
def ciclient(
    worker: FakeWorker,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> Ciclient:
    """Runs a command line against the worker."""
    monkeypatch.setenv("CICLIENT_SERVER", worker.url)
    monkeypatch.setenv("CICLIENT_TOKEN", TOKEN)

    def invoke(*arguments: str) -> Result:
        capfdbinary.readouterr()
        code = run(list(arguments))
        captured = capfdbinary.readouterr()
        return Result(code, captured.out, captured.err.decode())

    return invoke


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project, the current folder, outside git."""
    project = tmp_path / "tea"
    project.mkdir()
    (project / "test_tea.py").write_text("def test_tea(): pass\n")
    monkeypatch.chdir(project)
    return project


def git(folder: Path, *arguments: str) -> str:
    identity = [
        "-c",
        "user.name=T",
        "-c",
        "user.email=t@localhost",
        "-c",
        "init.defaultBranch=main",
    ]
    done = subprocess.run(
        ["git", *identity, "-c", "protocol.file.allow=always", *arguments],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()
