"""A drain that cannot be undone any more: nobody is told to have undone it."""

from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from ciworker.errors import Conflict
from ciworker.web.context import CONTEXT
from ciworker.web.drain import undo_drain


class Over:
    """It waits for nothing more."""

    wanted = over = True

    def undo(self) -> None:
        raise Conflict("the worker has drained and stops now")


async def test_an_undo_that_comes_too_late_is_refused_and_not_written_down() -> None:
    context: Any = SimpleNamespace(drain=Over())  # nothing to write with
    app = web.Application()
    app[CONTEXT] = context
    with pytest.raises(Conflict):
        await undo_drain(make_mocked_request("DELETE", "/api/v1/drain", app=app))
