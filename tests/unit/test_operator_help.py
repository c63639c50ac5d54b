"""What `ciworker` tells of itself."""

from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from ciworker.cli.commands import cli


def test_the_version_is_the_package_s() -> None:
    shown = CliRunner().invoke(cli, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"ciworker {version('ciworker')}\n")


@pytest.mark.parametrize("word", ["-h", "--help"])
@pytest.mark.parametrize("command", ["", "serve", "token", "token revoke", "pool up", "doctor"])
def test_help_is_there_for_every_command(command: str, word: str) -> None:
    shown = CliRunner().invoke(cli, [*command.split(), word])
    assert shown.exit_code == 0
    assert f"ciworker {command}".strip() in shown.output
