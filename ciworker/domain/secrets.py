"""Secrets as values: what one is, who may name which, and how to know one again.

Names travel everywhere; a value only as a `Secret`, which does not show itself, from where it is
read to the archive and to what masks a job's lines.
"""

import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ciworker.domain.job import Spec
from ciworker.errors import Invalid

AGENT = "SSH_AUTH_SOCK"
"""The one name whose value is no secret: the path of a socket, of use to whoever may open it."""

HOOK = "hook"
"""Stands for the role of a token where a forge's delivery made the job."""

LEAST = 6  # characters: masking a shorter one would blacken half of every log
MOST = 16 * 2**10  # bytes: Linux takes 128 KiB as one variable, and masking looks for all its forms


class Secret:
    """A value that is never shown; `reveal` is for what sends it, and for what masks it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __str__(self) -> str:
        return "***"


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may have a secret.

    sources: of a job, `upload` or `git`. roles: of the token that submits it. setup: a setup step
    may have it too. mount: a job may have the agent's socket, not the worker's fetches alone.
    """

    name: str
    sources: frozenset[str]
    roles: frozenset[str]
    setup: bool = False
    mount: bool = False


def refusal(value: str) -> str | None:
    """Why this value is no secret that can be kept, as a sentence without its subject."""
    if "\0" in value:
        return "has NUL in it"
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    if size > MOST:
        return f"is longer than {MOST} bytes"
    if not any(len(line.strip()) >= LEAST for line in value.split("\n")):
        return f"has no line of {LEAST} characters, and shorter ones cannot be masked"
    return None


def check_secrets(
    spec: Spec,
    rules: Mapping[str, Rule],
    *,
    source: str,
    role: str,
    allowed: Collection[str] = (),
) -> None:
    """Refuse names that this worker does not pass on, or not to such a job.

    Args:
        spec: what is wanted.
        rules: by name; no others are known.
        source: where the job's tree comes from.
        role: of the token that submits it, or HOOK.
        allowed: with HOOK, the names that its rule allows.

    Raises:
        Invalid: naming the secret, and what forbids it.
    """
    for name in (*spec.secrets, *spec.setup_secrets):
        rule = _check(name, rules, source)
        _check_role(rule, role, allowed)
        if name in spec.setup_secrets and not rule.setup:
            raise Invalid(
                f"the secret {name} may not be had by a setup on this worker: leave it out of "
                "setup-secrets, or ask the operator for `setup = true` in secret_names"
            )


def _check(name: str, rules: Mapping[str, Rule], source: str) -> Rule:
    rule = rules.get(name)
    if rule is None:
        known = ", ".join(sorted(rules)) or "none"
        raise Invalid(f"the secret {name!r} is not passed on by this worker: it knows {known}")
    if source not in rule.sources:
        allowed = " and ".join(sorted(rule.sources)) or "no"
        raise Invalid(
            f"the secret {name} is not for jobs whose tree comes by {source}: it is for {allowed} "
            "jobs (secret_names)"
        )
    if name == AGENT and not rule.mount:
        raise Invalid(
            f"{AGENT} is for the worker's own fetches: leave it out of secrets, or ask the "
            "operator for `mount = true` in secret_names"
        )
    return rule


def _check_role(rule: Rule, role: str, allowed: Collection[str]) -> None:
    if role == HOOK and rule.name not in allowed:
        raise Invalid(
            f"the secret {rule.name} is not for jobs of this hook: name it in `secrets` of its "
            "rule; commits of forks have none"
        )
    if role != HOOK and role not in rule.roles:
        known = " and ".join(sorted(rule.roles)) or "no"
        raise Invalid(
            f"the secret {rule.name} is not for jobs of a token with the role {role}: it is for "
            f"those of {known} tokens (secret_names)"
        )


def fingerprint(key: bytes, name: str, value: Secret) -> str:
    """Tells whether a value is still the same, to whoever has the key; hex, 128 bits."""
    message = f"{name}\0{value.reveal()}".encode()
    return hmac.new(key, message, hashlib.sha256).hexdigest()[:32]
