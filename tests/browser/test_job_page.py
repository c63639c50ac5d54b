"""The job page around its log: what it says of the job, its buttons, switches and keys."""

import asyncio
import json
import re
from collections.abc import Callable
from datetime import datetime

import pytest
from playwright.async_api import Route, expect

from tests.browser.conftest import PATIENCE, Visit
from tests.browser.driver import Faults, intercept
from tests.browser.jobpage import JobPage, printed
from tests.driver import Worker, touch
from tests.e2e.follower import WAIT, let_go
from tests.gitjobs import post

NEVER_ENDS = "echo begun; sleep 600"


async def test_the_header_tells_status_project_image_source_and_how_long_it_took(
    visit: Visit, shared: Worker
) -> None:
    vcs = {"branch": "topic/tea", "commit": "0123456789abcdef", "dirty": True}
    job = await shared.run("echo done", project="kettle", vcs=vcs)
    page = await visit(shared, f"/jobs/{job['id']}")
    await expect(page.locator("#status")).to_have_text("passed")
    await expect(page.get_by_role("heading", level=1)).to_have_text("kettle")
    await expect(page.locator("#elapsed")).to_have_text(re.compile(r"^\d+(\.\d)? s$"))
    facts = page.locator("#facts")
    for text in (job["image"], "topic/tea", "01234567", "uncommitted changes", "echo done"):
        await expect(facts).to_contain_text(text)
    await expect(page).to_have_title("kettle: passed · ciworker")


async def test_a_job_from_a_repository_names_it_and_why_it_could_not_be_fetched(
    visit: Visit, shared: Worker
) -> None:
    url = "file:///srv/tea.git"  # below none of the operator's folders
    _, job = await post(shared, {"git": {"url": url}})
    page = await visit(shared, f"/jobs/{job['id']}")
    await expect(page.locator(".fact.repository")).to_have_text(url)
    await expect(page.locator("#cause-end")).to_contain_text("git_folders")


async def test_the_cause_of_the_end_stands_above_and_below_the_log(
    visit: Visit, shared: Worker
) -> None:
    job = await shared.run("echo; exit 3")
    page = await visit(shared, f"/jobs/{job['id']}")
    for panel in ("#cause-top", "#cause-end"):
        await expect(page.locator(panel)).to_contain_text("tests failed")
        await expect(page.locator(panel)).to_contain_text(job["message"])
    top, line, end = [
        await page.evaluate("(name) => document.querySelector(name).offsetTop", name)
        for name in ("#cause-top", "#blocks", "#cause-end")
    ]
    assert top < line < end


async def test_a_failure_is_told_with_its_exit_in_words_its_history_and_its_container(
    visit: Visit, shared: Worker
) -> None:
    job = await shared.run("trap 'exit 143' TERM; sleep 60 & wait", timeout="1s")
    page = await visit(shared, f"/jobs/{job['id']}")
    words = "(exit code 143: killed by signal 15 (SIGTERM))"
    await expect(page.locator("#cause-top")).to_contain_text(words)
    await page.get_by_text("History").click()
    steps = page.locator("#steps li")
    await expect(steps).to_have_count(len(job["history"]))
    await expect(steps.nth(1)).to_contain_text("queued → starting")
    await expect(steps.last).to_contain_text(f"timed out: {job['message']}")
    told = f"Container {job['container']['name']}: exited, started"
    await expect(page.locator("#container")).to_contain_text(told)


async def test_phases_add_up_to_the_time_from_submit_to_end(visit: Visit, shared: Worker) -> None:
    job = await shared.run("sleep 1.2")
    page = await visit(shared, f"/jobs/{job['id']}")
    phases = page.locator(".phase")
    await expect(phases).to_have_text([re.compile(name) for name in ("queued", "setup", "run")])
    spent = [
        float(re.sub(r"^\w+ ([\d.]+) s$", r"\1", text)) for text in await phases.all_inner_texts()
    ]
    created, finished = [datetime.fromisoformat(job[key]) for key in ("created_at", "finished_at")]
    assert sum(spent) == pytest.approx((finished - created).total_seconds(), abs=0.16)  # rounded


async def test_a_job_whose_environment_is_set_up_says_so_until_it_runs(
    new_worker: Callable[..., Worker], visit: Visit
) -> None:
    worker = new_worker()
    await worker.start()
    setup = "echo first; until [ -e /workspace/go ]; do echo tick; sleep 0.2; done"
    job_id = await worker.submit(f"echo tested; {WAIT}", project="kettle", setup=[setup])
    await worker.wait_for_text(job_id, b"first")
    page = await visit(worker, f"/jobs/{job_id}")
    status, log = page.locator("#status"), page.locator("#blocks")
    await expect(status).to_have_text("setup")
    await expect(status.locator(".status")).to_have_class("status starting")
    await expect(page).to_have_title("kettle: setup · ciworker")
    await expect(page.locator(".phase.now")).to_contain_text("setup")
    await expect(page.locator("#elapsed")).to_have_text(re.compile(r"^\d+ s$"))
    await expect(page.locator("#facts")).not_to_contain_text("in the queue")
    await expect(log).to_contain_text("tick")  # of a group that is open
    jobs = await page.context.new_page()
    await jobs.goto(worker.url)
    await expect(jobs.locator(f'.job[data-id="{job_id}"] .status')).to_have_text("setup")

    setup_id = (await worker.job(job_id))["waits_for"]
    await touch(await worker.container(setup_id))
    await expect(status).to_have_text("running")
    await expect(page.locator(".phase.now")).to_contain_text("run")
    await expect(log).to_contain_text("tested")
    await expect(log).not_to_contain_text("tick")  # the group is folded
    await expect(jobs.locator(f'.job[data-id="{job_id}"] .status')).to_have_text("running")
    await let_go(worker, job_id)
    await expect(status).to_have_text("passed")


async def test_the_page_of_a_setup_tells_that_it_runs_once_it_prints(
    new_worker: Callable[..., Worker], visit: Visit
) -> None:
    worker = new_worker()
    await worker.start()
    setup = "until [ -e /workspace/go ]; do echo tick; sleep 0.2; done"
    job_id = await worker.submit("true", setup=[setup])
    await worker.wait_for_text(job_id, b"tick")
    setup_id = (await worker.job(job_id))["waits_for"]
    page = await visit(worker)
    early = {"status": "queued", "started_at": None}

    async def look(route: Route) -> None:
        answer = await route.fetch()
        await route.fulfill(json=await answer.json() | early)

    await page.route(f"**/api/v1/jobs/{setup_id}", look)
    await page.goto(f"{worker.url}/jobs/{setup_id}")
    await expect(page.locator("#status")).to_have_text("queued")
    log = JobPage(page)
    await log.has(len(await log.rows()) + 5)  # it is connected and has looked
    early.clear()
    await expect(page.locator("#status")).to_have_text("running")
    await touch(await worker.container(setup_id))
    await worker.wait(setup_id)
    await expect(page.locator("#status")).to_have_text("passed")
    await page.unroute_all(behavior="wait")


async def test_while_it_waits_the_page_tells_its_place_in_the_queue_and_it_moves_up(
    worker: Worker, visit: Visit
) -> None:
    await worker.stop()
    worker.set(max_jobs="1")
    await worker.start()
    running, ahead, waiting = [await worker.submit(NEVER_ENDS) for _ in range(3)]
    await worker.wait(running, "running")
    page = await visit(worker, f"/jobs/{waiting}")
    await expect(page.locator("#facts")).to_contain_text("number 2 of 2 in the queue")
    await expect(page.locator(".phase.now")).to_contain_text("queued")
    await worker.call("POST", f"/jobs/{ahead}/cancel")
    await expect(page.locator("#facts")).to_contain_text("number 1 of 1 in the queue")
    await worker.call("POST", f"/jobs/{running}/cancel")
    await expect(page.locator("#status")).to_have_text("running")
    await expect(page.locator("#facts")).not_to_contain_text("in the queue")
    await expect(page.locator(".phase.now")).to_contain_text("run")


async def test_cancel_ends_the_job_and_that_is_announced_politely_but_lines_are_not(
    visit: Visit, shared: Worker
) -> None:
    job_id = await shared.submit(NEVER_ENDS, project="kettle")
    await shared.wait(job_id, "running")
    page = await visit(shared, f"/jobs/{job_id}")
    await expect(page.locator("#blocks")).to_contain_text("begun")
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.locator("#status")).to_have_text("cancelled")
    await expect(page.locator("#announcer")).to_have_text("kettle: cancelled")
    await expect(page.locator("#cause-end")).to_contain_text("cancel")
    await expect(page.get_by_role("button", name="Cancel")).to_be_hidden()
    assert (await shared.job(job_id))["status"] == "cancelled"
    live = await page.evaluate(
        """() => Boolean(document.querySelector('#blocks')
            .closest('[aria-live], [role=log], [role=status], [role=alert]'))"""
    )
    assert not live


async def test_retry_submits_the_job_again_and_shows_the_new_one(
    visit: Visit, shared: Worker
) -> None:
    job_id = await printed(shared, ["again"], code=1)
    page = await visit(shared, f"/jobs/{job_id}")
    await page.get_by_role("button", name="Retry").click()
    await page.wait_for_url(lambda url: "/jobs/" in url and job_id not in url)
    await expect(page.locator("#blocks")).to_contain_text("again")
    new = await shared.job(page.url.rpartition("/")[2])
    assert new["retry_of"] == job_id
    await expect(page.get_by_role("link", name="a retry")).to_have_attribute(
        "href", f"/jobs/{job_id}"
    )


async def test_a_refused_cancel_says_why(visit: Visit, shared: Worker, faults: Faults) -> None:
    faults.allow("409")
    job_id = await shared.submit(NEVER_ENDS)
    page = await visit(shared, f"/jobs/{job_id}")
    refusal = {"type": "about:blank", "title": "Conflict", "status": 409, "detail": "it is over"}
    await intercept(
        page, "**/cancel", lambda route: route.fulfill(status=409, body=json.dumps(refusal))
    )
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.get_by_role("alert")).to_contain_text("it is over")
    await expect(page.get_by_role("button", name="Cancel")).to_be_enabled()


async def test_the_raw_log_downloads_with_its_exact_bytes(visit: Visit, shared: Worker) -> None:
    job = await shared.run(r"printf 'a\033[31mb\033[0m\r\n\377\000end'")
    page = await visit(shared, f"/jobs/{job['id']}")
    async with page.expect_download() as waiting:
        await page.keyboard.press("d")
    download = await waiting.value
    assert download.suggested_filename == f"{job['id']}.log"
    path = await download.path()
    assert path.read_bytes() == b"a\x1b[31mb\x1b[0m\r\n\xff\x00end"


async def test_the_raw_log_opens_in_a_tab_of_its_own(
    visit: Visit, shared: Worker, faults: Faults
) -> None:
    faults.allow("favicon")  # a tab without a page asks for one
    job_id = await printed(shared, ["first", "second"])
    page = await visit(shared, f"/jobs/{job_id}")
    async with page.expect_popup() as waiting:
        await page.get_by_role("link", name="Raw").click()
    raw = await waiting.value
    await expect(raw.locator("body")).to_have_text("first\nsecond\n")


async def test_buttons_lead_to_the_first_and_the_last_line(visit: Visit, shared: Worker) -> None:
    job = await shared.run("seq 1 3000")
    page = await visit(shared, f"/jobs/{job['id']}")
    log = JobPage(page)
    await log.shows(1)
    await page.get_by_role("button", name="To the last line").click()
    await log.shows(3000)
    await page.get_by_role("button", name="To the first line").click()
    await log.shows(1)


async def test_the_end_is_shown_in_full_though_the_job_cannot_be_asked_for(
    visit: Visit, shared: Worker, faults: Faults
) -> None:
    faults.allow("502")
    job_id = await shared.submit(f"echo begun; {WAIT}; echo over")
    page = await visit(shared, f"/jobs/{job_id}")
    await expect(page.locator(".phase.now")).to_contain_text("run")
    await intercept(page, f"**/api/v1/jobs/{job_id}", lambda route: route.fulfill(status=502))
    await let_go(shared, job_id)
    await expect(page.locator("#status")).to_have_text("passed")
    await JobPage(page).has(2)
    await expect(page.locator(".phase.now")).to_have_count(0)
    await expect(page.locator("#container")).to_contain_text("exited")


async def test_a_look_that_is_never_answered_is_given_up_and_tried_again(
    visit: Visit, shared: Worker
) -> None:
    job_id = await printed(shared, ["done"])
    page = await visit(shared)
    await page.route(f"**/api/v1/jobs/{job_id}", lambda _: None, times=1)
    await page.goto(f"{shared.url}/jobs/{job_id}")
    await expect(page.locator("#status")).to_have_text("passed", timeout=2 * PATIENCE)


@pytest.mark.parametrize("status", [500, 502])
async def test_where_the_groups_cannot_be_learnt_the_log_is_shown_without_them_and_that_is_said(
    visit: Visit, shared: Worker, faults: Faults, status: int
) -> None:
    faults.allow(str(status))
    job_id = await printed(shared, ["::group::more", "inside", "::endgroup::", "after"])
    page = await visit(shared)
    await page.clock.install()
    await page.route("**/log/search?*", lambda route: route.fulfill(status=status))
    await page.goto(f"{shared.url}/jobs/{job_id}")
    notice = page.get_by_role("alert")
    async with asyncio.timeout(30):
        while not await notice.inner_text():
            await page.clock.run_for(500)
    await expect(notice).to_contain_text("The groups could not be loaded")
    await page.clock.resume()
    await JobPage(page).has(4)
    assert [row.text for row in await JobPage(page).rows()][1] == "inside"
    assert await page.locator(".line.group").count() == 0


async def test_what_a_failed_job_says_is_shown_harmlessly(
    new_worker: Callable[..., Worker], visit: Visit
) -> None:
    worker = new_worker()
    await worker.start()
    setup = r"printf '\033[31mERROR: \033]0;title\007no\033[0m\n'; exit 1"
    job = await worker.run("true", setup=[setup])
    assert "\x1b" in job["message"], job
    page = await visit(worker, f"/jobs/{job['id']}")
    cause = page.locator("#cause-end")
    await expect(cause).to_contain_text("ERROR: ^[]0;title^Gno")
    await page.goto(worker.url)
    row = page.locator(f'.job[data-id="{job["id"]}"]')
    await expect(row.locator(".what")).to_contain_text("ERROR: ^[]0;title^Gno")


async def test_a_job_that_passed_says_so_once(visit: Visit, shared: Worker) -> None:
    page = await visit(shared, f"/jobs/{await printed(shared, ['done'])}")
    await expect(page.locator("#cause-end")).to_have_text("passed")


async def test_an_unknown_job_is_told_in_words(
    visit: Visit, shared: Worker, faults: Faults
) -> None:
    faults.allow("404")
    page = await visit(shared, "/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV")
    await expect(page.get_by_role("alert")).to_contain_text("there is no job")


async def test_a_page_whose_session_ended_goes_to_the_login(
    visit: Visit, shared: Worker, faults: Faults
) -> None:
    faults.allow("401")
    job_id = await shared.submit(f"echo begun; {WAIT}")
    page = await visit(shared, f"/jobs/{job_id}")
    await expect(page.locator("#blocks")).to_contain_text("begun")
    await page.context.clear_cookies()
    await let_go(shared, job_id)
    await page.wait_for_url("**/login*")


async def test_switches_are_kept_in_the_browser(visit: Visit, shared: Worker) -> None:
    job_id = await printed(shared, ["word " * 200])
    page = await visit(shared, f"/jobs/{job_id}")
    log = JobPage(page)
    await log.has(1)
    wrapped = await log.row(1).evaluate("(row) => row.offsetHeight")
    await page.get_by_role("checkbox", name="Wrap").press("Space")
    await page.get_by_role("checkbox", name="Times").press("Space")
    await page.reload()
    await log.has(1)
    assert wrapped > 2 * await log.row(1).evaluate("(row) => row.offsetHeight")
    await expect(page.get_by_role("checkbox", name="Wrap")).not_to_be_checked()
    await expect(page.get_by_role("checkbox", name="Times")).to_be_checked()
    shown = await page.evaluate(
        "() => getComputedStyle(document.querySelector('#blocks .line'), '::after').content"
    )
    assert re.fullmatch(r'"\d\d:\d\d:\d\d\.\d\d\d"', shown)


async def test_every_key_that_the_help_lists_does_what_it_says(
    visit: Visit, shared: Worker
) -> None:
    lines = [f"line {n}" for n in range(1, 400)] + ["::group::more", "inside", "::endgroup::"]
    job_id = await printed(shared, [*lines, *["after"] * 30])
    page = await visit(shared, f"/jobs/{job_id}")
    log = JobPage(page)
    await log.shows(1)
    seen = []

    async def press(*keys: str) -> None:
        for key in keys:
            await page.keyboard.press(key)
            seen.append(key)

    await press("?")
    listed = await page.locator("#keys kbd").all_inner_texts()
    await page.keyboard.press("Escape")
    await press("G")
    await log.shows(400 + 32)
    await press("g")
    await log.shows(1)
    await press("j", "j", "k")
    await page.wait_for_function("() => document.getElementById('log').scrollTop > 5")
    await press("t")
    await expect(page.get_by_role("checkbox", name="Times")).to_be_checked()
    await press("w")
    await expect(page.get_by_role("checkbox", name="Wrap")).not_to_be_checked()
    await press("o")
    await expect(log.row(401)).to_have_text("inside")
    await press("/")
    await page.keyboard.type("line 3")
    await log.found_is("1 of 111")
    await log.log.focus()
    await press("n")
    await log.found_is("2 of 111")
    await press("N")
    await log.found_is("1 of 111")
    await press("l")
    await page.keyboard.type("200-202")
    await page.keyboard.press("Enter")
    await log.shows(200)
    assert page.url.endswith("#L200-L202")
    await press("a")
    await expect(page.get_by_role("button", name="Retry")).to_be_focused()
    async with page.expect_download():
        await press("d")
    await press("f")
    await expect(page.get_by_role("checkbox", name="Follow")).to_be_disabled()  # it has ended
    await press("h")
    await page.wait_for_url(f"{shared.url}/")
    assert sorted(seen) == sorted([*listed, "j"])


async def test_at_360_px_everything_is_within_reach(visit: Visit, shared: Worker) -> None:
    job_id = await printed(shared, ["x" * 500, "short"], code=1)
    page = await visit(shared, f"/jobs/{job_id}", viewport={"width": 360, "height": 640})
    await JobPage(page).has(2)
    assert await page.evaluate("() => document.documentElement.scrollWidth") <= 360
    view = await page.locator("#log").bounding_box()
    assert view is not None
    assert view["height"] > 640 / 2
    for control in await page.locator("button:visible, a:visible, input:visible").all():
        box = await control.bounding_box()
        if box is not None and not await control.evaluate("(e) => e.matches('.skip')"):
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
