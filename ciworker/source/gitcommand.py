"""What git is told: options, environment, and what its answers mean. Pure.

Nothing of the host's configuration takes part, no hook, filter or credential helper is run, and no
other transport, host or address is spoken to than those that were checked. Proxies are not used:
one would look the host's name up by itself.
"""

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from ipaddress import ip_address

from ciworker.domain.git import Remote, Scheme
from ciworker.source.access import Access
from ciworker.units import format_size

REPOSITORY = "repository.git"
HISTORY = "history.git"
KNOWN_HOSTS = "known_hosts"
ASKPASS = "askpass"
DESCRIPTOR = "CIWORKER_TOKEN_DESCRIPTOR"
FETCH = "fetch"  # the only one of git's commands that speaks to the host

# The password comes by a pipe that git's children inherit: a command line or an environment could
# be read in /proc, a file might stay. The user's name is an option, so nothing else is asked for.
ASKPASS_SCRIPT = f'#!/bin/sh\nexec cat "/proc/self/fd/${DESCRIPTOR}"\n'

# As a clone has the tree, but nothing is left out or rewritten that only `git archive` would.
ATTRIBUTES = "* -export-ignore -export-subst -filter\n"

BIG_FILE = 16 * 2**20  # larger ones are streamed, not held
MOST_MEMORY = 512 * 2**20  # of one allocation: a delta has to fit, a bomb does not
SHOWN = 500  # characters of what git says

# A worker that is killed takes its child alone with it, and git's helpers would go on waiting for
# a host that does not answer: so the child is a shell, which takes the whole process group.
_WATCHED = 'trap "kill -KILL 0" TERM; "$@" & wait $!'

_SETTINGS: Mapping[str, str] = {
    "core.hooksPath": "/dev/null",
    "core.attributesFile": "/dev/null",
    "core.bigFileThreshold": str(BIG_FILE),
    "credential.helper": "",
    "fetch.unpackLimit": "1",
    "gc.auto": "0",
    "http.followRedirects": "false",
    "http.proxy": "",
    "maintenance.auto": "false",
    "pack.threads": "1",
    "protocol.allow": "never",
    "submodule.recurse": "false",
    "transfer.fsckObjects": "true",
}

_SSH: Mapping[str, str] = {
    "BatchMode": "yes",
    "CheckHostIP": "no",
    "ClearAllForwardings": "yes",
    "ControlMaster": "no",
    "ControlPath": "none",
    "ForwardAgent": "no",
    "GlobalKnownHostsFile": "/dev/null",
    "IdentityFile": "none",
    "PermitLocalCommand": "no",
    "PreferredAuthentications": "publickey",
    "ProxyCommand": "none",
    "StrictHostKeyChecking": "yes",
    "UpdateHostKeys": "no",
    "UserKnownHostsFile": KNOWN_HOSTS,  # from git's working directory on: no path to be quoted
}


def git_command(
    access: Access, words: Sequence[str], max_bytes: int, repository: str = REPOSITORY
) -> Sequence[str]:
    """The command line, to be run in a session of its own: git and its children end with the
    worker, and no file of theirs grows beyond `max_bytes`.
    """
    options = [word for name, value in _options(access) for word in ("-c", f"{name}={value}")]
    bounds = ("prlimit", f"--fsize={max_bytes}:{max_bytes}", "--")
    fate = ("setpriv", "--pdeathsig", "TERM", "--", "sh", "-c", _WATCHED, "sh")
    return (*bounds, *fate, "git", f"--git-dir={repository}", *options, *words)


def _options(access: Access) -> Iterator[tuple[str, str]]:
    remote = access.remote
    yield from _SETTINGS.items()
    yield f"protocol.{remote.scheme}.allow", "always"
    if remote.scheme is Scheme.HTTPS:
        yield "credential.username", access.host.username
        if access.host.ca_file is not None:
            yield "http.sslCAInfo", str(access.host.ca_file)
        if not _is_address(remote.host):
            pinned = ",".join(map(_bracketed, access.addresses))
            yield "http.curloptResolve", f"{remote.host}:{remote.port}:{pinned}"


def git_environment(access: Access, folder: str, path: str) -> Mapping[str, str]:
    """All that git sees. folder: its own, absolute; path: where programs are looked for."""
    environment = {
        "PATH": path,
        "HOME": folder,
        "TMPDIR": folder,
        "LC_ALL": "C",
        "GIT_ALLOC_LIMIT": str(MOST_MEMORY),
        "GIT_ALLOW_PROTOCOL": str(access.remote.scheme),
        "GIT_ASKPASS": f"{folder}/{ASKPASS}" if access.token else "false",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }
    if access.remote.scheme is Scheme.SSH:
        environment |= {"GIT_SSH_COMMAND": _ssh_command(access), "GIT_SSH_VARIANT": "ssh"}
    if access.agent:
        environment["SSH_AUTH_SOCK"] = access.agent
    return environment


def _ssh_command(access: Access) -> str:
    options = {
        **_SSH,
        "HostName": access.addresses[0],
        "HostKeyAlias": access.remote.host,
        "IdentityAgent": "SSH_AUTH_SOCK" if access.agent else "none",
    }
    words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
    return shlex.join(["ssh", "-F", "/dev/null", *words])


def known_hosts(access: Access) -> str:
    """The file that ssh checks the host's key by."""
    return "".join(f"{access.remote.host} {key}\n" for key in access.host.known_hosts)


def fetch_words(remote: Remote, ref: str) -> Sequence[str]:
    """Fetch what one ref names, without its history."""
    return (FETCH, *_QUIETLY, "--depth=1", "--end-of-options", remote.url, ref)


def everything_words(remote: Remote) -> Sequence[str]:
    """Fetch all that leads to branches and tags."""
    return (FETCH, *_QUIETLY, "--end-of-options", remote.url, *EVERYTHING)


def history_words(remote: Remote) -> Sequence[str]:
    """Fetch the commits of all branches and tags, without their trees where the host can do so."""
    return (FETCH, *_QUIETLY, "--filter=tree:0", "--end-of-options", remote.url, *EVERYTHING)


EVERYTHING = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_QUIETLY = ("--progress", "--no-tags", "--no-recurse-submodules", "--no-write-commit-graph")


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


_NO_REF = re.compile(r"couldn't find remote ref|not our ref|no such remote ref")
_UNADVERTISED = re.compile(r"unadvertised object")
_AMBIGUOUS = re.compile(r"is ambiguous")
_ADVICE: Sequence[tuple[re.Pattern[str], str]] = (
    (
        re.compile(
            r"Authentication failed|could not read (?:Username|Password)|HTTP 40[13]|error: 403"
        ),
        "{place} wants other credentials: {credential}",
    ),
    (
        re.compile(r"Permission denied \(|No more authentication methods"),
        "{place} takes none of the agent's keys: {agent}",
    ),
    (
        re.compile(r"Host key verification failed|REMOTE HOST IDENTIFICATION HAS CHANGED"),
        "{place} shows another host key than git_hosts names: find out why, then name the new one",
    ),
    (
        re.compile(r"certificate|SSL|TLS"),
        "{place} cannot be trusted: name its ca_file in git_hosts",
    ),
    (
        re.compile(r"redirect|error: 30[1278]\b"),
        "{place} redirects, which is not followed: name the repository's own URL",
    ),
    (
        re.compile(r"[Rr]epository .*not (?:found|exist)|does not (?:exist|appear to be)|HTTP 404"),
        "{place} has no such repository, or does not show it: check the URL; {credential}",
    ),
    (
        re.compile(r"No space left on device"),
        "the worker's disk is full: make room, then retry",
    ),
    (
        re.compile(r"attempting to allocate|Out of memory"),
        "the repository holds an object that is too large to be unpacked",
    ),
)


def is_missing(said: str) -> bool:
    """Whether git says that there is no such ref."""
    return _NO_REF.search(said) is not None


def is_unadvertised(said: str) -> bool:
    """Whether git says that the host gives no commit out that is no branch's or tag's newest."""
    return _UNADVERTISED.search(said) is not None


def is_ambiguous(said: str) -> bool:
    """Whether git says that several commits begin so."""
    return _AMBIGUOUS.search(said) is not None


def is_too_large(said: str) -> bool:
    """Whether a file of git's met its bound, where SIGXFSZ is ignored and git can say so."""
    return "File too large" in said


def explain(access: Access, said: str) -> str:
    """Why a fetch failed, and what to do: a sentence, with git's own reason."""
    names = {
        "place": access.remote.place or "git_folders",
        "credential": _credential(access),
        "agent": _agent(access),
    }
    own = _without_url(access.remote, said)
    for pattern, advice in _ADVICE:
        if pattern.search(own):
            return f"{advice.format(**names)} (git: {shortened(said)})"
    return f"git could not fetch it: {shortened(said)}"


def _without_url(remote: Remote, said: str) -> str:
    """git's own words: a repository, or its host, may be called after what goes wrong."""
    for text in (remote.url, remote.path, remote.host):
        said = re.sub(rf"(?<![\w.-]){re.escape(text)}(?![\w.-])", "", said)
    return said


def too_large(max_bytes: int) -> str:
    return (
        f"what has to be fetched of the repository is over {format_size(max_bytes)} (max_git): "
        "leave large files to something else, or have the operator raise it"
    )


def shortened(said: str) -> str:
    """The end of what git says, on one line."""
    text = " | ".join(line.strip() for line in said.splitlines() if line.strip())
    return text if len(text) <= SHOWN else f"…{text[-SHOWN:]}"


def _credential(access: Access) -> str:
    token = access.host.token
    if token is None:
        return "an operator names some for it in git_hosts"
    return f"see to {token}" if access.token else f"the worker has no value for {token}"


def _agent(access: Access) -> str:
    if not access.host.ssh:
        return "an operator sets ssh in git_hosts to have them used"
    return "ssh-add one that it knows" if access.agent else "the worker has no SSH_AUTH_SOCK"
