"""`/openapi.json` (3.1), generated from the routes and the models behind them."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ciworker import __version__
from ciworker.web.models import LineRecord, Problem
from ciworker.web.routes import Parameter, Route

_REFS = "#/components/schemas/{model}"
_SCHEMES = {
    "token": {"type": "http", "scheme": "bearer"},
    "session": {
        "type": "apiKey",
        "in": "cookie",
        "name": "ciworker-8480",
        "description": "Of a login in a browser; its name ends in the worker's port. What writes "
        "has to come with the worker's own Origin.",
    },
}


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The OpenAPI document of these routes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ciworker",
            "version": __version__,
            "description": "A self-hosted CI worker for Python test suites.",
        },
        "paths": paths,
        "components": {
            "schemas": _schemas(routes),
            "securitySchemes": _SCHEMES,
        },
    }


def _operation(route: Route) -> dict[str, Any]:
    name = getattr(route.handler, "__name__", "")
    operation: dict[str, Any] = {
        "operationId": name,
        "summary": (route.handler.__doc__ or "").strip().partition("\n")[0],
        "parameters": [*_path_parameters(route.path), *map(_parameter, route.parameters)],
        "responses": {str(status): _answer(status, body) for status, body in route.answers.items()}
        | {str(status): _problem(HTTPStatus(status).phrase) for status in route.errors}
        | {"default": _problem("Anything else that went wrong")},
        "security": [{name: []} for name in _SCHEMES] if route.role else [],
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": route.body_required,
            "content": {route.body_type: {"schema": _reference(route.body)}},
        }
    return operation


def _path_parameters(path: str) -> list[dict[str, Any]]:
    if "{id}" not in path:
        return []
    return [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": parameter.type}
    if parameter.choices:
        schema["enum"] = list(parameter.choices)
    return {
        "name": parameter.name,
        "in": parameter.kind,
        "description": parameter.description,
        "schema": schema,
    }


def _answer(status: int, body: type[BaseModel] | str | None) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if isinstance(body, str):
        answer["content"] = {body: {"schema": _streamed(body)}}
        if body == "text/plain":
            answer["content"]["application/x-ndjson"] = {"schema": _reference(LineRecord)}
    elif body is not None:
        answer["content"] = {"application/json": {"schema": _reference(body)}}
    return answer


def _streamed(content_type: str) -> dict[str, str]:
    return {"type": "object" if content_type == "application/json" else "string"}


def _problem(description: str) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": _reference(Problem)}}
    return {"description": description, "content": content}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": _REFS.format(model=model.__name__)}


def _schemas(routes: Sequence[Route]) -> Mapping[str, Any]:
    """Line records are written by hand and leave out `end` when it is true, as one may in input."""
    answers = dict.fromkeys(body for route in routes for body in route.answers.values())
    bodies = dict.fromkeys(route.body for route in routes)
    wanted = [
        *((model, "serialization") for model in (*answers, Problem) if isinstance(model, type)),
        *((model, "validation") for model in (*bodies, LineRecord) if model is not None),
    ]
    _, schema = models_json_schema(wanted, ref_template=_REFS)  # type: ignore[arg-type] # literals
    definitions: Mapping[str, Any] = schema["$defs"]
    return definitions
