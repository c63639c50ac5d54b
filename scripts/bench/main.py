"""Runs the benches and says what was reached: a line a promise, and for all of them a file."""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from scripts.bench import age, aged, fanout, ingest, interrupt, latency, nchan, pytests, trivial
from scripts.bench.rounds import Broken, Check, Ground
from scripts.bench.worker import ground

RESULTS = Path(__file__).with_name("RESULTS.md")
GIB = 2**30


@dataclass(frozen=True)
class Bench:
    """What measures some rows."""

    rows: Sequence[str]
    checks: Callable[[Ground], Awaitable[Sequence[Check]]]


BENCHES = (
    Bench(("S1", "S2", "S3"), latency.checks),
    Bench(("S4",), trivial.checks),
    Bench(("S5",), ingest.checks),
    Bench(("S6",), fanout.flooded),
    Bench(("S7",), fanout.paced),
    Bench(("S8",), age.checks),
    Bench(("S9",), fanout.idle),
    Bench(("S10",), pytests.checks),
    Bench(("S11",), trivial.at_rest),
    Bench(("S12",), aged.checks),
    Bench(("S13",), aged.download_checks),
)
ROWS = [row for bench in BENCHES for row in bench.rows]


@dataclass(frozen=True)
class Outcome:
    """broken: rows that could not be measured, with the reason."""

    checks: Sequence[Check]
    broken: Mapping[str, str]
    seconds: float

    @property
    def met(self) -> bool:
        return not self.broken and all(check.met for check in self.checks)


async def measured(rows: Sequence[str]) -> Outcome:
    """Every bench that some of these rows need, one after the other."""
    checks, broken, began = list[Check](), dict[str, str](), time.monotonic()
    for bench in BENCHES:
        wanted = [row for row in bench.rows if row in rows]
        if not wanted:
            continue
        print(f"measuring {', '.join(wanted)}", file=sys.stderr, flush=True)
        with ground(os.environ["CI_TEST_IMAGE"]) as place:
            try:
                found = await bench.checks(place)
            except (Broken, AssertionError, OSError, TimeoutError) as error:
                reason = str(error).partition("\n")[0] or type(error).__name__
                broken.update(dict.fromkeys(wanted, reason))
                print("\n".join(_broken(dict.fromkeys(wanted, reason))), flush=True)
                continue
        kept = [check for check in found if check.row in wanted]
        checks += kept
        print("\n".join(check.line() for check in kept), flush=True)
    return Outcome(checks, broken, time.monotonic() - began)


def _broken(rows: Mapping[str, str]) -> Iterator[str]:
    for row, reason in rows.items():
        yield f"MISS  {row:<4}could not be measured: {reason}"


def machine() -> dict[str, str]:
    """What was measured on, and beside what."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB of memory",
        "kernel": platform.release(),
        "Python": platform.python_version(),
        "Docker engine": _docker("Server"),
        "docker CLI": _docker("Client"),
        "nginx (nchan)": nchan.version(),
        "load before (1, 5, 15 min)": load,
    }


def _docker(side: str) -> str:
    words = ["docker", "version", "--format", f"{{{{.{side}.Version}}}}"]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()


def document(facts: Mapping[str, str], outcome: Outcome) -> str:
    """RESULTS.md."""
    lines = [
        "# The last run of `just bench`",
        "",
        "Written by it. All sides of a row take turns in one run; ratios are made round by round, "
        "and judged by their median (or the centile that is named). What a row promises, and how "
        "it is measured, its bench's docstring says (`scripts/bench/*.py`).",
        "",
        "To repeat it, as root, on an idle machine: `just bench`; some rows of it: "
        "`just bench S6 S8`, which leaves this file alone.",
        "",
        *(f"- {name}: {value}" for name, value in facts.items()),
        f"- it took {outcome.seconds / 60:.0f} minutes",
        "",
        "| row | what | min / judged / max | wanted | | medians |",
        "|---|---|---|---|---|---|",
        *map(_row, outcome.checks),
        *(f"| {row} | could not be measured: {why} | | | MISS | |"
          for row, why in outcome.broken.items()),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _row(check: Check) -> str:
    which = check.name if check.centile == 50 else f"{check.name}, p{check.centile}"
    cells = (check.row, which, check.spread, check.wanted, check.verdict, check.note)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{ROWS[0]} to {ROWS[-1]}; all")
    rows = [row.upper() for row in parser.parse_args().rows]
    if unknown := sorted(set(rows) - set(ROWS)):
        parser.error(f"no such rows: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    facts = machine()
    outcome = interrupt.run(measured(rows or ROWS))
    if not rows:
        RESULTS.write_text(document(facts, outcome))
    sys.exit(0 if outcome.met else 1)


if __name__ == "__main__":
    main()
