"""axe-core finds nothing on any page, in both themes, on screens of three widths."""

import itertools
import json
from importlib.resources import files
from typing import Any, Literal

import pytest
import pytest_asyncio
from playwright.async_api import Locator, Page, expect

from tests.browser.conftest import Visit
from tests.browser.driver import Faults, intercept
from tests.browser.jobpage import JobPage, printed
from tests.driver import Worker

AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()
THEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
SCREENS = ((360, 740), (768, 1024), (1280, 800))
FOREVER = "sleep 600"
VCS = {"branch": "main", "commit": "8c1f2e97a6b54c3d", "dirty": True}

LOG = r"""
echo ::group::install; echo fetching; echo ::endgroup::
for code in 30 31 32 33 34 35 36 37 90 91 92 93 94 95 96 97; do
  printf '\033[%smcolour %s \033[1;%smbold\033[m \033[2;%smdim\033[m\n' $code $code $code $code
done
printf '\033[7minverse\033[0m \033[42mon green\033[0m \033[38;5;208m256\033[0m\n'
echo to stderr >&2
"""


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def jobs(shared: Worker) -> dict[str, str]:
    """Jobs of every kind, by kind: their ids."""
    ends = {"passed": LOG, "failed": f"{LOG} exit 1", "cancelled": FOREVER}
    made = {kind: await shared.submit(run, vcs=VCS) for kind, run in ends.items()}
    await shared.call("POST", f"/jobs/{made['cancelled']}/cancel")
    for job_id in made.values():
        await shared.wait(job_id)
    made["error"] = await shared.submit("true", image="python:0-not-there")
    await shared.wait(made["error"])
    made["running"] = await shared.submit(f"echo begun; {FOREVER}")
    await shared.wait_for_text(made["running"], b"begun")
    return made


async def violations(page: Page, hovered: Locator | None = None) -> list[str]:
    """What axe-core holds against the page as it is, one sentence each, in every look."""
    await page.evaluate(AXE)
    found = []
    for theme, (width, height) in itertools.product(THEMES, SCREENS):
        await page.emulate_media(color_scheme=theme)
        await page.set_viewport_size({"width": width, "height": height})
        if hovered is not None:
            await hovered.hover()
        found += [f"{theme}, {width} px: {text}" for text in await _violations(page)]
    return found


async def _violations(page: Page) -> list[str]:
    result = await page.evaluate("axe.run({resultTypes: ['violations', 'passes']})")
    assert len(result["passes"]) > 10, "axe-core has looked at nothing"
    return [
        f"{found['id']}: {node['target']} {node['failureSummary']}"
        for found in result["violations"]
        for node in found["nodes"]
    ]


async def test_the_jobs_page(visit: Visit, shared: Worker, jobs: dict[str, str]) -> None:
    page = await visit(shared)
    await expect(page.locator(".job")).to_have_count(len(jobs))
    assert await violations(page) == []
    assert await violations(page, page.locator(".job").first) == []


async def test_the_list_of_keys(visit: Visit, shared: Worker, jobs: dict[str, str]) -> None:
    page = await visit(shared)
    await expect(page.locator(".job")).to_have_count(len(jobs))
    await page.get_by_role("button", name="Keyboard").click()
    await expect(page.get_by_role("dialog")).to_be_visible()
    assert await violations(page) == []


async def test_a_list_without_jobs(visit: Visit, shared: Worker) -> None:
    page = await visit(shared, "/?project=none")
    await expect(page.locator("#no-match")).to_be_visible()
    assert await violations(page) == []


@pytest.mark.parametrize("kind", ["passed", "failed", "cancelled", "error", "running"])
async def test_the_job_page(visit: Visit, shared: Worker, jobs: dict[str, str], kind: str) -> None:
    page = await visit(shared, f"/jobs/{jobs[kind]}")
    await expect(page.locator(".status").first).to_be_visible()
    if kind in {"passed", "failed", "running"}:
        await expect(page.locator("#log")).to_contain_text("begun" if kind == "running" else "256")
    assert await violations(page) == []


async def test_the_lines_that_are_set_off_and_the_dialog_for_going_to_some(
    visit: Visit, shared: Worker, jobs: dict[str, str]
) -> None:
    page = await visit(shared, f"/jobs/{jobs['failed']}#L1-L40")
    log = JobPage(page)
    await expect(page.locator(".line.marked")).not_to_have_count(0)
    await log.search("colour")
    await expect(page.locator(".line.current")).to_have_count(1)
    assert await violations(page) == []
    assert await violations(page, page.locator(".line.hit:not(.current)").first) == []
    await page.get_by_role("button", name="Go to lines").click()
    await expect(page.get_by_role("dialog", name="Go to lines")).to_be_visible()
    assert await violations(page) == []


async def test_a_notice_and_a_lost_connection(worker: Worker, visit: Visit, faults: Faults) -> None:
    faults.allow("ERR_|409|503")
    job_id = await worker.submit(f"echo begun; {FOREVER}")
    await worker.wait_for_text(job_id, b"begun")
    page = await visit(worker, f"/jobs/{job_id}")
    refusal = {"type": "about:blank", "title": "Conflict", "status": 409, "detail": "it is over"}
    await intercept(
        page, "**/cancel", lambda route: route.fulfill(status=409, body=json.dumps(refusal))
    )
    await page.get_by_role("button", name="Cancel").click()
    await expect(page.get_by_role("alert")).to_contain_text("it is over")
    await worker.stop()
    await expect(page.locator("#connection")).to_have_text("Reconnecting …")
    assert await violations(page) == []


async def test_going_to_lines_and_folding_all_groups_need_no_keyboard(
    visit: Visit, shared: Worker
) -> None:
    lines = ["::group::One", "in one", "::endgroup::", *[f"after {n}" for n in range(300)]]
    small = {"width": 360, "height": 640}
    page = await visit(shared, f"/jobs/{await printed(shared, lines)}", viewport=small)
    log = JobPage(page)
    await expect(log.row(2)).to_have_count(0)
    fold = page.get_by_role("button", name="Fold or unfold all groups")
    await fold.click()
    await expect(log.row(2)).to_have_text("in one")
    await fold.click()
    await expect(log.row(2)).to_have_count(0)
    await page.get_by_role("button", name="Go to lines").click()
    await page.get_by_role("textbox").fill("200-202")
    await page.get_by_role("button", name="Go", exact=True).click()
    await log.shows(200)
    assert page.url.endswith("#L200-L202")
    assert await page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


async def test_without_groups_there_is_no_button_that_folds_them(
    visit: Visit, shared: Worker
) -> None:
    page = await visit(shared, f"/jobs/{await printed(shared, ['x'])}")
    await JobPage(page).has(1)
    await expect(page.get_by_role("button", name="Go to lines")).to_be_visible()
    await expect(page.locator("button.folding")).to_be_hidden()


@pytest.mark.parametrize(("opens", "button"), [("l", "Go"), ("?", "Close")])
async def test_keys_do_nothing_while_a_dialog_is_open(
    visit: Visit, shared: Worker, opens: str, button: str
) -> None:
    page = await visit(shared, f"/jobs/{await printed(shared, ['x'])}")
    await JobPage(page).has(1)
    await page.keyboard.press(opens)
    await page.get_by_role("dialog").get_by_role("button", name=button, exact=True).focus()
    await page.keyboard.press("t")
    await expect(page.get_by_role("checkbox", name="Times")).not_to_be_checked()
    await page.keyboard.press("Escape")
    await page.keyboard.press("t")
    await expect(page.get_by_role("checkbox", name="Times")).to_be_checked()


async def test_keys_of_a_single_character_can_be_turned_off_for_good(
    visit: Visit, shared: Worker
) -> None:
    page = await visit(shared, f"/jobs/{await printed(shared, ['x'] * 200)}")
    log = JobPage(page)
    await log.has(200)
    await page.keyboard.press("?")
    await page.get_by_role("checkbox", name="Keys of a single character").uncheck()
    await page.keyboard.press("Escape")
    await page.reload()
    await log.has(200)
    await page.keyboard.press("t")
    await page.keyboard.press("?")
    await page.keyboard.press("End")  # is no character
    await log.at_end()
    await expect(page.get_by_role("checkbox", name="Times")).not_to_be_checked()
    await expect(page.get_by_role("dialog")).to_be_hidden()
    await page.get_by_role("button", name="Keyboard").click()
    await page.get_by_role("checkbox", name="Keys of a single character").check()
    await page.keyboard.press("Escape")
    await page.keyboard.press("t")
    await expect(page.get_by_role("checkbox", name="Times")).to_be_checked()


async def test_that_the_log_has_the_focus_is_seen_above_what_lies_in_it(
    visit: Visit, shared: Worker
) -> None:
    page = await visit(shared, f"/jobs/{await printed(shared, ['x'] * 200)}")
    log = JobPage(page)
    await log.has(200)
    await expect(page.locator("#cause-top")).to_be_visible()
    for key in ("Home", "End"):
        await page.keyboard.press(key)
        await log.shows(1 if key == "Home" else 200)
        box = await log.log.bounding_box()
        assert box is not None
        edge: Any = {"x": box["x"] + 20, "y": box["y"], "width": 40, "height": 2}
        await log.log.focus()
        focused = await page.screenshot(clip=edge)
        await log.log.blur()
        assert focused != await page.screenshot(clip=edge)


async def test_status_and_project_stand_on_one_line(visit: Visit, shared: Worker) -> None:
    page = await visit(shared, f"/jobs/{await printed(shared, ['x'])}")
    await expect(page.locator("#status")).to_have_text("passed")
    status, project = await page.evaluate(BASELINES, ["#status .status", "#project"])
    assert abs(status - project) < 0.5


# Where the baselines of these elements' texts are: an empty box stands on it.
BASELINES = """(selectors) => selectors.map((selector) => {
    const { childNodes } = document.querySelector(selector);
    const text = [...childNodes].findLast((node) => node.textContent);
    const [line, mark] = [document.createElement('span'), document.createElement('span')];
    text.replaceWith(line);
    line.append(text, mark);
    mark.style.display = 'inline-block';
    return mark.getBoundingClientRect().bottom;
})"""


async def test_the_login_page(visit: Visit, shared: Worker, faults: Faults) -> None:
    faults.allow("401")  # of what the page was asking when its session ended
    page = await visit(shared)
    await page.get_by_role("button", name="Log out").click()
    await page.wait_for_url(f"{shared.url}/login")
    assert await violations(page) == []
