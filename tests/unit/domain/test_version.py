"""The version of a tree whose repository stayed with the client."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciworker.domain.version import pretend_version, project_variables, version_variables

COMMIT = "abcdef1234567890abcdef1234567890abcdef12"
PEP_440 = re.compile(
    r"([1-9][0-9]*!)?(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))*((a|b|rc)(0|[1-9][0-9]*))?"
    r"(\.post(0|[1-9][0-9]*))?(\.dev(0|[1-9][0-9]*))?(\+[a-z0-9]+(\.[a-z0-9]+)*)?"
)


@pytest.mark.parametrize(
    ("described", "version"),
    [
        ("v1.2.3", "1.2.3"),
        ("1.2", "1.2"),
        ("release-1.2.0", "1.2.0"),
        ("my-package-2.0", "2.0"),
        ("V1.0.0-rc.1", "1.0.0rc1"),
        ("2024.01.05", "2024.1.5"),
        ("1!2.0.post3", "1!2.0.post3"),
        ("1.2.3+local", "1.2.3"),
        ("1.2.3-4-g0123abc", "1.2.4.dev4+g0123abc"),
        ("v1.2.3-4-g0123abc-dirty", "1.2.4.dev4+g0123abc.dirty"),
        ("v1.2.3-dirty", "1.2.4.dev0+gabcdef1.dirty"),
        ("1.0rc1-3-g0123abc", "1.0rc2.dev3+g0123abc"),
        ("1.0.dev0-3-g0123abc", "1.0.dev3+g0123abc"),
        ("1.0.post1-2-g0123abc", "1.0.post2.dev2+g0123abc"),
        ("abcdef1", "0.1.dev0+gabcdef1"),
        ("abcdef1-dirty", "0.1.dev0+gabcdef1.dirty"),
        ("nightly", "0.1.dev0+gabcdef1"),
        ("nightly-7-g0123abc", "0.1.dev7+g0123abc"),
    ],
)
def test_it_is_what_setuptools_scm_makes_of_the_description(described: str, version: str) -> None:
    assert pretend_version({"commit": COMMIT, "describe": described}) == version


def test_a_commit_alone_is_a_first_development_version() -> None:
    assert pretend_version({"commit": COMMIT}) == "0.1.dev0+gabcdef1"


@pytest.mark.parametrize("vcs", [{}, {"dirty": True}, {"describe": 5}, {"commit": "$(id)"}])
def test_without_a_repository_there_is_no_version(vcs: dict[str, object]) -> None:
    assert pretend_version(vcs) is None


@given(st.text(), st.text() | st.just(COMMIT))
def test_whatever_a_client_says_gives_a_version_in_normal_form_or_none(
    described: str, commit: str
) -> None:
    version = pretend_version({"describe": described, "commit": commit})
    assert version is None or PEP_440.fullmatch(version)


@given(st.from_regex(r"v?[0-9]{1,3}(\.[0-9]{1,3}){0,3}((a|b|rc)[0-9])?", fullmatch=True))
def test_a_tag_and_what_follows_it_are_versions_in_normal_form(tag: str) -> None:
    for described in (tag, f"{tag}-12-g0123abc", f"{tag}-dirty"):
        version = pretend_version({"describe": described, "commit": COMMIT})
        assert version is not None
        assert PEP_440.fullmatch(version)


def test_only_the_project_itself_is_told_where_others_are_built_too() -> None:
    assert project_variables("1.0", "my.pkg-name") == {
        "SETUPTOOLS_SCM_PRETEND_VERSION_FOR_MY_PKG_NAME": "1.0"
    }
    assert project_variables("1.0", None) == {}
    assert set(version_variables("1.0", "x").values()) == {"1.0"}
    assert version_variables("1.0", "x").keys() > version_variables("1.0", None).keys()
