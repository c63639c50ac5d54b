"""One job from submit to verdict, on a real engine."""

import asyncio
import itertools
import time

import pytest

from tests.conftest import WorkerFactory
from tests.driver import Worker, command, docker, free_port, touch


async def test_a_suite_passes_and_nothing_is_left_in_docker(worker: Worker) -> None:
    job = await worker.run("python -m pytest -q", {"test_it.py": "def test_it(): assert True\n"})
    assert (job["status"], job["success"], job["reason"]) == ("completed", True, "passed")
    assert job["exit_code"] == 0
    assert b"1 passed" in await worker.text(job["id"])
    assert [step["to"] for step in job["history"]] == ["queued", "starting", "running", "completed"]
    await worker.nothing_left()


async def test_lines_appear_as_they_are_printed(worker: Worker) -> None:
    # The job goes on only once its last line was seen: one that is held back hangs it.
    wait = "until [ -e /tmp/seen$i ]; do sleep 0.05; done"
    job_id = await worker.submit(f"for i in 1 2 3 4; do echo line $i; {wait}; done")
    seen: list[str] = []
    async with asyncio.timeout(30), worker.events(f"/jobs/{job_id}/events") as events:
        async for frame in events:
            for record in frame.records if frame.event == "log" else ():
                seen.append(record["text"])
                container = await worker.container(job_id)
                await touch(container, f"/tmp/seen{len(seen)}")
            if frame.event == "end":
                break
    assert seen == ["line 1", "line 2", "line 3", "line 4"]
    assert (await worker.job(job_id))["reason"] == "passed"


@pytest.mark.parametrize(
    ("run", "reason", "status", "words"),
    [
        ("exit 0", "passed", "completed", "passed"),
        ("exit 1", "tests_failed", "completed", "exit code 1"),
        ("exit 5", "no_tests", "completed", "no tests"),
        ("no-such-command --at all", "tests_failed", "completed", "did not find"),
        ("kill -SEGV $$", "tests_failed", "completed", "signal 11 (SIGSEGV)"),
        ("kill -KILL $$", "tests_failed", "completed", "signal 9 (SIGKILL)"),
    ],
)
async def test_how_the_job_exits_is_said_in_words(
    worker: Worker, run: str, reason: str, status: str, words: str
) -> None:
    job = await worker.run(run)
    assert (job["reason"], job["status"]) == (reason, status)
    assert words in job["message"]


async def test_a_timeout_stops_the_job(worker: Worker) -> None:
    began = time.monotonic()
    job = await worker.run("echo begun; exec sleep 60", timeout="1s")
    assert (job["reason"], job["success"]) == ("timed_out", False)
    assert time.monotonic() - began < 5
    assert await worker.text(job["id"]) == b"begun\n"


async def test_cancel_reaches_a_grandchild_that_cleans_up(worker: Worker) -> None:
    grandchild = (
        "trap 'sleep 0.3; echo cleaned up; exit 0' TERM; echo ready; while :; do sleep 0.05; done"
    )
    job_id = await worker.submit("sh child.sh", {"child.sh": f'sh -c "{grandchild}" & wait\n'})
    await worker.wait_for_text(job_id, b"ready\n")
    status, _ = await worker.call("POST", f"/jobs/{job_id}/cancel")
    assert status == 202
    job = await worker.wait(job_id)
    assert (job["status"], job["success"], job["reason"]) == ("cancelled", None, "cancelled")
    assert "first admin" in job["message"]
    assert (await worker.text(job_id)).endswith(b"cleaned up\n")
    await worker.nothing_left()


@pytest.mark.attacks(21)
async def test_a_job_that_ignores_term_is_gone_after_the_grace(worker: Worker) -> None:
    await worker.stop()
    worker.set(stop_grace="1s")
    await worker.start()
    job_id = await worker.submit(
        "trap '' TERM; echo deaf; while :; do sleep 0.1; done", timeout="1s"
    )
    job = await worker.wait(job_id, within=10)
    assert job["reason"] == "timed_out"
    await worker.nothing_left()


@pytest.mark.parametrize("how", [("kill",), ("rm", "-f")])
async def test_a_container_taken_away_from_outside_is_told_within_a_second(
    worker: Worker, how: tuple[str, ...]
) -> None:
    job_id = await worker.submit("echo begun; exec sleep 60")
    await worker.wait_for_text(job_id, b"begun\n")
    await worker.wait(job_id, "running")
    await docker(*how, await worker.container(job_id))
    began = time.monotonic()
    job = await worker.wait(job_id)
    assert time.monotonic() - began < 1
    assert (job["status"], job["reason"], job["success"]) == ("failed", "killed_outside", None)
    assert await worker.text(job_id) == b"begun\n"
    await worker.nothing_left()


@pytest.mark.attacks(20)
async def test_out_of_memory_is_the_verdict_only_of_the_main_process(worker: Worker) -> None:
    eat = "python -c 'x = bytearray(200_000_000)'"
    main = await worker.run(f"exec {eat}", memory="64m")
    child = await worker.run(f"{eat}; exit 0", memory="64m")
    assert (main["reason"], main["exit_code"]) == ("out_of_memory", 137)
    assert child["reason"] == "passed"
    assert "killed for want of memory" in child["message"]


async def test_jobs_run_as_many_at_once_as_allowed_by_priority_then_age(worker: Worker) -> None:
    await worker.stop()
    worker.set(max_jobs="1")
    await worker.start()
    first = await worker.submit("sleep 1")
    low, old, high = [await worker.submit("true", priority=priority) for priority in (-1, 0, 5)]
    young = await worker.submit("true")
    jobs = await asyncio.gather(*(worker.wait(job) for job in (first, high, old, young, low)))
    started = [job["started_at"] for job in jobs]
    assert started == sorted(started)
    assert all(
        earlier["finished_at"] <= later["started_at"] for earlier, later in itertools.pairwise(jobs)
    )


async def test_a_jobs_variables_do_not_reach_what_runs_it(worker: Worker) -> None:
    job = await worker.run("sleep 60 & echo $stopping", env={"stopping": "1"}, timeout="20s")
    assert (job["reason"], await worker.text(job["id"])) == ("passed", b"1\n")
    # What a shell refuses to export fails the job that asked for it, once it has begun.
    job = await worker.run("true", env={"OPTIND": "abc"})
    assert (job["status"], job["reason"], job["attempt"]) == ("completed", "tests_failed", 1)


async def test_a_retry_of_what_is_no_longer_allowed_is_refused(worker: Worker) -> None:
    old = await worker.run("true", memory="128m")
    await worker.stop()
    worker.set(max_job_memory="64m")
    await worker.start()
    status, problem = await worker.call("POST", f"/jobs/{old['id']}/retry")
    assert (status, "max_job_memory" in problem["detail"]) == (422, True)


async def test_a_first_start_that_broke_off_before_the_token_had_its_name_is_finished(
    worker: Worker,
) -> None:
    await worker.stop()
    token = worker.data_dir / "admin.token"
    token.rename(token.with_suffix(".new"))
    await worker.start()
    assert (await worker.call("GET", "/jobs"))[0] == 200


@pytest.mark.parametrize("how", ["revoked", "lost", "another store's", "expired", "a reader's"])
async def test_whoever_has_the_data_folder_gets_in_again_at_the_next_start(
    worker: Worker, how: str
) -> None:
    token, before = worker.data_dir / "admin.token", worker.token
    if how == "revoked":
        assert (await worker.call("DELETE", f"/tokens/{before.split('_')[1]}"))[0] == 204
    elif how == "lost":
        token.unlink()
    elif how == "another store's":
        token.write_text("ciw_0123456789ab_secret\n")
    else:
        wanted = {"name": "short", "role": "read" if how == "a reader's" else "admin"}
        lasting = {"expires_in": 1} if how == "expired" else {}
        _, made = await worker.call("POST", "/tokens", json=wanted | lasting)
        token.write_text(made["token"])
        await asyncio.sleep(1.1 if how == "expired" else 0)
    await worker.stop()
    await worker.start()
    assert worker.token != before
    assert (await worker.call("POST", "/resync"))[0] == 200
    assert token.stat().st_mode & 0o777 == 0o600
    now = worker.token
    await worker.stop()
    await worker.start()
    assert worker.token == now


async def test_nobody_else_can_read_the_store_whoever_made_or_restored_it(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker()
    worker.data_dir.mkdir()
    path = worker.data_dir / "ciworker.db"
    code, _, said = await command("ciworker", "token", "create", "tea", env=worker.environment)
    assert (code, path.stat().st_mode & 0o777) == (0, 0o600), said
    path.chmod(0o644)
    await worker.start()
    modes = {file.stat().st_mode & 0o777 for file in worker.data_dir.glob("ciworker.db*")}
    assert modes == {0o600}


async def test_where_another_port_is_asked_than_the_worker_s_it_is_told_who_has_the_folder(
    worker: Worker,
) -> None:
    elsewhere = worker.environment | {"CIWORKER_PORT": str(free_port())}
    code, _, said = await command("ciworker", "token", "list", env=elsewhere)
    text = " ".join(said.decode().split())
    assert code == 3
    assert f"but the worker on {worker.url} (process " in text
    assert "--config" in text


async def test_a_failed_job_explains_itself_wherever_it_is_told(worker: Worker) -> None:
    job_id = await worker.submit("(seq 150; echo oops) >&2; kill -KILL $$")
    async with worker.events(f"/jobs/{job_id}/events?now=1") as events:
        (end,) = [frame.json async for frame in events if frame.event == "end"]
    job = await worker.job(job_id)
    assert end == job
    assert job["exit_words"] == "exit code 137: killed by signal 9 (SIGKILL)"
    assert {"150", "oops"} <= {line["text"] for line in job["last_lines"]}
    assert [line["n"] for line in job["last_lines"]] == list(range(52, 152))
    container = job["container"]
    assert (container["id"], container["name"]) == (job["container_id"], f"ci-{job_id.lower()}-1")
    assert (container["status"], container["exit_code"]) == ("exited", 137)
    assert container["error"] is None
    times = [job["created_at"], container["started_at"], container["stopped_at"]]
    assert times == sorted(times)


async def test_one_that_passed_needs_no_last_lines_and_long_ones_are_bounded(
    worker: Worker,
) -> None:
    assert (await worker.run("echo fine"))["last_lines"] == []
    long = await worker.run(
        "for n in 1 2 3; do head -c 40000 /dev/zero | tr '\\0' x; echo; done; exit 1"
    )
    assert [line["n"] for line in long["last_lines"]] == [3]


async def test_an_unknown_job_is_a_404_that_says_so(worker: Worker) -> None:
    for path in ("/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV", "/jobs/x", "/jobs/x/log", "/jobs/x/events"):
        status, problem = await worker.call("GET", path)
        assert status == 404
        assert "there is no job" in problem["detail"]
