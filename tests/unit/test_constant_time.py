"""Secrets are compared in constant time, everywhere: the linter finds where they are not."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.constant_time import leaks

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "source",
    [
        "row.digest == digest(secret)",
        "stored != secret",
        "if a.b.token_secret == given: pass",
        "cookie in cookies",
        "digest(code) not in self._logins",
        "known == self.own_signature(body)",
        "0 < x == bearer",
        "[key for key in kept if key == _digest(code)]",
        "hashlib.sha256(secret).hexdigest() == known",
    ],
)
def test_a_comparison_that_leaks_is_found(source: str) -> None:
    assert [line for line, _ in leaks(f"\n{source}\n")] == [2]


@pytest.mark.parametrize(
    "source",
    [
        "hmac.compare_digest(row.digest, digest(secret))",
        "secret is None",
        "not secret or len(secret) == 43",
        "token.id == other.token.id",
        "digested == 3",
        "secret = 3",
    ],
)
def test_what_tells_nothing_is_let_be(source: str) -> None:
    assert not list(leaks(source))


def test_the_linter_fails_where_it_finds_one_and_names_it(tmp_path: Path) -> None:
    (tmp_path / "good.py").write_text("hmac.compare_digest(digest, other)\n")
    assert run(tmp_path).returncode == 0
    (tmp_path / "bad.py").write_text("\nok = digest == other\n")
    done = run(tmp_path)
    assert done.returncode == 1
    assert f"{tmp_path}/bad.py:2: digest == other: compare secrets with" in done.stdout


@pytest.mark.parametrize("there", ["nothing", "a folder", "a folder of something else"])
def test_the_linter_fails_where_it_has_nothing_to_look_at(tmp_path: Path, there: str) -> None:
    looked = tmp_path / "ciworker"
    if there != "nothing":
        looked.mkdir()
    if there == "a folder of something else":
        (looked / "README.md").write_text("digest == other")
    done = run(ROOT / "ciclient", looked)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"no .py in {looked}: name folders of sources\n"


@pytest.mark.attacks(43)
def test_nothing_of_ours_leaks() -> None:
    done = run(ROOT / "ciworker", ROOT / "ciclient")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert "scripts/constant_time.py ciworker ciclient" in (ROOT / "scripts" / "lint").read_text()


def run(*folders: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "scripts" / "constant_time.py", *folders],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
