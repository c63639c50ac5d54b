"""`ciclient` on a real terminal, beside a real worker that runs real jobs."""

import asyncio
import os
import re
import shutil
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from tests.browser.proxy import proxy
from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, docker, free_port, touch
from tests.e2e.follower import WAIT, let_go, stored
from tests.unit.client.screen import HOSTILE, Screen, kept, obeyed, on_screen, transient

SOON = 0.2  # seconds
CICLIENT = Path(sys.executable).with_name("ciclient")
CLOCK = """\
import time
for _ in range(12):
    print(f"{time.time():.3f}", end=" ", flush=True)
    time.sleep(0.25)
"""
COUNT = "n=0; while [ ! -e /workspace/go ]; do n=$((n+1)); echo line $n; sleep 0.02; done"
RESIZES = [(100, 30), (41, 12), (160, 50), (60, 12), (23, 8), (80, 24)]


@contextmanager
def terminal(worker: Worker, *words: str, **more: str) -> Iterator[Screen]:
    """A command of `ciclient` on a terminal, in the worker's folder."""
    environ = worker.client_environment | {"TERM": "xterm-256color"} | more
    with on_screen([CICLIENT, *words], environ, folder=worker.data_dir.parent) as screen:
        yield screen


async def until(screen: Screen, ready: Callable[[bytes], object]) -> None:
    await asyncio.to_thread(screen.read_until, ready, DEADLINE)


def now_shown(seen: bytes) -> list[str]:
    """The newest of the rows that go away again."""
    return transient(seen)[-1] if transient(seen) else []


@pytest.mark.attacks(40)
async def test_a_submit_is_seen_from_its_folder_to_its_verdict(worker: Worker) -> None:
    folder = worker.data_dir.parent / "tree"
    folder.mkdir()
    (folder / "hostile").write_text("".join(f"{line}\n" for line in HOSTILE))
    script = f"cat hostile; printf '::group::Tests\\n\\033[32m..'; {WAIT}; echo .; exit 1"
    with terminal(worker, "submit", "tree", "--", "sh", "-c", script) as screen:
        await until(screen, lambda seen: now_shown(seen)[:1] == [".."])
        job = (await worker.call("GET", "/jobs"))[1]["items"][0]["id"]
        assert re.match(r"running  0:\d\d  in Tests  tree  ", now_shown(screen.seen)[1])
        await let_go(worker, job)
        seen = await asyncio.to_thread(screen.read_to_end)
        assert screen.code() == 1
    assert obeyed(seen) == ""
    first, second, third, *log = kept(seen).rstrip().split("\r\n")
    assert first.startswith("1 file, ")
    assert (second, third) == (f"submitted {job}", f"page:       {worker.url}/jobs/{job}")
    assert log[: len(HOSTILE)] == [shown(line) for line in HOSTILE]
    group, line, _, phases, *closing, verdict = log[len(HOSTILE) :]
    assert group.startswith("── Tests ─")
    assert line == "..."
    assert re.fullmatch(r"phases:     queued \S+ s, setup \S+ s, run .*", phases)
    assert closing == [
        third, f"its log:    ciclient logs {job}", f"once more:  ciclient retry {job}",
    ]  # fmt: skip
    assert verdict.startswith("not passed (tests_failed, exit code 1, ")


def shown(line: str) -> str:
    """As the live view shows a line of HOSTILE, without colours."""
    line = re.sub("\x1b\\[[0-9;]*m", "", line)
    line = re.sub(r"[\x00-\x1f]", lambda c: "^" + chr(ord(c[0]) ^ 0x40), line)
    line = re.sub(r"[\x80-\x9f\u202a-\u202e]", lambda c: f"<U+{ord(c[0]):04X}>", line)
    title = line.removeprefix("::group::")
    return line if title == line else f"── {title} ".ljust(79, "─")


async def test_what_a_job_prints_is_on_the_terminal_within_a_fifth_of_a_second(
    worker: Worker,
) -> None:
    job = await worker.submit(f"{WAIT}; python3 clock.py", {"clock.py": CLOCK})
    ages, newest = [], 0.0
    with terminal(worker, "follow", job) as screen:
        await until(screen, lambda seen: " ".join(now_shown(seen)).startswith("running  "))
        await let_go(worker, job)
        for _ in range(10):
            await until(screen, newer_than(newest))
            ages.append(time.time() - (newest := printed(screen.seen)))
    assert statistics.median(ages) < SOON


def printed(seen: bytes) -> float:
    """What CLOCK has printed last, as the rows show it; 0 for nothing."""
    rows = now_shown(seen)
    return float(rows[0].split()[-1]) if len(rows) > 1 else 0.0


def newer_than(moment: float) -> Callable[[bytes], bool]:
    return lambda seen: printed(seen) > moment


@pytest.mark.slow
@pytest.mark.parametrize("faults", [5, pytest.param(20, marks=pytest.mark.chaos)])
async def test_a_terminal_sees_every_line_once_over_cuts_and_restarts(
    new_worker: WorkerFactory, faults: int
) -> None:
    port = free_port()
    worker = new_worker(public_url=f"http://127.0.0.1:{port}")
    await worker.start()
    job = await worker.submit(COUNT)
    async with proxy(port, worker.port) as between:
        with terminal(worker, "follow", job, CICLIENT_SERVER=between.url) as screen:
            for fault in range(faults):
                await until(screen, goes_on_after(lines(screen.seen)))
                if fault % 5 == 4:
                    await worker.stop(signal.SIGKILL if fault % 2 else signal.SIGTERM)
                    await until(screen, reconnecting)
                    await worker.start()
                else:
                    assert between.cut() > 0
                    await until(screen, reconnecting)
            await until(screen, goes_on_after(lines(screen.seen)))
            await let_go(worker, job)
            await asyncio.to_thread(screen.read_to_end)
            assert screen.code() == 0
    found = re.findall(r"^line \d+\r$", kept(screen.seen), re.MULTILINE)
    texts = [record["text"] for record in await stored(worker, job)]
    assert [line.rstrip() for line in found] == texts
    assert texts == [f"line {n}" for n in range(1, len(texts) + 1)]


def lines(seen: bytes) -> int:
    return kept(seen).count("line ")


def goes_on_after(count: int) -> Callable[[bytes], bool]:
    return lambda seen: lines(seen) > count and not reconnecting(seen)


def reconnecting(seen: bytes) -> bool:
    return "reconnecting since" in now_shown(seen)[-1]


async def test_a_queued_job_is_seen_to_move_up_and_start(new_worker: WorkerFactory) -> None:
    worker = new_worker(max_jobs="1")
    await worker.start()
    running = await worker.submit(WAIT)
    await worker.wait(running, "running")
    ahead = await worker.submit(WAIT)
    job = await worker.submit("true")
    await worker.submit("true")
    with terminal(worker, "follow", job) as screen:
        await until(screen, lambda seen: "number 2 of 3 in the queue" in " ".join(now_shown(seen)))
        await let_go(worker, running)
        await worker.wait(ahead, "running")
        await until(screen, lambda seen: "number 1 of 2 in the queue" in " ".join(now_shown(seen)))
        await let_go(worker, ahead)
        await asyncio.to_thread(screen.read_to_end)
        assert screen.code() == 0


async def test_a_job_is_seen_to_be_set_up(new_worker: WorkerFactory) -> None:
    worker = new_worker(setup_memory="256m")
    await worker.start()
    steps = ["echo ::group::nested; echo ::endgroup::", f"echo installing; {WAIT}"]
    job = await worker.submit("echo tested", setup=steps)
    with terminal(worker, "follow", job) as screen, terminal(worker, "follow", job, "--now") as new:
        for shown in (screen, new):
            await until(shown, lambda seen: " ".join(now_shown(seen)).startswith("setup  "))
        await until(screen, lambda seen: "\r\ninstalling\r\n" in kept(seen))
        assert "queue" not in " ".join(now_shown(screen.seen))
        await touch(await setup_of(worker))
        for shown in (screen, new):
            await asyncio.to_thread(shown.read_to_end)
            assert shown.code() == 0
    seen = kept(screen.seen)
    assert "── Set up the environment " in seen
    assert f"\r\n{'─' * 79}\r\ntested\r\n{'─' * 79}\r\nphases: " in seen
    assert re.search(r"^phases:     queued \S+ s, setup \S+ s, run \S+ s\r$", seen, re.MULTILINE)


async def setup_of(worker: Worker) -> str:
    """The container of the one setup that goes on."""
    labels = (f"ciworker.instance={worker.instance}", "ciworker.kind=setup")
    filters = [word for label in labels for word in ("--filter", f"label={label}")]
    (name,) = (await docker("ps", *filters, "--format", "{{.Names}}")).decode().split()
    return name


async def test_ctrl_c_leaves_the_job_running(worker: Worker) -> None:
    job = await worker.submit(f"echo begun; printf unfinished; {WAIT}")
    with terminal(worker, "follow", job) as screen:
        await until(screen, lambda seen: now_shown(seen)[:1] == ["unfinished"])
        screen.type(b"\x03")
        seen = await asyncio.to_thread(screen.read_to_end)
        assert screen.code() == 130
    assert kept(seen).split("\r\n")[1:] == [
        "begun", "", "detached, the job runs on", f"come back:  ciclient follow {job}",
        f"cancel it:  ciclient cancel {job}", "",
    ]  # fmt: skip
    assert (await worker.job(job))["status"] == "running"
    await let_go(worker, job)


# a terminal that reflows what is on it


class Tmux:
    """A command in a terminal of tmux."""

    def __init__(self, socket: Path, environ: dict[str, str]) -> None:
        self._command = ["tmux", "-S", str(socket), "-f", os.devnull]
        self._environ = environ

    async def run(self, *words: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *self._command, *words, env=self._environ,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        return out.decode()

    async def resize(self, columns: int, lines: int) -> None:
        await self.run("resize-window", "-x", str(columns), "-y", str(lines))

    async def everything(self) -> list[str]:
        """All lines, those above the screen as well, each as it was before it was wrapped."""
        return (await self.run("capture-pane", "-p", "-J", "-S", "-")).rstrip().split("\n")

    async def wait_for(self, row: str) -> None:
        """Until the last row but one begins so."""
        async with asyncio.timeout(DEADLINE):
            while not (await self.everything())[-2:][0].startswith(row):
                await asyncio.sleep(0.02)


@pytest_asyncio.fixture
async def tmux(worker: Worker, tmp_path: Path) -> AsyncIterator[Tmux]:
    assert shutil.which("tmux"), "there is no tmux: run 'sudo apt-get install tmux'"
    environ = worker.client_environment | {"LC_ALL": "C.UTF-8", "TERM": "xterm-256color"}
    made = Tmux(tmp_path / "tmux", environ)
    try:
        yield made
    finally:
        await made.run("kill-server")


async def test_a_resize_leaves_no_garbage_where_the_terminal_reflows(
    worker: Worker, tmux: Tmux
) -> None:
    wide = "x" * 150
    unfinished = "".join(f"{n}-" for n in range(100))
    script = f"printf {unfinished} >&2; n=0; while [ ! -e /workspace/go ]; do n=$((n+1)); "
    job = await worker.submit(script + f"echo $n {wide}; sleep 0.1; done")
    await tmux.run("new-session", "-d", "-x", "80", "-y", "24", f"{CICLIENT} follow {job}; cat")
    for columns, lines in RESIZES * 2:
        await tmux.resize(columns, lines)
        await tmux.wait_for("…" + unfinished[2 - columns :])
    await let_go(worker, job)
    await tmux.wait_for("once more:  ")
    page, *log = [line.rstrip() for line in await tmux.everything()]
    records = await stored(worker, job)
    assert page == f"page:       {worker.url}/jobs/{job}"
    assert log[: len(records)] == [record["text"] for record in records]
    assert [line.split()[0] for line in log[len(records) :]] == [
        "─" * 79, "phases:", "page:", "its", "once", "passed",
    ]  # fmt: skip
