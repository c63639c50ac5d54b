"""Whoever asks for a log counts as its reader before the job is looked for."""

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from ciworker.errors import Unknown
from ciworker.store.logs import LogReader
from ciworker.store.session import Database
from ciworker.web.context import CONTEXT
from ciworker.web.logs import job_log
from ciworker.web.search import search_log
from tests.store.lab import job_id

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Looked:
    """Jobs, none of which is there; read: those whose log was being read at each look."""

    def __init__(self, logs: LogReader) -> None:
        self._logs = logs
        self.read: list[frozenset[str]] = []

    async def get(self, _job_id: str) -> None:
        self.read.append(self._logs.read_now)


@pytest.mark.parametrize("handler", [job_log, search_log])
async def test_its_log_stays_from_the_look_for_the_job_on(tmp_path: Any, handler: Handler) -> None:
    database = await Database.open(tmp_path / "ciworker.db")
    try:
        logs = LogReader(database)
        jobs, app = Looked(logs), web.Application()
        context: Any = SimpleNamespace(logs=logs, jobs=jobs)
        app[CONTEXT] = context
        asked = {"id": job_id(0).lower()}
        with pytest.raises(Unknown):
            await handler(make_mocked_request("GET", "/?q=x", match_info=asked, app=app))
    finally:
        await database.close()

    assert jobs.read == [{job_id(0)}]
    assert logs.read_now == frozenset()
