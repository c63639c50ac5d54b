"""What forges send is compared with the secrets of all rules, and holds nobody up meanwhile."""

import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from ciworker.domain.forge import Forge, is_authentic
from ciworker.settings import Settings
from ciworker.web import hooks as module
from ciworker.web.context import Context
from tests.forge import FromForge, delivery

SECRETS = {"ONE": "first-secret", "TWO": "second-secret", "NONE": None}
RULES = [
    {"forge": forge, "repository": f"https://h/{name}", "secret": secret}
    for forge, name, secret in [
        ("github", "a", "ONE"), ("github", "b", "TWO"), ("github", "c", "TWO"),
        ("github", "d", "NONE"), ("forgejo", "e", "TWO"),
    ]
]  # fmt: skip


@pytest.fixture
def context(tmp_path: Path) -> Context:
    found = SimpleNamespace(
        settings=Settings(data_dir=tmp_path, hooks=RULES),
        secret=SECRETS.get,
        now=lambda: datetime.now(UTC),
    )
    return cast(Context, found)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """The secrets that a body was compared with, and whether on the event loop."""
    found: list[tuple[str, bool]] = []

    def told(
        forge: Forge, headers: Mapping[str, str], body: bytes, secret: str, now: float
    ) -> bool:
        found.append((secret, threading.current_thread() is threading.main_thread()))
        return is_authentic(forge, headers, body, secret, now)

    monkeypatch.setattr(module, "is_authentic", told)
    return found


async def trusted(context: Context, sent: FromForge) -> list[str]:
    rules = await module._trusted(context, sent.forge, sent.lower, sent.body)
    return [rule.repository for rule in rules]


async def test_each_secret_is_compared_once_and_not_on_the_event_loop(
    context: Context, compared: list[tuple[str, bool]]
) -> None:
    sent = delivery(Forge.GITHUB, "push", "a" * 40).signed("second-secret")
    assert await trusted(context, sent) == ["https://h/b", "https://h/c"]
    assert compared == [("first-secret", False), ("second-secret", False)]


async def test_who_knows_another_secret_or_another_forges_is_nobody(context: Context) -> None:
    for forge, secret in (
        (Forge.GITHUB, "wrong"), (Forge.FORGEJO, "first-secret"), (Forge.GITLAB, "first-secret")
    ):  # fmt: skip
        assert await trusted(context, delivery(forge, "push", "a" * 40).signed(secret)) == []
