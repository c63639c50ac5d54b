"""How long a person waits: until the first line of a job, and until its verdict.

Every contender runs in each round, in turn, so that what else the machine does hits all alike.
Times are read by bare sockets (`wire`). The tree is the same 100 KB for all who take one; every
container but that of the plain `docker run` has the worker's own hardened configuration.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ciworker.engine.port import ContainerSpec
from ciworker.engine.sandbox import container_config
from ciworker.source.shim import CONTAINER_COMMAND, RUN_MEMBER, run_script
from scripts.bench import interrupt
from scripts.bench.wire import Attached, Engine, Watch, WorkerApi
from tests.driver import Worker, tree

DIE_TO_END = 0.015  # seconds: the most that the worker may add, in the median
COLD_START = 1.15  # times the engine's own
EXIT_TO_END = 1.2  # times the engine's own die and end of stream
WARM_UP = 2

# The job's last act is to tell the time, so that its exit is known to a millisecond.
RUN = "echo first line; sleep 0.3; date +%s.%N"
MARK = b"\x1b]bench\x07"


@dataclass
class Samples:
    """Seconds of each round, by what was measured."""

    of: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        self.of.setdefault(name, []).append(seconds)

    def median(self, name: str) -> float:
        return statistics.median(self.of[name])


@dataclass(frozen=True)
class Bench:
    """What the contenders use."""

    image: str
    engine: Engine
    watch: Watch
    worker: WorkerApi
    files: Mapping[str, bytes]
    label: str

    def through_the_worker(self) -> dict[str, float]:
        archive = tree(self.files)
        began = time.time()
        job = self.worker.submit({"run": RUN}, archive)
        lines, end = [], 0.0
        for frame in self.worker.events(f"/jobs/{job}/events"):
            if frame.event == "log":
                texts = [json.loads(record)["text"] for record in frame.data.splitlines()]
                lines += [(frame.at, text) for text in texts]
            if frame.event == "end":
                end = frame.at
        name = f"ci-{job.lower()}-1"
        die = self.watch.when("die", name)
        self.watch.when("destroy", name)
        exited = float(lines[-1][1])
        return {
            "submit -> first line": lines[0][0] - began,
            "die -> end": end - die,
            "exit -> end": end - exited,
            "submit -> end": end - began,
        }

    def plain_engine(self) -> dict[str, float]:
        """Create, attach, start, first line; no tree."""
        first, last, name = self._run("plain", ["sh", "-c", RUN], b"")
        die = self.watch.when("die", name)
        self.engine.call("GET", f"/containers/{name}/json")
        inspected = time.time()
        self._remove(name)
        return {
            "submit -> first line": first[0],
            "die -> inspect answers": inspected - die,
            "exit -> end": max(die, last[0]) - last[1],
            "submit -> end": max(die, last[0]) - first[1],
        }

    def engine_with_tree(self) -> dict[str, float]:
        """The same with the worker's shim, and the tree through stdin."""
        files = {f"src/{name}": content for name, content in self.files.items()}
        archive = tree({**files, RUN_MEMBER: run_script(RUN, {}, MARK)})
        first, _, name = self._run("tree", CONTAINER_COMMAND, b"%d\n" % len(archive) + archive)
        self.watch.when("die", name)
        self._remove(name)
        return {"submit -> first line": first[0]}

    def docker_run(self) -> dict[str, float]:
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
        return {
            "submit -> first line": first - began,
            "exit -> end": end - exited,
            "submit -> end": end - began,
        }

    def _run(
        self, kind: str, command: Sequence[str], stdin: bytes
    ) -> tuple[tuple[float, float], tuple[float, float], str]:
        """Run a container.

        Returns:
            (seconds to the first line, when it began), (when the stream ended, when the job
            exited), and the container's name.
        """
        name = f"{self.label}-{kind}-{time.time_ns()}"
        spec = ContainerSpec(
            name=name,
            image=self.image,
            command=command,
            labels={self.label: kind},
            memory=2 * 2**30,
            cpus=min(2.0, float(len(os.sched_getaffinity(0)))),
            pids=512,
            network=False,
            workspace_size=2**30,
            log_max_size=2**30,
        )
        began = time.time()
        body = container_config(spec)
        container = self.engine.call("POST", f"/containers/create?name={name}", body)["Id"]
        attached = self.engine.attach(container)
        self.engine.call("POST", f"/containers/{container}/start")
        if stdin:
            attached.write(stdin)
        first, exited = _read(attached)
        return (first - began, began), (time.time(), exited), name

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


async def measured(bench: Bench, rounds: int) -> Samples:
    """`measure` on a thread; when cancelled, only once the round under way is over."""
    stop = threading.Event()
    work = asyncio.ensure_future(asyncio.to_thread(measure, bench, rounds, stop))
    try:
        return await asyncio.shield(work)
    finally:
        stop.set()
        await asyncio.wait([work])


def measure(bench: Bench, rounds: int, stop: threading.Event) -> Samples:
    contenders: list[tuple[str, Callable[[], dict[str, float]]]] = [
        ("worker", bench.through_the_worker),
        ("engine API", bench.plain_engine),
        ("engine API + tree", bench.engine_with_tree),
        ("docker run", bench.docker_run),
    ]
    samples = Samples()
    for number in range(-WARM_UP, rounds):
        turn = number % len(contenders)
        for name, run in [*contenders[turn:], *contenders[:turn]]:
            if stop.is_set():
                return samples
            for what, seconds in run().items():
                if number >= 0:
                    samples.add(f"{what}, {name}", seconds)
    return samples


@dataclass(frozen=True)
class Target:
    """One promise, as it came out. unit: of both numbers, `s` or `x`."""

    name: str
    reached: float
    wanted: float
    unit: str

    @property
    def met(self) -> bool:
        return self.reached <= self.wanted

    def line(self) -> str:
        verdict = "PASS" if self.met else "MISS"
        reached, wanted = self._text(self.reached), self._text(self.wanted)
        return f"{verdict}  {self.name}: {reached} (at most {wanted})"

    def _text(self, number: float) -> str:
        return f"{number * 1000:.1f} ms" if self.unit == "s" else f"{number:.2f} x"


def targets(samples: Samples) -> list[Target]:
    def ratio(what: str) -> float:
        return samples.median(f"{what}, worker") / samples.median(f"{what}, engine API")

    return [
        Target(
            "end at a client after the bare reader's die, median",
            samples.median("die -> end, worker"),
            DIE_TO_END,
            "s",
        ),
        Target(
            "cold submit -> first line, beside the engine API",
            ratio("submit -> first line"),
            COLD_START,
            "x",
        ),
        Target(
            "exit -> end, beside the engine API's die and end of stream",
            ratio("exit -> end"),
            EXIT_TO_END,
            "x",
        ),
    ]


def machine(engine: Engine, image: str) -> dict[str, object]:
    client = subprocess.run(
        ["docker", "version", "--format", "{{.Client.Version}}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "docker_engine": engine.call("GET", "/version")["Version"],
        "docker_cli": client.stdout.strip(),
        "image": image,
    }


def rows(samples: Samples) -> list[dict[str, object]]:
    found = []
    for name, values in samples.of.items():
        what = name.partition(", ")[0]
        base = None if what.startswith("die") else samples.of.get(f"{what}, engine API")
        median = statistics.median(values)
        found.append(
            {
                "what": name,
                "min_ms": round(min(values) * 1000, 1),
                "median_ms": round(median * 1000, 1),
                "max_ms": round(max(values) * 1000, 1),
                "ratio": round(median / statistics.median(base), 2) if base else None,
            }
        )
    return sorted(found, key=lambda row: str(row["what"]).partition(", ")[0])


def report(document: Mapping[str, object], table: Sequence[Mapping[str, object]]) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in document.items())
    lines = [facts, "", f"{'':<42}{'min':>8}{'median':>8}{'max':>8}  beside the engine API"]
    for row in table:
        ratio = f"{row['ratio']:>6} x" if row["ratio"] is not None else ""
        cells = "".join(f"{row[name]:>8}" for name in ("min_ms", "median_ms", "max_ms"))
        lines.append(f"{row['what']:<42}{cells}  {ratio}")
    return "\n".join(lines)


def files() -> dict[str, bytes]:
    """100 KB of text in 25 files; the same in every run."""
    dice = random.Random(8480)
    words = ["def", "return", "tea", "pot", "cup", "assert", "=", "(", ")", "\n"]
    return {
        f"package/module_{n}.py": " ".join(dice.choices(words, k=2000)).encode()[:4096]
        for n in range(25)
    }


async def run(rounds: int, image: str) -> tuple[Samples, dict[str, object]]:
    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if not host.startswith("unix://"):
        sys.exit(f"latency: the engine at {host} is not on this machine: its clock would differ")
    socket = host.removeprefix("unix://")
    with tempfile.TemporaryDirectory(prefix="ciworker-bench-") as folder:
        worker = Worker(Path(folder) / "worker", {"default_image": image})
        label = f"bench-{worker.instance}"
        try:
            await worker.start()
            api = WorkerApi(worker.port, worker.token)
            bench = Bench(image, Engine(socket), Watch(socket), api, files(), label)
            facts = {**machine(bench.engine, image), "rounds": rounds}
            return await measured(bench, rounds), facts
        finally:
            await worker.destroy()
            remove_left_over(label)


def remove_left_over(label: str) -> None:
    """Containers of a round that broke off."""
    listed = subprocess.run(
        ["docker", "ps", "--all", "--quiet", "--filter", f"name={label}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    if names := listed.stdout.split():
        subprocess.run(
            ["docker", "rm", "--force", "--volumes", *names], capture_output=True, check=False
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="latency", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="at least 20 for a fair median")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    samples, facts = interrupt.run(run(options.rounds, os.environ["CI_TEST_IMAGE"]))
    reached, table = targets(samples), rows(samples)
    if options.json:
        held = [{**vars(target), "met": target.met} for target in reached]
        print(json.dumps({"machine": facts, "rows": table, "targets": held}, indent=2))
    else:
        print(report(facts, table))
        print("\n" + "\n".join(target.line() for target in reached))
    sys.exit(0 if all(target.met for target in reached) else 1)


if __name__ == "__main__":
    main()
