"""How a remote may be reached: at which addresses, by which credentials.

What a host's name resolves to is looked at once and pinned: git connects to the addresses that
were checked, so that a second look-up cannot differ. Credentials are those that the operator's
`git_hosts` has for this host and port, and nobody else's.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

from ciworker.domain.git import Network, Remote, Scheme, is_allowed
from ciworker.errors import SourceFailed
from ciworker.settings import GitHost, Settings

AGENT = "SSH_AUTH_SOCK"
_UNKNOWN = GitHost()

Secret = Callable[[str], str | None]
"""The value of a secret by its name, if it has one."""


@dataclass(frozen=True, slots=True)
class Access:
    """What git is told of a remote.

    addresses: of its host, all of them checked; none of a file. host: what the operator set for
    it. token, agent: values of its secrets, where it has any; a password and a socket's path.
    """

    remote: Remote
    addresses: Sequence[str] = ()
    host: GitHost = _UNKNOWN
    token: str | None = None
    agent: str | None = None


async def access_to(remote: Remote, settings: Settings, secret: Secret) -> Access:
    """Look up where the remote is, and how it may be reached.

    Raises:
        SourceFailed: its name cannot be resolved, or the operator does not allow it.
    """
    if remote.scheme is Scheme.FILE:
        return Access(await asyncio.to_thread(_folder, remote, settings.git_folders))
    host = settings.git_hosts.get(remote.place, _UNKNOWN)
    if remote.scheme is Scheme.SSH and not host.known_hosts:
        raise SourceFailed(
            f"no host key of {remote.place} is known: an operator names it in git_hosts, under "
            "known_hosts, as ssh-keyscan prints it"
        )
    addresses = await _addresses(remote, settings.git_allowed_addresses)
    over_https = remote.scheme is Scheme.HTTPS
    return Access(
        remote,
        addresses,
        host,
        token=secret(host.token) if over_https and host.token else None,
        agent=secret(AGENT) if host.ssh and not over_https else None,
    )


async def _addresses(remote: Remote, allowed: Sequence[Network]) -> Sequence[str]:
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            remote.host, remote.port, type=socket.SOCK_STREAM
        )
    except OSError as error:
        raise SourceFailed(
            f"the host {remote.host} cannot be resolved ({error.strerror}): check the URL"
        ) from error
    addresses = list(dict.fromkeys(str(sockaddr[0]) for *_, sockaddr in found))
    good = [address for address in addresses if is_allowed(address, allowed)]
    if not good:
        found_at = "" if addresses == [remote.host] else f"{', '.join(addresses)}, which is "
        raise SourceFailed(
            f"{remote.host} is {found_at}no public address: an operator may allow it in "
            "git_allowed_addresses"
        )
    return good


def _folder(remote: Remote, folders: Sequence[Path]) -> Remote:
    """The remote by the real path of its repository, which lies in one of the folders."""
    try:
        real = Path(unquote(remote.path)).resolve(strict=True)
    except (OSError, ValueError):
        real = None
    if real is None or not any(real.is_relative_to(folder.resolve()) for folder in folders):
        raise SourceFailed(
            "of the worker's own files git reads only repositories in git_folders, which an "
            "operator sets"
        )
    return replace(remote, path=quote(str(real)))
