"""Property-based: whatever stands in headers, parameters and job files, the answer is foreseen."""

import time
from dataclasses import dataclass
from math import inf
from urllib.parse import quote_from_bytes

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Attack
from tests.driver import Worker, tree
from tests.e2e.conftest import spooled
from tests.e2e.raw import FORM, Answer, ask, form

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.fuzz]

SETTINGS = {"failed_token_rate": "off", "submit_rate": "off", "max_jobs": "1"}
EXAMPLES = 60
MOST = 3000
WITHIN = 300.0  # seconds, after which the rest of so many is left out
bounded = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
)
bounded_for_long = settings(bounded, max_examples=MOST, derandomize=False)

# What a header may hold (RFC 9110, 5.5); the rest is no HTTP, and refused before it is ours.
_NONE = bytes({*range(0x20), 0x7F} - {0x09})
HEADER = st.binary(max_size=80).map(lambda raw: raw.translate(None, _NONE))
NUMBERS = st.one_of(
    st.integers().map(lambda n: str(n).encode()),
    st.sampled_from([b"end", b"-1", b"+1", b"1_0", b"1e3", b"0x1", b" 1", b"\xb2", b"NaN"]),
    HEADER,
)
VALUES = st.one_of(NUMBERS, st.binary(max_size=60))
TARGETS = st.sampled_from(
    [
        ("/api/v1/jobs/{job}/log", ("from", "tail", "limit", "stream", "timestamps")),
        ("/api/v1/jobs/{job}/log/search", ("q", "regex", "from", "limit", "total")),
        ("/api/v1/jobs/{job}/events", ("from", "tail", "now")),
        ("/api/v1/jobs", ("status", "project", "limit", "cursor")),
        ("/api/v1/audit", ("since", "limit", "cursor")),
    ]
)
WORDS = st.one_of(
    st.sampled_from(["image", "run", "timeout", "memory", "cpus", "network", "env", "project"]),
    st.text(max_size=12),
)
JOB_FILES = st.one_of(
    st.text(max_size=200),
    st.dictionaries(WORDS, st.one_of(st.integers(), st.booleans(), st.text(max_size=20))).map(
        lambda keys: "\n".join(f"{name!r} = {_toml(value)}" for name, value in keys.items())
    ),
)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def ended(shared: Worker) -> str:
    """A job with a short log."""
    return str((await shared.run("seq 9"))["id"])


@dataclass
class Long:
    """How long there are new examples, monotonic, and how many there were."""

    until: float
    done: int = 0


@pytest.fixture(scope="module")
def long() -> Long:
    return Long(time.monotonic() + WITHIN)


def foreseen(answer: Answer, *statuses: int) -> None:
    """One of these, or a problem document that is the asker's fault."""
    if answer.status in statuses:
        return
    assert 400 <= answer.status < 500, (answer.status, answer.body)
    assert answer.problem


async def fuzz_last_event_id(worker: Worker, job: str, raw: bytes) -> None:
    for path in (f"/api/v1/jobs/{job}/events", f"/api/v1/jobs/{job}/events?tail=3"):
        headers: dict[str, str | bytes] = {**worker.headers, "Last-Event-ID": raw}
        foreseen(await ask(worker, "GET", path, headers), 200, 204)


async def fuzz_host(worker: Worker, raw: bytes) -> None:
    own = {f"{name}:{worker.port}".encode() for name in ("127.0.0.1", "localhost", "[::1]")}
    answer = await ask(worker, "GET", "/healthz", {"Host": raw})
    if raw.strip().lower() not in own:
        assert answer.status in (400, 403)
    foreseen(answer, 200)


async def fuzz_parameters(
    worker: Worker, job: str, target: tuple[str, tuple[str, ...]], values: list[bytes]
) -> None:
    path, names = target
    given_ones = zip(names, values, strict=False)
    query = "&".join(f"{name}={quote_from_bytes(raw, safe='')}" for name, raw in given_ones)
    answer = await ask(worker, "GET", f"{path.format(job=job)}?{query}", worker.headers)
    foreseen(answer, 200, 204)


async def fuzz_job_file(worker: Worker, text: str) -> None:
    """What it says runs, or is refused and leaves nothing; a job that runs is ended at once."""
    before = spooled(worker)
    body = form(tree({".ciworker.toml": text.encode(errors="replace")}), {"run": "true"})
    headers = worker.headers | {"Content-Type": FORM}
    answer = await ask(worker, "POST", "/api/v1/jobs", headers, body)
    foreseen(answer, 201)
    if answer.status == 201:
        await ask(worker, "POST", answer.headers["location"] + "/cancel", worker.headers)
    else:
        assert spooled(worker) == before


@bounded
@given(NUMBERS)
async def test_any_last_event_id_is_answered(shared: Worker, ended: str, raw: bytes) -> None:
    await fuzz_last_event_id(shared, ended, raw)


@pytest.mark.attacks(38)
@bounded
@given(HEADER)
async def test_any_host_but_ours_is_refused(shared: Worker, raw: bytes) -> None:
    await fuzz_host(shared, raw)


@bounded
@given(TARGETS, st.lists(VALUES, max_size=5))
async def test_any_parameters_are_answered(
    shared: Worker, ended: str, target: tuple[str, tuple[str, ...]], values: list[bytes]
) -> None:
    await fuzz_parameters(shared, ended, target, values)


@pytest.mark.attacks(34)
@bounded
@given(JOB_FILES)
async def test_any_job_file_is_answered(shared: Worker, text: str) -> None:
    await fuzz_job_file(shared, text)


@pytest.mark.chaos
@pytest.mark.timeout(600)
@bounded_for_long
@given(NUMBERS, HEADER, TARGETS, st.lists(VALUES, max_size=5), JOB_FILES)
async def test_as_many_as_there_is_time_for_are_answered(
    shared: Worker,
    ended: str,
    long: Long,
    last: bytes,
    host: bytes,
    target: tuple[str, tuple[str, ...]],
    values: list[bytes],
    text: str,
) -> None:
    if time.monotonic() > long.until:
        return
    until, long.until = long.until, inf  # one that fails is asked again, however long it takes
    await fuzz_last_event_id(shared, ended, last)
    await fuzz_host(shared, host)
    await fuzz_parameters(shared, ended, target, values)
    await fuzz_job_file(shared, text)
    long.until, long.done = until, long.done + 1


@pytest.mark.chaos
@pytest.mark.attacks(34, 38)
def test_there_was_time_for_many(long: Long, attack: Attack) -> None:
    assert long.done > MOST / 20
    for row in (34, 38):
        attack(row, tried=long.done)
