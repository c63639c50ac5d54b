"""How long a person waits for the tests of an edited tree, once its environment is ready.

A project that none of us wrote is submitted from its repository, without a job file, beside what
others do: a container that installs and tests, as the usual CI has it, and pytest alone where all
is installed. They take turns in each round, after an edit of a test file that nobody committed; a
time is that of the whole process.
"""

import argparse
import asyncio
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.bench import interrupt
from scripts.bench.rounds import Broken, Check, Contender, Samples, taking_turns
from tests.driver import Worker
from tests.published import (
    HISTOGRAMS,
    HOST_SETTINGS,
    NotInstalled,
    Outside,
    commit_all,
    index_settings,
)

PROJECT = HISTOGRAMS
EDITED = "tests/test_basic.py"
BESIDE_INSTALLING = 0.2  # times a container that installs and tests
BEYOND_BARE = 0.5  # seconds over pytest alone
TIME = "time"
CICLIENT = str(Path(sys.executable).parent / "ciclient")

FIRST_SUBMIT, SUBMIT = "first submit", "submit"
INSTALLING, BARE = "docker run that installs", "bare pytest"


@dataclass(frozen=True)
class Bench:
    """What the contenders use. tree: for containers; own_copy: what `outside` has installed."""

    image: str
    tree: Path
    own_copy: Path
    outside: Outside
    worker: Worker

    def edit(self, number: int) -> None:
        """Change a test file, as its next saving would."""
        for folder in (self.tree, self.own_copy):
            with (folder / EDITED).open("a") as file:
                file.write(f"# edited, {number}\n")

    async def submit(self) -> float:
        words = [CICLIENT, "submit", str(self.tree)]
        return await timed(words, self.worker.client_environment)

    async def bare_pytest(self) -> float:
        return await timed(["python", "-m", "pytest"], self.outside.environment, self.own_copy)

    async def docker_run(self) -> float:
        """On the bridge, with the index's settings, as root: what CI does by default."""
        name = f"{self.worker.instance}-{time.time_ns()}"
        wanted = " ".join(f"'{word}'" for word in PROJECT.wanted)
        run = f"cp -r /tree /src && cd /src && python3 -m pip install --quiet {wanted}"
        words = ["--rm", "--name", name, "--volume", f"{self.tree}:/tree:ro", *index_flags()]
        try:
            return await timed(
                ["docker", "run", *words, self.image, "sh", "-c", f"{run} && python3 -m pytest"],
                os.environ,
            )
        except BaseException:
            subprocess.run(["docker", "rm", "--force", name], capture_output=True, check=False)
            raise


async def timed(words: Sequence[str], env: Mapping[str, str], cwd: Path | None = None) -> float:
    """Seconds from the start of a command to its end; when cancelled, it is ended."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        *words, env=dict(env), cwd=cwd, stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise Broken(f"{words[:2]} ended with {process.returncode}: {out.decode()[-2000:]}")
    return time.perf_counter() - began


def index_flags() -> Sequence[str]:
    """How `docker run` is told of the package index."""
    told = [sys.executable, str(HOST_SETTINGS), "docker"]
    return subprocess.run(told, capture_output=True, text=True, check=True).stdout.splitlines()


async def measure(bench: Bench, rounds: int) -> Samples:
    turn = itertools.count()

    def after_an_edit(run: Callable[[], Awaitable[float]]) -> Contender:
        async def edited() -> Mapping[str, float]:
            bench.edit(next(turn))
            return {TIME: await run()}

        return edited

    first = await bench.submit()
    contenders = {INSTALLING: bench.docker_run, BARE: bench.bare_pytest, SUBMIT: bench.submit}
    samples = await taking_turns(
        {name: after_an_edit(run) for name, run in contenders.items()}, rounds
    )
    samples.add(FIRST_SUBMIT, {TIME: first})
    return samples


def checks(samples: Samples) -> list[Check]:
    pairs = zip(samples.of[SUBMIT, TIME], samples.of[BARE, TIME], strict=True)
    note = f"the first submit, which sets up: {samples.median(FIRST_SUBMIT, TIME):.2f} s"
    return [
        Check("", f"submit of an edited tree, beside {INSTALLING}",
              samples.ratios(TIME, SUBMIT, INSTALLING), BESIDE_INSTALLING,
              note=samples.beside(TIME, SUBMIT, INSTALLING, "s")),
        Check("", f"submit of an edited tree, beyond {BARE}",
              [ours - bare for ours, bare in pairs], BEYOND_BARE, "s", note=note),
    ]  # fmt: skip


def machine(image: str, rounds: int) -> dict[str, object]:
    engine = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "docker_engine": engine.stdout.strip(),
        "image": image,
        "project": f"{PROJECT.name} {PROJECT.version}",
        "rounds": rounds,
    }


async def run(rounds: int, image: str) -> tuple[Samples, dict[str, object]]:
    with tempfile.TemporaryDirectory(prefix="ciworker-bench-") as name:
        folder = Path(name)
        tree, own_copy = PROJECT.unpacked(folder / "tree"), PROJECT.unpacked(folder / "own")
        commit_all(tree, PROJECT.version)
        outside = Outside.prepared(folder / "venv", PROJECT, own_copy)
        worker = Worker(folder / "worker", {"default_image": image, **index_settings()})
        try:
            await worker.start()
            facts = machine(image, rounds)
            return await measure(Bench(image, tree, own_copy, outside, worker), rounds), facts
        finally:
            await worker.destroy()


def main() -> None:
    parser = argparse.ArgumentParser(prog="environments", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="at least 10 for a fair median")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    try:
        samples, facts = interrupt.run(run(options.rounds, os.environ["CI_TEST_IMAGE"]))
    except (Broken, NotInstalled) as error:
        sys.exit(f"environments: {error}")
    reached = checks(samples)
    if options.json:
        held = [{**vars(check), "reached": check.reached, "met": check.met} for check in reached]
        print(json.dumps({"machine": facts, "targets": held}, indent=2))
    else:
        print(", ".join(f"{name} {value}" for name, value in facts.items()))
        print("\n" + "\n".join(check.line() for check in reached))
    sys.exit(0 if all(check.met for check in reached) else 1)


if __name__ == "__main__":
    main()
