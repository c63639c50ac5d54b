"""Logging: structlog, to a console as lines for people, elsewhere as JSON.

What a line is about (`job`, `environment`, `container`) the controller binds to the context of its
look. A task that is spawned meanwhile starts with a copy of that: so the log pump's and the
sender's lines carry their job's id too. A pull is of all jobs that wait for it, and carries none.
"""

import logging
import sys
from typing import Literal

import structlog

from ciworker.harmless import harmless

LogFormat = Literal["auto", "console", "json"]


def configure(log_format: LogFormat) -> None:
    """Set up structlog once, for the process; everything goes to stderr."""
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
        if console
        else structlog.processors.JSONRenderer()
    )
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        renderer,
    ]
    processors.insert(-1, _harmless if console else structlog.processors.format_exc_info)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _harmless(_: object, __: str, told: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What others named commands no terminal; JSON has no control characters anyway."""
    return {
        key: harmless(value) if isinstance(value, str) else value for key, value in told.items()
    }


def logger() -> structlog.typing.FilteringBoundLogger:
    """A logger of the process's configuration."""
    bound: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return bound
