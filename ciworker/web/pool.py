"""The runner pool, for the operator's commands: what there is, up, down."""

from aiohttp import web

from ciworker.store.audit import Action
from ciworker.telemetry import logger
from ciworker.web.access import TOKEN
from ciworker.web.answers import json_answer
from ciworker.web.audit import record
from ciworker.web.context import CONTEXT


async def show_pool(request: web.Request) -> web.Response:
    """What is wanted of the pool, and its members as the engine lists them."""
    return json_answer(await request.app[CONTEXT].pool.status())


async def pool_up(request: web.Request) -> web.Response:
    """Have all members that the settings name and no others, from now on."""
    return await _turn(request, down=False)


async def pool_down(request: web.Request) -> web.Response:
    """Remove all members and have none, until the pool is wanted up again."""
    return await _turn(request, down=True)


async def _turn(request: web.Request, *, down: bool) -> web.Response:
    await record(request, Action.POOL_DOWN if down else Action.POOL_UP)
    logger().info("pool", wanted="down" if down else "up", by=request[TOKEN].name)
    return json_answer(await request.app[CONTEXT].pool.turn(down=down))
