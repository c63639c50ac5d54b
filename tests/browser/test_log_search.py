"""Search over the whole log, loaded or not, folded or not."""

import asyncio

from playwright.async_api import Page, Route, expect

from tests.browser.conftest import Visit
from tests.browser.driver import Faults, intercept
from tests.browser.jobpage import JobPage, printed
from tests.driver import Worker

LINES = [
    *[f"line {n}" for n in range(1, 41)],
    "a Needle in the hay",
    "::group::Stack",
    "another \x1b[31mneed\x1b[0mle",
    "::endgroup::",
    *[f"rest {n}" for n in range(60)],
    "last needle",
]


async def test_hits_are_counted_and_gone_through_in_both_directions_and_around(
    visit: Visit, shared: Worker
) -> None:
    page = await visit(shared, f"/jobs/{await printed(shared, LINES)}")
    log = JobPage(page)
    await log.shows(1)
    await log.search("needle")
    await log.found_is("1 of 3")
    await log.current_is(41)
    await page.keyboard.press("Enter")
    await log.found_is("2 of 3")
    await log.current_is(43)  # of a folded group, which opens
    await page.get_by_role("button", name="Next hit").click()
    await log.current_is(105)
    await page.get_by_role("button", name="Next hit").click()
    await log.found_is("1 of 3")
    await log.current_is(41)
    await page.get_by_role("button", name="Previous hit").click()
    await log.found_is("3 of 3")
    await log.current_is(105)
    await log.query.press("Shift+Enter")
    await log.current_is(43)


async def test_a_search_begins_at_what_is_in_view(visit: Visit, shared: Worker) -> None:
    page = await visit(shared, f"/jobs/{await printed(shared, LINES)}#L70")
    log = JobPage(page)
    await log.shows(70)
    await log.search("needle")
    await log.found_is("3 of 3")
    await log.current_is(105)


async def test_hits_far_beyond_what_is_loaded_are_found_and_shown(
    visit: Visit, shared: Worker
) -> None:
    job = await shared.run("seq 1 90000; echo the needle; seq 90002 120000")
    page = await visit(shared, f"/jobs/{job['id']}")
    log = JobPage(page)
    await log.shows(1)
    await log.search("needle")
    await log.found_is("1 of 1")
    await log.current_is(90001)
    rows = await log.rows()
    assert [row.text for row in rows if row.number != 90001] == [
        str(row.number) for row in rows if row.number != 90001
    ]


async def test_more_hits_than_are_asked_for_at_once_are_all_reached(
    visit: Visit, shared: Worker
) -> None:
    job = await shared.run("seq 1 2500")
    page = await visit(shared, f"/jobs/{job['id']}")
    log = JobPage(page)
    await log.has(2500)
    await log.search("1")
    total = sum("1" in str(n) for n in range(1, 2501))
    await expect(log.found).to_have_text(f"1 of {total:,}")
    await page.keyboard.press("Shift+Enter")
    await expect(log.found).to_have_text(f"{min(total, 1000):,} of {total:,}")
    await page.keyboard.press("Enter")
    await expect(log.found).to_have_text(f"1,001 of {total:,}")


async def test_a_regular_expression_is_one_only_when_asked_for(
    visit: Visit, shared: Worker
) -> None:
    page = await visit(shared, f"/jobs/{await printed(shared, [*LINES, 'test[a-b]'])}")
    log = JobPage(page)
    await log.shows(1)
    await log.search("test[a-b]")
    await log.found_is("1 of 1")
    await log.search("^rest [0-9]$")
    await log.found_is("no hit")
    await page.get_by_role("checkbox", name="Regular expression").press("Space")
    await log.found_is("1 of 10")
    await log.current_is(45)


async def test_a_bad_expression_is_refused_in_words(
    visit: Visit, shared: Worker, faults: Faults
) -> None:
    faults.allow("422")
    page = await visit(shared, f"/jobs/{await printed(shared, LINES)}")
    log = JobPage(page)
    await log.shows(1)
    await page.get_by_role("checkbox", name="Regular expression").press("Space")
    await log.search("need(le")
    await expect(log.found).to_contain_text("missing )")
    await log.search("need(l)e")
    await log.found_is("1 of 3")


async def test_escape_leaves_the_search_and_the_keys_work_again(
    visit: Visit, shared: Worker
) -> None:
    page = await visit(shared, f"/jobs/{await printed(shared, LINES)}")
    log = JobPage(page)
    await log.shows(1)
    await page.keyboard.press("/")
    await page.keyboard.type("needle")
    await log.found_is("1 of 3")
    await page.keyboard.press("Escape")
    await log.found_is("")
    await expect(page.locator(".line.current, .line.hit")).to_have_count(0)
    await expect(log.query).to_have_value("")
    await page.keyboard.press("G")
    await log.shows(len(LINES))


async def at_the_last_loaded_hit(page: Page, log: JobPage) -> str:
    """Search for what is in each of 1,500 lines: how many hits are loaded is what `found` says."""
    await log.has(1500)
    await log.search("line")
    await log.found_is("1 of 1,500")
    await page.keyboard.press("Shift+Enter")
    await log.found_is("1,000 of 1,500")
    await log.log.focus()
    return "1,000 of 1,500"


async def test_a_key_that_is_held_at_the_last_loaded_hit_asks_for_more_once(
    visit: Visit, shared: Worker
) -> None:
    page = await visit(shared, f"/jobs/{await printed(shared, ['line'] * 1500)}")
    log = JobPage(page)
    await at_the_last_loaded_hit(page, log)
    asked, go_on = [], asyncio.Event()

    async def hold(route: Route) -> None:
        asked.append(route.request.url)
        await go_on.wait()
        await route.continue_()

    await intercept(page, "**/log/search?*", hold)
    await page.evaluate("""() => {
        window.pressed = 0;
        document.addEventListener("keydown", () => { window.pressed += 1; });
    }""")
    for _ in range(5):
        await page.keyboard.press("n")
    await page.wait_for_function("window.pressed === 5")
    go_on.set()
    await log.found_is("1,001 of 1,500")
    await page.keyboard.press("n")
    await log.found_is("1,002 of 1,500")
    assert len(asked) == 1


async def test_when_more_hits_cannot_be_had_that_is_said_and_it_stays_where_it_is(
    visit: Visit, shared: Worker, faults: Faults
) -> None:
    faults.allow("503")
    page = await visit(shared, f"/jobs/{await printed(shared, ['line'] * 1500)}")
    log = JobPage(page)
    place = await at_the_last_loaded_hit(page, log)
    refusal = {"type": "about:blank", "title": "No", "status": 503, "detail": "the disk is full"}
    await intercept(page, "**/log/search?*", lambda route: route.fulfill(status=503, json=refusal))
    await page.keyboard.press("n")
    await log.found_is("the disk is full")
    await log.current_is(1000)
    await page.unroute_all()
    await page.keyboard.press("N")
    await log.found_is("999 of 1,500")
    await page.keyboard.press("n")
    await log.found_is(place)
    await page.keyboard.press("n")
    await log.found_is("1,001 of 1,500")
