"""Draws the README's two pictures from one real run of the sample: the terminal and the page.

Started by `scripts/screenshots`. A worker of its own runs the sample, which is submitted in a real
terminal (tmux); a headless Chromium then opens the job's page.
"""

import asyncio
import os
import re
import sys
import tempfile
from pathlib import Path

from playwright.async_api import async_playwright, expect
from rich.console import Console
from rich.text import Text

from tests.browser.driver import log_in
from tests.driver import Worker

HERE = Path(__file__).resolve().parent
TERMINAL, PAGE = HERE / "terminal.svg", HERE / "page.png"
COMMAND = "ciclient submit scripts/sample"
SESSION = f"ciworker-screenshots-{os.getpid()}"
COLUMNS, ROWS = 124, 24
DEADLINE = 60.0

# Rich's own format asks a host for a font; this one takes what the reader has.
SVG = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"
     aria-label="A run of the sample project in a terminal">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


async def tmux(*words: str) -> str:
    """Run one tmux command, on a server of our own, and give what it prints."""
    process = await asyncio.create_subprocess_exec(
        "tmux", "-L", SESSION, *words, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert process.returncode == 0, words
    return out.decode()


async def screen(worker: Worker) -> str:
    """What the run leaves on a real terminal's screen, with its colours."""
    wanted = ("CICLIENT_SERVER", "CIWORKER_DATA_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME")
    environment = [f"-e{name}={worker.client_environment[name]}" for name in wanted]
    # The title is part of what the terminal reads: once it has that, it has all before it.
    end = r"printf '\033]2;done\007'; exec cat"
    command = f"PATH={Path(sys.executable).parent}:$PATH {COMMAND}; {end}"
    size = ["-x", str(COLUMNS), "-y", str(ROWS)]
    await tmux("new-session", "-d", *size, "-c", str(HERE.parent), *environment, command)
    try:
        async with asyncio.timeout(DEADLINE):
            while await tmux("display-message", "-p", "#{pane_title}") != "done\n":
                await asyncio.sleep(0.1)
        return await tmux("capture-pane", "-e", "-p")
    finally:
        await tmux("kill-server")


def draw(text: str) -> None:
    """The terminal as a picture."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere)
        console.print(Text.from_ansi(f"$ {COMMAND}\n{text.rstrip()}"), soft_wrap=True)
    console.save_svg(str(TERMINAL), title="ciclient submit", code_format=SVG)


async def photograph(worker: Worker, job_id: str) -> None:
    """The job's page as a picture."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=os.environ["CI_CHROMIUM"])
        page = await browser.new_page(
            color_scheme="light", device_scale_factor=1.5, viewport={"width": 1080, "height": 520}
        )
        await log_in(page, worker)
        await page.goto(f"{worker.url}/jobs/{job_id}")
        await expect(page.locator(".log")).to_contain_text(re.compile(r"passed in \d"))
        await page.screenshot(path=PAGE)
        await browser.close()


async def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ciworker-screenshots-") as folder:
        worker = Worker(Path(folder) / "worker", {"default_image": os.environ["CI_TEST_IMAGE"]})
        try:
            await worker.start()
            draw(await screen(worker))
            _, jobs = await worker.call("GET", "/jobs")
            await photograph(worker, jobs["items"][0]["id"])
        finally:
            await worker.destroy()
    for path in (TERMINAL, PAGE):
        print(f"wrote {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    asyncio.run(main())
