"""What a job page asks for of its log."""

import re

from playwright.async_api import Page, Request

_LINES = re.compile(r"/log\?.*limit=(\d+)")
_STILL = 20  # frames without a request: the page has had all its occasions to make one
_FRAMES = """async (count) => {
    for (let n = 0; n < count; n += 1) {
        await new Promise((resolve) => requestAnimationFrame(resolve));
    }
}"""


class Loading:
    """asked: how many lines each request of the page asked for, since this was made."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self.asked: list[int] = []
        self._answered = 0
        page.on("request", self._begun)
        page.on("requestfinished", self._ended)
        page.on("requestfailed", self._ended)

    async def over(self) -> None:
        """Wait until the page loads nothing more by itself."""
        seen = -1
        while seen != len(self.asked) or self._answered < seen:
            seen = len(self.asked)
            await self._page.evaluate(_FRAMES, _STILL)

    def _begun(self, request: Request) -> None:
        if limit := _LINES.search(request.url):
            self.asked.append(int(limit[1]))

    def _ended(self, request: Request) -> None:
        if _LINES.search(request.url):
            self._answered += 1
