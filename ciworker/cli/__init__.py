"""The operator's command line."""

from ciworker.cli.commands import run

__all__ = ["run"]
