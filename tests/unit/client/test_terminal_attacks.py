"""Row 40: whatever a job or a server names, a terminal gets text and colours, and obeys nothing."""

from collections.abc import Iterator, Sequence
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Attack
from tests.unit.client.fakeworker import FakeWorker, ended
from tests.unit.client.screen import HOSTILE, kept, obeyed, on_terminal

pytestmark = pytest.mark.attacks(40)

# What terminals obey, and what it is made of: whole sequences turn up among random bytes.
SEQUENCES = (
    b"\x1b", b"\x1b[", b"\x1b]52;c;", b"\x1b]0;", b"\x1b]8;;", b"\x1bP", b"\x1b_", b"\x1b^",
    b"\x07", b"\x1b\\", b"\x9b", b"\x9d", b"\xc2\x9b", b"\xc2\x9d", b"\xc2\x90", b"\r", b"\x0e",
    b"2J", b"1;1H", b"10A", b"31m", b"0m", b"?1049h", b"6n", b"c", b"\xe2\x80\xae", b"\xe2\x81\xa6",
    b"::group::", b"::endgroup::", b"\x1b[?7l", b"\x1b[?7h", b"\x1b[K\x1b[C\x1b[J\r", b"\xff",
)  # fmt: skip
LINES = st.lists(
    st.lists(st.sampled_from(SEQUENCES) | st.binary(max_size=6), max_size=12).map(b"".join),
    min_size=1,
    max_size=100,
)
COMMANDS = (("follow",), ("logs",), ("wait", "--from-beginning"), ("show",), ("wait",))
ROUNDS, LINES_A_ROUND = 40, 500
bounded = settings(
    max_examples=4,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


def obeyed_of(worker: FakeWorker, lines: Sequence[bytes]) -> Iterator[tuple[tuple[str, ...], str]]:
    """What a terminal would obey of each command about a job that printed these lines.

    `logs` gets their bytes, the others records in which what is no UTF-8 is U+FFFD.
    """
    for command in COMMANDS:
        kind = "surrogateescape" if command == ("logs",) else "replace"
        texts = [line.replace(b"\n", b"").decode(errors=kind) for line in lines]
        job_id = worker.add_ended(lines=texts, ending="tests_failed")
        if command != ("logs",):
            numbered = enumerate(texts, 1)
            told = [{"n": n, "at": "", "stream": "stdout", "text": text} for n, text in numbered]
            worker.update(job_id, last_lines=told)
        with on_terminal(worker, *command, job_id) as terminal:
            yield command, obeyed(terminal.read_to_end())


@bounded
@given(LINES)
def test_of_any_bytes_that_a_job_prints_a_terminal_obeys_nothing_but_colours(
    worker: FakeWorker, lines: list[bytes]
) -> None:
    for command, left in obeyed_of(worker, lines):
        assert left == "", command


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_of_thousands_of_lines_of_any_bytes_a_terminal_obeys_nothing_but_colours(
    worker: FakeWorker, attack: Attack, seed: int
) -> None:
    dice = Random(seed)
    lines = [random_line(dice) for _ in range(LINES_A_ROUND)]
    for command, left in obeyed_of(worker, lines):
        assert left == "", command
    attack(40, tried=len(lines) * len(COMMANDS))


def random_line(dice: Random) -> bytes:
    parts = (
        dice.choice(SEQUENCES) if dice.random() < 0.6 else dice.randbytes(dice.randrange(6))
        for _ in range(dice.randrange(14))
    )
    return b"".join(parts)


@pytest.mark.parametrize("command", [("list",), ("show",), ("follow",), ("wait",), ("cancel",)])
@pytest.mark.parametrize("more", [{}, {"NO_COLOR": "1"}])
def test_whatever_a_job_and_its_parts_are_called_a_terminal_obeys_nothing(
    worker: FakeWorker, command: tuple[str, ...], more: dict[str, str], attack: Attack
) -> None:
    """Of a server that checks no name."""
    for name in HOSTILE:
        state = (
            {"status": "queued"} if command == ("cancel",) else ended("completed", success=False)
        )
        job_id = worker.add_job(
            **state,
            reason=name,
            exit_code=3,
            exit_words=name,
            project=name,
            image=name,
            message=name,
            spec={"env": {name: name}, "git": {"url": name, "ref": name}, "run": name},
            source={"kind": "upload", "vcs": {"branch": name}},
            container={"name": name, "status": name, "error": name},
            phases=[{"name": name, "seconds": 1.0, "since": None}],
            history=[{"at": name, "from": name, "to": name, "reason": name, "message": name}],
            last_lines=[{"n": 1, "at": name, "stream": name, "text": name}],
        )
        words = command if command == ("list",) else (*command, job_id)
        with on_terminal(worker, *words, **more) as terminal:
            seen = terminal.read_to_end()
            terminal.code()
        assert obeyed(seen) == ""
        assert kept(seen).strip()
    attack(40, tried=len(HOSTILE))
