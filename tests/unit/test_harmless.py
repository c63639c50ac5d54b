"""Foreign text in what the worker's own programs print: a terminal obeys none of it."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciworker.harmless import harmless
from tests.unit.client.screen import HOSTILE, obeyed

pytestmark = pytest.mark.attacks(40)


@given(
    st.text() | st.text(st.sampled_from("\x1b[]0;mJ\x07\x9b\x9d\r\n\x7f\u202e\u2066\u061cab\ud800"))
)
def test_of_any_text_nothing_is_left_to_obey(text: str) -> None:
    shown = harmless(text)
    assert obeyed(shown.encode()) == ""
    assert "\n" not in shown
    assert len(shown) == len(text)


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_ordinary_text_is_not_touched(text: str) -> None:
    assert harmless(text) == text


LOGGING = """
import sys
from ciworker.telemetry import configure, logger
configure("console")
for name in sys.argv[1:]:
    logger().warning("odd", error=name, job=name.replace(" ", ""))
    logger().info(name)
"""


def test_the_log_on_a_console_is_text_and_colours() -> None:
    argv = [sys.executable, "-c", LOGGING, *HOSTILE]
    seen = subprocess.run(argv, check=True, capture_output=True).stderr
    assert b"clipboard" in seen
    assert obeyed(seen) == ""
