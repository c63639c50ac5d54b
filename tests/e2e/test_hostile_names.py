"""Row 40: what people name through the API, in the tables of both command lines."""

import asyncio
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from tests.conftest import Attack
from tests.driver import Worker
from tests.unit.client.screen import HOSTILE, obeyed, on_screen

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.attacks(40)]

SETTINGS = {
    "allowed_images": '["*"]',
    "pull": "never",
    "webhooks": json.dumps(
        [{"name": "tea", "url": "http://127.0.0.1:9/", "secret": "whsec_" + "A" * 32}]
    ),
}
OURS = ("list", "show", "wait", "logs", "follow")
OPERATORS = (
    ("token", "list"), ("audit",), ("env", "list"), ("pool", "status"),
    ("webhook", "list", "--all"), ("webhook", "test"), ("resync",), ("doctor",),
    ("env", "remove", "\x1b]0;x\x07\x9b2J"),
)  # fmt: skip
# What the API takes of a name, and what of a project.
NAMES = ("\x9b2Jc1", "\x9d0;title\x9c", "\u202egnp.exe", "\u2066x", "<img src=x onerror=y()>")
PROJECTS = ("<script>x()</script>", "\u200f\u061cturned", "\u2028\u2029lines", "[bold]x[/tmp")


@dataclass(frozen=True)
class Named:
    """A worker on which everything has a hostile name; jobs: all of them; count: of the names."""

    worker: Worker
    jobs: Sequence[str]
    count: int


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def named(shared: Worker) -> Named:
    for name in NAMES:
        assert (await shared.call("POST", "/tokens", json={"name": name, "role": "read"}))[0] == 201
    jobs = []
    for name in HOSTILE:
        more = {"env": {"X": name}, "vcs": {"branch": name, "commit": name}}
        jobs.append(await shared.submit(f"cat x; exit 3 # {name}", {"x": f"{name}\n"}, **more))
    jobs += [await shared.submit("exit 3", project=name) for name in PROJECTS]
    jobs.append(await shared.submit("true", image="\u200f\u061cimage"))
    jobs.append(await shared.submit("true", setup=["true # \x1b]0;x\x07\x9b2J\u202e"]))
    for job in jobs:
        await shared.wait(job)
    return Named(shared, jobs, len(NAMES) + len(jobs))


def on_a_terminal(worker: Worker, program: str, *words: str) -> bytes:
    """All that a command writes to one."""
    environ = worker.client_environment | {"TERM": "xterm-256color"}
    argv: list[str | Path] = [Path(sys.executable).with_name(program), *words]
    with on_screen(argv, environ, folder=worker.data_dir.parent) as screen:
        seen = screen.read_to_end()
        screen.code()
    assert seen.strip()
    assert b"Traceback" not in seen
    return seen


@pytest.mark.parametrize("words", OPERATORS, ids=lambda words: "-".join(words[:2]))
async def test_no_table_of_the_operator_commands_a_terminal(
    named: Named, words: tuple[str, ...], attack: Attack
) -> None:
    seen = await asyncio.to_thread(on_a_terminal, named.worker, "ciworker", *words)
    assert obeyed(seen) == ""
    attack(40, tried=named.count)


@pytest.mark.parametrize("word", OURS)
async def test_nothing_that_the_client_tells_commands_a_terminal(
    named: Named, word: str, attack: Attack
) -> None:
    for job in [()] if word == "list" else [(job,) for job in named.jobs]:
        seen = await asyncio.to_thread(on_a_terminal, named.worker, "ciclient", word, *job)
        assert obeyed(seen) == "", job
    attack(40, tried=named.count)
