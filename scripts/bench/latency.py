"""S1, S2, S3: how long a person waits: until the first line of a job, and until its verdict.

Times are read by bare sockets (`wire`). The tree is the same 100 KB for all who take one; every
container but that of the plain `docker run` has the worker's own hardened configuration.
"""

import contextlib
import json
import random
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ciworker.domain.mark import Marks
from ciworker.engine.sandbox import container_config
from ciworker.source.shim import CONTAINER_COMMAND, RUN_MEMBER, run_script
from scripts.bench.rounds import Check, Contender, Ground, Samples, on_a_thread, taking_turns
from scripts.bench.trivial import spec
from scripts.bench.wire import Attached, Engine, Watch, WorkerApi
from scripts.bench.worker import cold_note, docker_socket, has_pool, parked, pool, running
from tests.driver import Worker, tree

WARM_START = 0.15  # times bare `docker run`
COLD_START = 1.15  # times the engine's own
EXIT_TO_END = 1.2  # times the engine's own die and end of stream

WORKER, WARM, ENGINE = "worker", "worker with a pool", "engine API"
WITH_TREE, DOCKER_RUN = "engine API + tree", "docker run"
FIRST, END = "submit -> first line", "exit -> end"

# The job's last act is to tell the time, so that its exit is known to a millisecond.
RUN = "echo first line; sleep 0.3; date +%s.%N"
MARK = b"\x1b]bench\x07"


@dataclass(frozen=True)
class Bench:
    """What the contenders use."""

    image: str
    engine: Engine
    watch: Watch
    files: Mapping[str, bytes]
    label: str

    def through_a_worker(self, worker: WorkerApi) -> Mapping[str, float]:
        archive = tree(self.files)
        began = time.time()
        job = worker.submit({"run": RUN}, archive)
        lines, end = [], 0.0
        for frame in worker.events(f"/jobs/{job}/events"):
            if frame.event == "log":
                texts = [json.loads(record)["text"] for record in frame.data.splitlines()]
                lines += [(frame.at, text) for text in texts]
            if frame.event == "end":
                end = frame.at
        self.watch.when("destroy", f"ci-{job.lower()}-1")
        return {FIRST: lines[0][0] - began, END: end - float(lines[-1][1])}

    def plain_engine(self) -> Mapping[str, float]:
        """Create, attach, start, first line; no tree."""
        first, ended, exited, name = self._run("plain", ["sh", "-c", RUN], b"")
        die = self.watch.when("die", name)
        self._remove(name)
        return {FIRST: first, END: max(die, ended) - exited}

    def engine_with_tree(self) -> Mapping[str, float]:
        """The same with the worker's shim, and the tree through stdin."""
        files = {f"src/{name}": content for name, content in self.files.items()}
        archive = tree({**files, RUN_MEMBER: run_script(RUN, {}, Marks(MARK, b""))})
        stdin = b"%d\n" % len(archive) + archive
        first, ended, exited, name = self._run("tree", CONTAINER_COMMAND, stdin)
        die = self.watch.when("die", name)
        self._remove(name)
        return {FIRST: first, END: max(die, ended) - exited}

    def docker_run(self) -> Mapping[str, float]:
        """The command line, with no options but the network's."""
        name = f"{self.label}-run-{time.time_ns()}"
        words = ["--rm", "--name", name, "--network", "none", self.image, "sh", "-c", RUN]
        began = time.time()
        with subprocess.Popen(["docker", "run", *words], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            first = time.time()
            exited = float(process.stdout.readline())
            process.wait()
            end = time.time()
        self.watch.when("destroy", name)
        return {FIRST: first - began, END: end - exited}

    def _run(
        self, kind: str, command: Sequence[str], stdin: bytes
    ) -> tuple[float, float, float, str]:
        """Run a container.

        Returns:
            Seconds to the first line; when the stream ended; when the job exited; the
            container's name.
        """
        name = f"{self.label}-{kind}-{time.time_ns()}"
        config = container_config(spec(name, self.image, {self.label: kind}, command))
        began = time.time()
        container = self.engine.call("POST", f"/containers/create?name={name}", config)["Id"]
        attached = self.engine.attach(container)
        self.engine.call("POST", f"/containers/{container}/start")
        if stdin:
            attached.write(stdin)
        first, exited = _read(attached)
        return first - began, time.time(), exited, name

    def _remove(self, name: str) -> None:
        self.engine.call("DELETE", f"/containers/{name}?force=1&v=1")
        self.watch.when("destroy", name)


def _read(attached: Attached) -> tuple[float, float]:
    """When the first line came, and when the job exited, as it says."""
    first, output = 0.0, b""
    while data := attached.read():
        output += data
        if not first and b"first line\n" in output:
            first = time.time()
    attached.close()
    return first, float(output.split()[-1])


def files() -> dict[str, bytes]:
    """100 KB of text in 25 files; the same in every run."""
    dice = random.Random(8480)
    words = ["def", "return", "tea", "pot", "cup", "assert", "=", "(", ")", "\n"]
    return {
        f"package/module_{n}.py": " ".join(dice.choices(words, k=2000)).encode()[:4096]
        for n in range(25)
    }


async def measured(bench: Bench, cold: Worker, warm: Worker | None, rounds: int) -> Samples:
    async def parked_first() -> Mapping[str, float]:
        assert warm is not None
        await parked(warm, 1)
        return await on_a_thread(bench.through_a_worker, WorkerApi(warm.port, warm.token))()

    cold_api = WorkerApi(cold.port, cold.token)
    contenders: dict[str, Contender] = {
        WORKER: on_a_thread(bench.through_a_worker, cold_api),
        ENGINE: on_a_thread(bench.plain_engine),
        WITH_TREE: on_a_thread(bench.engine_with_tree),
        DOCKER_RUN: on_a_thread(bench.docker_run),
    }
    if warm is not None:
        contenders[WARM] = parked_first
    return await taking_turns(contenders, rounds, 2)


async def checks(ground: Ground) -> Sequence[Check]:
    socket = docker_socket()
    async with contextlib.AsyncExitStack() as open_now:
        cold = await open_now.enter_async_context(running(ground, "cold"))
        warm = None
        if has_pool():
            settings = pool(ground, 1)
            warm = await open_now.enter_async_context(running(ground, "warm", **settings))
        label = f"bench-{cold.instance}"
        open_now.callback(_remove_left_over, label)
        bench = Bench(ground.image, Engine(socket), Watch(socket), files(), label)
        found = await measured(bench, cold, warm, ground.rounds)
    return judged(found)


def judged(found: Samples) -> Sequence[Check]:
    contender = WARM if has_pool() else WORKER
    note = found.beside(FIRST, contender, DOCKER_RUN)
    with_tree = f"; with the tree and the shim {found.median(WITH_TREE, FIRST) * 1e3:.1f} ms"
    return [
        Check("S1", "submit to first line, beside docker run",
              found.ratios(FIRST, contender, DOCKER_RUN), WARM_START,
              note="; ".join(filter(None, (note, cold_note())))),
        Check("S2", "cold submit to first line, beside the engine's API",
              found.ratios(FIRST, WORKER, ENGINE), COLD_START,
              note=found.beside(FIRST, WORKER, ENGINE) + with_tree),
        Check("S3", "exit to the verdict, beside die and end of stream",
              found.ratios(END, WORKER, ENGINE), EXIT_TO_END,
              note=found.beside(END, WORKER, ENGINE)),
    ]  # fmt: skip


def _remove_left_over(label: str) -> None:
    """Containers of a round that broke off."""
    listed = subprocess.run(
        ["docker", "ps", "--all", "--quiet", "--filter", f"name={label}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    if names := listed.stdout.split():
        subprocess.run(
            ["docker", "rm", "--force", "--volumes", *names], capture_output=True, check=False
        )
