"""The aiohttp application: middlewares, routes, and the document that describes them."""

import logging
from collections.abc import Collection

import orjson
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.log import server_logger

from ciworker.web.access import host_check
from ciworker.web.context import CONTEXT, Context
from ciworker.web.openapi import document
from ciworker.web.pages import ASSETS, read_assets
from ciworker.web.problems import problems
from ciworker.web.routes import DOCUMENT, PAGES, ROUTES, guarded

MOST_SMALL_BODY = 64 * 2**10


def _worth_telling(record: logging.LogRecord) -> bool:
    """aiohttp logs a traceback for whatever is no HTTP, and any stranger can send that."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def application(context: Context, hosts: Collection[str]) -> web.Application:
    """Everything that answers on the worker's port."""
    server_logger.addFilter(_worth_telling)
    app = web.Application(
        middlewares=[host_check(hosts), problems], client_max_size=MOST_SMALL_BODY
    )
    app[CONTEXT] = context
    app[ASSETS] = read_assets()
    app[DOCUMENT] = orjson.dumps(document(ROUTES), option=orjson.OPT_INDENT_2)
    for route in ROUTES:
        handler = guarded(route.handler, route.role)
        app.router.add_route(route.method, route.path, handler)
    for method, path, page in PAGES:
        app.router.add_route(method, path, page)
    return app
