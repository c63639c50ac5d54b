"""Fetches one commit of a repository by the host's git, and streams its tree as a tar.

git runs in a folder of its own, in a session of its own: whatever ends a fetch, its end, a refusal,
a bound or a cancellation, kills git with its children and removes the folder with all that is in
it. Nothing is ever checked out. Errors are `SourceFailed`, with a sentence for whoever submitted.
"""

import asyncio
import os
import shutil
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ciworker.domain.git import DEFAULT_REF, Scheme, is_commit, may_be_commit
from ciworker.errors import SourceFailed
from ciworker.source.access import Access
from ciworker.source.gitcommand import (
    ASKPASS,
    ASKPASS_SCRIPT,
    ATTRIBUTES,
    DESCRIPTOR,
    FETCH,
    HISTORY,
    KNOWN_HOSTS,
    REPOSITORY,
    everything_words,
    explain,
    fetch_words,
    git_command,
    git_environment,
    history_words,
    is_ambiguous,
    is_missing,
    is_too_large,
    is_unadvertised,
    known_hosts,
    shortened,
    too_large,
)
from ciworker.source.gitlines import GitLines

PROGRAMS = ("git", "setpriv", "prlimit")
LOOK = 0.1  # seconds between looks at the folder's size
READ = 256 * 1024
REASON_LINES = 8
MAX_LINES = 300
MAX_ANSWER = 4096
DEATH = 5.0  # seconds that killed processes may take to be gone
_PATH = "/usr/local/bin:/usr/bin:/bin"

# What git says besides its reasons.
_NO_REASONS = (
    b"remote: Enumerating",
    b"remote: Counting",
    b"remote: Compressing",
    b"remote: Total",
    b"Receiving objects",
    b"Resolving deltas",
    b"Please make sure you have the correct access rights",
    b"and the repository exists.",
)

Take = Callable[[bytes], Awaitable[None]]


class Listener(Protocol):
    """Hears what git says; nothing of it is secret."""

    def line(self, text: bytes) -> None:
        """A whole line, without its end."""

    def progress(self, text: bytes) -> None:
        """How far it is, until the next progress or line; empty: nowhere any more."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a ref named when it was fetched. branch, tag: its name, if the ref was one."""

    commit: str
    branch: str | None = None
    tag: str | None = None


def missing_programs(*programs: str) -> Sequence[str]:
    """Those of them that cannot be found; of none named, what every fetch needs."""
    path = os.environ.get("PATH", _PATH)
    return [name for name in programs or PROGRAMS if shutil.which(name, path=path) is None]


@asynccontextmanager
async def repository(
    access: Access, folder: Path, max_bytes: int, listener: Listener
) -> AsyncIterator["Repository"]:
    """An empty repository in a folder that is made, and removed at the end of the block.

    Args:
        access: of the remote.
        folder: does not exist yet.
        max_bytes: that it may take.
        listener: hears git.
    """
    needed = (*PROGRAMS, "ssh") if access.remote.scheme is Scheme.SSH else PROGRAMS
    if missing := missing_programs(*needed):
        raise SourceFailed(
            f"the worker's machine has no {', '.join(missing)}: "
            "apt-get install git openssh-client util-linux"
        )
    try:
        await asyncio.to_thread(_furnish, folder, access)
        made = Repository(access, folder, max_bytes, listener)
        await made.init()
        yield made
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def _furnish(folder: Path, access: Access) -> None:
    folder.mkdir(mode=0o700, parents=True)
    (folder / KNOWN_HOSTS).write_text(known_hosts(access))
    askpass = folder / ASKPASS
    askpass.write_text(ASKPASS_SCRIPT)
    askpass.chmod(0o700)


class _GitFailed(Exception):
    """It ended with another exit code than 0; `said` is the end of what it said."""

    def __init__(self, said: str) -> None:
        super().__init__(said)
        self.said = said


class Repository:
    """A bare repository that takes one fetch. Its methods raise SourceFailed."""

    def __init__(self, access: Access, folder: Path, max_bytes: int, listener: Listener) -> None:
        self._access, self._folder, self._max_bytes = access, folder, max_bytes
        self._listener = listener
        self._environment = git_environment(
            access, str(folder.absolute()), os.environ.get("PATH", _PATH)
        )
        self._lines = 0

    async def init(self, name: str = REPOSITORY) -> None:
        """Make it; without a template no hook is in it."""
        await self._told("init", "--quiet", "--bare", "--template=", at=name)
        info = self._folder / name / "info"
        info.mkdir(exist_ok=True)
        (info / "attributes").write_text(ATTRIBUTES)

    async def fetch(self, ref: str) -> Pinned:
        """Fetch what a ref names: a branch, a tag, or a commit, as a whole or its beginning."""
        if is_commit(ref):
            return await self._fetch_commit(ref)
        try:
            await self._run(fetch_words(self._access.remote, ref))
        except _GitFailed as failed:
            if may_be_commit(ref) and is_missing(failed.said):
                return await self._fetch_commit(await self._lengthened(ref.lower()))
            raise self._explained(failed, ref) from failed
        fetched = (self._folder / REPOSITORY / "FETCH_HEAD").read_text(errors="replace")
        words = fetched.partition("\n")[0].split("\t")[-1]
        kind, _, name = words.partition(" '")
        name = name.partition("' of ")[0]
        commit = await self._verified("FETCH_HEAD", ref)
        return Pinned(
            commit,
            branch=name if kind == "branch" else None,
            tag=name if kind == "tag" else None,
        )

    async def write_tree(self, commit: str, subdirectory: str | None, take: Take) -> None:
        """Hand the tar of a fetched commit's tree, or of a folder in it, to `take`, in pieces."""
        name = f"{commit}:{subdirectory}" if subdirectory else commit
        if subdirectory:
            await self._check_folder(name, subdirectory)
        try:
            await self._run(("archive", "--format=tar", name), take)
        except _GitFailed as failed:
            raise self._explained(failed, commit) from failed

    async def _check_folder(self, name: str, subdirectory: str) -> None:
        try:
            kind = await self._run(("cat-file", "-t", name))
        except _GitFailed as failed:
            raise SourceFailed(
                f"the commit has no folder {subdirectory} (git: {shortened(failed.said)})"
            ) from failed
        if kind != "tree":
            raise SourceFailed(f"the commit has no folder {subdirectory}: that is no folder")

    async def _fetch_commit(self, commit: str) -> Pinned:
        remote = self._access.remote
        try:
            await self._run(fetch_words(remote, commit))
        except _GitFailed as failed:
            if not is_unadvertised(failed.said):
                raise self._explained(failed, commit) from failed
            self._tell(b"the host gives single commits not out: fetching all branches and tags")
            await self._told(*everything_words(remote), about=commit)
        return Pinned(await self._verified(commit, commit))

    async def _lengthened(self, beginning: str) -> str:
        """The one commit of any branch or tag that begins so."""
        self._tell(b"no branch or tag of that name: looking for a commit that begins so")
        await self.init(HISTORY)
        await self._told(*history_words(self._access.remote), at=HISTORY, about=beginning)
        try:
            found = await self._run(_verify(beginning), at=HISTORY)
        except _GitFailed as failed:
            if is_ambiguous(failed.said):
                raise SourceFailed(
                    f"several commits begin with {beginning}: write more of the one that is meant"
                ) from failed
            raise self._unknown(beginning, failed.said) from failed
        await asyncio.to_thread(shutil.rmtree, self._folder / HISTORY)
        return found

    async def _verified(self, name: str, ref: str) -> str:
        try:
            return await self._run(_verify(name))
        except _GitFailed as failed:
            raise self._unknown(ref, failed.said) from failed

    def _explained(self, failed: _GitFailed, ref: str) -> SourceFailed:
        if is_too_large(failed.said):
            return SourceFailed(too_large(self._max_bytes))
        if is_missing(failed.said):
            return self._unknown(ref, failed.said)
        return SourceFailed(explain(self._access, failed.said))

    def _unknown(self, ref: str, said: str) -> SourceFailed:
        reason = f"(git: {shortened(said)})"
        if ref == DEFAULT_REF:
            return SourceFailed(
                f"the repository is empty, or has no default branch: name a ref {reason}"
            )
        return SourceFailed(f"the repository has no branch, tag or commit {ref} {reason}")

    # git

    async def _told(self, *words: str, at: str = REPOSITORY, about: str = DEFAULT_REF) -> None:
        try:
            await self._run(words, at=at)
        except _GitFailed as failed:
            raise self._explained(failed, about) from failed

    async def _run(
        self, words: Sequence[str], take: Take | None = None, at: str = REPOSITORY
    ) -> str:
        """Run git to its end, within the bounds; what it prints, where nobody else takes that.

        Raises:
            _GitFailed: it did.
            SourceFailed: it took too much room.
        """
        answer = bytearray()

        async def keep(piece: bytes) -> None:
            answer.extend(piece[: MAX_ANSWER - len(answer)])

        said = deque[bytes](maxlen=REASON_LINES)
        async with self._process(words, at) as process:
            attending = asyncio.ensure_future(self._attend(process, take or keep, said))
            try:
                await self._watch(attending)
                code = await attending
            finally:
                attending.cancel()
                await asyncio.wait([attending])
        if not code:
            return answer.decode(errors="replace").strip()
        if await asyncio.to_thread(_size_of, self._folder) >= self._max_bytes:
            raise SourceFailed(too_large(self._max_bytes))  # one file met its bound
        raise _GitFailed(b"\n".join(said).decode(errors="replace") or f"exit code {code}")

    async def _watch(self, attending: "asyncio.Future[int]") -> None:
        while not (await asyncio.wait([attending], timeout=LOOK))[0]:
            if await asyncio.to_thread(_size_of, self._folder) > self._max_bytes:
                raise SourceFailed(too_large(self._max_bytes))

    async def _attend(
        self, process: asyncio.subprocess.Process, take: Take, said: deque[bytes]
    ) -> int:
        """Take what git prints and hear what it says, until it has ended; its exit code."""
        assert process.stdout is not None
        assert process.stderr is not None
        hearing = asyncio.ensure_future(self._hear(process.stderr, said))
        try:
            while piece := await process.stdout.read(READ):
                await take(piece)
            await hearing
            return await process.wait()
        finally:
            hearing.cancel()
            await asyncio.wait([hearing])

    @asynccontextmanager
    async def _process(
        self, words: Sequence[str], at: str
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        """git, which is killed with its children at the end of the block, if it has not ended."""
        environment, inherited = dict(self._environment), tuple[int, ...]()
        if self._access.token is not None and words[0] == FETCH:
            inherited = (_filled_pipe(self._access.token),)
            environment[DESCRIPTOR] = str(inherited[0])
        try:
            process = await asyncio.create_subprocess_exec(
                *git_command(self._access, words, self._max_bytes, at),
                cwd=self._folder,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
                pass_fds=inherited,
            )
        finally:
            for descriptor in inherited:
                os.close(descriptor)
        try:
            yield process
        finally:
            await _ended(process)

    # what it says

    async def _hear(self, stream: asyncio.StreamReader, said: deque[bytes]) -> None:
        lines = GitLines(self._access.token)
        while piece := await stream.read(READ):
            for line in lines.feed(piece):
                self._heard(line, said)
            self._listener.progress(lines.unfinished)
        for line in lines.finish():
            self._heard(line, said)

    def _heard(self, line: bytes, said: deque[bytes]) -> None:
        if not line.startswith(_NO_REASONS):
            said.append(line)
        self._tell(line)

    def _tell(self, line: bytes) -> None:
        self._lines += 1
        if self._lines <= MAX_LINES:
            self._listener.line(line)
        elif self._lines == MAX_LINES + 1:
            self._listener.line(b"git says more, which is left out")


def _verify(name: str) -> Sequence[str]:
    return ("rev-parse", "--verify", f"{name}^{{commit}}")


def _filled_pipe(text: str) -> int:
    """The reading end of a pipe that holds the text and its end."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)  # a value that does not fit is cut, and refused by the host
    try:
        os.write(writing, text.encode() + b"\n")
    finally:
        os.close(writing)
    return reading


def _size_of(folder: Path) -> int:
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # git renames and removes meanwhile
                size += Path(parent, name).lstat().st_blocks * 512
    return size


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Kill what is left of its session, and wait until all of it let go of its output."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(DEATH):
            assert process.stdout is not None
            assert process.stderr is not None
            while await process.stdout.read(READ):
                pass
            while await process.stderr.read(READ):
                pass
            await process.wait()
