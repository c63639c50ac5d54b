"""Real repositories, fetched by the real git: what comes out, what must not, and what is left."""

import asyncio
import io
import json
import os
import shutil
import socket
import tarfile
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from ciworker.domain.git import Remote, parse_remote
from ciworker.errors import SourceFailed
from ciworker.settings import GitHost, Settings
from ciworker.source import git as module
from ciworker.source.access import access_to
from ciworker.source.archive import ArchiveRefused, Limits, Workspace
from ciworker.source.git import Pinned, Repository, repository
from ciworker.source.gitlines import MAX_LINE
from ciworker.source.intake import Intake
from ciworker.source.spool import clean_tar
from tests.gitservers import USERNAME, Authority, Https, Ssh, https, ssh
from tests.repositories import Made, git, made

pytestmark = pytest.mark.attacks(35)

NAME = "tea.example"  # resolves to nothing on any machine
PASSWORD = "canary-of-a-password-7f3a"
ODD = 'Q7/+"9 zK~w8\\R(T)*'  # each form that encoders give it is another
LOCAL = ("127.0.0.0/8", "::1")


class Heard:
    """What git said."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def line(self, text: bytes) -> None:
        self.lines.append(text)

    def progress(self, text: bytes) -> None:
        assert b"\r" not in text

    @property
    def text(self) -> str:
        return b"\n".join(self.lines).decode()


class Fetcher:
    """Fetches as a worker with these settings does."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        chosen = {"git_folders": (folder,), "git_allowed_addresses": LOCAL, **settings}
        self.settings = Settings(data_dir=folder / "data", **chosen)
        self.secrets: dict[str, str] = {}
        self.heard = Heard()
        self.folder = folder / "data" / "fetches" / "one"

    @asynccontextmanager
    async def repository(self, url: str) -> AsyncIterator[Repository]:
        access = await access_to(parse_remote(url), self.settings, self.secrets.get)
        async with repository(access, self.folder, self.settings.max_git, self.heard) as found:
            yield found

    async def pinned(self, url: str, ref: str = "HEAD") -> Pinned:
        async with self.repository(url) as fetched:
            return await fetched.fetch(ref)

    async def tree(
        self,
        url: str,
        ref: str = "HEAD",
        subdirectory: str | None = None,
        limits: Limits | None = None,
    ) -> tuple[Workspace, bytes]:
        """What is taken in, and its clean tar."""
        spool = self.folder.parents[1] / "tea.tar.zst"
        spool.parent.mkdir(parents=True, exist_ok=True)
        spool.unlink(missing_ok=True)
        intake = Intake(spool, limits or Limits(2**30, 2**30, 1000), now=2e9)
        try:
            async with self.repository(url) as fetched:
                pinned = await fetched.fetch(ref)
                await fetched.write_tree(pinned.commit, subdirectory, intake.feed)
            return await intake.finish(), b"".join(clean_tar(spool))
        except BaseException:
            intake.abort()
            raise

    async def why_not(self, url: str, ref: str = "HEAD") -> str:
        with pytest.raises(SourceFailed) as failed:
            await self.pinned(url, ref)
        assert not self.folder.exists()
        return str(failed.value)


@pytest.fixture
def repo(tmp_path: Path) -> Made:
    return made(tmp_path)


@pytest.fixture
def fetcher(tmp_path: Path) -> Fetcher:
    return Fetcher(tmp_path)


# what a ref names


async def test_a_branch_a_tag_and_a_commit_are_fetched_and_pinned(
    repo: Made, fetcher: Fetcher
) -> None:
    first = repo.commit({"a": "1"}, tag="v1")
    second = repo.commit({"a": "2"})
    assert await fetcher.pinned(repo.url) == Pinned(second)
    assert await fetcher.pinned(repo.url, "main") == Pinned(second, branch="main")
    assert await fetcher.pinned(repo.url, "refs/heads/main") == Pinned(second, branch="main")
    assert await fetcher.pinned(repo.url, "v1") == Pinned(first, tag="v1")
    assert await fetcher.pinned(repo.url, first) == Pinned(first)
    assert not fetcher.folder.exists()


async def test_the_beginning_of_a_commit_is_found_among_all_branches(
    repo: Made, fetcher: Fetcher
) -> None:
    old = repo.commit({"a": "1"}, branch="aside")
    repo.commit({"a": "2"}, branch="aside")
    repo.commit({"a": "3"})
    assert await fetcher.pinned(repo.url, old[:8]) == Pinned(old)
    assert await fetcher.pinned(repo.url, old[:8].upper()) == Pinned(old)
    git(repo.bare, "config", "uploadpack.allowFilter", "true")  # without trees, as forges have it
    assert await fetcher.pinned(repo.url, old[:8]) == Pinned(old)


async def test_a_branch_named_like_a_commit_is_the_branch(repo: Made, fetcher: Fetcher) -> None:
    commit = repo.commit({"a": "1"}, branch="deadbeef")
    assert await fetcher.pinned(repo.url, "deadbeef") == Pinned(commit, branch="deadbeef")


async def test_a_beginning_that_several_commits_have_is_refused(
    repo: Made, fetcher: Fetcher
) -> None:
    one, two = alike(repo)
    for branch, found in (("one", one), ("two", two)):
        git(repo.tree, "push", "--quiet", str(repo.bare), f"{found}:refs/heads/{branch}")
    said = await fetcher.why_not(repo.url, one[:4])
    assert said == f"several commits begin with {one[:4]}: write more of the one that is meant"


@pytest.mark.parametrize("ref", ["main", "HEAD"])
async def test_an_empty_repository_says_so(repo: Made, fetcher: Fetcher, ref: str) -> None:
    said = await fetcher.why_not(repo.url, ref)
    assert said.startswith(
        "the repository is empty, or has no default branch" if ref == "HEAD"
        else "the repository has no branch, tag or commit main"
    )  # fmt: skip
    assert "git: fatal: couldn't find remote ref" in said


@pytest.mark.parametrize("ref", ["none", "0" * 40, "abcdef12"])
async def test_a_ref_that_is_not_there_says_so(repo: Made, fetcher: Fetcher, ref: str) -> None:
    repo.commit({"a": "1"})
    said = await fetcher.why_not(repo.url, ref)
    assert said.startswith(f"the repository has no branch, tag or commit {ref} (git: ")


async def test_a_tag_of_something_else_than_a_commit_is_refused(
    repo: Made, fetcher: Fetcher
) -> None:
    repo.commit({"a": "1"})
    git(repo.bare, "tag", "blob", "main:a")
    assert "no branch, tag or commit blob" in await fetcher.why_not(repo.url, "blob")


# the tree


async def test_the_tree_is_as_a_clone_has_it(repo: Made, fetcher: Fetcher) -> None:
    """Attributes that only `git archive` obeys change nothing, those of a checkout do."""
    attributes = "left export-ignore\nstamp export-subst\ndos.bat text eol=crlf\n"
    files = {"left": "left", "stamp": "$Format:%H$", "dos.bat": "x\n", "run.sh": "#!/bin/sh\n"}
    repo.commit({".gitattributes": attributes, **files})
    (repo.tree / "link").symlink_to("run.sh")
    (repo.tree / "run.sh").chmod(0o755)
    repo.commit({})
    clone = repo.tree.parent / "clone"
    git(repo.tree, "clone", "--quiet", str(repo.bare), str(clone))
    (repo.tree.parent / "out").mkdir()
    workspace, tar = await fetcher.tree(repo.url)
    out = unpacked(tar, repo.tree.parent / "out")
    shutil.rmtree(clone / ".git")
    assert contents(out) == contents(clone)
    assert workspace.files == 5


async def test_a_folder_of_the_tree_can_be_the_tree(repo: Made, fetcher: Fetcher) -> None:
    repo.commit({"a": "1", "cup/b": "2", "cup/.ciworker.toml": "cpus = 1"})
    workspace, _ = await fetcher.tree(repo.url, subdirectory="cup")
    assert workspace.names == {"b", ".ciworker.toml"}
    with pytest.raises(SourceFailed, match="the commit has no folder none"):
        await fetcher.tree(repo.url, subdirectory="none")
    with pytest.raises(SourceFailed, match="the commit has no folder a: that is no folder"):
        await fetcher.tree(repo.url, subdirectory="a")


async def test_what_else_fails_of_a_folder_is_not_said_to_be_missing(
    repo: Made, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.commit({"cup/b": "2"})
    before = 'case " $* " in *" archive "*) echo "fatal: no cup is clean" >&2; exit 1;; esac'
    monkeypatch.setenv("PATH", replaced_git(fetcher, before))
    with pytest.raises(SourceFailed) as failed:
        await fetcher.tree(repo.url, subdirectory="cup")
    assert str(failed.value) == "git could not fetch it: fatal: no cup is clean"


# what repositories bring along


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


async def test_no_hook_and_no_filter_is_run_and_no_submodule_fetched(
    repo: Made, fetcher: Fetcher, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch = f"touch {canary}"
    inner = made(repo.tree.parent, "inner")
    inner.commit({"secret": "x"})
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    lfs = f'[lfs]\n\turl = "ext::sh -c {touch}"\n'
    repo.commit({".gitattributes": "*.bin filter=lfs\n*.x filter=evil\n", ".lfsconfig": lfs,
                 "big.bin": pointer, "a.x": "x"})  # fmt: skip
    git(
        repo.tree, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", inner.url, "s"
    )
    repo.commit({})
    config = repo.tree.parent / "gitconfig"  # of the host: nothing of it may count
    config.write_text(
        f'[filter "lfs"]\n\tsmudge = {touch}\n[filter "evil"]\n\tsmudge = {touch}\n'
        f"[core]\n\thooksPath = {repo.tree.parent}\n\tfsmonitor = {touch}\n"
        f"[credential]\n\thelper = !{touch}\n[submodule]\n\trecurse = true\n"
        f'[url "ext::sh -c {touch} "]\n\tinsteadOf = file://\n'
    )
    for name in ("post-checkout", "reference-transaction", "post-merge"):
        hook = repo.tree.parent / name
        hook.write_text(f"#!/bin/sh\n{touch}\n")
        hook.chmod(0o755)
        shutil.copy(hook, repo.bare / "hooks")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", str(config))
    monkeypatch.setenv("HOME", str(repo.tree.parent))
    monkeypatch.setenv("GIT_SSH_COMMAND", touch)
    monkeypatch.setenv("GIT_TRACE", str(canary))
    shutil.copy(config, repo.tree.parent / ".gitconfig")
    _, tar = await fetcher.tree(repo.url)
    assert pointer.encode() in tar
    assert b"secret" not in tar
    assert not canary.exists()


@pytest.mark.parametrize(
    ("name", "url"),
    [("a", "ext::sh -c touch% {canary}"), ("a", "--upload-pack=touch {canary}")],
)
async def test_what_a_parser_let_through_git_would_not_run(
    fetcher: Fetcher, canary: Path, name: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second line: no transport but the remote's, and no option where its URL stands."""
    evil = url.format(canary=canary)
    monkeypatch.setattr(Remote, "url", property(lambda _: evil))
    (fetcher.folder.parents[2] / name).mkdir()
    await fetcher.why_not(f"file://{fetcher.folder.parents[2] / name}")
    assert not canary.exists()


async def test_symlinks_out_of_the_tree_are_refused_as_in_an_upload(
    repo: Made, fetcher: Fetcher
) -> None:
    repo.commit({"a": "1"})
    (repo.tree / "out").symlink_to("/etc/passwd")
    repo.commit({})
    with pytest.raises(ArchiveRefused, match="'out' is a symlink to an absolute path"):
        await fetcher.tree(repo.url)


# bounds


async def test_a_repository_over_the_limit_is_killed_at_it(repo: Made, tmp_path: Path) -> None:
    repo.commit({"big": os.urandom(8 * 2**20)})
    fetcher = Fetcher(tmp_path, max_git=2**20)
    said = await fetcher.why_not(repo.url)
    assert "is over 1.0 MiB (max_git)" in said


async def test_many_small_files_are_counted_together(
    repo: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No single file meets the bound: the folder is looked at."""
    repo.commit({"a": "1"})
    monkeypatch.setattr(module, "LOOK", 0.0)
    monkeypatch.setattr(module, "_size_of", lambda _: 2**20 + 1)
    assert "max_git" in await Fetcher(tmp_path, max_git=2**20).why_not(repo.url)


def test_the_size_of_a_folder_is_what_all_its_files_take_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, room = 64 * 1024, 32 * 1024
    for name in ("a", "b/c", "b/d/e"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.write(os.urandom(one))
            file.flush()
            os.fsync(file.fileno())
    (tmp_path / "dangling").symlink_to("/none")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**30)
    assert 3 * one <= module._size_of(tmp_path) < 3 * one + room
    walk = [(str(tmp_path), ["b"], ["a", "gone"]), (f"{tmp_path}/left", [], ["x"])]
    monkeypatch.setattr(os, "walk", lambda _: iter(walk))
    assert one <= module._size_of(tmp_path) < one + room


async def test_what_unfolds_beyond_its_bound_is_refused(repo: Made, fetcher: Fetcher) -> None:
    repo.commit({"zeros": bytes(40 * 2**20)})  # some 40 kB as git keeps it
    with pytest.raises(ArchiveRefused, match="over 1,048,576 bytes"):
        await fetcher.tree(repo.url, limits=Limits(2**30, 2**20, 100))
    assert not fetcher.folder.exists()


async def test_damaged_objects_are_not_taken(repo: Made, fetcher: Fetcher) -> None:
    """`transfer.fsckObjects`: a tree that names `.git` is how CVE-2014-9390 began."""
    repo.commit({"a": "1"})
    blob = git(repo.tree, "rev-parse", "HEAD:a")
    (repo.tree / "tree").write_bytes(b"100644 .git\0" + bytes.fromhex(blob))
    tree = git(repo.tree, "hash-object", "-t", "tree", "-w", "--literally", "tree")
    commit = git(repo.tree, "commit-tree", tree, "-m", "evil")
    shutil.copytree(repo.tree / ".git" / "objects", repo.bare / "objects", dirs_exist_ok=True)
    git(repo.bare, "update-ref", "refs/heads/evil", commit)
    said = await fetcher.why_not(repo.url, "evil")
    assert "hasDotgit" in said


async def test_a_worker_without_git_says_how_to_get_it(
    repo: Made, fetcher: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert "apt-get install git" in await fetcher.why_not(repo.url)


# where repositories may be


async def test_files_are_read_only_below_the_operators_folders(repo: Made, tmp_path: Path) -> None:
    repo.commit({"a": "1"})
    (tmp_path / "allowed").mkdir()
    (tmp_path / "allowed" / "link").symlink_to(repo.bare)
    fetcher = Fetcher(tmp_path, git_folders=(tmp_path / "allowed",))
    below = f"{tmp_path}/allowed"
    for path in (
        repo.bare,
        "/none",
        f"{below}/link",
        f"{below}/../tea.git",
        f"{below}/%2e%2e/tea.git",
    ):
        assert "git_folders" in await fetcher.why_not(f"file://{path}")
    assert "git_folders" in await Fetcher(tmp_path, git_folders=()).why_not(repo.url)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://127.0.0.1:1/x", "127.0.0.1 is no public address: an operator may allow it"),
        ("https://localhost:1/x", "1, which is no public address: an operator may allow it"),
        ("https://[::1]/x", "::1 is no public address: an operator may allow it"),
    ],
)
async def test_an_internal_address_is_refused_unless_the_operator_allows_it(
    tmp_path: Path, url: str, told: str
) -> None:
    fetcher = Fetcher(tmp_path, git_allowed_addresses=())
    assert told in await fetcher.why_not(url)
    assert "fatal: unable to access" in await Fetcher(tmp_path).why_not(url)


async def test_a_name_that_is_unknown_is_told(fetcher: Fetcher) -> None:
    said = await fetcher.why_not("https://none.invalid/x")
    assert said.startswith("the host none.invalid cannot be resolved (")


@pytest.fixture
async def served(repo: Made, tmp_path: Path) -> AsyncIterator["Served"]:
    repo.commit({"a": "1"})
    (tmp_path / "private").mkdir()
    made(tmp_path / "private").commit({"a": "2"})
    authority = Authority.made(tmp_path / "authority")
    async with (
        https(tmp_path, authority, PASSWORD) as web,
        ssh(tmp_path, tmp_path / "ssh") as shell,
    ):
        yield Served(authority, web, shell)


class Served:
    def __init__(self, authority: Authority, web: Https, shell: Ssh) -> None:
        self.authority, self.https, self.ssh = authority, web, shell

    def hosts(self, name: str = "localhost", **more: Any) -> dict[str, GitHost]:
        web = {"ca_file": self.authority.file, "token": "T"}
        shell = {"ssh": True, "known_hosts": (self.ssh.host_key,)}
        return {
            f"{name}:{self.https.port}": GitHost(**web),
            f"{name}:{self.ssh.port}": GitHost(**{**shell, **more}),
        }


@pytest.fixture
def rebinding(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name resolves to this machine for the worker, and to nothing for its git."""
    real = socket.getaddrinfo

    def resolve(host: str | bytes | None, *more: Any, **named: Any) -> Any:
        told = host.decode() if isinstance(host, bytes) else host
        return real("127.0.0.1" if told == NAME else told, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


@pytest.mark.usefixtures("rebinding")
async def test_git_connects_to_the_address_that_was_checked(served: Served, tmp_path: Path) -> None:
    """Neither curl nor ssh looks the name up again: it would find nothing."""
    fetcher = Fetcher(tmp_path, git_hosts=served.hosts(NAME))
    fetcher.secrets = {"SSH_AUTH_SOCK": str(served.ssh.agent)}
    web, shell = served.https.url("tea.git"), served.ssh.url("tea.git")
    first = await fetcher.pinned(web.replace("localhost", NAME))
    assert first == await fetcher.pinned(shell.replace("localhost", NAME))


async def test_a_redirect_is_not_followed(served: Served, tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path, git_hosts=served.hosts())
    served.https.target = f"https://127.0.0.1:{served.https.port}"
    assert "redirects" in await fetcher.why_not(served.https.url("moved/tea.git"))
    assert [path for path, _ in served.https.asked] == ["/moved/tea.git/info/refs"]


async def test_a_host_key_that_is_not_pinned_is_refused(served: Served, tmp_path: Path) -> None:
    url = served.ssh.url("tea.git")
    assert "no host key of localhost" in await Fetcher(tmp_path).why_not(url)
    other = (tmp_path / "ssh" / "user.pub").read_text()
    fetcher = Fetcher(tmp_path, git_hosts=served.hosts(known_hosts=(other,)))
    fetcher.secrets = {"SSH_AUTH_SOCK": str(served.ssh.agent)}
    assert "shows another host key than git_hosts names" in await fetcher.why_not(url)


async def test_the_agent_is_used_only_where_the_operator_says_so(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", str(served.ssh.agent))
    url = served.ssh.url("tea.git")
    fetcher = Fetcher(tmp_path, git_hosts=served.hosts(ssh=False))
    fetcher.secrets = {"SSH_AUTH_SOCK": str(served.ssh.agent)}
    assert "an operator sets ssh in git_hosts" in await fetcher.why_not(url)
    without = Fetcher(tmp_path, git_hosts=served.hosts())
    assert "the worker has no SSH_AUTH_SOCK" in await without.why_not(url)
    without.secrets = fetcher.secrets
    assert (await without.pinned(url)).commit


async def test_a_token_without_a_value_is_not_sent(served: Served, tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path, git_hosts=served.hosts())
    said = await fetcher.why_not(served.https.url("private/tea.git"))
    assert "the worker has no value for T" in said
    assert {password for _, password in served.https.asked} == {None}


async def test_a_token_is_nowhere_but_with_its_host(served: Served, tmp_path: Path) -> None:
    """Not in a command line, an environment or a file, while git waits for an answer."""
    fetcher = Fetcher(tmp_path, git_hosts=served.hosts())
    fetcher.secrets = {"T": PASSWORD}
    fetching = asyncio.ensure_future(fetcher.pinned(served.https.url("once/tea.git")))
    await served.https.is_stalled()
    try:
        seen = [told_of(process) for process in Path("/proc").iterdir() if is_in(process, fetcher)]
        assert len(seen) >= 2, "git and its helper"
        assert not [text for text in seen if PASSWORD.encode() in text]
        files = [path.read_bytes() for path in fetcher.folder.rglob("*") if path.is_file()]
        assert not [data for data in files if PASSWORD.encode() in data]
    finally:
        fetching.cancel()
        await asyncio.wait([fetching])
    assert fetching.cancelled()
    assert not fetcher.folder.exists()
    assert not [process for process in Path("/proc").iterdir() if is_in(process, fetcher)]


async def test_a_token_goes_to_the_fetch_and_to_no_other_git(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetcher, log = Fetcher(tmp_path, git_hosts=served.hosts()), tmp_path / "words"
    fetcher.secrets = {"T": PASSWORD}
    before = f'echo "${{CIWORKER_TOKEN_DESCRIPTOR:-none}}" "$@" >> {log}'
    monkeypatch.setenv("PATH", replaced_git(fetcher, before))
    await fetcher.tree(served.https.url("private/tea.git"), subdirectory=None)
    told = [line.split() for line in log.read_text().splitlines()]
    ours = [line for line in told if "--git-dir=repository.git" in line]  # not the server's
    commands = {"init", "fetch", "rev-parse", "archive"}
    assert commands <= {word for line in ours for word in line}
    assert [commands & {*line} for line in ours if line[0] != "none"] == [{"fetch"}]


async def test_a_token_that_the_host_repeats_is_masked(served: Served, tmp_path: Path) -> None:
    fetcher = Fetcher(tmp_path, git_hosts=served.hosts())
    fetcher.secrets = {"T": PASSWORD}
    served.https.password = "another"
    said = await fetcher.why_not(served.https.url("private/tea.git"))
    assert PASSWORD in {password for _, password in served.https.asked}
    assert PASSWORD not in said + fetcher.heard.text


async def test_no_form_of_a_token_is_in_a_line_or_in_the_reason(
    served: Served, tmp_path: Path
) -> None:
    fetcher = Fetcher(tmp_path, git_hosts=served.hosts())
    fetcher.secrets = {"T": ODD}
    basic = b64encode(f"{USERNAME}:{ODD}".encode()).decode()
    spellings = [ODD, quote(ODD), quote_plus(ODD), basic, json.dumps({"password": ODD})]
    served.https.says = spellings
    said = await fetcher.why_not(served.https.url("private/tea.git"))
    assert ODD in {password for _, password in served.https.asked}
    told = said + fetcher.heard.text
    assert told.count("***") >= len(spellings)
    parts = {spelling[at : at + 6] for spelling in (*spellings[:3], basic[-24:]) for at in (0, 9)}
    assert not [part for part in parts if part in told]


async def test_a_proxy_of_the_environment_is_not_used(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    fetcher = Fetcher(tmp_path, git_hosts=served.hosts())
    assert (await fetcher.pinned(served.https.url("tea.git"))).commit


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    served: Served, tmp_path: Path
) -> None:
    said = await Fetcher(tmp_path).why_not(served.https.url("tea.git"))
    assert "cannot be trusted: name its ca_file in git_hosts" in said


async def test_much_that_git_says_is_cut(
    repo: Made, fetcher: Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo.commit({"a": "1"})
    script = tmp_path / "bin" / "git"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nseq 2000 >&2\nyes x | tr -d '\\n' | head -c 100000 >&2\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    said = await fetcher.why_not(repo.url)
    assert len(said) < 1000
    assert len(fetcher.heard.lines) <= module.MAX_LINES + 1
    assert all(len(line) <= MAX_LINE for line in fetcher.heard.lines)


# small things


def replaced_git(fetcher: Fetcher, before: str) -> str:
    """A PATH whose git runs these lines of shell before the real one."""
    script = fetcher.folder.parents[2] / "bin" / "git"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\n{before}\nexec {shutil.which("git")} "$@"\n')
    script.chmod(0o755)
    return f"{script.parent}:{os.environ['PATH']}"


def alike(repo: Made) -> tuple[str, str]:
    """Two commits that begin with the same four characters: of some 300 two do, of 65,537 always.

    Their ids follow from what is in them: it takes as many on each machine.
    """
    seen: dict[str, str] = {}
    tree = git(repo.tree, "hash-object", "-t", "tree", "-w", "/dev/null")
    dates = {"GIT_AUTHOR_DATE": "1700000000 +0000", "GIT_COMMITTER_DATE": "1700000000 +0000"}
    while True:
        commit = git(repo.tree, "commit-tree", tree, "-m", str(len(seen)), **dates)
        if commit[:4] in seen:
            return seen[commit[:4]], commit
        seen[commit[:4]] = commit


def unpacked(tar: bytes, folder: Path) -> Path:
    with tarfile.open(fileobj=io.BytesIO(tar + bytes(1024))) as archive:
        archive.extractall(folder, filter="data")
    return folder / "src"


def contents(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = path.readlink()
        elif path.is_file():
            found[name] = (path.read_bytes(), bool(path.stat().st_mode & 0o100))
    return found


def is_in(process: Path, fetcher: Fetcher) -> bool:
    try:
        return (process / "cwd").readlink() == fetcher.folder
    except OSError:
        return False


def told_of(process: Path) -> bytes:
    return (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
