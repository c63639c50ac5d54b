"""Tokens are random, kept as a digest, and open nothing once revoked."""

import ast
import hashlib
import hmac
import inspect
from datetime import timedelta
from pathlib import Path

import pytest

from ciworker.errors import Expired, Unknown
from ciworker.store import tokens as module
from ciworker.store.session import Database
from ciworker.store.tokens import Role, Token, Tokens
from tests.store.lab import NOW, SECOND, rows


@pytest.fixture
def tokens(database: Database) -> Tokens:
    return Tokens(database)


@pytest.mark.parametrize("role", Role)
async def test_a_token_is_known_by_its_text(tokens: Tokens, role: Role) -> None:
    token, text = await tokens.create("mine", role, NOW)

    assert await tokens.check(text, NOW) == token
    assert token == Token(token.id, "mine", role, NOW)
    assert text.isascii()
    assert len(text) > 43  # 256 bits


@pytest.mark.attacks(43)
async def test_the_file_holds_digests_alone(tokens: Tokens, database: Database, path: Path) -> None:
    texts = [(await tokens.create("mine", Role.ADMIN, NOW))[1] for _ in range(20)]
    assert path.with_name(path.name + "-wal").stat().st_size
    await database.write(lambda session: session.flush())

    files = [file.read_bytes() for file in path.parent.iterdir()]
    for text in texts:
        _, token_id, secret = text.split("_", 2)
        assert any(token_id.encode() in data for data in files)  # it is the right place to look
        assert not any(secret.encode() in data for data in files)
        assert not any(text.encode() in data for data in files)
        digest = hashlib.sha256(secret.encode()).digest()
        assert rows(path, f"SELECT digest FROM token WHERE id = '{token_id}'") == [(digest,)]


async def test_no_two_tokens_are_alike(tokens: Tokens) -> None:
    made = [await tokens.create("same", Role.READ, NOW) for _ in range(50)]

    assert len({token.id for token, _ in made}) == 50
    assert len({text.split("_", 2)[2] for _, text in made}) == 50


async def test_a_revoked_token_opens_nothing(tokens: Tokens) -> None:
    token, text = await tokens.create("mine", Role.ADMIN, NOW)
    other, other_text = await tokens.create("yours", Role.READ, NOW + SECOND)

    await tokens.revoke(token.id, NOW + SECOND)

    assert await tokens.check(text, NOW) is None
    assert await tokens.check(other_text, NOW) == other
    assert [(found.name, found.revoked_at) for found in await tokens.list()] == [
        ("mine", NOW + SECOND),
        ("yours", None),
    ]


async def test_a_token_opens_nothing_from_the_instant_of_its_expiry_on(tokens: Tokens) -> None:
    until = NOW + timedelta(days=30)
    token, text = await tokens.create("mine", Role.ADMIN, NOW, expires_at=until)

    assert await tokens.check(text, until - timedelta(microseconds=1)) == token
    for late in (until, until + SECOND):
        with pytest.raises(Expired, match="expired at 2026-02-01 03:04 UTC"):
            await tokens.check(text, late)
    assert await tokens.check(text[:-1] + "!", until) is None  # told to who has it alone
    assert [found.expires_at for found in await tokens.list()] == [until]
    assert [token.is_over(at) for at in (NOW, until)] == [False, True]


async def test_a_token_that_expired_and_was_revoked_is_wrong(tokens: Tokens) -> None:
    token, text = await tokens.create("mine", Role.ADMIN, NOW, expires_at=NOW + SECOND)

    await tokens.revoke(token.id, NOW)

    assert await tokens.check(text, NOW + SECOND) is None
    assert (await tokens.list())[0].is_over(NOW)


async def test_the_last_use_of_tokens_is_stored_beside_them(tokens: Tokens) -> None:
    made = [(await tokens.create(name, Role.READ, NOW))[0] for name in "abc"]

    await tokens.used({made[0].id: NOW + SECOND, made[2].id: NOW, "nobody": NOW})

    assert {found.name: found.last_used_at for found in await tokens.list()} == {
        "a": NOW + SECOND, "b": None, "c": NOW,
    }  # fmt: skip


async def test_what_is_not_there_or_revoked_already_cannot_be_revoked(tokens: Tokens) -> None:
    token, _ = await tokens.create("mine", Role.ADMIN, NOW)
    await tokens.revoke(token.id, NOW)

    for token_id in (token.id, "nobody", "", token.id[:6], "%"):
        with pytest.raises(Unknown, match="ciworker token list"):
            await tokens.revoke(token_id, NOW)
    assert [found.revoked_at for found in await tokens.list()] == [NOW]


@pytest.mark.attacks(37)
async def test_whatever_is_not_exactly_the_text_opens_nothing(tokens: Tokens) -> None:
    token, text = await tokens.create("mine", Role.ADMIN, NOW)
    _, other = await tokens.create("yours", Role.READ, NOW)
    prefix, token_id, secret = text.split("_", 2)
    other_id, other_secret = other.split("_", 2)[1:]

    wrong = [
        "", "_", "__", prefix, f"{prefix}_", f"{prefix}_{token_id}", f"{prefix}_{token_id}_",
        f"{prefix}_{token_id}_{secret[:-1]}", f"{prefix}_{token_id}_{secret}x", f"{text} ",
        f" {text}", f"{text}\n", f"{prefix}_{token_id}_{other_secret}",
        f"{prefix}_{other_id}_{secret}", f"{prefix}__{secret}", f"{prefix}_%_{secret}",
        f"{prefix}_{token_id.upper()}_{secret}", f"xyz_{token_id}_{secret}",
        f"_{token_id}_{secret}", text.upper(), text[4:], secret, token_id,
        f"{prefix}_{token_id}_{hashlib.sha256(secret.encode()).hexdigest()}",
        f"{prefix}_{token_id}_\udcff", f"{prefix}_\udcff_{secret}", "\0", f"{text}\0",
        f"{prefix}_{token_id}_é", "ciw_" + "x" * 10**6, f"{prefix}_' OR 1=1 --_{secret}",
    ]  # fmt: skip

    for attempt in wrong:
        assert await tokens.check(attempt, NOW) is None, attempt[:60]
    assert await tokens.check(text, NOW) == token


@pytest.mark.attacks(43)
async def test_digests_are_compared_in_constant_time(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, text = await tokens.create("mine", Role.ADMIN, NOW)
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert await tokens.check(text, NOW) == token
    assert await tokens.check(text[:-1] + "!", NOW) is None

    assert [(len(a), len(b)) for a, b in compared] == [(32, 32)] * 2
    tree = ast.parse(inspect.getsource(module.Tokens).lstrip())
    equalities = [
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Compare) and "digest" in ast.unparse(node)
    ]
    assert equalities == []


async def test_roles_include_those_below_them() -> None:
    assert sorted(Role, reverse=True) == [Role.ADMIN, Role.SUBMIT, Role.READ]
    assert [role.label for role in Role] == ["read", "submit", "admin"]
