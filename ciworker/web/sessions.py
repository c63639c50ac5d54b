"""One-time links, and the session cookie that one of them is exchanged for.

Codes live in memory: who restarts the worker makes a new link. Sessions live in the store.
"""

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from aiohttp import web

from ciworker.settings import Settings
from ciworker.store.sessions import LIFETIME
from ciworker.store.tokens import Token

CODE_LIFETIME = timedelta(minutes=5)
CODE_BYTES = 32
MOST_CODES = 10  # of one token at a time; a new one replaces the oldest

# No backslash: browsers take it for a slash, and two of those begin another site's name.
_LOCAL_PATH = re.compile(r"/(?!/)[\x21-\x5b\x5d-\x7e]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Login:
    """What a code stands for.

    next: the path to show after the login. session: the id of the one that asked for the code.
    """

    token: Token
    next: str
    session: str | None


class Codes:
    """The codes that were given out and not used yet, by their SHA-256.

    monotonic: seconds that nobody sets, by which codes expire.
    """

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._logins: dict[bytes, tuple[Login, float]] = {}  # with its deadline

    def issue(self, login: Login) -> str:
        """A new code that stands for this login, once, for CODE_LIFETIME."""
        self._forget_expired()
        own = [key for key, (old, _) in self._logins.items() if old.token.id == login.token.id]
        if len(own) >= MOST_CODES:
            del self._logins[own[0]]
        code = secrets.token_urlsafe(CODE_BYTES)
        self._logins[_digest(code)] = login, self._monotonic() + CODE_LIFETIME.total_seconds()
        return code

    def take(self, code: str) -> Login | None:
        """What the code stands for, unless it is wrong, expired or was taken before."""
        self._forget_expired()
        wanted = _digest(code)
        found = [key for key in self._logins if hmac.compare_digest(key, wanted)]
        return self._logins.pop(found[0])[0] if found else None

    def _forget_expired(self) -> None:
        now = self._monotonic()
        self._logins = {key: kept for key, kept in self._logins.items() if kept[1] > now}


def is_local_path(text: str) -> bool:
    """Whether a redirect to it stays on this site."""
    return _LOCAL_PATH.fullmatch(text) is not None


def login_url(settings: Settings, own: str, code: str) -> str:
    """The one-time link.

    Args:
        settings: public_url comes first.
        own: scheme and host at which the worker is known otherwise.
        code: what `Codes.issue` gave.
    """
    return f"{settings.public_url or own}/login?code={code}"


def cookie_name(port: int) -> str:
    """A cookie belongs to a host, whichever its ports: without ours, two workers would share it."""
    return f"ciworker-{port}"


def set_cookie(answer: web.Response, settings: Settings, port: int, text: str) -> None:
    """Give the browser its session."""
    answer.set_cookie(
        cookie_name(port),
        text,
        max_age=int(LIFETIME.total_seconds()),
        httponly=True,
        samesite="Lax",
        secure=(settings.public_url or f"{settings.scheme}:").startswith("https:"),
    )


def _digest(code: str) -> bytes:
    return hashlib.sha256(code.encode(errors="replace")).digest()
