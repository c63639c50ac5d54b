"""What is a secret, who may have it, and that it does not show itself."""

import dataclasses
import json
import logging
from typing import Any

import pytest
import structlog

from ciworker.domain.job import Spec
from ciworker.domain.secrets import MOST, Rule, Secret, check_secrets, fingerprint, refusal
from ciworker.errors import Invalid

VALUE = "s3cret-value"
ALL = frozenset({"upload", "git"})
ROLES = frozenset({"submit", "admin"})
RULES = {
    rule.name: rule
    for rule in (
        Rule("ANY", ALL, ROLES),
        Rule("GIT", frozenset({"git"}), ROLES),
        Rule("ADMIN", ALL, frozenset({"admin"})),
        Rule("SETUP", ALL, ROLES, setup=True),
        Rule("SSH_AUTH_SOCK", ALL, ROLES),
        Rule("NOBODY", frozenset(), frozenset()),
    )
}


def spec(**fields: Any) -> Spec:
    return Spec("fake", "true", 900.0, 2**28, 1.0, False, "tea", **fields)


@pytest.mark.parametrize(
    "shown",
    [
        repr,
        str,
        "{}".format,
        "{!r:>20}".format,
        lambda secret: repr({"TOKEN": secret}),
        lambda secret: str(ValueError("no", secret)),
        lambda secret: logging.LogRecord(
            "x", logging.INFO, "x", 1, "%s %r", (secret, secret), None
        ).getMessage(),
        lambda secret: json.dumps({"TOKEN": secret}, default=str),
        lambda secret: structlog.processors.JSONRenderer()(
            logging.getLogger(), "info", {"event": "x", "secret": secret}
        ),
        lambda secret: repr(dataclasses.replace(spec(), env={"A": secret})),
    ],
)
def test_a_secret_does_not_show_itself(shown: Any) -> None:
    text = shown(Secret(VALUE))

    assert VALUE not in text
    assert "***" in text


def test_a_secret_is_revealed_on_purpose_alone() -> None:
    assert Secret(VALUE).reveal() == VALUE


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("12345", "has no line of 6 characters"),
        ("  12345  \n abc \n", "has no line of 6 characters"),
        ("a\0bcdefg", "has NUL in it"),
        ("\udcff234567", "is not UTF-8"),
        ("x" * (MOST + 1), f"is longer than {MOST} bytes"),
    ],
)
def test_a_value_that_cannot_be_kept_is_refused_in_words(value: str, said: str) -> None:
    assert (refusal(value) or "").startswith(said)


@pytest.mark.parametrize("value", ["123456", "x" * MOST, "{\n123456\n}", " é23456"])
def test_other_values_are_secrets(value: str) -> None:
    assert refusal(value) is None


@pytest.mark.parametrize(
    ("name", "source", "role", "said"),
    [
        ("NONE", "upload", "admin", "the secret 'NONE' is not passed on by this worker: it knows"),
        ("GIT", "upload", "admin", "not for jobs whose tree comes by upload: it is for git jobs"),
        ("ADMIN", "git", "submit", "not for jobs of a token with the role submit"),
        ("NOBODY", "git", "admin", "it is for no jobs"),
        ("SSH_AUTH_SOCK", "git", "admin", "SSH_AUTH_SOCK is for the worker's own fetches: leave"),
    ],
)
def test_a_secret_that_is_not_for_such_a_job_is_refused_in_words(
    name: str, source: str, role: str, said: str
) -> None:
    for wanted in (spec(secrets=(name,)), spec(setup_secrets=(name,))):
        with pytest.raises(Invalid) as caught:
            check_secrets(wanted, RULES, source=source, role=role)
        assert said in str(caught.value)


def test_a_setup_may_have_only_what_is_declared_for_it() -> None:
    with pytest.raises(Invalid, match="ANY may not be had by a setup on this worker"):
        check_secrets(spec(setup_secrets=("ANY",)), RULES, source="upload", role="submit")


def test_what_is_allowed_is_not_refused() -> None:
    wanted = spec(secrets=("ANY", "GIT", "SETUP"), setup_secrets=("SETUP",))
    check_secrets(wanted, RULES, source="git", role="submit")
    mounted = {"SSH_AUTH_SOCK": Rule("SSH_AUTH_SOCK", ALL, ROLES, mount=True)}
    check_secrets(spec(secrets=("SSH_AUTH_SOCK",)), mounted, source="upload", role="submit")
    check_secrets(spec(secrets=("ADMIN",)), RULES, source="upload", role="admin")


def test_a_fingerprint_tells_name_value_and_key_apart_and_shows_none() -> None:
    prints = {
        fingerprint(key, name, Secret(value))
        for key in (b"k" * 32, b"l" * 32)
        for name in ("A", "B")
        for value in (VALUE, VALUE + "!")
    }

    assert len(prints) == 8
    assert {len(text) for text in prints} == {32}
    assert fingerprint(b"k", "A", Secret(VALUE)) == fingerprint(b"k", "A", Secret(VALUE))
