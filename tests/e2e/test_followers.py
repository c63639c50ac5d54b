"""Whoever follows a job sees the same lines, with the same numbers, in the same order."""

import asyncio
import re
from pathlib import Path

import pytest

from tests.driver import Worker, command
from tests.e2e.follower import (
    WAIT,
    check_numbers,
    engine_log,
    following,
    let_go,
    stored,
)

PRINT = """\
import sys, time
for n in range(600):
    print("line", n, file=sys.stderr if n % 4 == 0 else sys.stdout, flush=True)
    if n % 2: time.sleep(0.004)
"""
FLOOD = 300_000
ODD = b"".join(bytes([n]) * (n % 7) + b" x\xff\xfe\xc3\x28 \n" for n in range(256) if n != 10)
LONG = b"y" * 100_000


def equal_to_engine(log: dict[str, bytes], records: list[dict[str, str]]) -> None:
    for stream, expected in log.items():
        texts = [record["text"] for record in records if record["stream"] == stream]
        assert "\n".join([*texts, ""]) == expected.decode()


async def test_followers_that_came_early_late_and_for_the_tail_agree_while_the_job_runs(
    worker: Worker,
) -> None:
    job_id = await worker.submit(f"python3 print.py; {WAIT}", {"print.py": PRINT})
    async with following(worker, job_id) as early, following(worker, job_id) as same:
        await early.has(250)
        async with (
            following(worker, job_id) as late,
            following(worker, job_id, "?tail=50") as tail,
        ):
            for follower in (early, same, late):
                await follower.has(600)
            assert (await worker.job(job_id))["status"] == "running"
            check_numbers(early.records)
            assert early.records == same.records == late.records == await stored(worker, job_id)
            assert tail.records[0]["n"] > 100
            assert tail.records == early.records[tail.records[0]["n"] - 1 :]
            log = await engine_log(await worker.container(job_id))
            equal_to_engine(log, early.records)
            for stream, expected in log.items():
                assert await worker.text(job_id, f"?stream={stream}") == expected
            await let_go(worker, job_id)
    assert len(early.records) == len(late.records) == 600


async def _printed(process: asyncio.subprocess.Process, upto: bytes) -> bytes:
    assert process.stdout is not None
    return await asyncio.wait_for(process.stdout.readuntil(upto), 30)


async def test_three_terminals_show_the_same_while_the_job_runs(
    worker: Worker, tmp_path: Path
) -> None:
    job_id = await worker.submit(f"python3 print.py; echo last; {WAIT}", {"print.py": PRINT})
    terminals = [await _terminal(worker, job_id, tmp_path) for _ in range(2)]
    await worker.wait_for_text(job_id, b"line 200\n")
    terminals.append(await _terminal(worker, job_id, tmp_path))
    seen = [_lines(await _printed(terminal, b"last\n")) for terminal in terminals]
    assert (await worker.job(job_id))["status"] == "running"
    assert seen[0] == seen[1] == seen[2]
    stored_lines = [record["text"].encode() for record in await stored(worker, job_id)]
    assert seen[0] == stored_lines
    equal_to_engine(await engine_log(await worker.container(job_id)), await stored(worker, job_id))
    await let_go(worker, job_id)
    for terminal in terminals:
        await asyncio.wait_for(terminal.communicate(), 30)
        assert terminal.returncode == 0


async def _terminal(worker: Worker, job_id: str, folder: Path) -> asyncio.subprocess.Process:
    import sys

    return await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "ciclient", "follow", job_id,
        env=worker.client_environment, cwd=folder, limit=2**24,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip


def _lines(printed: bytes) -> list[bytes]:
    """The job's lines; what the client says around them is left out."""
    return [line for line in printed.splitlines() if re.fullmatch(rb"line \d+|last", line)]


@pytest.mark.slow
async def test_a_flood_reaches_every_follower_whole(worker: Worker) -> None:
    job_id = await worker.submit(f"seq {FLOOD}; {WAIT}")
    async with following(worker, job_id) as first, following(worker, job_id) as second:
        await first.has(FLOOD)
        await second.has(FLOOD)
        expected = b"".join(b"%d\n" % n for n in range(1, FLOOD + 1))
        assert await worker.text(job_id) == expected
        log = await engine_log(await worker.container(job_id))
        assert log == {"stdout": expected, "stderr": b""}
        await let_go(worker, job_id)
    check_numbers(first.records)
    assert [r["text"] for r in first.records] == [str(n) for n in range(1, FLOOD + 1)]
    assert first.records == second.records


async def test_lines_too_long_and_bytes_that_are_no_text_stay_exact(worker: Worker) -> None:
    printed = LONG + b"\n" + ODD + LONG + b"\xff" * 70_000 + b"\nend"
    job_id = await worker.submit("cat printed; cat printed >&2", {"printed": printed})
    async with following(worker, job_id) as follower:
        pass
    assert follower.end is not None
    assert follower.end["reason"] == "passed"
    check_numbers(follower.records)
    assert follower.records == await stored(worker, job_id)
    for stream in ("stdout", "stderr"):
        assert await worker.text(job_id, f"?stream={stream}") == printed
        records = [r for r in follower.records if r["stream"] == stream]
        text = "".join(r["text"] + ("" if r.get("end") is False else "\n") for r in records)
        assert text.replace("\ufffd", "") == printed.decode(errors="ignore")
        assert max(len(r["text"]) for r in records) <= 2**16


async def test_the_client_prints_the_stored_log_byte_for_byte(worker: Worker) -> None:
    job = await worker.run("cat printed", {"printed": ODD})
    code, out, _ = await command("ciclient", "logs", job["id"], env=worker.client_environment)
    assert (code, out) == (0, ODD)
