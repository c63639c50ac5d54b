"""Pages of which a part did not come, in a real browser."""

import asyncio
import re

import pytest
from playwright.async_api import Page, Request, Route, expect

from tests.browser.conftest import NewContext, Visit
from tests.browser.driver import Faults, login_link
from tests.driver import DEADLINE, Worker

ONCE, ALWAYS = 1, 1_000


class Losing:
    """A page that does not get a part, so many times.

    loads: how often it was asked for itself; loaded: how often that came to its end.
    """

    def __init__(self, page: Page, part: str, times: int) -> None:
        self._page, self._part, self._times = page, part, times
        self.loads = self.loaded = 0

    async def begin(self) -> None:
        self._page.on("request", self._asked)
        self._page.on("load", self._ended)
        await self._page.route(f"**/static/{self._part}", self._answer)

    async def end(self) -> None:
        await self._page.unroute(f"**/static/{self._part}")

    def _asked(self, request: Request) -> None:
        self.loads += request.is_navigation_request()

    def _ended(self, _page: Page) -> None:
        self.loaded += 1

    async def _answer(self, route: Route) -> None:
        self._times -= 1
        await (route.abort("connectionreset") if self._times >= 0 else route.continue_())


@pytest.fixture(autouse=True)
def lost_parts(faults: Faults) -> None:
    faults.allow("ERR_CONNECTION_RESET")


@pytest.mark.parametrize("part", ["theme.js", "style.css", "jobs.js", "dom.js"])
async def test_a_page_that_misses_a_part_is_loaded_again_by_itself(
    page: Page, shared: Worker, part: str
) -> None:
    job = await shared.run("true")
    losing = Losing(page, part, ONCE)
    await losing.begin()
    await page.reload()
    async with asyncio.timeout(DEADLINE):
        while losing.loaded < 2:
            await asyncio.sleep(0.01)
    assert await page.evaluate("sessionStorage.length") == 0
    await expect(page.locator(f'.job[data-id="{job["id"]}"]')).to_be_visible()
    await expect(page.locator("body")).to_have_css("margin", "0px")
    await expect(page.get_by_role("button", name="theme")).to_be_visible()
    assert losing.loads == 2


async def test_the_login_keeps_its_code_when_it_is_loaded_again(
    new_context: NewContext, shared: Worker
) -> None:
    page = await (await new_context()).new_page()
    losing = Losing(page, "login.js", ONCE)
    await losing.begin()
    await page.goto(await login_link(shared))
    await page.get_by_role("button", name="Open ciworker").click()
    await page.wait_for_url(f"{shared.url}/")


async def test_a_part_that_never_comes_is_told_and_the_page_rests(
    visit: Visit, shared: Worker
) -> None:
    page = await visit(shared)
    losing = Losing(page, "row.js", ALWAYS)
    await losing.begin()
    await page.reload()
    told = page.get_by_role("alert").filter(has_text=re.compile("load it again"))
    await expect(told).to_contain_text("Parts of this page did not come (jobs.js)")
    assert losing.loads == 4
    await losing.end()
    await page.reload()
    await expect(page.locator("#jobs")).to_have_attribute("aria-busy", "false")
    await expect(told).to_have_count(0)
    assert losing.loads == 5
