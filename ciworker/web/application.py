"""The aiohttp application: middlewares, routes, and the document that describes them."""

from collections.abc import Collection

import orjson
from aiohttp import web

from ciworker.store.tokens import Role
from ciworker.web.access import host_check
from ciworker.web.context import CONTEXT, Context
from ciworker.web.openapi import document
from ciworker.web.problems import problems
from ciworker.web.routes import ROUTES, guarded


def application(context: Context, hosts: Collection[str]) -> web.Application:
    """Everything that answers on the worker's port."""
    app = web.Application(middlewares=[host_check(hosts), problems])
    app[CONTEXT] = context
    for route in ROUTES:
        handler = guarded(route.handler, route.role)
        app.router.add_route(route.method, route.path, handler)
    described = orjson.dumps(document(ROUTES), option=orjson.OPT_INDENT_2)

    async def openapi(_request: web.Request) -> web.Response:
        return web.Response(body=described, content_type="application/json")

    app.router.add_get("/openapi.json", guarded(openapi, Role.READ))
    return app
