"""Deliveries of forges, from payloads as their public documentation shows them."""

import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ciworker.domain.forge import Forge

FOLDER = Path(__file__).parent / "forges"
SECRETS = {forge: f"canary-of-{forge}-5d1e" for forge in Forge}
EVENTS = ("push", "pull_request")
_GITLAB_EVENTS = {"push": "Push Hook", "pull_request": "Merge Request Hook"}


@dataclass
class FromForge:
    """One delivery. headers: with what authenticates it, once it is `signed`."""

    forge: Forge
    event: str
    payload: dict[str, Any]
    id: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        return json.dumps(self.payload).encode()

    def signed(self, secret: str | None = None) -> "FromForge":
        """As the forge sends it; without `secret` with the right one."""
        secret = SECRETS[self.forge] if secret is None else secret
        digest = hmac.new(secret.encode(), self.body, hashlib.sha256).hexdigest()
        own = {
            Forge.GITHUB: {
                "X-GitHub-Event": self.event,
                "X-GitHub-Delivery": self.id,
                "X-Hub-Signature-256": f"sha256={digest}",
            },
            Forge.GITLAB: {
                "X-Gitlab-Event": _GITLAB_EVENTS.get(self.event, self.event),
                "X-Gitlab-Event-UUID": self.id,
                "X-Gitlab-Token": secret,
            },
            Forge.FORGEJO: {
                "X-Forgejo-Event": self.event,
                "X-Gitea-Event": self.event,
                "X-Forgejo-Delivery": self.id,
                "X-Forgejo-Signature": digest,
            },
        }[self.forge]
        self.headers = {"Content-Type": "application/json", **own}
        return self

    @property
    def lower(self) -> dict[str, str]:
        """The headers by lower-case name."""
        return {name.lower(): value for name, value in self.headers.items()}


def delivery(
    forge: Forge,
    event: str,
    commit: str,
    change: Callable[[dict[str, Any]], object] = lambda _: None,
) -> FromForge:
    """A recorded delivery of this commit, with a change made to its payload, signed."""
    text = (FOLDER / f"{forge}-{event}.json").read_text().replace("COMMIT", commit)
    payload: dict[str, Any] = json.loads(text)
    change(payload)
    return FromForge(forge, event, payload, f"{forge}-{event}-{commit}").signed()
