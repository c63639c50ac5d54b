"""How a page bears a log of a million lines: until it shows, moves and finds, and its heap.

Every round is a fresh profile that is logged in and opens the page of one job, which printed the
lines before. A time ends when the lines that are asked for are drawn in the view; it is taken in
the page itself, by the frames that the browser draws.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from playwright.async_api import Browser, CDPSession, Page, async_playwright

from scripts.bench import interrupt
from tests.browser.driver import log_in
from tests.driver import Worker

LINES = 1_000_000
PATIENCE = 300.0
MOST_WAITED = 60_000  # ms, for lines to be shown
MEGABYTE = 2**20

OPEN = "open -> first lines"
TO_THE_END = "to the last line"
TO_THE_MIDDLE = "to the middle, by the bar"
HIT = "search -> hit in view"
HEAP = "heap when opened"
HEAP_AFTER = "heap after all that"

WANTED = {OPEN: 2.0, TO_THE_END: 2.0, TO_THE_MIDDLE: 2.0, HIT: 2.0, HEAP: 200.0, HEAP_AFTER: 200.0}
HEAPS = (HEAP, HEAP_AFTER)

# Waits, frame by frame, until a line from `low` to `high` is in the middle of the view: the
# milliseconds since `then`.
SHOWN = """
async ([low, high, then, patience]) => {
    const inView = () => {
        const { left, top, width, height } = document.getElementById('log').getBoundingClientRect();
        const row = document.elementFromPoint(left + width / 2, top + height / 2);
        const number = Number(row?.closest('.line')?.dataset.n);
        return low <= number && number <= high;
    };
    while (!inView()) {
        if (performance.now() - then > patience) throw new Error(`no line ${low} to ${high}`);
        await new Promise((resolve) => requestAnimationFrame(resolve));
    }
    return performance.now() - then;
}
"""


@dataclass(frozen=True)
class Bench:
    """What each round uses. lines: how many the job printed."""

    browser: Browser
    worker: Worker
    job_id: str
    lines: int

    async def round(self) -> dict[str, float]:
        """Seconds and megabytes, by what was measured."""
        context = await self.browser.new_context(viewport={"width": 1280, "height": 800})
        try:
            page = await context.new_page()
            await log_in(page, self.worker)
            await page.goto("about:blank")
            return await self._measure(page, await context.new_cdp_session(page))
        finally:
            await context.close()

    async def _measure(self, page: Page, devtools: CDPSession) -> dict[str, float]:
        await page.goto(f"{self.worker.url}/jobs/{self.job_id}")
        found = {OPEN: await self._shown(page, 1, 100, 0.0)}
        found[HEAP] = await heap(devtools)
        then = await self._do(page, "(log) => log.scrollTo(0, log.scrollHeight)")
        found[TO_THE_END] = await self._shown(page, self.lines - 100, self.lines, then)
        then = await self._do(page, "(log) => log.scrollTo(0, log.scrollHeight / 2)")
        middle, some = self.lines / 2, self.lines / 100
        found[TO_THE_MIDDLE] = await self._shown(page, middle - some, middle + some, then)
        needle = self.lines * 9 // 10
        await page.get_by_role("searchbox").focus()
        then = await self._do(page, "() => {}")
        await page.keyboard.insert_text(f"number {needle} of")
        found[HIT] = await self._shown(page, needle, needle, then)
        return {**found, HEAP_AFTER: await heap(devtools)}

    async def _do(self, page: Page, action: str) -> float:
        """Do something to the log: when, in the page's own time."""
        then = await page.evaluate("() => performance.now()")
        await page.locator("#log").evaluate(action)
        return float(then)

    async def _shown(self, page: Page, low: float, high: float, then: float) -> float:
        return float(await page.evaluate(SHOWN, [low, high, then, MOST_WAITED])) / 1000


async def heap(devtools: CDPSession) -> float:
    """Megabytes of JavaScript's objects that are in use, without garbage."""
    await devtools.send("Performance.enable")
    await devtools.send("HeapProfiler.collectGarbage")
    answer = await devtools.send("Performance.getMetrics")
    metrics = {metric["name"]: metric["value"] for metric in answer["metrics"]}
    return float(metrics["JSHeapUsedSize"]) / MEGABYTE


async def printed(worker: Worker, lines: int) -> str:
    """The id of a job that has printed so many lines."""
    program = f"for n in range(1, {lines} + 1): print('this is number', n, 'of the log')"
    job = await worker.wait(
        await worker.submit("python3 print.py", {"print.py": program}), within=PATIENCE
    )
    if not (job["success"] and job["log_lines"] == lines):
        sys.exit(f"page: the job that prints the lines did not: {job['message']}")
    return str(job["id"])


async def run(lines: int, rounds: int) -> dict[str, list[float]]:
    """What every round measured."""
    samples: dict[str, list[float]] = {name: [] for name in WANTED}
    with tempfile.TemporaryDirectory(prefix="ciworker-bench-") as folder:
        settings = {"default_image": os.environ["CI_TEST_IMAGE"]}
        worker = Worker(Path(folder) / "worker", settings)
        try:
            await worker.start()
            job_id = await printed(worker, lines)
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(executable_path=os.environ["CHROMIUM"])
                bench = Bench(browser, worker, job_id, lines)
                for _ in range(rounds):
                    for name, value in (await bench.round()).items():
                        samples[name].append(value)
        finally:
            await worker.destroy()
    return samples


def rows(samples: Mapping[str, Sequence[float]]) -> list[dict[str, object]]:
    """One row for each thing measured; it is met if the worst round met it."""
    return [
        {
            "what": name,
            "median": round(statistics.median(values), 3),
            "most": round(max(values), 3),
            "wanted": WANTED[name],
            "unit": "MB" if name in HEAPS else "s",
            "met": max(values) <= WANTED[name],
        }
        for name, values in samples.items()
    ]


def report(table: Sequence[Mapping[str, object]]) -> str:
    lines = []
    for row in table:
        verdict, unit = "PASS" if row["met"] else "MISS", row["unit"]
        figures = f"{row['median']} {unit}, at most {row['most']} {unit}"
        lines.append(f"{verdict}  {row['what']}: {figures} (wanted: {row['wanted']} {unit})")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="page", description=__doc__)
    parser.add_argument("--lines", type=int, default=LINES, help="lines of the log")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON document")
    options = parser.parse_args()
    table = rows(interrupt.run(run(options.lines, options.rounds)))
    print(
        json.dumps({"lines": options.lines, "rows": table}, indent=2)
        if options.json
        else report(table)
    )
    sys.exit(0 if all(row["met"] for row in table) else 1)


if __name__ == "__main__":
    main()
