"""`/openapi.json`: valid, complete, and generated from what really answers."""

from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from ciworker.settings import Settings
from ciworker.web.access import allowed_hosts
from ciworker.web.openapi import document
from ciworker.web.routes import ROUTES

OPERATIONS = {
    "get /api/v1/audit",
    "get /api/v1/drain",
    "get /api/v1/environments",
    "get /api/v1/events",
    "get /api/v1/jobs",
    "get /api/v1/jobs/{id}",
    "get /api/v1/jobs/{id}/events",
    "get /api/v1/jobs/{id}/log",
    "get /api/v1/jobs/{id}/log/search",
    "get /api/v1/pool",
    "get /api/v1/tokens",
    "get /api/v1/webhooks",
    "get /api/v1/webhooks/deliveries",
    "get /api/v1/webhooks/deliveries/{id}",
    "get /healthz",
    "get /metrics",
    "get /openapi.json",
    "get /readyz",
    "delete /api/v1/drain",
    "delete /api/v1/environments/{id}",
    "delete /api/v1/tokens/{id}",
    "post /api/v1/drain",
    "post /api/v1/environments/prune",
    "post /api/v1/jobs",
    "post /api/v1/hooks/{id}",
    "post /api/v1/jobs/{id}/cancel",
    "post /api/v1/jobs/{id}/retry",
    "post /api/v1/login-codes",
    "post /api/v1/pool/down",
    "post /api/v1/pool/up",
    "post /api/v1/resync",
    "post /api/v1/tokens",
    "post /api/v1/webhooks/deliveries/{id}/redeliver",
    "post /api/v1/webhooks/test",
}
OPEN = {"get /healthz", "get /readyz"}
SIGNED = "post /api/v1/hooks/{id}"  # by who sends it, without a token
NAMES_ONE = {  # in a parameter or its body, not in its path
    "get /api/v1/events",
    "post /api/v1/webhooks/test",
}


@pytest.fixture(scope="module")
def described() -> dict[str, Any]:
    return document(ROUTES)


@pytest.fixture(scope="module")
def operations(described: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        f"{method} {path}": operation
        for path, methods in described["paths"].items()
        for method, operation in methods.items()
    }


def test_the_document_is_valid_openapi_3_1(described: dict[str, Any]) -> None:
    assert described["openapi"].startswith("3.1.")
    assert [error.message for error in OpenAPIV31SpecValidator(described).iter_errors()] == []


def test_the_document_has_every_route_and_only_those(operations: dict[str, Any]) -> None:
    assert set(operations) == OPERATIONS
    assert {f"{route.method.lower()} {route.path}" for route in ROUTES} == OPERATIONS


def test_every_operation_says_what_it_does_under_a_name_of_its_own(
    operations: dict[str, Any],
) -> None:
    assert all(operation["summary"] for operation in operations.values())
    names = [operation["operationId"] for operation in operations.values()]
    assert len(set(names)) == len(names)


def test_every_operation_but_health_needs_a_token_or_a_session_and_may_refuse_it(
    operations: dict[str, Any],
) -> None:
    for name, operation in operations.items():
        refusals = {"403"} if name in OPEN else {"401", "403", "429"}
        either = [] if name in {*OPEN, SIGNED} else ["token", "session"]
        assert operation["security"] == [{way: []} for way in either], name
        assert set(operation["responses"]) & {"401", "403", "429"} == refusals, name
        names_one = "{id}" in name or name in NAMES_ONE
        assert ("404" in operation["responses"]) == names_one, name


def test_every_refusal_is_a_problem_document(operations: dict[str, Any]) -> None:
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    for operation in operations.values():
        for status, answer in operation["responses"].items():
            if status == "default" or int(status) >= 400:
                assert answer["content"] == {"application/problem+json": problem}


def test_no_schema_allows_what_it_does_not_name(described: dict[str, Any]) -> None:
    open_schemas = {
        name
        for name, schema in described["components"]["schemas"].items()
        if schema["type"] == "object" and schema.get("additionalProperties") is not False
    }
    assert open_schemas == {"SubmitForm"}


@pytest.mark.parametrize(
    ("public_url", "wanted"),
    [
        (None, set()),
        ("https://CI.example.org", {"ci.example.org", "ci.example.org:8480"}),
        ("https://ci.example.org:443", {"ci.example.org", "ci.example.org:8480"}),
        ("http://ci.example.org:80", {"ci.example.org", "ci.example.org:8480"}),
        ("https://ci.example.org:8443", {"ci.example.org:8443"}),
        ("https://[2001:db8::1]", {"[2001:db8::1]", "[2001:db8::1]:8480"}),
        ("", set()),
    ],
)
def test_the_hosts_that_are_ours(
    public_url: str | None, wanted: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIWORKER_DATA_DIR", "data")
    local = {"127.0.0.1:8480", "localhost:8480", "[::1]:8480"}
    assert allowed_hosts(Settings(public_url=public_url), 8480) == local | wanted


def test_on_port_80_local_names_have_no_port() -> None:
    assert {"localhost", "127.0.0.1", "[::1]"} <= allowed_hosts(Settings(), 80)
    assert "localhost" not in allowed_hosts(Settings(), 443)
