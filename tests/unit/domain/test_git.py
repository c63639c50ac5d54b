"""Which URLs, refs, folders and addresses are taken."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciworker.domain.git import (
    check_ref,
    check_subdirectory,
    is_allowed,
    is_commit,
    may_be_commit,
    parse_remote,
)
from ciworker.errors import Invalid

COMMIT = "8c1f2e97a6b54c3d2e1f0a9b8c7d6e5f4a3b2c1d"


@pytest.mark.parametrize(
    ("url", "given", "place", "name"),
    [
        ("https://github.com/tea/cup.git", None, "github.com", "cup"),
        ("HTTPS://GitHub.com/tea/cup/", "https://github.com/tea/cup/", "github.com", "cup"),
        ("https://h:443/x", "https://h/x", "h", "x"),
        ("https://h:8443/x", None, "h:8443", "x"),
        ("https://127.0.0.1/x", None, "127.0.0.1", "x"),
        ("https://[::1]/x", None, "::1", "x"),
        ("https://[0:0::1]:80/x", "https://[::1]:80/x", "[::1]:80", "x"),
        ("https://h/~u/a%20b.git", None, "h", "a%20b"),
        ("ssh://h/x", None, "h", "x"),
        ("ssh://git@h:2222/x", None, "h:2222", "x"),
        ("git@h:tea/cup.git", None, "h", "cup"),
        ("git@h:/srv/cup.git", "ssh://git@h/srv/cup.git", "h", "cup"),
        ("file:///srv/cup.git", None, "", "cup"),
    ],
)
def test_a_url_is_put_together_again(url: str, given: str | None, place: str, name: str) -> None:
    remote = parse_remote(url)
    assert (remote.url, remote.place, remote.name) == (given or url, place, name)


@pytest.mark.parametrize(
    "url",
    [
        "https://h/acme/tea.git",
        "https://h:8443/acme/tea/",
        "git@h:acme/tea.git",
        "ssh://h/acme/tea",
    ],
)
def test_a_forge_knows_a_repository_by_owner_and_name(url: str) -> None:
    assert parse_remote(url).full_name == "acme/tea"


@pytest.mark.parametrize(
    "url",
    [
        "", "x", "/srv/x.git", "../x", "C:/x", "h:x", "--upload-pack=touch /tmp/x", "-x",
        "ext::sh -c touch% x", "fd::17", "transport::https://h/x", "https::https://h/x",
        "http://h/x", "git://h/x", "ftp://h/x", "ssh+git://h/x",
        "https://h", "https:///x", "https://h/x?y=z", "https://h/x#y", "https://h/a b",
        "https://h/x\n", "https://h/\u202ex", "https://h\\@evil/x", "https://h/x\0",
        "https://u:p@h/x", "https://token@h/x", "ssh://u:p@h/x", "https://a@b@h/x",
        "https://h:0/x", "https://h:65536/x", "https://h:99999999/x", "https://h:-1/x",
        "https://2130706433/x", "https://0x7f000001/x", "https://0x7f.0.0.1/x",
        "https://127.1/x", "https://0177.0.0.1/x", "https://127.0.0.1./x", "https://h./x",
        "https://-h/x", "https://[::1/x", "https://[::1%25lo]/x", "https://[127.0.0.1]/x",
        "ssh://-oProxyCommand=touch/x", "ssh://-u@h/x", "git@-oProxyCommand=x:y", "git@h:-x",
        "ssh://u v@h/x", "file://h/x", "file://h:1/x", "file:/x", "https://ünicode/x",
        "https://h/" + "x" * 2000,
    ],
)  # fmt: skip
def test_another_url_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(Invalid, match=r"^url in git") as refused:
        parse_remote(url)
    assert "u:p" not in str(refused.value)
    assert "token" not in str(refused.value)


@given(st.text(max_size=60) | st.from_regex(r"(https|ssh|file)://.{0,20}/.{0,20}"))
def test_what_is_taken_has_nothing_in_it_that_is_an_option(url: str) -> None:
    try:
        remote = parse_remote(url)
    except Invalid:
        return
    assert not {remote.url[:1], remote.host[:1], remote.user[:1], remote.path[:1]} & {"-"}
    assert remote.url.isascii()
    assert remote.url.isprintable()
    assert " " not in remote.url
    assert parse_remote(remote.url) == remote


@pytest.mark.parametrize(
    "ref", ["main", "v1.0", "fix/kettle", "refs/pull/1/head", "HEAD", COMMIT, "grün", "a@b", "1"]
)
def test_a_ref_is_taken(ref: str) -> None:
    assert check_ref(ref) == ref


@pytest.mark.parametrize(
    "ref",
    [
        "", "-x", "--upload-pack=x", "+main", "a..b", "a:b", "main:refs/heads/x", "^x", "~x",
        "a b", "a\n", "a\0", "*", "refs/*", "[x]", "x?", "\\x", "/x", "x/", "x//y", ".x", "x.",
        "x/.y", "x.lock", "x.lock/y", "@", "@{u}", "x@{1}", "a\x7f", "\u202ex", "x" * 251,
    ],
)  # fmt: skip
def test_another_ref_is_refused(ref: str) -> None:
    with pytest.raises(Invalid, match=r"^ref in git"):
        check_ref(ref)


@pytest.mark.parametrize(("path", "taken"), [("a", "a"), ("a/b/", "a/b"), ("-a b", "-a b")])
def test_a_folder_of_the_tree_is_taken(path: str, taken: str) -> None:
    assert check_subdirectory(path) == taken


@pytest.mark.parametrize(
    "path", ["", "/", "/a", "..", "a/../..", "./a", "a//b", "a\nb", "x" * 1001]
)
def test_a_folder_that_may_be_none_of_the_tree_is_refused(path: str) -> None:
    with pytest.raises(Invalid, match=r"^subdirectory in git"):
        check_subdirectory(path)


@pytest.mark.parametrize(
    ("ref", "whole", "part"),
    [
        (COMMIT, True, False),
        (COMMIT[:7], False, True),
        (COMMIT[:4], False, True),
        (COMMIT[:3], False, False),
        (COMMIT + "0" * 24, True, False),
        ("main", False, False),
        ("deadbeef", False, True),
    ],
)
def test_a_commit_is_told_from_its_beginning(ref: str, whole: bool, part: bool) -> None:
    assert (is_commit(ref), may_be_commit(ref)) == (whole, part)


INTERNAL = (
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "169.254.169.254",
    "0.0.0.0", "224.0.0.1", "239.1.1.1", "255.255.255.255", "192.0.2.1", "198.18.0.1",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "fc00::1", "ff02::1", "2001:db8::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a00:1", "2002:7f00:1::",
    "192.0.0.8", "192.0.0.170", "fec0::1", "64:ff9b:1::7f00:1", "64:ff9b:1:ffff::a00:1",
    "::127.0.0.1", "::169.254.169.254", "::ffff:0:127.0.0.1", "::ffff:0:10.0.0.1",
    "::ffff:192.0.0.8", "64:ff9b::c000:8",
)  # fmt: skip


@pytest.mark.parametrize("address", INTERNAL)
def test_an_address_that_is_not_public_is_for_the_operator_to_allow(address: str) -> None:
    assert not is_allowed(address, [])
    assert not is_allowed(address, [ip_network("203.0.113.0/24")])
    assert is_allowed(address, [ip_network("0.0.0.0/0"), ip_network("::/0")])


@pytest.mark.parametrize("address", ["8.8.8.8", "140.82.121.3", "2606:4700::1111"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_allowed(address, [])


def test_an_allowed_network_allows_its_own_addresses_alone() -> None:
    assert is_allowed("10.1.2.3", [ip_network("10.1.0.0/16")])
    assert is_allowed("::ffff:10.1.2.3", [ip_network("10.1.0.0/16")])
    assert not is_allowed("10.2.2.3", [ip_network("10.1.0.0/16")])
