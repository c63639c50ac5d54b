"""Rows 44, 45: the benches of a large store and of many jobs, in a bounded size.

Here nothing fails for slowness: what is compared is work and CPU of two workers on the same
machine, and what one worker holds. Times and tighter bounds are those of `scripts/bench`.
"""

from pathlib import Path

import pytest

from scripts.bench import aged, soak
from tests.chaos.account import Account, all_jobs
from tests.chaos.conftest import Row

FINISHED, QUEUED, ROUNDS = 20_000, 2_000, 8
CPU = 3.0  # times that of an empty store, which has fewer jobs to list than a page holds
WORK = 1.5
JOBS, EVERY, UNSETTLED = 400, 40, 2
RSS = 1.25  # of so few jobs: a leak of 100 KiB a job is more


@pytest.mark.parametrize(("fds", "flat"), [([7] * 6, True), ([7, 7, 8, 7, 99, 7], False)])
def test_a_rise_that_goes_away_before_the_end_is_no_flatness(fds: list[int], flat: bool) -> None:
    samples = [soak.Sample(soak.SETTLED + n, 9, count, 9, 9, 0, 9) for n, count in enumerate(fds)]
    assert soak.judge(samples) is flat


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.rows(44)
async def test_a_large_store_costs_no_more_work_than_an_empty_one(
    tmp_path: Path, image: str, monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    monkeypatch.setattr(aged, "LINES", 50_000)
    sides = await aged.compare(aged.Sizes(FINISHED, QUEUED, ROUNDS), image, tmp_path)

    empty, old = sides["empty"], sides["aged"]
    for name in ("a round, CPU", "list, CPU", "resync, CPU"):
        assert old.median(name) <= CPU * empty.median(name), name
    for what, count in empty.work.items():
        assert 0 < old.work[what] <= WORK * count, what
    left = [name for side in sides.values() for name in await side.worker.containers()]
    jobs = 2 * (ROUNDS + 2)
    row(44, faults=1, jobs=jobs, lines=0, lost=0, repeated=0, stuck=0, orphaned=len(left))


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.rows(45)
async def test_what_a_worker_holds_stays_flat_however_many_jobs_it_ran(
    tmp_path: Path, image: str, row: Row
) -> None:
    account = Account(jobs=JOBS)
    worker = soak.Counted(tmp_path / "worker", soak.settings(image))
    try:
        await worker.start()
        samples = await soak.measure(worker, JOBS, EVERY)
        for name, found in soak.growth(samples[UNSETTLED:]).items():
            allowed = RSS * found.usual if name == "rss" else found.allowed
            assert found.most <= allowed, (name, found)
        account.lines = sum(int(job["log_lines"]) for job in await all_jobs(worker))
        account.lost = JOBS - account.lines
        await account.leftovers(worker)
    finally:
        await worker.destroy()
    row(45, faults=0, **account.counts())
