"""The jobs page in a real browser: what it lists, how it stays true, what a person can do there."""

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import pytest
from playwright.async_api import Locator, Page, Route, expect
from playwright.async_api import TimeoutError as NotInTime

from tests.browser.conftest import Visit
from tests.browser.driver import Faults, intercept
from tests.driver import Worker

FOREVER = "sleep 600"
VCS = {"branch": "fix/kettle", "commit": "8c1f2e97a6b54c3d2e1f0a9b8c7d6e5f4a3b2c1d", "dirty": True}


def row(page: Page, job_id: str) -> Locator:
    return page.locator(f'.job[data-id="{job_id}"]')


async def ids(page: Page) -> list[str]:
    """The jobs that are listed, from top to bottom."""
    found: list[str] = await page.locator(".job").evaluate_all("all => all.map(e => e.dataset.id)")
    return found


async def lists(page: Page, *wanted: str) -> None:
    """Wait until these jobs are listed in this order, and no others."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(15):
            while await ids(page) != list(wanted):
                await asyncio.sleep(0.05)
    assert await ids(page) == list(wanted)


async def settled(page: Page) -> None:
    """Wait until the list has been loaded and its connection is up."""
    await expect(page.locator("#jobs")).to_have_attribute("aria-busy", "false")


# what is listed


async def test_jobs_stand_newest_first_and_tell_their_source(page: Page, shared: Worker) -> None:
    first = await shared.run("true", project="kitchen", vcs=VCS)
    second = await shared.run("true", project="garden")
    await expect(page.locator(".job").nth(1)).to_have_attribute("data-id", first["id"])
    await expect(page.locator(".job").nth(0)).to_have_attribute("data-id", second["id"])
    found = row(page, first["id"])
    await expect(found.locator(".project")).to_have_text("kitchen")
    await expect(found.locator(".source")).to_have_text("fix/kettle8c1f2e97dirty")
    await expect(found.locator(".what")).to_have_text("true")


@pytest.mark.parametrize(
    ("run", "kind", "word"),
    [("true", "passed", "passed"), ("false", "failed", "tests failed"),
     ("exit 5", "failed", "no tests")],
)  # fmt: skip
async def test_an_end_has_a_shape_a_colour_and_a_word(
    page: Page, shared: Worker, run: str, kind: str, word: str
) -> None:
    job = await shared.run(run)
    status = row(page, job["id"]).locator(".status")
    await expect(status).to_have_text(word)
    await expect(status).to_have_class(f"status {kind}")
    await expect(status.locator("use")).to_have_attribute("href", f"/static/icons.svg#{kind}")
    box = await status.locator(".icon").bounding_box()
    assert box is not None
    assert box["width"] > 10


async def test_kinds_differ_in_colour_and_in_shape(page: Page, shared: Worker) -> None:
    jobs = [await shared.run(run) for run in ("true", "false")]
    jobs.append(await shared.wait(await cancelled(shared)))
    looks = set()
    for job in jobs:
        status = row(page, job["id"]).locator(".status")
        await expect(status).to_have_text(job["reason"].replace("_", " "))
        colour = await status.evaluate("e => getComputedStyle(e).color")
        looks.add((colour, await status.locator("use").get_attribute("href")))
    assert len({colour for colour, _ in looks}) == len({shape for _, shape in looks}) == 3


async def cancelled(worker: Worker) -> str:
    job_id = await worker.submit(FOREVER)
    await worker.call("POST", f"/jobs/{job_id}/cancel")
    return job_id


async def test_why_a_job_did_not_pass_stands_in_its_row(page: Page, shared: Worker) -> None:
    job = await shared.run(FOREVER, timeout=1)
    await expect(row(page, job["id"]).locator(".what")).to_have_text(job["message"])


async def test_a_row_leads_to_its_job(page: Page, shared: Worker) -> None:
    job = await shared.run("true")
    await row(page, job["id"]).click(position={"x": 20, "y": 20})
    await page.wait_for_url(f"{shared.url}/jobs/{job['id']}")


async def test_an_empty_list_says_how_to_submit(worker: Worker, visit: Visit) -> None:
    page = await visit(worker)
    await expect(page.locator("#none")).to_be_visible()
    await expect(page.locator("#none")).to_contain_text("ciclient submit")
    await expect(page.locator("#none")).to_contain_text(f"ciclient login {worker.url}")
    await worker.submit("true")
    await expect(page.locator(".job")).to_have_count(1)
    await expect(page.locator("#none")).to_be_hidden()


async def test_older_jobs_come_on_demand(new_worker: Callable[..., Worker], visit: Visit) -> None:
    worker = new_worker(max_jobs="1")
    await worker.start()
    made = [await worker.submit(FOREVER) for _ in range(60)]
    page = await visit(worker)
    await lists(page, *made[:9:-1])
    await page.get_by_role("button", name="Show older jobs").click()
    await lists(page, *made[::-1])
    await expect(page.locator("#older")).to_be_hidden()


# how it stays true


async def test_a_new_job_appears_within_a_second_without_a_reload(
    page: Page, shared: Worker
) -> None:
    await settled(page)
    await page.evaluate("""() => {
        window.arrivals = {};
        new MutationObserver((changes) => {
            for (const { addedNodes } of changes)
                for (const { dataset } of addedNodes) window.arrivals[dataset.id] ??= Date.now();
        }).observe(document.getElementById("jobs"), { childList: true });
    }""")
    job_id = await shared.submit("true")
    acknowledged = time.time()
    await expect(row(page, job_id)).to_be_visible()
    assert await page.evaluate("id => window.arrivals[id]", job_id) / 1000 < acknowledged + 1


async def test_a_row_follows_its_job_to_the_end(page: Page, shared: Worker) -> None:
    job_id = await shared.submit("until [ -f stop ]; do sleep 0.05; done")
    found = row(page, job_id)
    await expect(found.locator(".status")).to_have_text("running")
    await expect(found.locator(".took")).to_have_text("2 s")
    await expect(found.get_by_role("button")).to_have_text(re.compile("^Cancel"))
    await shared.call("POST", f"/jobs/{job_id}/cancel")
    await expect(found.locator(".status")).to_have_text("cancelled")
    await expect(found.get_by_role("button")).to_have_text(re.compile("^Retry"))
    await expect(page.locator(f'.job[data-id="{job_id}"]')).to_have_count(1)


async def test_relative_times_stay_true(page: Page, shared: Worker) -> None:
    job = await shared.run("true")
    await page.clock.install()
    await page.goto(shared.url)
    when = row(page, job["id"]).locator(".when time")
    await expect(when).to_have_text(re.compile(r"^(just now|\d+ s ago)$"))
    await page.clock.fast_forward("05:00")
    await expect(when).to_have_text("5 min ago")
    await page.clock.fast_forward("49:00:00")
    await expect(when).to_have_text("2 d ago")
    await expect(when).to_have_attribute("datetime", job["created_at"])
    title = await when.get_attribute("title")
    assert title is not None
    assert re.search(r"\d\d:\d\d:\d\d", title)


async def test_relative_times_are_the_workers_though_this_clock_is_wrong(
    page: Page, shared: Worker
) -> None:
    job = await shared.run("true")
    await page.clock.install(time=time.time() - 3600)
    await page.goto(shared.url)
    when = row(page, job["id"]).locator(".when time")
    await expect(when).to_have_text(re.compile(r"^(just now|\d+ s ago)$"))
    await page.clock.fast_forward("05:00")
    await expect(when).to_have_text("5 min ago")


async def test_a_lost_connection_is_seen_and_nothing_is_missed(
    worker: Worker, visit: Visit, faults: Faults
) -> None:
    faults.allow("ERR_")
    page = await visit(worker)
    await settled(page)
    await expect(page.locator("#connection")).to_be_empty()
    await worker.kill()
    await expect(page.locator("#connection")).to_have_text("Reconnecting …")
    await expect(page.locator("#connection")).to_be_visible()
    await worker.start()
    made = [await worker.submit("true") for _ in range(3)]
    await expect(page.locator("#connection")).to_be_empty()
    await lists(page, *made[::-1])
    await expect(page.locator(".status.passed")).to_have_count(3)


async def test_a_connection_made_anew_or_resumed_loads_no_list_again(
    new_worker: Callable[..., Worker], visit: Visit, faults: Faults
) -> None:
    faults.allow("ERR_")
    worker = new_worker()
    await worker.start()
    page = await visit(worker)
    first = await worker.run("true")
    await expect(row(page, first["id"]).locator(".status")).to_have_text("passed")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    other = await page.context.new_page()
    await other.goto(f"{worker.url}/jobs/{first['id']}")  # one connection for both, made anew
    await expect(other.locator("#status")).to_have_text("passed")
    second = await worker.run("true")
    await expect(row(page, second["id"]).locator(".status")).to_have_text("passed")
    await worker.stop()
    await expect(page.locator("#connection")).to_have_text("Reconnecting …")
    await worker.start()
    third = await worker.run("true")
    await expect(page.locator("#connection")).to_be_empty()
    await expect(row(page, third["id"]).locator(".status")).to_have_text("passed")
    await lists(page, third["id"], second["id"], first["id"])
    assert [url for url in asked if "/api/v1/jobs?" in url] == []


async def test_older_jobs_that_were_asked_for_come_though_the_list_is_loaded_anew(
    new_worker: Callable[..., Worker], visit: Visit, faults: Faults
) -> None:
    faults.allow("ERR_")
    worker = new_worker(max_jobs="1")
    await worker.start()
    made = [await worker.submit(FOREVER) for _ in range(60)]
    await worker.wait(made[0], "running")
    page = await visit(worker)
    await lists(page, *made[:9:-1])
    await settled(page)
    await intercept(page, "**/api/v1/jobs?*cursor=*", lambda _: None)  # is never answered
    await page.get_by_role("button", name="Show older jobs").click()
    await worker.stop()
    await worker.start()
    await lists(page, *made[::-1])
    await page.unroute_all()


async def test_a_page_without_a_match_says_among_how_many_there_was_none(
    page: Page, shared: Worker
) -> None:
    job = await shared.run("true", project="needle")
    empty = {"items": [{**job, "success": True}] * 50, "next": job["id"]}

    async def first_pages(route: Route) -> None:
        await route.fulfill(json=empty)

    await page.route("**/api/v1/jobs?status=completed*", first_pages)
    await page.goto(f"{shared.url}/?status=failed")
    told = page.get_by_text("None of the newest 500 jobs that were looked at matches.")
    await expect(told).to_be_visible()
    older = page.get_by_role("button", name="Show older jobs")
    await older.click()
    await expect(page.get_by_text("None of the newest 1,000 jobs")).to_be_visible()
    await page.unroute_all()
    bad = await shared.run("false", project="needle")
    await expect(row(page, bad["id"])).to_be_visible()
    await expect(page.get_by_text("None of the newest")).to_be_hidden()


async def test_a_list_that_could_not_be_loaded_is_not_called_empty(
    worker: Worker, visit: Visit, faults: Faults
) -> None:
    faults.allow("ERR_FAILED")
    job_id = await worker.submit("true")
    page = await visit(worker)
    # With a hub of its own the page's whole traffic can be held up.
    await page.add_init_script("delete window.SharedWorker")
    for path in ("jobs?*", "events*"):
        await page.route(f"**/api/v1/{path}", lambda route: route.abort())
    await page.reload()
    notice = page.get_by_role("alert")
    await expect(notice).to_contain_text("The jobs could not be loaded")
    await expect(page.locator("#none")).to_be_hidden()
    await page.unroute("**/api/v1/jobs?*")
    await notice.get_by_role("button", name="Try again").click()
    await lists(page, job_id)
    await expect(notice).to_be_empty()


async def test_ends_alone_are_announced_and_what_ends_together_in_one_sentence(
    page: Page, shared: Worker
) -> None:
    await settled(page)
    region = page.locator("#announcer")
    await expect(region).to_have_attribute("role", "status")
    await listen(page)
    await asyncio.gather(*(shared.run("true", project="quiet") for _ in range(4)))
    async with asyncio.timeout(15):
        while sum(map(ends_in, texts := [text for _, text in await said(page)])) < 4:
            await asyncio.sleep(0.05)
    assert sum(map(ends_in, texts)) == 4
    times = [at for at, _ in await said(page)]
    assert all(after - before > 1000 for before, after in pairwise(times))


async def listen(page: Page) -> None:
    """From now on what is announced is kept; `said` tells it."""
    await page.evaluate("""() => {
        const region = document.getElementById("announcer");
        window.said = [];
        new MutationObserver(() => window.said.push([Date.now(), region.textContent]))
            .observe(region, { childList: true, characterData: true, subtree: true });
    }""")


async def said(page: Page) -> list[tuple[int, str]]:
    """What was announced, and when."""
    found: list[tuple[int, str]] = await page.evaluate("window.said")
    return found


def ends_in(sentence: str) -> int:
    """Of how many jobs it says that they have ended; it may say nothing else."""
    if sentence == "quiet: passed":
        return 1
    several = re.fullmatch(r"(\d) jobs have ended, \1 of them passed", sentence)
    assert several is not None, sentence
    return int(several[1])


# what a person can do there


async def test_filters_narrow_the_list_and_are_kept_in_the_address(
    page: Page, shared: Worker
) -> None:
    good, bad = [await shared.run(run, project="sieve") for run in ("true", "false")]
    await shared.run("true", project="colander")
    await page.get_by_role("combobox", name="Project").fill("sieve")
    await page.keyboard.press("Enter")
    await lists(page, bad["id"], good["id"])
    await page.get_by_role("radio", name="Not passed", exact=True).check()
    await lists(page, bad["id"])
    assert page.url == f"{shared.url}/?status=failed&project=sieve"

    await page.reload()
    await lists(page, bad["id"])
    await expect(page.get_by_role("radio", name="Not passed")).to_be_checked()
    await page.go_back()
    await lists(page, bad["id"], good["id"])


@pytest.mark.parametrize(
    ("choice", "run"),
    [("Passed", "true"), ("Not passed", "false"), ("Running", FOREVER), ("Cancelled", None)],
)
async def test_each_status_can_be_chosen(
    page: Page, shared: Worker, choice: str, run: str | None
) -> None:
    job_id = await (shared.submit(run) if run else cancelled(shared))
    await page.get_by_role("radio", name=choice, exact=True).check()
    await expect(row(page, job_id)).to_be_visible()
    words = await page.locator(".job .status").all_text_contents()
    kinds = {"Not passed": {"tests failed", "no tests", "timed out"}}
    assert set(words) <= kinds.get(choice, {choice.lower()})
    await shared.call("POST", f"/jobs/{job_id}/cancel")


async def test_jobs_come_and_go_as_the_filter_says(page: Page, shared: Worker) -> None:
    await page.get_by_role("radio", name="Running", exact=True).check()
    await settled(page)
    job_id = await shared.submit(FOREVER)
    await expect(row(page, job_id)).to_be_visible()
    await shared.call("POST", f"/jobs/{job_id}/cancel")
    await expect(row(page, job_id)).to_have_count(0)


async def test_a_new_job_of_another_project_stays_out_of_the_list(
    page: Page, shared: Worker
) -> None:
    await page.goto(f"{shared.url}/?project=wanted")
    await settled(page)
    await shared.run("true", project="unwanted")
    wanted = await shared.run("true", project="wanted")
    await lists(page, wanted["id"])


async def test_a_filter_that_nothing_matches_says_so(page: Page, shared: Worker) -> None:
    await shared.run("true")
    await page.goto(f"{shared.url}/?project=no-such-project")
    await expect(page.locator("#no-match")).to_be_visible()
    await page.get_by_role("button", name="Show all jobs").click()
    await expect(page.locator(".job").first).to_be_visible()
    assert page.url == f"{shared.url}/"


async def test_cancel_stops_a_job(page: Page, shared: Worker) -> None:
    job_id = await shared.submit(FOREVER, project="kettle")
    await row(page, job_id).get_by_role("button", name="Cancel kettle").click()
    job = await shared.wait(job_id)
    assert job["status"] == "cancelled"
    await expect(row(page, job_id).locator(".status")).to_have_text("cancelled")


async def test_retry_submits_the_same_again(page: Page, shared: Worker) -> None:
    job = await shared.run("true", project="pan")
    await row(page, job["id"]).get_by_role("button", name="Retry pan").click()
    await expect(page.locator(".job").first).not_to_have_attribute("data-id", job["id"])
    again = await shared.wait((await ids(page))[0])
    assert again["retry_of"] == job["id"]
    await expect(row(page, again["id"]).locator(".status")).to_have_text("passed")


async def test_an_answer_to_a_retry_changes_nothing_of_what_was_told_later(
    page: Page, shared: Worker
) -> None:
    job = await shared.run("true", project="pan")
    go_on = asyncio.Event()

    async def late(route: Route) -> None:
        answer = await route.fetch()
        await go_on.wait()
        await route.fulfill(response=answer)

    await intercept(page, "**/retry", late)
    await listen(page)
    await row(page, job["id"]).get_by_role("button", name="Retry pan").click()
    await expect(page.locator(".job").first).not_to_have_attribute("data-id", job["id"])
    status = row(page, (await ids(page))[0]).locator(".status")
    await expect(status).to_have_text("passed")
    go_on.set()
    async with asyncio.timeout(15):
        while "pan: submitted again" not in [text for _, text in await said(page)]:
            await asyncio.sleep(0.05)
    assert await status.inner_text() == "passed"


async def test_what_was_said_stays_while_ends_wait_to_be_told(page: Page, shared: Worker) -> None:
    job = await shared.run("true", project="pan")
    await settled(page)
    await listen(page)
    await row(page, job["id"]).get_by_role("button", name="Retry pan").click()
    async with asyncio.timeout(15):
        while len(texts := await said(page)) < 2:
            await asyncio.sleep(0.05)
    (began, first), (then, second) = texts
    assert first == "pan: submitted again"
    assert second.endswith("passed")
    assert then - began > 1000


async def test_a_refusal_is_told(visit: Visit, shared: Worker, faults: Faults) -> None:
    faults.allow("403")
    _, reader = await shared.call("POST", "/tokens", json={"name": "reader", "role": "read"})
    job = await shared.run("true")
    page = await visit(shared, token=reader["token"])
    await row(page, job["id"]).get_by_role("button").click()
    notice = page.get_by_role("alert")
    await expect(notice).to_contain_text("role submit")
    await notice.get_by_role("button", name="Dismiss").click()
    await expect(notice).to_be_empty()


async def test_a_worker_that_cannot_be_reached_is_told(
    worker: Worker, visit: Visit, faults: Faults
) -> None:
    faults.allow("ERR_CONNECTION")
    job = await worker.run("true", project="pot")
    page = await visit(worker)
    await expect(row(page, job["id"])).to_be_visible()
    await worker.kill()
    await row(page, job["id"]).get_by_role("button", name="Retry pot").click()
    await expect(page.get_by_role("alert")).to_contain_text("pot: the worker cannot be reached")


async def test_a_session_that_is_over_leads_to_the_login(
    visit: Visit, shared: Worker, faults: Faults
) -> None:
    faults.allow("401")
    _, visitor = await shared.call("POST", "/tokens", json={"name": "visitor", "role": "submit"})
    job = await shared.run("true")
    page = await visit(shared, token=visitor["token"])
    await expect(row(page, job["id"])).to_be_visible()
    # One that comes by the stream is shown after all that the page asks for when it is connected.
    later = await shared.run("true")
    await expect(row(page, later["id"])).to_be_visible()
    await expect(page.locator("#jobs")).to_have_attribute("aria-busy", "false")
    await shared.call("DELETE", f"/tokens/{visitor['id']}")
    await row(page, job["id"]).get_by_role("button").click()
    await page.wait_for_url(f"{shared.url}/login?next=%2F")


async def test_everything_can_be_done_by_the_keyboard(page: Page, shared: Worker) -> None:
    older, newer = [await shared.run("true", project=name) for name in ("older", "newer")]
    await expect(row(page, newer["id"]).locator(".status")).to_have_text("passed")

    async def has_focus(job: dict[str, Any]) -> None:
        await expect(row(page, job["id"]).locator(".project")).to_be_focused()

    await page.keyboard.press("j")
    await has_focus(newer)
    await page.keyboard.press("j")
    await has_focus(older)
    await page.keyboard.press("k")
    await has_focus(newer)
    await page.keyboard.press("Tab")
    await expect(row(page, newer["id"]).get_by_role("button", name="Retry newer")).to_be_focused()

    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog", name="Keyboard")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    await page.keyboard.press("/")
    await expect(page.get_by_role("combobox", name="Project")).to_be_focused()
    await page.keyboard.type("jk")
    await expect(page.get_by_role("combobox", name="Project")).to_have_value("jk")

    await page.goto(shared.url)
    await settled(page)
    await page.keyboard.press("j")
    await page.keyboard.press("Enter")
    await page.wait_for_url(f"{shared.url}/jobs/{newer['id']}")


async def test_the_focus_stays_where_it_is_while_rows_change(page: Page, shared: Worker) -> None:
    job_id = await shared.submit(FOREVER)
    await expect(row(page, job_id).locator(".status")).to_have_text("running")
    await row(page, job_id).locator(".project").focus()
    await shared.call("POST", f"/jobs/{job_id}/cancel")
    await expect(row(page, job_id).locator(".status")).to_have_text("cancelled")
    await expect(row(page, job_id).locator(".project")).to_be_focused()


# how it looks


async def test_the_theme_is_the_systems_until_the_switch_is_used(
    visit: Visit, shared: Worker
) -> None:
    page = await visit(shared, color_scheme="dark")

    async def is_dark() -> bool:
        colour = await page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        red = int(re.findall(r"\d+", colour)[0])
        return red < 100

    assert await is_dark()
    switch = page.get_by_role("button", name="Dark theme")
    await expect(switch).to_have_attribute("aria-pressed", "true")
    await switch.click()
    assert not await is_dark()
    await page.reload()
    assert not await is_dark()
    await expect(switch).to_have_attribute("aria-pressed", "false")
    await switch.click()
    assert await is_dark()
    await page.emulate_media(color_scheme="light")
    assert not await is_dark()


async def test_nothing_is_cut_off_on_a_small_screen(visit: Visit, shared: Worker) -> None:
    long = "x" * 60
    job = await shared.run("false", project=long, vcs={**VCS, "branch": long})
    page = await visit(shared, viewport={"width": 360, "height": 740})
    found = row(page, job["id"])
    await expect(found).to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth") == 360
    for part in (found.locator(".status"), found.locator(".when"), found.get_by_role("button")):
        box = await part.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 360


HOSTILE: Mapping[str, str] = {
    "<img src=x onerror=alert(1)>": "<img src=x onerror=alert(1)>",
    "</a><script>alert(1)</script>": "</a><script>alert(1)</script>",
    "[/tmp": "[/tmp",
    "test[a-b]": "test[a-b]",
    "\u202egnp.exe": "<U+202E>gnp.exe",
    "\x1b[31mred\x1b[0m\x1b[2J": "red^[[2J",
}


@pytest.mark.attacks(39)
@pytest.mark.parametrize("text", HOSTILE)
async def test_what_jobs_say_is_only_text(page: Page, shared: Worker, text: str) -> None:
    job = await shared.run("exit 1 # " + text, vcs={"branch": text, "commit": text})
    assert job["source"]["vcs"]["branch"] == text
    found = row(page, job["id"])
    await expect(found.locator(".source bdi").first).to_have_text(HOSTILE[text])
    assert await page.locator("main img, main script").count() == 0
    await page.goto(f"{shared.url}/jobs/{job['id']}")
    await expect(page.locator(".fact.branch")).to_have_text(HOSTILE[text])
    await expect(page.locator(".fact.command")).to_have_text("exit 1 # " + HOSTILE[text])
    assert await page.locator("main img, main script").count() == 0


async def test_who_logs_out_is_taken_where_the_log_out_leads(
    visit: Visit, shared: Worker, faults: Faults
) -> None:
    """Also when the page hears first that its session has ended."""
    faults.allow("401")
    page = await visit(shared)

    async def slowly(route: Route) -> None:
        answer = await route.fetch(max_redirects=0)
        with pytest.raises(NotInTime):
            await page.wait_for_url("**/login?*", timeout=1000)
        await route.fulfill(response=answer)

    await page.route("**/logout", slowly)
    await page.get_by_role("button", name="Log out").click()
    await page.wait_for_url(f"{shared.url}/login")
