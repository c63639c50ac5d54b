"""Git sources as values: which URLs, refs and addresses are taken. Pure.

What a stranger sends is never handed to git as it is: a URL is taken apart by patterns that leave
no room for options, other transports or credentials, and git is given what was put together again.
Every refusal is an `Invalid` that does not repeat the URL, for it may hold a password.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

from ciworker.errors import Invalid

Network = IPv4Network | IPv6Network

DEFAULT_REF = "HEAD"
MAX_URL = 2000
MAX_REF = 250
MAX_NAME = 200
MAX_SUBDIRECTORY = 1000

_FORMS = "https://HOST/PATH, ssh://[USER@]HOST/PATH or USER@HOST:PATH"
_URL = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?:(?P<user>[^/@]*)@)?"
    r"(?P<host>\[[^]/@]*\]|[^:/@]*)(?::(?P<port>[0-9]{1,5}))?(?P<path>/.*)"
)
_SHORT_URL = re.compile(
    r"(?P<user>[^:/@]+)@(?P<host>\[[^]/@]*\]|[^:/@]+):(?P<path>[A-Za-z0-9._~/].*)"
)
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", re.ASCII)
_LABEL = r"[a-z0-9](?:[a-z0-9_-]*[a-z0-9])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_NUMBER = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)", re.ASCII)
_PATH = re.compile(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]+", re.ASCII)
_REF = re.compile(r"[^\x00-\x20\x7f-\x9f\u202a-\u202e\u2066-\u2069~^:?*\[\\]+")
_NO_REF = ("..", "@{", "//", "/.", ".lock/")
_NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)
_SHORT_COMMIT = re.compile(r"[0-9a-fA-F]{4,63}", re.ASCII)

# Of IPv6 addresses that stand for IPv4 ones, the standard library does not unwrap these (RFC 6052).
_NAT64 = IPv6Network("64:ff9b::/96")

# What it takes for public, all or in part, though no repository is there.
_INTERNAL: Sequence[Network] = (
    IPv4Network("192.0.0.0/24"),  # a network's own devices (RFC 6890)
    IPv6Network("::/96"),  # IPv4-compatible, which some systems route as IPv4 (RFC 4291)
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated (RFC 7915)
    IPv6Network("64:ff9b:1::/48"),  # a network's own NAT64 (RFC 8215)
    IPv6Network("fec0::/10"),  # site-local, as fc00::/7 is now (RFC 3879)
)


class Scheme(StrEnum):
    """How a repository is spoken to; the ports are those of the schemes' own."""

    HTTPS = "https"
    SSH = "ssh"
    FILE = "file"

    @property
    def port(self) -> int:
        return {Scheme.HTTPS: 443, Scheme.SSH: 22, Scheme.FILE: 0}[self]


@dataclass(frozen=True, slots=True)
class Remote:
    """Where a repository is.

    host: lower case, an IPv6 address without brackets; empty for a file. port: the scheme's own
    where the URL names none. path: from the root, but of `USER@HOST:PATH` from the user's home.
    """

    scheme: Scheme
    host: str
    port: int
    path: str
    user: str = ""

    @property
    def url(self) -> str:
        """As git is given it."""
        if not self.path.startswith("/"):
            return f"{self._user}{self._bracketed}:{self.path}"
        port = "" if self.port == self.scheme.port else f":{self.port}"
        return f"{self.scheme}://{self._user}{self._bracketed}{port}{self.path}"

    @property
    def place(self) -> str:
        """The host, and the port where it is not the scheme's own: a key of `git_hosts`."""
        return self.host if self.port == self.scheme.port else f"{self._bracketed}:{self.port}"

    @property
    def name(self) -> str:
        """The repository's, without what stands before and behind it."""
        return self.path.rstrip("/").rpartition("/")[2].removesuffix(".git")[:MAX_NAME] or self.host

    @property
    def full_name(self) -> str:
        """What a forge calls the repository: its owners and its name."""
        return self.path.strip("/").removesuffix(".git")

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def _user(self) -> str:
        return f"{self.user}@" if self.user else ""


def parse_remote(url: str) -> Remote:
    """Take a URL apart.

    Raises:
        Invalid: it is none that a worker fetches from.
    """
    if len(url) > MAX_URL:
        raise Invalid(f"url in git is longer than {MAX_URL} characters")
    if match := _URL.fullmatch(url):
        return _long(match)
    if match := _SHORT_URL.fullmatch(url):
        return Remote(Scheme.SSH, _host(match["host"]), Scheme.SSH.port, *_rest(match))
    raise Invalid(f"url in git has to be {_FORMS}")


def _long(match: re.Match[str]) -> Remote:
    name = match["scheme"].lower()
    if name not in {*Scheme}:
        raise Invalid(f"url in git: {name} is not taken, only https and ssh: write {_FORMS}")
    scheme = Scheme(name)
    if match["user"] and (scheme is not Scheme.SSH or ":" in match["user"]):
        raise Invalid(
            "url in git holds credentials: take them out of the URL, and have the operator name "
            "them for its host, in the setting git_hosts"
        )
    port = int(match["port"] or scheme.port)
    if port > 65535 or (match["port"] and not port):
        raise Invalid("url in git names a port that there is not")
    path, user = _rest(match)
    if scheme is Scheme.FILE:
        if match["host"] or match["port"]:
            raise Invalid("url in git: of a file it has to be file:///PATH")
        return Remote(scheme, "", 0, path)
    return Remote(scheme, _host(match["host"]), port, path, user)


def _rest(match: re.Match[str]) -> tuple[str, str]:
    path, user = match["path"], match["user"] or ""
    if user and not _USER.fullmatch(user):
        raise Invalid("url in git: the user has to be of letters, digits and . _ -")
    if not _PATH.fullmatch(path):
        raise Invalid(
            "url in git: the path may hold letters, digits and .-_~!$&'()*+,;=:@%/ alone: write "
            "others as %XX, and leave query and fragment out"
        )
    return path, user


def _host(text: str) -> str:
    """Nothing that one parser takes for a name and the next for an address."""
    host = text.lower()
    try:
        if host.startswith("[") and "%" not in host:
            return str(IPv6Address(host.strip("[]")))
        if _NUMBER.fullmatch(host.rpartition(".")[2]):
            return str(IPv4Address(host))
    except ValueError:
        raise Invalid("url in git: its host is no IP address as they are written") from None
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise Invalid("url in git: its host is no host name: write an international one in ASCII")
    return host


def check_ref(ref: str) -> str:
    """A branch, tag or commit, by the rules of `git check-ref-format` and stricter ones.

    Raises:
        Invalid: it is none.
    """
    good = _REF.fullmatch(ref) and not any(part in ref for part in _NO_REF)
    ends = ref.startswith(("-", "+", "/", ".", "@")) or ref.endswith(("/", ".", ".lock"))
    if not good or ends or len(ref.encode(errors="replace")) > MAX_REF:
        raise Invalid("ref in git has to be the name of a branch or tag, or a commit")
    return ref


def check_subdirectory(path: str) -> str:
    """A folder of the tree, without slashes at its ends.

    Raises:
        Invalid: it may lead out of the tree.
    """
    parts = path.rstrip("/").split("/")
    if len(path) > MAX_SUBDIRECTORY or not _NAME.fullmatch(path) or {"", ".", ".."} & {*parts}:
        raise Invalid("subdirectory in git has to be a folder of the tree, such as packages/tea")
    return "/".join(parts)


def is_commit(ref: str) -> bool:
    """Whether it is a whole commit id."""
    return _COMMIT.fullmatch(ref) is not None


def may_be_commit(ref: str) -> bool:
    """Whether it may be the beginning of a commit id."""
    return _SHORT_COMMIT.fullmatch(ref) is not None and not is_commit(ref)


def is_allowed(address: str, allowed: Sequence[Network]) -> bool:
    """Whether a worker may connect to an address: a public one, or one that the operator allows.

    Args:
        address: as the resolver writes it, with or without an IPv6 zone.
        allowed: networks that need not be public.
    """
    bare = ip_address(address.partition("%")[0])
    inner = _inner(bare)
    if any(each in network for each in {bare, inner} for network in allowed):
        return True
    return _is_public(bare) and _is_public(inner)


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    internal = address.is_multicast or any(address in network for network in _INTERNAL)
    return address.is_global and not internal


def _inner(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFF_FFFF)
    return address.ipv4_mapped or address.sixtofour or address
