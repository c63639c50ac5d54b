"""What a stranger does first: `scripts/quickstart` in a fresh clone, on a terminal."""

import contextlib
import json
import os
import pty
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.driver import free_port

ROOT = Path(__file__).parents[2]
NOBODY = 65534
FIRST_LINE = "test session starts"
SAMPLE_TEST = re.compile(r"test_tea\.py::\w+(?:\[\w+\])?.*PASSED")
SAMPLE_TESTS = 6
SAMPLE_TAKES = 1.0  # seconds that its tests sleep, and more


@dataclass(frozen=True)
class Run:
    """A command's end, and its output line by line: (seconds since its start, text)."""

    code: int
    lines: Sequence[tuple[float, str]]

    @property
    def text(self) -> str:
        return "\n".join(line for _, line in self.lines)

    def when(self, words: str) -> float:
        """Seconds until these words were there to read."""
        return next(at for at, line in self.lines if words in line)


@dataclass(frozen=True)
class Clone:
    """A copy of the project as `git clone` makes it."""

    folder: Path
    port: int

    @property
    def environment(self) -> Mapping[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("CIWORKER_", "CICLIENT_"))}
        state = str(self.folder.parent / "state")
        own = {"CIWORKER_PORT": str(self.port), "XDG_STATE_HOME": state, "TERM": "xterm-256color"}
        return kept | own

    @property
    def worker(self) -> int:
        """The process id of the quickstart's worker."""
        return int((self.folder / ".quickstart/worker.pid").read_text())

    def quickstart(self, *words: str) -> Run:
        """`scripts/quickstart`, on a terminal of its own."""
        ours, its = pty.openpty()
        began = time.monotonic()
        with subprocess.Popen(
            ["scripts/quickstart", *words],
            cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=its, stderr=its,
        ) as process:  # fmt: skip
            os.close(its)
            lines = list(_lines(ours, began))
        os.close(ours)
        return Run(process.returncode, lines)

    def client(self, *words: str) -> str:
        """The output of its `ciclient`."""
        own = {
            "CICLIENT_SERVER": f"http://127.0.0.1:{self.port}",
            "CIWORKER_DATA_DIR": str(self.folder / ".quickstart/data"),
        }
        done = subprocess.run(
            [".venv/bin/ciclient", *words], cwd=self.folder, env={**self.environment, **own},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout


def _lines(terminal: int, began: float) -> Iterator[tuple[float, str]]:
    """Lines of a terminal until nobody holds its other side, with when their end was there."""
    rest = b""
    while data := _read(terminal):
        at = time.monotonic() - began
        *lines, rest = (rest + data).split(b"\n")
        yield from ((at, line.decode(errors="replace").rstrip("\r")) for line in lines)
    if rest:
        yield time.monotonic() - began, rest.decode(errors="replace")


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 2**16)
    except OSError:  # Linux says EIO where a pipe would say end
        return b""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """What is not ignored by git, and nothing else: no .venv, no state."""
    folder = tmp_path_factory.mktemp("stranger") / "ciworker"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    made = Clone(folder, free_port())
    try:
        yield made
    finally:
        made.quickstart("stop")


@pytest.fixture(scope="module")
def first(clone: Clone) -> Run:
    """The first run of all, from nothing."""
    return clone.quickstart()


def runs(process: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_bytes())
    except OSError:
        return False


def containers(job: str) -> str:
    listed = ["docker", "ps", "--all", "--filter", f"name={job.lower()}", "--format", "{{.Names}}"]
    return subprocess.run(listed, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_one_command_in_a_fresh_clone_ends_green(first: Run, clone: Clone) -> None:
    assert first.code == 0, first.text
    assert FIRST_LINE in first.text
    assert len(SAMPLE_TEST.findall(first.text)) == SAMPLE_TESTS
    assert f"{SAMPLE_TESTS} passed" in first.text
    assert f"{clone.folder}/scripts/quickstart stop" in first.text
    assert runs(clone.worker)


@pytest.mark.slow
def test_the_second_run_shows_its_first_line_within_five_seconds(first: Run, clone: Clone) -> None:
    worker = clone.worker
    second = clone.quickstart()
    assert second.code == first.code == 0, second.text
    assert second.when(FIRST_LINE) < 5
    assert clone.worker == worker


@pytest.mark.slow
def test_lines_appear_on_the_terminal_as_they_are_printed(first: Run, clone: Clone) -> None:
    again = clone.quickstart()
    assert again.code == first.code == 0
    passed = [at for at, line in again.lines if SAMPLE_TEST.search(line)]
    assert len(passed) == SAMPLE_TESTS
    assert passed[-1] - passed[0] > SAMPLE_TAKES
    assert len(set(passed)) >= SAMPLE_TESTS // 2  # lines close together stand in one drawing


@pytest.mark.slow
def test_stop_ends_the_worker_and_nothing_of_it_is_left(first: Run, clone: Clone) -> None:
    assert clone.quickstart().code == first.code == 0
    worker = clone.worker
    jobs = [job["id"] for job in json.loads(clone.client("list", "--json"))["items"]]
    stopped = clone.quickstart("stop")
    assert (stopped.code, stopped.text) == (0, "the worker has ended")
    assert not runs(worker)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", clone.port)).close()
    assert [containers(job) for job in jobs] == ["" for _ in jobs]
    again = clone.quickstart("stop")
    assert (again.code, again.text) == (0, "no worker of the quickstart is running")


@pytest.mark.slow
def test_a_port_that_is_taken_is_said_with_the_way_around_it(first: Run, clone: Clone) -> None:
    assert first.code == 0
    clone.quickstart("stop")
    with socket.create_server(("127.0.0.1", clone.port)):
        refused = clone.quickstart()
    assert refused.code == 1
    assert refused.text == (
        f"quickstart: something else listens on port {clone.port}: "
        f"try 'CIWORKER_PORT={clone.port + 1} scripts/quickstart'"
    )


@pytest.mark.slow
def test_the_line_that_it_prints_makes_the_commands_work_from_any_folder(
    clone: Clone, tmp_path: Path
) -> None:
    run = clone.quickstart()
    (line,) = [text.strip() for _, text in run.lines if text.strip().startswith("export ")]
    commands = "ciclient list --json && ciworker token list --json && ciworker pool status"
    done = subprocess.run(
        ["bash", "-euc", f"{line}; {commands}; echo $CIWORKER_DEFAULT_IMAGE"],
        cwd=tmp_path, env=clone.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("ciworker-base:")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder that holds the quickstart alone, of which it can start nothing."""
    (tmp_path / "scripts").mkdir()
    shutil.copy2(ROOT / "scripts/quickstart", tmp_path / "scripts")
    return tmp_path


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help_is_printed_and_nothing_is_started(bare: Path, word: str) -> None:
    done = subprocess.run(
        [bare / "scripts/quickstart", word], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "quickstart stop: ends that worker." in done.stdout
    assert "set -" not in done.stdout
    assert list(bare.iterdir()) == [bare / "scripts"]


@pytest.mark.parametrize("words", [["--hlep"], ["start"], ["stop", "now"]])
def test_an_argument_that_is_none_is_refused_before_anything_is_done(
    bare: Path, words: list[str]
) -> None:
    done = subprocess.run(
        [bare / "scripts/quickstart", *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"quickstart: unknown argument: {' '.join(words)}\n")
    assert list(bare.iterdir()) == [bare / "scripts"]


# the engine, for somebody who has none


@pytest.fixture
def stranger() -> Iterator[Path]:
    """A folder that anyone may read: `engine`, and `bin` with everything but Docker."""
    with tempfile.TemporaryDirectory(prefix="stranger-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy2(ROOT / "scripts/engine", folder)
        (folder / "bin").mkdir()
        for source in (Path("/usr/bin"), Path("/bin"), Path("/usr/sbin"), Path("/sbin")):
            for program in source.iterdir() if source.is_dir() else ():
                if "docker" not in program.name:
                    with contextlib.suppress(FileExistsError):
                        (folder / "bin" / program.name).symlink_to(program)
        yield folder


def engine(stranger: Path, *before: str, **env: str) -> tuple[int, str, str]:
    """`scripts/engine` as somebody without rights: exit code, stdout, stderr."""
    ids = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    demoted = ids if os.geteuid() == 0 else []
    done = subprocess.run(
        [*before, *demoted, str(stranger / "engine")],
        env={"PATH": str(stranger / "bin"), **env}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_an_engine_that_is_missing_where_docker_host_says_is_named(stranger: Path) -> None:
    code, out, err = engine(stranger, DOCKER_HOST="unix:///nowhere.sock")
    assert (code, out) == (1, "")
    assert err == (
        "engine: no Docker engine answers at DOCKER_HOST=unix:///nowhere.sock: "
        "start it there, or unset DOCKER_HOST\n"
    )


def test_a_socket_that_one_may_not_use_is_told_from_a_missing_one(stranger: Path) -> None:
    code, out, err = engine(stranger)
    assert (code, out) == (1, "")
    assert err.startswith("engine: you may not use Docker's socket: ")
    assert "usermod -aG docker $USER" in err
    assert err.count("\n") == 1


def test_without_an_engine_one_is_told_how_to_get_it(stranger: Path) -> None:
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /run && exec "$@"', "sh"]
    code, out, err = engine(stranger, *hidden)
    assert (code, out) == (1, "")
    assert err.startswith("engine: no Docker engine answers: ")
    assert "systemctl start docker" in err
    assert "apt-get install docker.io" in err
    assert err.count("\n") == 1


def test_an_engine_that_answers_is_left_alone() -> None:
    done = subprocess.run(
        [ROOT / "scripts/engine"], capture_output=True, text=True, check=False, stdin=None
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
