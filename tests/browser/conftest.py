"""A real headless Chromium for the session, and logged-in pages of real workers for its tests.

Browser, workers and tests share the session's event loop: what Playwright made in one loop cannot
be used in another.
"""

import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

from tests.browser.driver import Faults, log_in
from tests.driver import Worker

HERE = Path(__file__).parent
CHROMIUM = HERE.parent.parent / "scripts" / "chromium"

Visit = Callable[..., Awaitable[Page]]
NewContext = Callable[..., Awaitable[BrowserContext]]

PATIENCE = 15_000  # milliseconds; slow machines are no faults

expect.set_options(timeout=PATIENCE)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Tests of this folder run in the session's loop."""
    marker = pytest.mark.asyncio(loop_scope="session")
    for item in items:
        if HERE in item.path.parents and pytest_asyncio.is_async_test(item):
            item.add_marker(marker, append=False)


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a Chromium; its absence is a failure, never a skip."""
    found = subprocess.run([CHROMIUM], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode:
        pytest.fail("there is no Chromium: run the tests by scripts/test")
    return found.stdout.split()[-1]


@pytest_asyncio.fixture(loop_scope="session", scope="session")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """One browser for all tests; contexts keep them apart."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium)
        yield browser
        await browser.close()


async def end(worker: Worker) -> None:
    """Leave nothing of a worker. A killed one may be creating a container, so it is asked first."""
    if worker.process is not None:
        await worker.stop()
    await worker.destroy()


@pytest_asyncio.fixture(loop_scope="session")
async def new_worker(tmp_path: Path, image: str) -> AsyncIterator[Callable[..., Worker]]:
    """As the tests' common one, in this folder's loop."""
    async with AsyncExitStack() as made:

        def make(**settings: str) -> Worker:
            folder = tmp_path / f"worker-{len(list(tmp_path.iterdir()))}"
            worker = Worker(folder, {"default_image": image, **settings})
            made.push_async_callback(end, worker)
            return worker

        yield make


@pytest_asyncio.fixture(loop_scope="session")
async def worker(new_worker: Callable[..., Worker]) -> Worker:
    """A worker of the test's own, for what would disturb others."""
    running = new_worker()
    await running.start()
    return running


@pytest_asyncio.fixture(loop_scope="session", scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory, image: str) -> AsyncIterator[Worker]:
    """A worker for all tests of a module."""
    running = Worker(tmp_path_factory.mktemp("shared") / "worker", {"default_image": image})
    try:
        await running.start()
        yield running
        assert "Traceback" not in running.log.read_text()
    finally:
        await end(running)


@pytest.fixture
def faults() -> Iterator[Faults]:
    """What went wrong in the test's pages; whatever it does not allow fails it."""
    faults = Faults()
    yield faults
    assert faults.unexpected() == []


@pytest_asyncio.fixture(loop_scope="session")
async def new_context(browser: Browser, faults: Faults) -> AsyncIterator[NewContext]:
    """Makes fresh profiles; options are Playwright's, such as `color_scheme` or `viewport`."""
    async with AsyncExitStack() as made:

        async def make(**options: Any) -> BrowserContext:
            context = await browser.new_context(**options)
            made.push_async_callback(context.close)
            context.set_default_timeout(PATIENCE)
            await faults.watch(context)
            return context

        yield make


@pytest_asyncio.fixture(loop_scope="session")
async def visit(new_context: NewContext) -> Visit:
    """Opens a page of a worker, logged in by a one-time link in a fresh profile.

    token: whose role the page has, the admin's if left out; options: see `new_context`.
    """

    async def open_page(
        worker: Worker, path: str = "/", token: str | None = None, **options: Any
    ) -> Page:
        page = await (await new_context(**options)).new_page()
        await log_in(page, worker, token)
        if path != "/":
            await page.goto(f"{worker.url}{path}")
        return page

    return open_page


@pytest_asyncio.fixture(loop_scope="session")
async def page(visit: Visit, shared: Worker) -> Page:
    """The jobs page of the module's worker, logged in."""
    return await visit(shared)
