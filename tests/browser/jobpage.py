"""What a person sees on a job page, and what they do there."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from playwright.async_api import Locator, Page, expect

from tests.driver import Worker

ROWS = "#blocks .line"
PATIENCE = 60_000  # ms; jobs that print for long are waited for, line by line


class Row(NamedTuple):
    """A loaded line. classes: of its row; text: without what is drawn beside it."""

    number: int
    text: str
    classes: Sequence[str]


class JobPage:
    """A job's page that is open in a tab."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.log = page.locator("#log")
        self.status = page.locator("#status")
        self.found = page.locator("#found")
        self.query = page.get_by_role("searchbox", name="Search the log")

    async def rows(self) -> list[Row]:
        """The rows that are loaded, in the order of the document."""
        found = await self.page.evaluate(
            """() => [...document.querySelectorAll('#blocks .line')].map((line) => [
                Number(line.dataset.n), line.querySelector('.text').textContent, [...line.classList]
            ])"""
        )
        return [Row(*row) for row in found]

    async def numbers(self) -> list[int]:
        return [row.number for row in await self.rows()]

    def row(self, number: int) -> Locator:
        return self.page.locator(f'{ROWS}[data-n="{number}"]')

    async def has(self, count: int) -> None:
        """Wait until so many rows are loaded."""
        await self.page.wait_for_function(
            f"(count) => document.querySelectorAll('{ROWS}').length >= count",
            arg=count,
            timeout=PATIENCE,
        )

    async def shows(self, number: int) -> None:
        """Wait until a line is in view."""
        await self.page.wait_for_function(
            """(number) => {
                const row = document.querySelector(`#blocks .line[data-n="${number}"]`);
                if (!row?.checkVisibility({ contentVisibilityAuto: true })) return false;
                const view = document.getElementById('log').getBoundingClientRect();
                const { top, bottom } = row.getBoundingClientRect();
                return bottom > view.top && top < view.bottom;
            }""",
            arg=number,
        )

    async def at_end(self) -> None:
        """Wait until the log is scrolled to its end."""
        await self.page.wait_for_function(
            """() => {
                const log = document.getElementById('log');
                return log.scrollHeight - log.clientHeight - log.scrollTop <= 2;
            }"""
        )

    async def scroll(self, top: float) -> None:
        """As a person does who drags the bar there; a fraction of the whole."""
        await self.page.evaluate(
            """(part) => {
                const log = document.getElementById('log');
                log.scrollTop = part * (log.scrollHeight - log.clientHeight);
            }""",
            top,
        )

    async def wheel(self, by: float) -> None:
        """Turn the wheel over the log, by pixels; up is negative."""
        await self.log.hover()
        await self.page.mouse.wheel(0, by)

    async def click_number(self, number: int, *modifiers: Any) -> None:
        """Click where the line's number is drawn."""
        await self.row(number).click(position={"x": 12, "y": 6}, modifiers=list(modifiers))

    async def search(self, text: str) -> None:
        await self.query.fill(text)

    async def found_is(self, text: str) -> None:
        await expect(self.found).to_have_text(text)

    async def current_is(self, number: int) -> None:
        """Wait until this line is the hit to look at, and in view."""
        await expect(self.page.locator(".line.current")).to_have_attribute("data-n", str(number))
        await self.shows(number)


async def printed(worker: Worker, lines: Sequence[str], code: int = 0) -> str:
    """The id of a job that has ended after printing these lines, with an exit code."""
    files = {"lines.txt": "".join(line + "\n" for line in lines)}
    job = await worker.run(f"cat lines.txt; exit {code}", files)
    assert job["exit_code"] == code, job
    return str(job["id"])


def texts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(record["text"]) for record in records]
