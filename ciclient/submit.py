"""From a path and the command line's overrides to what one submit sends: a spec and an archive."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from ciclient import git
from ciclient.errors import Usage
from ciclient.pack import Archive, default_project, largest, packed, ready_file, summary
from ciclient.progress import Progress
from ciclient.report import size
from ciclient.sanitise import clean
from ciclient.terminal import Terminal
from ciclient.tree import Tree, look_at


@dataclass(frozen=True, slots=True)
class Overrides:
    """As the command line gave them: the worker reads durations and sizes. None is not sent."""

    image: str | None = None
    timeout: str | None = None
    memory: str | None = None
    cpus: float | None = None
    network: bool | None = None
    env: dict[str, str] | None = None
    priority: int | None = None
    project: str | None = None
    cache: str | None = None
    git: dict[str, str] | None = None
    secrets: list[str] | None = None
    command: list[str] | None = None

    def as_spec(self) -> dict[str, object]:
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True, slots=True)
class Prepared:
    """The parts of a submit, and who shows how far they are sent. archive: None where the worker
    fetches the source."""

    spec: bytes
    archive: Archive | None
    progress: Progress


@contextmanager
def prepared(path: Path, overrides: Overrides, terminal: Terminal) -> Iterator[Prepared]:
    """Raises Usage, before anything is sent, for a path that can't be packed."""
    if overrides.git is not None:
        yield Prepared(_encoded(overrides.as_spec()), None, Progress(terminal))
        return
    root = _existing(path)
    spec = overrides.as_spec()
    if not root.is_dir():
        with ready_file(root) as archive:
            terminal.say(f"sending {root.name} as it is, {size(archive.size)}")
            yield Prepared(_encoded(spec), archive, Progress(terminal))
        return
    tree = look_at(root)
    vcs = git.describe(root)
    changes = None if vcs is None else vcs.changes
    _tell(terminal, tree, changes)
    project = default_project(root)
    defaults = {} if project is None else {"project": project}
    described = {} if vcs is None else {"vcs": vcs.as_spec()}
    progress = Progress(terminal, changes=changes)
    with packed(tree, progress.packed) as archive:
        yield Prepared(_encoded(defaults | spec | described), archive, progress)


def list_contents(path: Path, terminal: Terminal) -> None:
    """What `prepared` would pack: names and sizes on stdout."""
    root = _existing(path)
    if not root.is_dir():
        with ready_file(root) as archive:
            terminal.out_line(f"{archive.size:>12}  {clean(root.name)}")
        return
    tree = look_at(root)
    lines = [f"{entry.size:>12}  {_shown(entry.name, entry.target)}\n" for entry in tree.entries]
    terminal.out("".join(lines))
    vcs = git.describe(root)
    _tell(terminal, tree, None if vcs is None else vcs.changes)


def _existing(path: Path) -> Path:
    root = path.resolve()
    if root.is_dir() or root.is_file():
        return root
    if root.exists():
        raise Usage(f"{path} is neither a folder nor a file")
    raise Usage(f"{path} does not exist")


def _shown(name: str, target: str) -> str:
    return clean(f"{name} -> {target}" if target else name)


def _tell(terminal: Terminal, tree: Tree, changes: int | None) -> None:
    for warning in tree.warnings:
        terminal.say(warning)
    terminal.say(summary(tree, changes))
    too_much = largest(tree)
    if too_much is not None:
        terminal.say(too_much)


def _encoded(spec: dict[str, object]) -> bytes:
    return json.dumps(spec).encode()
