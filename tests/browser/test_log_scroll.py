"""Moving in the log: following its end, links to lines, and logs that are larger than the page."""

import asyncio
import re

import pytest
from playwright.async_api import Page, Route, expect

from tests.browser.conftest import Visit
from tests.browser.jobpage import JobPage, printed
from tests.driver import Worker, inside
from tests.e2e.follower import WAIT, let_go

MOST_ROWS = 50_000
MOST_PIXELS = 10_000_000
MANY = 120_000


async def step(worker: Worker, job_id: str, count: int) -> None:
    """Have a job that runs ON_DEMAND print so many lines more; 0 ends it."""
    ask = f"until [ -p /workspace/steps ]; do sleep 0.05; done; echo {count} > /workspace/steps"
    await inside(await worker.container(job_id), "sh", "-c", ask)


ON_DEMAND = """\
mkfifo /workspace/steps; n=0
while read -r more; do
  [ "$more" = 0 ] && break
  while [ "$more" -gt 0 ]; do n=$((n + 1)); more=$((more - 1)); echo "line $n"; done
done <> /workspace/steps
"""


async def test_following_lets_go_when_the_reader_scrolls_up_and_takes_hold_at_the_end(
    visit: Visit, shared: Worker
) -> None:
    job_id = await shared.submit("sh on_demand.sh", {"on_demand.sh": ON_DEMAND})
    page = await visit(shared, f"/jobs/{job_id}")
    log, follow = JobPage(page), page.get_by_role("checkbox", name="Follow")
    await shared.wait(job_id, "running")
    await step(shared, job_id, 300)
    await log.has(300)
    await log.at_end()
    await expect(follow).to_be_checked()

    await log.wheel(-400)
    await expect(follow).not_to_be_checked()
    before = await page.locator("#log").evaluate("(log) => log.scrollTop")
    await step(shared, job_id, 200)
    await log.has(500)
    assert await page.locator("#log").evaluate("(log) => log.scrollTop") == before

    await log.wheel(1_000_000)
    await expect(follow).to_be_checked()
    await step(shared, job_id, 200)
    await log.shows(700)

    await follow.press("Space")
    await page.locator("#log").dispatch_event("scroll")  # one of before may come as late
    await step(shared, job_id, 50)
    await log.has(750)
    await expect(follow).not_to_be_checked()
    await follow.press("Space")
    await log.shows(750)
    await step(shared, job_id, 0)
    await expect(follow).to_be_disabled()
    await log.at_end()


@pytest.mark.parametrize("way", ["link", "search"])
async def test_a_line_that_was_asked_for_in_the_last_screen_of_a_running_job_stays_in_view(
    visit: Visit, shared: Worker, way: str
) -> None:
    job_id = await shared.submit("sh on_demand.sh", {"on_demand.sh": ON_DEMAND})
    await shared.wait(job_id, "running")
    await step(shared, job_id, 300)
    await shared.wait_for_text(job_id, b"line 300\n")
    page = await visit(shared, f"/jobs/{job_id}{'#L298' if way == 'link' else ''}")
    log, follow = JobPage(page), page.get_by_role("checkbox", name="Follow")
    await log.has(300)
    if way == "search":
        await log.search("line 298")
        await log.current_is(298)
    await log.at_end()
    await page.evaluate(TWO_FRAMES)  # in which the browser tells that it has scrolled
    await expect(follow).not_to_be_checked()
    await step(shared, job_id, 200)
    await log.has(500)
    await log.shows(298)
    await expect(follow).not_to_be_checked()

    await log.wheel(1_000_000)
    await expect(follow).to_be_checked()
    await step(shared, job_id, 0)


TWO_FRAMES = """() => new Promise((done) =>
    requestAnimationFrame(() => requestAnimationFrame(done))
)"""


async def test_a_flood_is_followed_to_its_last_line(visit: Visit, shared: Worker) -> None:
    job_id = await shared.submit(f"{WAIT}; seq 1 {MANY}")
    page = await visit(shared, f"/jobs/{job_id}")
    await shared.wait(job_id, "running")
    await let_go(shared, job_id)
    log = JobPage(page)
    await expect(page.locator("#status")).to_have_text("passed")
    await log.shows(MANY)
    rows = await log.rows()
    assert [row.text for row in rows] == [str(row.number) for row in rows]
    numbers = [row.number for row in rows]
    assert numbers == list(range(numbers[0], MANY + 1))


async def test_a_click_on_a_number_links_to_the_line_and_shift_click_to_a_range(
    visit: Visit, shared: Worker
) -> None:
    job_id = await printed(shared, [f"line {n}" for n in range(1, 31)])
    page = await visit(shared, f"/jobs/{job_id}")
    log = JobPage(page)
    await log.has(30)
    await log.click_number(12)
    assert page.url.endswith("#L12")
    assert await marked(page) == [12]
    await log.click_number(9, "Shift")
    assert page.url.endswith("#L9-L12")
    assert await marked(page) == [9, 10, 11, 12]
    await log.row(20).locator(".text").click()
    assert page.url.endswith("#L9-L12")  # a click on the text is none on the number


async def test_a_link_to_lines_far_up_in_a_long_log_shows_and_marks_them(
    visit: Visit, shared: Worker
) -> None:
    job_id = await shared.submit(f"seq 1 {MANY}")
    await shared.wait(job_id)
    page = await visit(shared, f"/jobs/{job_id}#L60010-L60012")
    log = JobPage(page)
    await log.shows(60011)
    assert await marked(page) == [60010, 60011, 60012]
    await page.evaluate("() => { location.hash = '#L77'; }")
    await log.shows(77)
    assert await marked(page) == [77]


async def test_a_long_log_is_bounded_in_the_page_and_whole_wherever_one_looks(
    visit: Visit, shared: Worker
) -> None:
    job_id = await shared.submit(f"seq 1 {MANY}")
    await shared.wait(job_id)
    page = await visit(shared, f"/jobs/{job_id}")
    log = JobPage(page)
    await log.shows(1)
    await expect(page.locator("#count")).to_have_text("120,000 lines")
    await log.has(200)
    for part, pattern in ((0.5, r"(59|60)\d{3}"), (1.0, r"120000"), (0.25, r"(29|30)\d{3}")):
        await log.scroll(part)
        await page.wait_for_function(
            """(pattern) => {
                const view = document.getElementById('log').getBoundingClientRect();
                return [...document.querySelectorAll('#blocks .line')].some((row) => {
                    if (!row.checkVisibility({ contentVisibilityAuto: true })) return false;
                    const { top, bottom } = row.getBoundingClientRect();
                    return bottom > view.top && top < view.bottom
                        && new RegExp(`^${pattern}$`).test(row.dataset.n);
                });
            }""",
            arg=pattern,
        )
        await intact(log)
    await page.keyboard.press("g")
    await log.shows(1)


@pytest.mark.chaos
async def test_read_from_top_to_end_a_long_log_has_no_gap_and_drops_what_is_far(
    visit: Visit, shared: Worker
) -> None:
    lines = MOST_ROWS + 10_000
    job_id = await shared.submit(f"seq 1 {lines}")
    await shared.wait(job_id)
    page = await visit(shared, f"/jobs/{job_id}")
    log = JobPage(page)
    await log.shows(1)
    seen = await page.evaluate(READ_DOWN, lines)
    assert seen == list(range(1, lines + 1))
    rows = await intact(log)
    assert rows[0] > 1
    assert rows[-1] == lines
    await page.keyboard.press("g")
    await log.shows(1)
    assert (await intact(log))[0] == 1


# Scrolls by less than a view at a time, once lines fill it, and notes which were in view.
READ_DOWN = """
async (last) => {
    const log = document.getElementById('log');
    const { left, top, bottom } = log.getBoundingClientRect();
    const at = (y) => document.elementFromPoint(left + 200, y);
    const space = (element) => element.matches('.block, #log, #log > :empty');
    const empty = () => space(at(top + 4)) || space(at(bottom - 4));
    const seen = new Set();
    while (!seen.has(last)) {
        while (empty()) await new Promise((resolve) => requestAnimationFrame(resolve));
        let y = top + 2;
        while (y < bottom) {
            const row = at(y)?.closest('#blocks .line');
            if (row) seen.add(Number(row.dataset.n));
            y = row ? row.getBoundingClientRect().bottom + 1 : y + 8;
        }
        log.scrollTop += (bottom - top) * 0.8;
        await new Promise((resolve) => requestAnimationFrame(resolve));
    }
    return [...seen].sort((a, b) => a - b);
}
"""


async def test_where_the_reader_goes_while_the_page_still_opens_is_where_it_stays(
    visit: Visit, shared: Worker
) -> None:
    job_id = await shared.submit(f"seq 1 {MANY}")
    await shared.wait(job_id)
    page = await visit(shared)
    asked, answer = asyncio.Event(), asyncio.Event()

    async def late(route: Route) -> None:
        asked.set()
        await answer.wait()
        await route.continue_()

    await page.route("**/log/search*", late)  # by which the page learns the groups
    await page.goto(f"{shared.url}/jobs/{job_id}")
    log = JobPage(page)
    await log.shows(1)
    await log.scroll(1.0)
    await log.shows(MANY)
    await asked.wait()
    async with page.expect_response("**/log/search*") as answered:
        answer.set()
    await (await answered.value).finished()
    await page.evaluate("() => new Promise((done) => requestAnimationFrame(done))")
    await log.shows(MANY)
    await log.at_end()


async def test_scrolling_up_into_lines_that_are_fetched_then_keeps_what_is_in_view_in_place(
    visit: Visit, shared: Worker
) -> None:
    job_id = await shared.submit(f"seq 1 {MANY}")
    await shared.wait(job_id)
    page = await visit(shared, f"/jobs/{job_id}#L60250")
    log = JobPage(page)
    await log.shows(60250)
    for _ in range(30):
        first = await first_in_view(page)
        await log.wheel(-300)
        await page.wait_for_function(f"() => ({FIRST})() < {first}")
        now = await first_in_view(page)
        assert 5 < first - now < 40, (first, now)  # 300 px are some 17 lines
    await intact(log)


async def test_wrapping_and_times_keep_the_line_at_the_top_where_it_is(
    visit: Visit, shared: Worker
) -> None:
    job_id = await printed(shared, [f"{n} " + "word " * 80 for n in range(1, 2001)])
    page = await visit(shared, f"/jobs/{job_id}")
    log = JobPage(page)
    await log.has(2000)
    await page.keyboard.press("l")
    await page.keyboard.type("1000")
    await page.keyboard.press("Enter")
    await log.shows(1000)
    before = await first_in_view(page)
    for key in ("w", "t", "w"):
        await page.keyboard.press(key)
        assert await first_in_view(page) == before
        await page.evaluate("() => new Promise((done) => requestAnimationFrame(done))")
        assert await first_in_view(page) == before


async def test_every_line_of_a_log_that_is_not_huge_is_there_for_the_browsers_own_search(
    visit: Visit, shared: Worker
) -> None:
    job_id = await shared.submit("seq 1 20000")
    await shared.wait(job_id)
    page = await visit(shared, f"/jobs/{job_id}")
    log = JobPage(page)
    await log.has(20000)
    assert await log.numbers() == list(range(1, 20001))
    assert await page.evaluate("() => window.find('19876')")


FIRST = """() => {
    const top = document.getElementById('log').getBoundingClientRect().top;
    const rows = [...document.querySelectorAll('#blocks .line')];
    const drawn = rows.filter((one) => one.checkVisibility({ contentVisibilityAuto: true }));
    const row = drawn.find((one) => one.getBoundingClientRect().bottom > top + 1);
    return Number(row?.dataset.n);
}"""


async def first_in_view(page: Page) -> int:
    return int(await page.evaluate(FIRST))


async def marked(page: Page) -> list[int]:
    rows = page.locator(".line.marked")
    return [int(str(await row.get_attribute("data-n"))) for row in await rows.all()]


async def intact(log: JobPage) -> list[int]:
    """The numbers of the loaded rows, after checking text, gaps and bounds."""
    rows = await log.rows()
    numbers = [row.number for row in rows]
    assert numbers == list(range(numbers[0], numbers[-1] + 1))
    assert all(re.fullmatch(str(row.number), row.text) for row in rows)
    assert len(rows) <= MOST_ROWS
    assert await log.log.evaluate("(log) => log.scrollHeight") < MOST_PIXELS
    return numbers
