"""Sessions are random, kept as a digest, as able as their token, and end: by time or at will."""

import ast
import contextlib
import hashlib
import hmac
import inspect
import sqlite3
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ciworker.store import sessions as module
from ciworker.store.migrations import STEPS
from ciworker.store.schema import microseconds
from ciworker.store.session import Database
from ciworker.store.sessions import LIFETIME, MOST_SESSIONS, Sessions
from ciworker.store.tokens import Role, Token, Tokens, digest
from tests.store.lab import NOW, SECOND, rows


@pytest.fixture
def tokens(database: Database) -> Tokens:
    return Tokens(database)


@pytest.fixture
def sessions(database: Database) -> Sessions:
    return Sessions(database)


@pytest.fixture
async def token(tokens: Tokens) -> Token:
    return (await tokens.create("mine", Role.SUBMIT, NOW))[0]


async def begun(
    sessions: Sessions, token: Token, at: datetime = NOW, through: str | None = None
) -> str:
    text = await sessions.begin(token.id, at, session_id(through) if through else None)
    assert text is not None
    return text


async def opened(sessions: Sessions, text: str, at: datetime) -> Token | None:
    """What the session of this text is good for."""
    session = await sessions.check(text, at)
    assert session is None or session.id == session_id(text)
    return session.token if session else None


def session_id(text: str) -> str:
    return text.partition("_")[0]


async def test_a_session_is_known_by_its_text_and_is_its_token(
    sessions: Sessions, token: Token
) -> None:
    text = await begun(sessions, token)

    assert await opened(sessions, text, NOW) == token
    assert text.isascii()
    assert len(text) > 43  # 256 bits


@pytest.mark.attacks(43)
async def test_the_file_holds_digests_alone(
    sessions: Sessions, token: Token, database: Database, path: Path
) -> None:
    texts = [await begun(sessions, token) for _ in range(20)]
    assert path.with_name(path.name + "-wal").stat().st_size
    await database.write(lambda session: session.flush())

    files = [file.read_bytes() for file in path.parent.iterdir()]
    for text in texts:
        own_id, _, secret = text.partition("_")
        assert any(own_id.encode() in data for data in files)  # it is the right place to look
        assert not any(secret.encode() in data for data in files)
        digest = hashlib.sha256(secret.encode()).digest()
        assert rows(path, f"SELECT digest FROM session WHERE id = '{own_id}'") == [(digest,)]


async def test_no_two_sessions_are_alike(sessions: Sessions, token: Token) -> None:
    texts = [(await begun(sessions, token)).partition("_") for _ in range(50)]

    assert len({own_id for own_id, _, _ in texts}) == 50
    assert len({secret for _, _, secret in texts}) == 50


async def test_a_session_lives_for_30_days_and_not_longer(sessions: Sessions, token: Token) -> None:
    text = await begun(sessions, token)

    assert timedelta(days=30) == LIFETIME
    assert await opened(sessions, text, NOW + LIFETIME - SECOND) == token
    assert await opened(sessions, text, NOW + LIFETIME) is None
    assert await opened(sessions, text, NOW + LIFETIME + SECOND) is None


async def test_with_its_token_a_session_dies(
    sessions: Sessions, tokens: Tokens, token: Token
) -> None:
    text = await begun(sessions, token)
    other, _ = await tokens.create("yours", Role.READ, NOW)
    other_text = await begun(sessions, other)

    await tokens.revoke(token.id, NOW)

    assert await opened(sessions, text, NOW) is None
    assert await opened(sessions, other_text, NOW) == other


async def test_a_session_lives_no_longer_than_its_token(sessions: Sessions, tokens: Tokens) -> None:
    until = NOW + timedelta(hours=1)
    token, _ = await tokens.create("mine", Role.SUBMIT, NOW, expires_at=until)
    text = await sessions.begin(token.id, NOW)
    assert text is not None

    found = await sessions.check(text, until - SECOND)

    assert found is not None
    assert (found.expires_at, found.token) == (until, token)
    assert await sessions.check(text, until) is None
    assert await sessions.begin(token.id, until) is None


async def test_no_session_begins_for_a_token_that_is_revoked_or_none(
    sessions: Sessions, tokens: Tokens, token: Token, path: Path
) -> None:
    await tokens.revoke(token.id, NOW)

    assert await sessions.begin(token.id, NOW) is None
    assert await sessions.begin("nobody", NOW) is None
    assert rows(path, "SELECT count(*) FROM session") == [(0,)]


async def test_a_session_that_was_ended_opens_nothing_and_is_gone(
    sessions: Sessions, token: Token, path: Path
) -> None:
    text, other = [await begun(sessions, token) for _ in range(2)]

    await sessions.end(text, NOW)
    await sessions.end(text, NOW)

    assert await opened(sessions, text, NOW) is None
    assert await opened(sessions, other, NOW) == token
    assert rows(path, "SELECT id FROM session") == [(session_id(other),)]


async def test_a_token_has_so_many_sessions_at_a_time_and_costs_no_other_its_own(
    sessions: Sessions, tokens: Tokens, token: Token
) -> None:
    other, _ = await tokens.create("yours", Role.READ, NOW)
    other_text = await begun(sessions, other)

    texts = [await begun(sessions, token, NOW + n * SECOND) for n in range(MOST_SESSIONS + 3)]

    at = NOW + MOST_SESSIONS * SECOND
    good = [await opened(sessions, text, at) is not None for text in texts]
    assert good == [False] * 3 + [True] * MOST_SESSIONS
    assert await opened(sessions, other_text, at) == other


async def test_a_session_is_not_replaced_by_one_that_is_made_through_it(
    sessions: Sessions, token: Token
) -> None:
    text = await begun(sessions, token)

    made = [
        await begun(sessions, token, NOW + n * SECOND, through=text)
        for n in range(1, MOST_SESSIONS + 3)
    ]

    at = NOW + MOST_SESSIONS * SECOND
    good = [await opened(sessions, one, at) is not None for one in (text, *made)]
    assert good == [True] + [False] * 3 + [True] * (MOST_SESSIONS - 1)


async def test_a_session_made_through_another_ends_with_it(
    sessions: Sessions, token: Token, path: Path
) -> None:
    text, other = [await begun(sessions, token) for _ in range(2)]
    made = await begun(sessions, token, through=text)
    made_by_that = await begun(sessions, token, through=made)

    await sessions.end(text, NOW)

    found = [await opened(sessions, one, NOW) for one in (text, made, made_by_that, other)]
    assert found == [None, None, None, token]
    assert rows(path, "SELECT id FROM session") == [(session_id(other),)]


async def test_a_session_ends_without_the_one_it_was_made_through(
    sessions: Sessions, token: Token
) -> None:
    text = await begun(sessions, token)
    made = await begun(sessions, token, through=text)

    await sessions.end(made, NOW)

    assert [await opened(sessions, one, NOW) for one in (text, made)] == [token, None]


async def test_a_session_lives_no_longer_than_the_one_it_was_made_through(
    sessions: Sessions, token: Token
) -> None:
    text = await begun(sessions, token)
    late = NOW + LIFETIME - SECOND

    made = await begun(sessions, token, late, through=text)

    found = [await sessions.check(one, late) for one in (text, made)]
    assert [session and session.expires_at for session in found] == [NOW + LIFETIME] * 2
    assert await opened(sessions, made, late) == token
    assert await opened(sessions, made, NOW + LIFETIME) is None


async def test_no_session_begins_through_one_that_is_over(
    sessions: Sessions, token: Token, path: Path
) -> None:
    ended, expired = [await begun(sessions, token) for _ in range(2)]
    await sessions.end(ended, NOW)

    assert await sessions.begin(token.id, NOW, session_id(ended)) is None
    assert await sessions.begin(token.id, NOW, "nobody") is None
    assert await sessions.begin(token.id, NOW + LIFETIME, session_id(expired)) is None
    assert rows(path, "SELECT count(*) FROM session") == [(0,)]


async def test_only_who_has_the_whole_text_can_end_a_session(
    sessions: Sessions, token: Token
) -> None:
    text = await begun(sessions, token)
    own_id = session_id(text)

    for attempt in ("", own_id, f"{own_id}_", f"{own_id}_wrong", "%", "_", f"{text}x"):
        await sessions.end(attempt, NOW)

    assert await opened(sessions, text, NOW) == token


@pytest.mark.attacks(37)
async def test_whatever_is_not_exactly_the_text_opens_nothing(
    sessions: Sessions, tokens: Tokens, token: Token
) -> None:
    text = await begun(sessions, token)
    other_id, _, other_secret = (await begun(sessions, token)).partition("_")
    own_id, _, secret = text.partition("_")
    _, token_text = await tokens.create("yours", Role.ADMIN, NOW)

    wrong = [
        "", "_", own_id, f"{own_id}_", f"_{secret}", secret, f"{text} ", f" {text}",
        f"{text}\n", f"{text}\0", text[:-1], f"{text}x", f"{own_id}_{other_secret}",
        f"{other_id}_{secret}", f"%_{secret}", f"{own_id.upper()}_{secret}", text.upper(),
        f"{own_id}_{hashlib.sha256(secret.encode()).hexdigest()}", f"{own_id}_\udcff",
        f"\udcff_{secret}", f"{own_id}_é", "x" * 10**6, f"' OR 1=1 --_{secret}", token_text,
    ]  # fmt: skip

    for attempt in wrong:
        assert await opened(sessions, attempt, NOW) is None, attempt[:60]
    assert await opened(sessions, text, NOW) == token


async def test_old_sessions_are_removed_when_one_begins(
    sessions: Sessions, token: Token, path: Path
) -> None:
    await begun(sessions, token)
    later = await sessions.begin(token.id, NOW + SECOND)
    assert later

    newest = await sessions.begin(token.id, NOW + LIFETIME)

    assert newest
    left = {(session_id(later),), (session_id(newest),)}
    assert set(rows(path, "SELECT id FROM session")) == left


@pytest.mark.attacks(43)
async def test_digests_are_compared_in_constant_time(
    sessions: Sessions, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = await begun(sessions, token)
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert await opened(sessions, text, NOW) == token
    assert await opened(sessions, text[:-1] + "!", NOW) is None

    assert [(len(a), len(b)) for a, b in compared] == [(32, 32)] * 2
    tree = ast.parse(inspect.getsource(module))
    equalities = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and "digest" in ast.unparse(node)
    ]
    assert equalities == []


async def test_a_database_of_the_first_release_gets_sessions_and_keeps_its_tokens(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ciworker.store.migrations.STEPS", STEPS[:1])
    await (await Database.open(path)).close()
    token, text = Token("0a1b2c", "mine", Role.ADMIN, NOW), "ciw_0a1b2c_secret"
    with contextlib.closing(sqlite3.connect(path)) as old, old:
        old.execute(
            "INSERT INTO token (id, name, role, digest, created_at) VALUES (?, ?, ?, ?, ?)",
            (token.id, token.name, "admin", digest("secret"), microseconds(NOW)),
        )
    monkeypatch.setattr("ciworker.store.migrations.STEPS", STEPS)

    database = await Database.open(path)
    session = await Sessions(database).begin(token.id, NOW)

    assert session
    assert await opened(Sessions(database), session, NOW) == token
    assert await Tokens(database).check(text, NOW) == token
    await database.close()
