"""A walk over the routes that the application has: none can be forgotten.

Nothing but what the contract leaves open answers without a good token; nothing at all answers a
foreign Host; nothing that writes answers a page of another site.
"""

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any, cast

import pytest
import pytest_asyncio

from ciworker.store.audit import Action
from ciworker.store.tokens import Role
from ciworker.web.application import application
from ciworker.web.routes import ROUTES
from tests.conftest import Attack
from tests.driver import Worker
from tests.e2e.raw import Answer, ask
from tests.e2e.test_access import foreign, new_token
from tests.e2e.visitor import log_in, origin

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {"failed_token_rate": "off", "public_url": "https://ci.example.org"}

Route = tuple[str, str]
OPEN: frozenset[Route] = frozenset(
    {
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        ("GET", "/login"),
        ("POST", "/login"),
        ("GET", "/static/{name}"),
    }
)
LED_TO_LOGIN: frozenset[Route] = frozenset(
    {("GET", "/"), ("GET", "/jobs/{id}"), ("POST", "/logout")}
)
SIGNED: Route = ("POST", "/api/v1/hooks/{id}")
"""It asks for a forge's signature instead of a token, whatever else comes along."""

ROLES = {(route.method, route.path): route.role for route in ROUTES}


def walked() -> list[Route]:
    """All routes as aiohttp's own router has them."""
    app = application(cast("Any", None), [])
    found = [
        (route.method, route.resource.canonical)
        for route in app.router.routes()
        if route.resource is not None
    ]
    assert len(found) == len(app.router.routes()) > 30
    return found


_API = "/api/v1"
DEEDS: Mapping[Route, Action | None] = {
    ("POST", f"{_API}/jobs"): Action.SUBMIT,
    ("POST", f"{_API}/jobs/{{id}}/cancel"): Action.CANCEL,
    ("POST", f"{_API}/jobs/{{id}}/retry"): Action.RETRY,
    ("POST", f"{_API}/resync"): Action.RESYNC,
    ("POST", f"{_API}/drain"): Action.DRAIN,
    ("DELETE", f"{_API}/drain"): Action.UNDO_DRAIN,
    ("POST", f"{_API}/environments/prune"): Action.PRUNE_ENVIRONMENTS,
    ("DELETE", f"{_API}/environments/{{id}}"): Action.REMOVE_ENVIRONMENT,
    ("POST", f"{_API}/pool/up"): Action.POOL_UP,
    ("POST", f"{_API}/pool/down"): Action.POOL_DOWN,
    ("POST", f"{_API}/webhooks/test"): Action.TEST_WEBHOOKS,
    ("POST", f"{_API}/webhooks/deliveries/{{id}}/redeliver"): Action.REDELIVER,
    ("POST", f"{_API}/tokens"): Action.CREATE_TOKEN,
    ("DELETE", f"{_API}/tokens/{{id}}"): Action.REVOKE_TOKEN,
    ("POST", f"{_API}/login-codes"): None,  # whoever uses it logs in
    SIGNED: Action.SUBMIT,
    ("POST", "/login"): Action.LOG_IN,
    ("POST", "/logout"): Action.LOG_OUT,
}
"""What each route that writes leaves in the audit history; `test_audit` drives them all."""

GUARDED = [route for route in walked() if route not in OPEN | LED_TO_LOGIN]
WRITING = [route for route in walked() if route[0] not in ("GET", "HEAD")]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def job(shared: Worker) -> str:
    """One that runs all the while; an attack that got through would end it."""
    running = await shared.submit("sleep 3600", timeout="2h")
    await shared.wait(running, "running")
    return running


@contextlib.contextmanager
def untouched(shared: Worker) -> Iterator[None]:
    """Within the block nothing is changed by anybody, as the store tells it."""

    def told() -> list[tuple[Any, ...]]:
        tables = ("job", "job_event", "token", "session", "submission", "audit", "environment")
        with contextlib.closing(sqlite3.connect(shared.data_dir / "ciworker.db")) as store:
            kept = [store.execute(f"SELECT * FROM {table}").fetchall() for table in tables]
        return [tuple(rows) for rows in kept]

    def without_last_use() -> object:
        found = told()
        return [found[0], found[1], [row[:-1] for row in found[2]], *found[3:]]

    before = without_last_use()
    yield
    assert without_last_use() == before


def target(route: Route, job: str) -> str:
    return route[1].format(id="github" if route == SIGNED else job, name="login.js")


async def knocks(worker: Worker, route: Route, job: str, headers: Mapping[str, str]) -> Answer:
    return await ask(worker, route[0], target(route, job), headers)


def opened(route: Route, answer: Answer) -> bool:
    """Whether it answered more than that nobody is let in."""
    if route in LED_TO_LOGIN:
        return not (
            answer.status == 403
            or (answer.status == 303 and answer.headers["location"].startswith("/login"))
        )
    return not (answer.status in (401, 403) and answer.problem)


async def bad_credentials(worker: Worker) -> dict[str, dict[str, str]]:
    """Headers that open nothing, each of its kind."""
    revoked, expired, ended = [await new_token(worker, "admin") for _ in range(3)]
    sessions = [await log_in(worker, each["token"]) for each in (revoked, expired)]
    assert (await worker.call("DELETE", f"/tokens/{revoked['id']}"))[0] == 204
    with contextlib.closing(sqlite3.connect(worker.data_dir / "ciworker.db")) as store, store:
        over = "UPDATE token SET expires_at = created_at WHERE id = ?"
        store.execute(over, [expired["id"]])
    name = f"ciworker-{worker.port}"
    bearers = {
        "wrong": "ciw_a_b",
        "the id alone": f"ciw_{ended['id']}_",
        "one byte more": f"{ended['token']}x",
        "revoked": revoked["token"],
        "expired": expired["token"],
    }
    own = origin(worker)
    return {
        "none": {},
        **{kind: {"Authorization": f"Bearer {text}"} for kind, text in bearers.items()},
        "basic": {"Authorization": f"Basic {ended['token']}"},
        "a wrong session": {"Cookie": f"{name}=a_b", **own},
        "a token as a session": {"Cookie": f"{name}={ended['token']}", **own},
        "a session of a revoked token": {**sessions[0], **own},
        "a session of an expired token": {**sessions[1], **own},
    }


@pytest.mark.attacks(37)
async def test_no_route_but_the_open_ones_answers_without_a_good_token(
    shared: Worker, job: str, attack: Attack
) -> None:
    bad = await bad_credentials(shared)
    tried, through = 0, list[tuple[str, Route, int]]()
    with untouched(shared):
        for kind, headers in bad.items():
            for route in (*GUARDED, *LED_TO_LOGIN):
                answer = await knocks(shared, route, job, headers)
                tried += 1
                if opened(route, answer):
                    through.append((kind, route, answer.status))
    assert not through
    attack(37, tried=tried, through=len(through))


@pytest.mark.attacks(37)
async def test_no_route_answers_a_token_of_a_lower_role(
    shared: Worker, job: str, attack: Attack
) -> None:
    tokens = {role: await new_token(shared, role.label) for role in Role}
    tried, through = 0, list[tuple[str, Route, int]]()
    with untouched(shared):
        for route in [route for route in GUARDED if route != SIGNED]:
            needed = ROLES[route]
            assert needed is not None
            for role in (role for role in Role if role < needed):
                headers = {"Authorization": f"Bearer {tokens[role]['token']}"}
                answer = await knocks(shared, route, job, headers)
                tried += 1
                if answer.status != 403 or role.label not in answer.problem:
                    through.append((role.label, route, answer.status))
    assert not through
    assert tried > 20
    attack(37, tried=tried, through=len(through))


@pytest.mark.attacks(38)
async def test_no_route_at_all_answers_a_foreign_host(
    shared: Worker, job: str, attack: Attack
) -> None:
    tried, through = 0, list[tuple[str, Route, int]]()
    with untouched(shared):
        for host in foreign(shared.port):
            for route in walked():
                headers = {**shared.headers, "Host": host}
                answer = await knocks(shared, route, job, headers)
                tried += 1
                if answer.status != 403 or "Host" not in answer.problem:
                    through.append((host, route, answer.status))
    assert not through
    attack(38, tried=tried, through=len(through))


@pytest.mark.attacks(38)
@pytest.mark.parametrize(
    "body",
    [
        ("application/x-www-form-urlencoded", b"name=x&role=admin"),
        ("multipart/form-data; boundary=b", b"--b--\r\n"),
        ("text/plain", json.dumps({"name": "x", "role": "admin"}).encode()),
        ("text/plain; charset=application/json", b"{}"),
        ("application/json", b"{}"),
    ],
    ids=lambda body: body[0],
)
async def test_no_route_that_writes_answers_a_page_of_another_site(
    shared: Worker, job: str, attack: Attack, body: tuple[str, bytes]
) -> None:
    """A browser sends its cookie along, and says whose page it was."""
    cookie = await log_in(shared)
    tried, through = 0, list[tuple[str | None, Route, int]]()
    sites = (None, "null", "https://evil.example", f"http://127.0.0.1:{shared.port + 1}")
    with untouched(shared):
        for site in sites:
            for route in WRITING:
                sent = {**cookie, "Content-Type": body[0]}
                if site is not None:
                    sent["Origin"] = site
                answer = await ask(shared, route[0], target(route, job), sent, body[1])
                tried += 1
                if answer.status != (401 if route == SIGNED else 403):
                    through.append((site, route, answer.status))
    assert not through
    attack(38, tried=tried, through=len(through))


async def test_what_the_contract_leaves_open_is_open_and_is_there(shared: Worker, job: str) -> None:
    assert set(walked()) >= OPEN | LED_TO_LOGIN
    for route in OPEN - {("POST", "/login")}:
        assert (await knocks(shared, route, job, {})).status == 200, route
    assert {route for route, role in ROLES.items() if role is None} <= OPEN | {SIGNED}


async def test_of_every_route_that_writes_it_is_known_what_is_told_of_it() -> None:
    assert set(DEEDS) == set(WRITING)
    assert {*DEEDS.values()} - {None} == set(Action)


async def test_the_job_runs_on(shared: Worker, job: str) -> None:
    assert (await shared.job(job))["status"] == "running"
