"""Projects that others published: their source distributions, and their tests outside of a worker.

A source distribution is pinned by its SHA-256, and kept under it in the user's cache folder.
"""

import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from platformdirs import user_cache_path

HOST_SETTINGS = Path(__file__).parents[1] / "scripts" / "host_settings.py"
PATIENCE = 300.0  # seconds for what loads from the package index
SGR = re.compile(r"\x1b\[[0-9;]*m")
SUMMARY = re.compile(r"^=+ (?P<counts>.*) in [\d.]+s(?: \([\d:]+\))? =+$", re.MULTILINE)


class NotInstalled(Exception):
    """The package index could not be reached, or has not what was asked for."""


@dataclass(frozen=True)
class Published:
    """A source distribution.

    wanted: what a developer gives to `pip install`, in its folder, before running its tests.
    """

    name: str
    version: str
    sha256: str
    wanted: Sequence[str]

    def unpacked(self, folder: Path) -> Path:
        """Its folder, in one that is made for it.

        Raises:
            NotInstalled: the index has not this file.
        """
        with tarfile.open(self._archive()) as tar:
            tar.extractall(folder, filter="data")
        (found,) = folder.iterdir()
        return found

    def _archive(self) -> Path:
        kept = user_cache_path("ciworker-tests") / f"{self.sha256}.tar.gz"
        if not kept.is_file() or sha256(kept.read_bytes()).hexdigest() != self.sha256:
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                self._download(Path(folder)).replace(kept)
        return kept

    def _download(self, folder: Path) -> Path:
        asked = folder / "asked.txt"
        asked.write_text(f"{self.name}=={self.version} --hash=sha256:{self.sha256}\n")
        pip(
            Path(sys.executable), "download", "--no-deps", "--no-binary", self.name,
            "--dest", str(folder), "--requirement", str(asked),
        )  # fmt: skip
        (archive,) = folder.glob("*.tar.gz")
        return archive


# Requirements files, numpy from a wheel, a version that setuptools-scm finds in PKG-INFO.
ARRAYS = Published(
    "array-api-strict",
    "2.4",
    "7a0d5a0622a5479d6ffe6ef8ce09e7e4337fdf4cce5f52a89727c11a499a1367",
    ["--editable", ".", "-r", "requirements.txt", "-r", "requirements-dev.txt"],
)
# A src layout, an extra, and hatch-vcs, which writes the version into a file of the package.
FOLDERS = Published(
    "platformdirs",
    "4.3.8",
    "3d512d96e16bcb959a814c9f348431070822a6496326a4be0911c40b5a74c2bc",
    ["--editable", ".[test]"],
)
# The same, and numpy from a wheel; few tests, so that they wait for what is installed.
HISTOGRAMS = Published(
    "histoprint",
    "2.7.1",
    "b5ec8096a8c666b6eb6dbbc3385bdeb11c278711b7c6b2671cbf9afc7b1f3417",
    ["--editable", ".[test]"],
)
# A src layout, an extra, setuptools-scm; pytest needs it, so that the index has it as well.
HOOKS = Published(
    "pluggy",
    "1.6.0",
    "7dcc130b76258d33b90f61b658791dede3486c3e6bfb003ee5c9bfb396dd22f3",
    ["--editable", ".[testing]"],
)


@dataclass(frozen=True)
class Outside:
    """A virtual environment of this machine, as a developer has one for a project."""

    folder: Path

    @classmethod
    def prepared(cls, folder: Path, project: Published, tree: Path) -> "Outside":
        """One that has what the project wants, and the project itself from its tree.

        Raises:
            NotInstalled: the index does not serve it.
        """
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        outside = cls(folder)
        pip(outside.python, "install", *project.wanted, cwd=tree)
        return outside

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables of a shell in which it is active."""
        path = os.pathsep.join((str(self.folder / "bin"), os.environ["PATH"]))
        kept = {name: v for name, v in os.environ.items() if not name.startswith("PYTEST_")}
        return {**kept, "VIRTUAL_ENV": str(self.folder), "PATH": path}

    def pytest(self, tree: Path) -> "Ended":
        return ended(["python", "-m", "pytest"], env=self.environment, cwd=tree)


@dataclass(frozen=True)
class Ended:
    """How a run of tests ended."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> str:
        """The counts of pytest's last line, without colour and time."""
        found = SUMMARY.findall(SGR.sub("", self.out))
        assert found, self.out[-2000:] + self.err
        return str(found[-1])


def ended(words: Sequence[str], env: Mapping[str, str], cwd: Path | None = None) -> Ended:
    """Run a command to its end; its program is looked for on the PATH of `env`."""
    done = subprocess.run(
        words, env=dict(env), cwd=cwd, timeout=PATIENCE, check=False,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


def commit_all(tree: Path, tag: str) -> None:
    """Make a git repository of a folder; all that is in it is committed, and tagged."""
    identity = ["-c", "user.name=T", "-c", "user.email=t@localhost"]
    kept = {name: v for name, v in os.environ.items() if not name.startswith("GIT_")}
    for words in (["init"], ["add", "."], ["commit", "--message", "all"], ["tag", tag]):
        done = ended(["git", *identity, *words], kept, tree)
        assert done.code == 0, done.err


def submitted(tree: Path, env: Mapping[str, str]) -> Ended:
    """What `ciclient submit` says of a tree, followed to the end of its job."""
    return ended([str(Path(sys.executable).parent / "ciclient"), "submit", str(tree)], env=env)


def pip(python: Path, *words: str, cwd: Path | None = None) -> None:
    told = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    try:
        done = ended(told, os.environ, cwd)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"pip {words[0]} took over {PATIENCE:g} s in {cwd}") from None
    if done.code != 0:
        reason = done.err.strip().rpartition("\n")[2]
        raise NotInstalled(f"pip {' '.join(words)}: is the package index there? {reason}")


def index_settings() -> Mapping[str, str]:
    """Settings by which the setups of a worker reach the package index as this machine does."""
    own = {k: v for k, v in os.environ.items() if not k.startswith("CIWORKER_")}
    lines = ended([sys.executable, str(HOST_SETTINGS)], own).out.splitlines()
    pairs = (shlex.split(line)[1].partition("=") for line in lines)
    return {name.removeprefix("CIWORKER_").lower(): value for name, _, value in pairs}
