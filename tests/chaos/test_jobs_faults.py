"""Rows 22, 23, 24, 26: jobs that flood, print what is no text, end as they are cancelled, crowd."""

import asyncio
import json
import re
from pathlib import Path
from random import Random

import pytest

from tests.chaos.account import OF_THE_SHELL, Account, all_jobs, counted, counting
from tests.chaos.conftest import Row
from tests.conftest import WorkerFactory
from tests.driver import DEADLINE, Worker, docker
from tests.e2e.follower import check_numbers, engine_log, stored, told_end_once
from tests.e2e.proxy import proxy
from tests.e2e.test_limits import MIB, watched

FLOODS = {"yes": "timeout 3 yes", "empty": "timeout 3 yes ''", "nul": "timeout 3 cat /dev/zero"}
LIMIT = 4 * MIB
LEFT_OUT = re.compile(r"ciworker: [\d,]+ lines? \((\d+|[\d.]+ \w+).*\) left out here")
REMOVE = "DELETE /containers/{id}"
REST = 60 * MIB  # of memory, for all that is bounded: the buffers of one job and of the store


@pytest.mark.rows(22)
@pytest.mark.parametrize(
    "flood", ["nul", *(pytest.param(name, marks=pytest.mark.chaos) for name in ("yes", "empty"))]
)
async def test_a_flood_is_stopped_at_the_limit_with_head_gap_and_tail(
    new_worker: WorkerFactory, row: Row, flood: str
) -> None:
    worker, account = new_worker(log_limit="4m", stop_grace="2s"), Account(jobs=1)
    await worker.start()
    begins = "echo first; echo first >&2"
    async with watched(worker) as samples:
        job = await worker.run(f"{begins}; {FLOODS[flood]}; echo never", timeout="60s")
    assert (job["status"], job["reason"], job["success"]) == ("completed", "log_limit", False)
    assert max(samples) - samples[0] < REST
    told_end_once(job)
    records = await stored(worker, job["id"])
    check_numbers(records)
    gaps = [at for at, record in enumerate(records) if record["stream"] == "worker"]
    assert len(gaps) == 1
    assert LEFT_OUT.match(records[gaps[0]]["text"]), records[gaps[0]]
    head, tail = records[: gaps[0]], records[gaps[0] + 1 :]
    assert sum(record["text"] == "first" for record in head) == 2
    printed = {"yes": {"y"}, "empty": {""}, "nul": {"\0"}}[flood]
    flooded = [r["text"] for r in (*head, *tail) if r["stream"] == "stdout"]
    assert {c for text in flooded if text != "first" for c in set(text) or {""}} == printed
    assert head[2:]
    assert tail
    assert 0 < len(await worker.text(job["id"])) < LIMIT + MIB
    account.lines += len(records)
    await account.leftovers(worker)
    row(22, faults=1, **account.counts())


def odd(size: int, seed: int) -> bytes:
    """Bytes of every kind: characters of several, NUL, CR, no UTF-8, in lines of any length."""
    random, made = Random(seed), bytearray()
    pieces = (b"\xf0\x9f\x8d\xb5", b"\xe2\x82\xac", b"\xc3\xa9", b"\0", b"\r", b"\r\n", b"\x80",
              b"\xff\xfe", b"\xc3(", b"\xed\xa0\x80", b"\x1b[31m", b"\n", b" ", b"a")  # fmt: skip
    while len(made) < size:
        piece = random.choice(pieces)
        made += piece * random.choice((1, 2, 3, 7, 5461, 16_384))
    return bytes(made[:size])


@pytest.mark.rows(23)
@pytest.mark.parametrize("size", [MIB, pytest.param(20 * MIB, marks=pytest.mark.chaos)])
async def test_bytes_of_every_kind_are_stored_as_they_were_printed(
    worker: Worker, row: Row, size: int
) -> None:
    account = Account(jobs=1)
    printed = {"stdout": odd(size, 1), "stderr": odd(size, 2)}
    files: dict[str, str | bytes] = dict(printed)
    job = await worker.run("cat stderr >&2 & cat stdout; wait", files, timeout="2m")
    assert (job["reason"], job["log_incomplete"]) == ("passed", False)
    records = await stored(worker, job["id"])
    check_numbers(records)
    assert max(len(record["text"]) for record in records) <= 2**16
    for stream, expected in printed.items():
        assert await worker.text(job["id"], f"?stream={stream}") == expected
    account.lines += len(records)
    await account.leftovers(worker)
    row(23, faults=len(printed), **account.counts())


@pytest.mark.rows(23)
@pytest.mark.timeout(400)
@pytest.mark.parametrize("size", [5_000_000, pytest.param(100_000_000, marks=[pytest.mark.chaos])])
async def test_a_line_without_an_end_is_cut_into_pieces_and_none_is_lost(
    new_worker: WorkerFactory, row: Row, size: int
) -> None:
    worker, account = new_worker(log_limit="256m"), Account(jobs=1)
    await worker.start()
    async with watched(worker) as samples:
        job_id = await worker.submit(f"head -c {size} /dev/zero | tr '\\0' x", timeout="5m")
        job = await worker.wait(job_id, within=300)
    assert (job["reason"], job["log_incomplete"]) == ("passed", False), job
    assert max(samples) - samples[0] < REST
    text = await worker.text(job_id)
    assert (len(text), text.count(b"x")) == (size, size)
    records = await stored(worker, job_id)
    check_numbers(records)
    assert {len(record["text"]) for record in records[:-1]} == {2**16}
    assert all(record["end"] is False for record in records)
    account.lines += len(records)
    await account.leftovers(worker)
    row(23, faults=1, **account.counts())


class LastWords:
    """What the engine has of ended containers at the moment when the worker removes them.

    lines: by the container's name, by stream; a job may be cancelled before it prints all of them.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker, self._turn = worker, asyncio.Lock()
        self.lines: dict[str, dict[str, list[str]]] = {}

    async def of(self, job_id: str) -> dict[str, list[str]]:
        """Once its container is removed."""
        async with asyncio.timeout(DEADLINE):
            while any(job_id.lower() in name for name in await self._worker.containers()):
                await asyncio.sleep(0.05)
        (name,) = [name for name in self.lines if job_id.lower() in name]
        return self.lines[name]

    async def note(self) -> None:
        """To be called before each removal; none goes on while another container is asked."""
        async with self._turn:
            await self._note()

    async def _note(self) -> None:
        listed = await docker(
            "ps", "-a", "--filter", f"label=ciworker.instance={self._worker.instance}",
            "--filter", "status=exited", "--format", "{{.Names}}",
        )  # fmt: skip
        for name in listed.decode().split():
            if name not in self.lines:
                own = await engine_log(name)
                self.lines[name] = {
                    stream: [
                        line for line in text.decode().splitlines() if line not in OF_THE_SHELL
                    ]
                    for stream, text in own.items()
                }
                assert all(
                    lines == counted(3)[stream][: len(lines)]
                    for stream, lines in self.lines[name].items()
                )


@pytest.mark.rows(24)
@pytest.mark.parametrize(
    "loops", [12, pytest.param(500, marks=[pytest.mark.chaos, pytest.mark.timeout(900)])]
)
async def test_a_cancel_that_races_the_end_leaves_one_state_and_no_container(
    new_worker: WorkerFactory, row: Row, loops: int
) -> None:
    account, moments, turns = Account(), Random(24), asyncio.Semaphore(4)
    answers: list[int] = []
    async with proxy() as between:
        worker = new_worker(docker_host=between.url, max_jobs="4", stop_grace="2s")
        last = LastWords(worker)
        between.before[REMOVE] = last.note
        await worker.start()

        async def race(number: int) -> None:
            async with turns:
                job_id = await worker.submit(f"{counting(3)}; sleep 0.{number % 3}; exit 3")
                job = await worker.wait(job_id, "running", "completed")
                if job["status"] == "running":
                    await asyncio.sleep(moments.uniform(0, 0.1 * (number % 3) + 0.05))
                status, _ = await worker.call("POST", f"/jobs/{job_id}/cancel")
                answers.append(status)
                job = await worker.wait(job_id, within=DEADLINE)
                ended = {"tests_failed": "completed", "cancelled": "cancelled"}
                assert job["status"] == ended[job["reason"]], job
                assert job["reason"] == "cancelled" or job["exit_code"] == 3
                assert status == 202 or job["reason"] == "tests_failed"
                printed = await last.of(job_id)
                assert job["reason"] == "cancelled" or printed == counted(3)
                await account.take(worker, job_id, printed)

        async with asyncio.TaskGroup() as racing:
            for number in range(loops):
                racing.create_task(race(number))
        await account.leftovers(worker)
    assert set(answers) <= {202, 409}
    assert account.reasons.total() == loops
    if loops >= 100:
        assert set(account.reasons) == {"tests_failed", "cancelled"}, "both won"
    row(24, faults=loops, **account.counts())


@pytest.mark.rows(26)
@pytest.mark.parametrize(
    "jobs", [8, pytest.param(50, marks=[pytest.mark.chaos, pytest.mark.timeout(600)])]
)
async def test_no_line_of_a_job_is_in_the_log_of_another(
    new_worker: WorkerFactory, tmp_path: Path, row: Row, jobs: int
) -> None:
    gate, account, lines = tmp_path / "gate", Account(), 300
    gate.mkdir(mode=0o755)
    worker = new_worker(
        max_jobs=str(jobs), max_memory="64g", job_mounts=json.dumps([f"{gate}:/gate:ro"])
    )
    await worker.start()
    canaries = {
        await worker.submit(
            "while [ ! -e /gate/go ]; do sleep 0.1; done; "
            f"i=0; while [ $i -lt {lines} ]; do i=$((i+1)); "
            f"echo canary-{number}-$i; echo canary-{number}-$i >&2; done",
            memory="64m",
        ): number
        for number in range(jobs)
    }
    for job_id in canaries:
        await worker.wait(job_id, "running", within=300)
    assert {job["status"] for job in await all_jobs(worker)} == {"running"}, "all at once"
    (gate / "go").touch()
    for job_id, number in canaries.items():
        own = [f"canary-{number}-{n}" for n in range(1, lines + 1)]
        await account.take(worker, job_id, {"stdout": own, "stderr": own}, within=300)
    assert account.reasons == {"passed": jobs}
    await account.leftovers(worker)
    row(26, faults=jobs, **account.counts())
