"""Groups of lines: folded when they passed, open while they run and where the job failed."""

import asyncio
from collections.abc import Sequence

import pytest
from playwright.async_api import Route, expect

from tests.browser.conftest import Visit
from tests.browser.driver import Faults, intercept
from tests.browser.jobpage import JobPage, printed
from tests.browser.loading import Loading
from tests.driver import Worker
from tests.e2e.follower import WAIT, let_go

FIRST = ["before", "::group::First <part>", "in first", "::endgroup::"]
SECOND = ["between", "::group::Second", "in second", "more"]
AFTER = [f"after {n}" for n in range(30)]


def folded(lines: Sequence[str], *hidden: str) -> list[str]:
    return [line for line in lines if line not in hidden]


async def texts(log: JobPage) -> list[str]:
    return [row.text for row in await log.rows()]


async def test_groups_of_a_passed_job_are_folded_and_open_with_a_click(
    visit: Visit, shared: Worker
) -> None:
    lines = [*FIRST, *AFTER]
    page = await visit(shared, f"/jobs/{await printed(shared, lines)}")
    log = JobPage(page)
    head = page.get_by_role("button", name="Group: First <part>")
    await expect(head).to_have_attribute("aria-expanded", "false")
    assert await texts(log) == folded(lines, "in first", "::endgroup::")
    await head.click()
    await expect(head).to_have_attribute("aria-expanded", "true")
    await log.has(len(lines))
    assert await texts(log) == lines
    await log.row(2).locator(".text").click()
    await expect(head).to_have_attribute("aria-expanded", "false")
    await expect(log.row(3)).to_have_count(0)


async def test_the_group_that_a_failed_job_stopped_in_is_open_and_the_others_are_folded(
    visit: Visit, shared: Worker
) -> None:
    page = await visit(shared, f"/jobs/{await printed(shared, [*FIRST, *SECOND], code=1)}")
    log = JobPage(page)
    await log.shows(8)
    assert await texts(log) == folded([*FIRST, *SECOND], "in first", "::endgroup::")


async def test_a_group_that_closed_just_before_a_failure_is_open_and_one_long_before_is_not(
    visit: Visit, shared: Worker
) -> None:
    near = [*FIRST, *AFTER, "::group::Tests", "1 failed", "::endgroup::", "bye"]
    page = await visit(shared, f"/jobs/{await printed(shared, near, code=1)}")
    log = JobPage(page)
    await log.shows(1)
    await expect(page.get_by_role("button", name="Group: Tests")).to_have_attribute(
        "aria-expanded", "true"
    )
    await expect(page.get_by_role("button", name="Group: First")).to_have_attribute(
        "aria-expanded", "false"
    )


async def test_a_group_is_open_while_it_runs_and_folds_when_it_is_over(
    visit: Visit, shared: Worker
) -> None:
    wait = WAIT.replace("/workspace/go", "/workspace/src/go")
    job_id = await shared.submit(
        f"echo ::group::Work; echo inside; {WAIT}; echo ::endgroup::; {wait}"
    )
    page = await visit(shared, f"/jobs/{job_id}")
    log, head = JobPage(page), page.get_by_role("button", name="Group: Work")
    await expect(head).to_have_attribute("aria-expanded", "true")
    await expect(log.row(2)).to_have_text("inside")
    await let_go(shared, job_id)
    await expect(head).to_have_attribute("aria-expanded", "false")
    await expect(log.row(2)).to_have_count(0)
    await shared.call("POST", f"/jobs/{job_id}/cancel")


async def test_a_group_does_not_fold_under_the_eyes_of_who_has_let_go_of_the_end(
    visit: Visit, shared: Worker
) -> None:
    job_id = await shared.submit(
        f"echo ::group::Work; seq 1 200; {WAIT}; echo ::endgroup::; echo x"
    )
    page = await visit(shared, f"/jobs/{job_id}")
    log = JobPage(page)
    await log.has(201)
    await log.wheel(-500)
    await expect(page.get_by_role("checkbox", name="Follow")).not_to_be_checked()
    await let_go(shared, job_id)
    await expect(page.locator("#status")).to_have_text("passed")
    await log.has(203)
    await expect(log.row(100)).to_have_text("99")


async def test_a_group_ends_where_the_next_one_begins(visit: Visit, shared: Worker) -> None:
    lines = ["::group::One", "in one", "::group::Two", "in two", "::endgroup::", *AFTER]
    page = await visit(shared, f"/jobs/{await printed(shared, lines)}")
    log = JobPage(page)
    await log.has(2 + len(AFTER))
    await page.get_by_role("button", name="Group: One").click()
    await log.has(3 + len(AFTER))
    assert await texts(log) == folded(lines, "in two", "::endgroup::")


async def test_a_coloured_command_and_stray_ends_are_taken_for_what_they_are(
    visit: Visit, shared: Worker
) -> None:
    lines = [
        "::endgroup::",
        "\x1b[36m::group::Blue\x1b[0m",
        "x",
        "::endgroup::",
        " ::group::no",
        *AFTER,
    ]
    page = await visit(shared, f"/jobs/{await printed(shared, lines)}")
    log = JobPage(page)
    await log.has(3 + len(AFTER))
    heads = page.locator(".line.group .fold")
    await expect(heads).to_have_count(1)
    await expect(heads).to_have_attribute("aria-label", "Group: Blue")
    assert (await texts(log))[:3] == ["::endgroup::", "::group::Blue", " ::group::no"]


async def test_a_folded_group_of_many_lines_costs_nothing_and_opens_without_a_gap(
    visit: Visit, shared: Worker
) -> None:
    job = await shared.run("echo ::group::Many; seq 2 100000; echo ::endgroup::; seq 100002 100100")
    page = await visit(shared, f"/jobs/{job['id']}")
    log = JobPage(page)
    await log.shows(100050 if await page.evaluate("innerHeight") > 1500 else 100010)
    await log.has(100)
    assert await log.numbers() == [1, *range(100002, 100101)]
    await page.get_by_role("button", name="Group: Many").click()
    await log.shows(10)
    await log.has(100)
    numbers = await log.numbers()
    assert numbers == list(range(1, numbers[-1] + 1))
    assert numbers[-1] <= 50_000
    await page.get_by_role("button", name="Group: Many").click()
    await log.shows(100010)
    await log.has(100)
    assert await log.numbers() == [1, *range(100002, 100101)]


async def test_a_link_into_a_folded_group_opens_it(visit: Visit, shared: Worker) -> None:
    job_id = await printed(shared, [*FIRST, *AFTER])
    page = await visit(shared, f"/jobs/{job_id}#L3")
    log = JobPage(page)
    await log.shows(3)
    await expect(log.row(3)).to_have_class("line marked")
    await expect(page.get_by_role("button", name="Group: First")).to_have_attribute(
        "aria-expanded", "true"
    )


LINES = "**/log?from=*"  # by which a page fetches lines


async def folded_away(worker: Worker, lines: int) -> str:
    """The id of a job of 9,000 lines, with a group of so many behind line 1,001."""
    last = 1001 + lines
    run = f"seq 1000; echo ::group::Long; seq 1002 {last - 1}; echo ::endgroup::"
    return str((await worker.run(f"{run}; seq {last + 1} 9000"))["id"])


@pytest.mark.parametrize("lines", [300, 3000])  # drawn in place, and around the view
async def test_a_group_opened_while_the_worker_is_away_opens_once_it_is_back(
    visit: Visit, shared: Worker, faults: Faults, lines: int
) -> None:
    faults.allow("ERR_FAILED")
    page = await visit(shared, f"/jobs/{await folded_away(shared, lines)}")
    log, head = JobPage(page), page.get_by_role("button", name="Group: Long")
    await log.has(9000 - lines)
    failed = asyncio.Event()

    async def fail(route: Route) -> None:
        await route.abort()
        failed.set()

    await intercept(page, LINES, fail)
    await head.click()
    await failed.wait()
    folded, numbers = [*range(1, 1002), *range(1002 + lines, 9001)], await log.numbers()
    first = folded.index(numbers[0])
    assert numbers == folded[first : first + len(numbers)]
    await page.unroute(LINES)
    await expect(head).to_have_attribute("aria-expanded", "true")
    await log.has(9000)
    assert await log.numbers() == list(range(1, 9001))


@pytest.mark.parametrize("lines", [300, 3000])
async def test_a_group_opened_just_before_a_jump_is_open_after_it(
    visit: Visit, shared: Worker, lines: int
) -> None:
    page = await visit(shared, f"/jobs/{await folded_away(shared, lines)}")
    log, head = JobPage(page), page.get_by_role("button", name="Group: Long")
    await log.has(9000 - lines)
    first, answer = asyncio.Event(), asyncio.Event()

    async def late(route: Route) -> None:
        if not first.is_set():
            first.set()
            await answer.wait()
        await route.continue_()

    await intercept(page, LINES, late)
    await head.click()
    await first.wait()
    await page.keyboard.press("End")
    await log.shows(9000)
    answer.set()
    await log.has(9000)
    assert await log.numbers() == list(range(1, 9001))
    await expect(head).to_have_attribute("aria-expanded", "true")


async def test_groups_past_the_most_are_plain_lines_also_while_the_job_runs(
    visit: Visit, shared: Worker
) -> None:
    program = "for n in range(6000): print(f'::group::{n}', 'x', '::endgroup::', sep='\\n')"
    job_id = await shared.submit(f"{WAIT}; python3 groups.py", {"groups.py": program})
    page = await visit(shared, f"/jobs/{job_id}")
    await shared.wait(job_id, "running")
    await let_go(shared, job_id)
    log = JobPage(page)
    await expect(page.locator("#status")).to_have_text("passed")
    await log.shows(18000)
    await log.has(5000 + 3000)
    rows = await log.rows()
    assert [row.number for row in rows] == [*range(1, 15001, 3), *range(15001, 18001)]
    assert sum("group" in row.classes for row in rows) == 5000


async def test_folded_groups_of_a_long_log_are_not_all_fetched_ahead(
    visit: Visit, shared: Worker
) -> None:
    lines = "print(f'::group::{n}', *['x'] * 98, '::endgroup::', sep='\\n')"
    program = f"for n in range(1200): {lines}"
    job = await shared.run("python3 groups.py", {"groups.py": program})
    assert job["log_lines"] == 120_000
    page = await visit(shared)
    log, loading = JobPage(page), Loading(page)
    await page.goto(f"{shared.url}/jobs/{job['id']}")
    await log.has(40)
    await expect(log.row(2)).to_have_count(0)
    await loading.over()
    assert sum(loading.asked) <= 3000
    await page.keyboard.press("End")
    await log.shows(119_901)
    numbers = await log.numbers()
    assert numbers == list(range(numbers[0], 120_000, 100))
