"""Makes scripts/terminal.svg, the README's picture, from a real run.

    scripts/quickstart && .venv/bin/python scripts/picture.py

Runs the sample in a real terminal (tmux) against the quickstart's worker and draws what is on its
screen at the end. Needs tmux.
"""

import os
import subprocess
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "scripts" / "terminal.svg"
SESSION = "ciworker-picture"
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


def tmux(*words: str) -> str:
    """Run one tmux command and give what it prints."""
    return subprocess.run(["tmux", *words], check=True, capture_output=True, text=True).stdout


def screen() -> str:
    """What a real run leaves on a real terminal's screen, with its colours."""
    client = ROOT / ".venv/bin/ciclient"
    command = f"{client} submit scripts/sample && tmux wait-for -S picture-done; sleep 5"
    data_dir = os.environ.get("CIWORKER_DATA_DIR", str(ROOT / ".quickstart/data"))
    size = ["-x", str(COLUMNS), "-y", str(ROWS)]
    place = ["-c", str(ROOT), "-e", f"CIWORKER_DATA_DIR={data_dir}"]
    tmux("new-session", "-d", "-s", SESSION, *size, *place, command)
    try:
        subprocess.run(["tmux", "wait-for", "picture-done"], check=True, timeout=DEADLINE)
        time.sleep(0.5)  # the terminal draws what came last
        return tmux("capture-pane", "-e", "-p", "-t", SESSION)
    finally:
        tmux("kill-session", "-t", SESSION)


def main() -> None:
    text = Text.from_ansi("$ ciclient submit scripts/sample\n" + screen().rstrip())
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere)
        console.print(text, soft_wrap=True)
    console.save_svg(str(TARGET), title="ciclient submit", code_format=SVG)
    print(f"wrote {TARGET.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
