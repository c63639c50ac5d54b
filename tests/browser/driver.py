"""Drives a real Chromium: pages that are logged in, and what went wrong in them."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import BrowserContext, ConsoleMessage, Page, Route, WebError

from tests.driver import Worker

# Containers of other tests come and go with their interfaces; a page has to get over that.
_OF_THE_MACHINE = re.compile("ERR_NETWORK_CHANGED")

_LISTEN = """
addEventListener('securitypolicyviolation', (event) => window.ciworkerViolation(
  `${event.effectiveDirective} forbids ${event.blockedURI} in ${event.sourceFile}`
))
"""


@dataclass
class Faults:
    """What went wrong in the pages of one test: errors, and what the policy forbade."""

    found: list[str] = field(default_factory=list)
    _allowed: list[re.Pattern[str]] = field(default_factory=lambda: [_OF_THE_MACHINE])

    def allow(self, pattern: str) -> None:
        """Faults that match are part of the test: a connection that it cuts, say."""
        self._allowed.append(re.compile(pattern))

    def unexpected(self) -> list[str]:
        return [one for one in self.found if not any(p.search(one) for p in self._allowed)]

    async def watch(self, context: BrowserContext) -> None:
        """Note every fault of this context's pages from now on."""
        context.on("console", self._console)
        context.on("weberror", self._error)
        await context.expose_binding("ciworkerViolation", self._violation)
        await context.add_init_script(_LISTEN)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.found.append(f"console: {message.text} ({message.location.get('url')})")

    def _error(self, error: WebError) -> None:
        self.found.append(f"error: {error.error.stack or error.error.message}")

    def _violation(self, _source: Any, text: str) -> None:
        self.found.append(f"policy: {text}")


async def login_link(worker: Worker, token: str | None = None, **asked: str) -> str:
    """A one-time link to this worker, made with this token, else with the admin's.

    asked: the body of the call, such as `next`.
    """
    headers = {"Authorization": f"Bearer {token or worker.token}"}
    status, answer = await worker.call("POST", "/login-codes", headers=headers, json=asked)
    assert status == 201, answer
    return str(answer["url"])


async def log_in(page: Page, worker: Worker, token: str | None = None) -> None:
    """Follow a one-time link and press its button: ends on the jobs page."""
    await page.goto(await login_link(worker, token))
    await page.get_by_role("button").click()
    await page.wait_for_url(f"{worker.url}/")


async def intercept(page: Page, pattern: str, handler: Callable[[Route], Any]) -> None:
    """Route what a loaded page asks for, from its next request on.

    Playwright's own `route` returns when the browser knows; the page's next request may still pass
    by it (Playwright 1.65, on a busy machine).
    """
    probe, seen = "/static/theme.js?intercepted", list[str]()

    async def answer(route: Route) -> None:
        seen.append(route.request.url)
        await route.fulfill(body="")

    await page.route(pattern, handler)
    await page.route(f"**{probe}", answer)
    while not seen:
        await page.evaluate("path => fetch(path).then((found) => found.text())", probe)
    await page.unroute(f"**{probe}")
