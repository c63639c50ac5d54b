"""Who gets in: the Host, the token or the session, the role, on every route of the table."""

import contextlib
import json
import sqlite3
import stat
from collections.abc import Mapping

import pytest
import pytest_asyncio

from ciworker.web.routes import PAGES, ROUTES
from tests.driver import Worker
from tests.e2e.raw import ask, exchange, problem_detail
from tests.e2e.visitor import cookie_of, log_in, log_out, origin

pytestmark = pytest.mark.asyncio(loop_scope="module")

SETTINGS = {
    "public_url": "https://CI.example.org",
    "allowed_hosts": json.dumps(["ci.internal", "other.example:9000"]),
    "failed_token_rate": "off",
}

ID = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
NEEDS = {
    ("POST", "/api/v1/jobs"): "submit",
    ("GET", "/api/v1/jobs"): "read",
    ("GET", "/api/v1/jobs/{id}"): "read",
    ("GET", "/api/v1/jobs/{id}/log"): "read",
    ("GET", "/api/v1/jobs/{id}/log/search"): "read",
    ("GET", "/api/v1/jobs/{id}/events"): "read",
    ("GET", "/api/v1/events"): "read",
    ("POST", "/api/v1/jobs/{id}/cancel"): "submit",
    ("POST", "/api/v1/jobs/{id}/retry"): "submit",
    ("POST", "/api/v1/login-codes"): "read",
    ("POST", "/api/v1/resync"): "admin",
    ("POST", "/api/v1/drain"): "admin",
    ("GET", "/api/v1/drain"): "read",
    ("DELETE", "/api/v1/drain"): "admin",  # whoever walks the table undoes what it did
    ("GET", "/api/v1/environments"): "read",
    ("POST", "/api/v1/environments/prune"): "admin",
    ("DELETE", "/api/v1/environments/{id}"): "admin",
    ("GET", "/api/v1/pool"): "read",
    ("POST", "/api/v1/pool/up"): "admin",
    ("POST", "/api/v1/pool/down"): "admin",
    ("GET", "/api/v1/webhooks"): "admin",
    ("POST", "/api/v1/webhooks/test"): "admin",
    ("GET", "/api/v1/webhooks/deliveries"): "admin",
    ("GET", "/api/v1/webhooks/deliveries/{id}"): "admin",
    ("POST", "/api/v1/webhooks/deliveries/{id}/redeliver"): "admin",
    ("GET", "/api/v1/tokens"): "admin",
    ("POST", "/api/v1/tokens"): "admin",
    ("DELETE", "/api/v1/tokens/{id}"): "admin",
    ("GET", "/api/v1/audit"): "admin",
    ("GET", "/metrics"): "read",
    ("GET", "/openapi.json"): "read",
    ("GET", "/healthz"): None,
    ("GET", "/readyz"): None,
}
SIGNED = ("POST", "/api/v1/hooks/{id}")  # by its sender: no token opens it, see test_hooks
ROLES = ("read", "submit", "admin")


@pytest_asyncio.fixture(loop_scope="module", scope="module", autouse=True)
async def occupied(shared: Worker) -> None:
    """A job runs all the while: a worker that has none ends as soon as it is told to drain."""
    await shared.wait(await shared.submit("sleep 3600", timeout="2h"), "running")


async def new_token(worker: Worker, role: str) -> dict[str, str]:
    body = {"name": f"a {role}", "role": role}
    status, token = await worker.call("POST", "/tokens", json=body)
    assert status == 201
    made: dict[str, str] = token
    return made


async def tokens(worker: Worker) -> list[str]:
    """The ids of all that there are."""
    _, listed = await worker.call("GET", "/tokens")
    return [item["id"] for item in listed["items"]]


async def statuses(worker: Worker, headers: Mapping[str, str]) -> dict[tuple[str, str], int]:
    """What every route of the table answers; bodies of streams are not awaited."""
    found = {}
    for method, path in NEEDS:
        target = path.format(id=ID)
        async with worker.session.request(method, target, headers=headers) as answer:
            found[method, path] = answer.status
            if answer.status in (401, 403):
                problem_detail(answer.status, answer.content_type, await answer.read())
            if answer.status == 401:
                assert answer.headers["WWW-Authenticate"] == "Bearer"
    return found


async def test_the_table_of_this_test_is_the_route_table() -> None:
    assert {(route.method, route.path) for route in ROUTES} == {*NEEDS, SIGNED}


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "Bearer",
        "Bearer ",
        "Bearer nonsense",
        "Bearer ciw_{id}_",
        "Bearer ciw_{id}_wrong",
        "Bearer ciw__{secret}",
        "Bearer {id}_{secret}",
        "Bearer {token}x",
        "Basic {token}",
        "{token}",
    ],
)
@pytest.mark.attacks(37)
async def test_nothing_but_health_opens_without_a_valid_token(
    shared: Worker, authorization: str | None
) -> None:
    _, token_id, secret = shared.token.split("_", 2)
    known = {"id": token_id, "secret": secret, "token": shared.token}
    headers = {"Authorization": authorization.format(**known)} if authorization else {}
    found = await statuses(shared, headers)
    assert found == {route: 401 if role else 200 for route, role in NEEDS.items()}


@pytest.mark.attacks(37)
async def test_a_revoked_token_opens_nothing(shared: Worker) -> None:
    token = await new_token(shared, "admin")
    headers = {"Authorization": f"Bearer {token['token']}"}
    assert (await statuses(shared, headers))["GET", "/api/v1/tokens"] == 200
    status, _ = await shared.call("DELETE", f"/tokens/{token['id']}")
    assert status == 204
    found = await statuses(shared, headers)
    assert found == {route: 401 if role else 200 for route, role in NEEDS.items()}
    assert (await shared.call("DELETE", f"/tokens/{token['id']}"))[0] == 404


@pytest.mark.parametrize("role", ROLES)
async def test_a_role_opens_what_it_needs_to_and_nothing_above(shared: Worker, role: str) -> None:
    token = await new_token(shared, role)
    found = await statuses(shared, {"Authorization": f"Bearer {token['token']}"})
    allowed = (None, *ROLES[: ROLES.index(role) + 1])
    for route, needed in NEEDS.items():
        assert (found[route] not in (401, 403)) == (needed in allowed), (route, found[route])
        assert found[route] in (403, 200, 201, 202, 204, 404, 415), (route, found[route])


# sessions

WRITES = [route for route in NEEDS if route[0] not in ("GET", "HEAD") and NEEDS[route]]


@pytest.mark.parametrize("role", ROLES)
async def test_a_session_opens_what_its_token_does(shared: Worker, role: str) -> None:
    token = await new_token(shared, role)
    mine = await statuses(shared, {"Authorization": f"Bearer {token['token']}"})
    found = await statuses(shared, await log_in(shared, token["token"]) | origin(shared))
    assert found == mine


@pytest.mark.attacks(37)
async def test_no_session_that_is_wrong_opens_anything(shared: Worker) -> None:
    (pair,) = (await log_in(shared)).values()
    name, _, text = pair.partition("=")
    session_id, _, secret = text.partition("_")
    wrong = [
        "ciworker=" + text,
        f"ciworker-{shared.port + 1}={text}",
        f"{name}=",
        f"{name}={text}x",
        f"{name}={session_id}_wrong",
        f"{name}=_{secret}",
        f"{name}={secret}",
        f"{name}={shared.token}",
        f"{name}=%00",
        f"{name}; {text}",
        text,
    ]
    for cookie in wrong:
        found = await statuses(shared, {"Cookie": cookie} | origin(shared))
        assert found == {route: 401 if role else 200 for route, role in NEEDS.items()}, cookie
    for junk in (b"\xff\xfe", "é".encode(), b"\x80" * 3000):
        headers = {"Cookie": f"{name}=".encode() + junk}
        answer = await ask(shared, "GET", "/api/v1/jobs", headers)
        assert (answer.status, bool(answer.problem)) == (401, True)


@pytest.mark.attacks(37)
async def test_a_session_that_is_over_opens_nothing(shared: Worker) -> None:
    token = await new_token(shared, "admin")
    revoked, ended, expired = [await log_in(shared, token["token"]) for _ in range(3)]
    for cookie in (revoked, ended, expired):
        assert (await statuses(shared, cookie))["GET", "/api/v1/tokens"] == 200
    await log_out(shared, ended)
    expired_id = cookie_of(expired).partition("_")[0]
    with contextlib.closing(sqlite3.connect(shared.data_dir / "ciworker.db")) as store, store:
        store.execute("UPDATE session SET expires_at = created_at WHERE id = ?", [expired_id])
    for cookie in (ended, expired):
        found = await statuses(shared, cookie | origin(shared))
        assert found == {route: 401 if role else 200 for route, role in NEEDS.items()}
    assert (await statuses(shared, revoked))["GET", "/api/v1/tokens"] == 200
    assert (await shared.call("DELETE", f"/tokens/{token['id']}"))[0] == 204
    found = await statuses(shared, revoked | origin(shared))
    assert found == {route: 401 if role else 200 for route, role in NEEDS.items()}


def foreign_origins(port: int) -> list[str]:
    return [
        "null",
        "",
        "http://evil.example",
        f"http://evil.example:{port}",
        f"http://127.0.0.1:{port + 1}",
        f"http://localhost:{port}",  # ours as well, but not the one that was asked
        "http://127.0.0.1",
        f"http://127.0.0.1:{port}/",
        f"http://127.0.0.1:{port}.evil.example",
        f"http://evil.example@127.0.0.1:{port}",
        f"ftp://127.0.0.1:{port}",
        f"127.0.0.1:{port}",
        f"http://127.0.0.1:{port} http://evil.example",
        "http://ci.example.org",  # our public_url is https
        "https://ci.example.org:8443",
        "https://ci.example.org.evil.example",
    ]


@pytest.mark.attacks(38)
async def test_a_session_writes_from_our_own_pages_alone(shared: Worker) -> None:
    cookie = await log_in(shared)
    before = await tokens(shared)
    for sent in (None, *foreign_origins(shared.port)):
        for method, path in WRITES:
            headers = cookie if sent is None else cookie | {"Origin": sent}
            answer = await ask(shared, method, path.format(id=ID), headers)
            assert (answer.status, "Origin" in answer.problem) == (403, True), (sent, path)
    assert await tokens(shared) == before
    for scheme in ("http", "https"):  # a proxy before us may speak TLS
        own = cookie | {"Origin": f"{scheme}://127.0.0.1:{shared.port}"}
        assert (await ask(shared, "POST", "/api/v1/resync", own)).status == 200


async def test_behind_a_proxy_that_asks_by_another_host_our_origin_is_the_public_url_s(
    shared: Worker,
) -> None:
    proxied = await log_in(shared) | {"Origin": "https://ci.example.org"}
    for host in (f"127.0.0.1:{shared.port}", "ci.internal", "ci.example.org"):
        answer = await ask(shared, "POST", "/api/v1/resync", proxied | {"Host": host})
        assert answer.status == 200
    foreign_one = proxied | {"Host": "ci.internal", "Origin": "https://evil.example"}
    answer = await ask(shared, "POST", "/api/v1/resync", foreign_one)
    ours = "http://ci.internal, https://ci.internal, https://ci.example.org:"
    assert (answer.status, ours in answer.problem) == (403, True)


async def test_a_session_reads_whatever_the_origin_and_no_other_site_is_let_see_it(
    shared: Worker,
) -> None:
    cookie = await log_in(shared)
    for sent in foreign_origins(shared.port):
        answer = await ask(shared, "GET", "/api/v1/jobs", cookie | {"Origin": sent})
        assert answer.status == 200
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_a_token_needs_no_origin_and_counts_alone(shared: Worker) -> None:
    cookie = await log_in(shared)
    for sent in ({}, {"Origin": "http://evil.example"}):
        answer = await ask(shared, "POST", "/api/v1/resync", shared.headers | cookie | sent)
        assert answer.status == 200
    for wrong in ("Bearer nonsense", "Bearer", "Basic x", ""):
        headers = cookie | origin(shared) | {"Authorization": wrong}
        assert (await ask(shared, "GET", "/api/v1/jobs", headers)).status == 401


async def test_the_scheme_is_read_in_any_case_and_a_token_in_the_address_is_none(
    shared: Worker,
) -> None:
    async with shared.session.get(
        "/api/v1/jobs", headers={"Authorization": f"bEARER {shared.token}"}
    ) as answer:
        assert answer.status == 200
    async with shared.session.get("/api/v1/jobs", params={"token": shared.token}) as answer:
        assert answer.status == 401


@pytest.mark.parametrize(
    "junk", [b"\xff\xfe", "ciw_é_é".encode(), b"ciw_\xff_\xff", b"\x80" * 3000]
)
async def test_a_token_that_is_no_text_is_a_wrong_token(shared: Worker, junk: bytes) -> None:
    answer = await ask(shared, "GET", "/api/v1/jobs", {"Authorization": b"Bearer " + junk})
    assert (answer.status, "wrong or revoked" in answer.problem) == (401, True)


async def test_a_listed_token_shows_neither_secret_nor_hash(shared: Worker) -> None:
    token = await new_token(shared, "read")
    status, listed = await shared.call("GET", "/tokens")
    assert status == 200
    assert {"id", "name", "role", "created_at", "revoked_at", "expires_at", "last_used_at"} == set(
        listed["items"][-1]
    )
    assert token["id"] in [item["id"] for item in listed["items"]]
    assert token["token"].split("_", 2)[2] not in json.dumps(listed)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{}", 422),
        (b"[]", 422),
        (b"", 422),
        (b"\xff", 422),
        (b'{"name": "", "role": "read"}', 422),
        (b'{"name": "x", "role": "root"}', 422),
        (b'{"name": "x", "role": "read", "id": "1"}', 422),
        (b'{"name": "a\\u0000", "role": "read"}', 422),
        (b'{"name": "' + b"x" * 100_000 + b'", "role": "read"}', 413),
    ],
)
async def test_a_token_request_that_is_wrong_is_refused(
    shared: Worker, body: bytes, status: int
) -> None:
    before = await tokens(shared)
    headers = shared.headers | {"Content-Type": "application/json"}
    answer = await ask(shared, "POST", "/api/v1/tokens", headers, body)
    assert (answer.status, bool(answer.problem)) == (status, True)
    assert await tokens(shared) == before


@pytest.mark.attacks(38)
async def test_json_that_calls_itself_text_is_refused(shared: Worker) -> None:
    headers = shared.headers | {"Content-Type": "text/plain"}
    body = b'{"name": "x", "role": "read"}'
    answer = await ask(shared, "POST", "/api/v1/tokens", headers, body)
    assert (answer.status, "application/json" in answer.problem) == (415, True)


# the Host

EVERYWHERE = [
    *NEEDS,
    *((method, path) for method, path, _ in PAGES),
    ("GET", "/no/such/thing"),
    ("PUT", "/healthz"),
]


def foreign(port: int) -> list[str]:
    return [
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1",
        "localhost",
        "[::1]",
        f"127.0.0.1:{port + 1}",
        f"127.0.0.1:{port}.evil.example",
        f"127.0.0.1.evil.example:{port}",
        f"ci.example.org.evil.example:{port}",
        f"ci.example.org@evil.example:{port}",
        "ci.example.org:9000",
        "other.example",
        f"other.example:{port}",
        f"::1:{port}",
        "",
        "*",
    ]


@pytest.mark.attacks(38)
async def test_a_foreign_host_opens_nothing_on_any_route(shared: Worker) -> None:
    hosts = foreign(shared.port)
    for method, path in EVERYWHERE:
        headers = shared.headers | {
            "Host": hosts[0],
            "X-Forwarded-Host": f"localhost:{shared.port}",
        }
        answer = await ask(shared, method, path.format(id=ID, name="login.js"), headers)
        assert answer.status == 403, (method, path)
        assert "Host" in answer.problem
    for host in hosts:
        answer = await ask(shared, "GET", "/healthz", {"Host": host})
        assert answer.status == 403, host
        assert "allowed_hosts" in answer.problem


@pytest.mark.attacks(38)
async def test_no_host_at_all_opens_nothing(shared: Worker) -> None:
    answer = await exchange(shared, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert (answer.status, "Host" in answer.problem) == (403, True)


@pytest.mark.attacks(38)
async def test_two_hosts_open_nothing(shared: Worker) -> None:
    own = f"Host: localhost:{shared.port}\r\n"
    for pair in (own + "Host: evil.example\r\n", "Host: evil.example\r\n" + own):
        request = f"GET /healthz HTTP/1.1\r\n{pair}Connection: close\r\n\r\n"
        assert (await exchange(shared, request.encode())).status in (400, 403)


async def test_our_own_names_are_let_in(shared: Worker) -> None:
    port = shared.port
    local = [f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}", f"LocalHost:{port}"]
    named = ["ci.example.org", f"ci.example.org:{port}", "ci.internal", f"ci.internal:{port}"]
    for host in (*local, *named, "CI.INTERNAL", "other.example:9000"):
        answer = await ask(shared, "GET", "/healthz", {"Host": host})
        assert (answer.status, json.loads(answer.body)) == (200, {"status": "ok"}), host


# where there is nothing


@pytest.mark.parametrize(
    "target",
    [
        "/api/v1/jobs/nope",
        "/api/v1/jobs/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/api/v1/jobs/%00",
        "/api/v1/jobs/%ff%fe",
        "/api/v1/jobs/%ed%a0%80",
        "/api/v1/jobs/%E2%80%AE",
        "/api/v1/jobs/" + "A" * 5000,
        "/api/v1/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV/log/",
        "/api/v1/jobs/",
        "//api/v1/jobs",
        "/api/v1/../v1/nope",
        "/%2e%2e/etc/passwd",
        "/static/../../etc/passwd",
        "/static",
        "/static/",
        "/static/nope.js",
        "/static/login.html",
        "/static/%2e%2e%2fpages.py",
        "/static/..%5cpages.py",
        "/static/%00",
        "/static/%ff",
        "/static/login.js/",
        "/jobs",
        "/jobs/",
        "/jobs/x/y",
        "/login/",
        "/nope?x=%zz",
        "/favicon.ico",
    ],
)
async def test_where_there_is_nothing_is_a_problem_404(shared: Worker, target: str) -> None:
    answer = await ask(shared, "GET", target, shared.headers)
    assert (answer.status, bool(answer.problem)) == (404, True)


async def test_a_token_id_that_is_no_text_is_unknown(shared: Worker) -> None:
    for target in ("/api/v1/tokens/%ff", "/api/v1/tokens/%00", "/api/v1/tokens/%ed%a0%80"):
        answer = await ask(shared, "DELETE", target, shared.headers)
        assert (answer.status, "no token" in answer.problem) == (404, True)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/v1/jobs", "GET, POST"),
        ("PUT", "/api/v1/jobs/x", "GET"),
        ("GET", "/api/v1/resync", "POST"),
        ("POST", "/healthz", "GET"),
        ("OPTIONS", "/api/v1/jobs", "GET, POST"),
        ("PATCH", "/openapi.json", "GET"),
    ],
)
async def test_a_wrong_method_is_told_the_right_ones(
    shared: Worker, method: str, path: str, allowed: str
) -> None:
    answer = await ask(shared, method, path, shared.headers)
    assert (answer.status, answer.headers["allow"]) == (405, allowed)
    assert allowed in answer.problem


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"\x16\x03\x01\x02\x00\x01\r\n\r\n",
        b"GET / HTTP/x\r\n\r\n",
        b"FROB /healthz HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_refused_and_the_worker_answers_on(
    shared: Worker, request_bytes: bytes
) -> None:
    assert (await exchange(shared, request_bytes)).status == 400
    assert (await ask(shared, "GET", "/healthz")).status == 200


async def test_nobody_else_on_the_machine_can_read_the_data_folder(shared: Worker) -> None:
    mounted = shared.data_dir / "hosts"  # into containers, whose user reads it
    assert stat.S_IMODE(mounted.stat().st_mode) == 0o644
    for path in {shared.data_dir, *shared.data_dir.rglob("*")} - {mounted}:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
