"""Names and globs of files in a tree, as `setup-inputs` holds them. Pure."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from typing import NamedTuple

from ciworker.errors import Invalid

MAX_PATTERN = 1000
MAX_COMPONENTS = 32
MAX_ANY_FOLDERS = 4
MAX_WORK = 10_000_000
"""What one search may take, some seconds: comparisons of components; long ones count for more."""

_ANY_FOLDERS = "**"
_WILD = frozenset("*?[")
_TOO_MUCH = (
    "the globs in setup-inputs take too long to be held against all names of this tree: name "
    "fewer, or the files and folders themselves"
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """One entry. A name stands for a file, or for all files below a folder; a glob for files.

    text: as it was given. parts: components, of which `**` stands for any number, none too.
    """

    text: str
    parts: tuple[str, ...]
    is_glob: bool


def parse_pattern(value: object) -> Pattern:
    """The entry, its `.` components and doubled slashes dropped; the tree itself is `**`.

    Raises:
        ValueError: saying what is wrong with it.
    """
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(f"holds {value!r:.100}, which is no name of a file")
    if len(value) > MAX_PATTERN:
        raise ValueError(f"holds a name of over {MAX_PATTERN} characters")
    if value.startswith("/"):
        raise ValueError(f"holds {value!r}, an absolute path: name files from the tree's root")
    parts = tuple(part for part in value.split("/") if part not in {"", "."}) or (_ANY_FOLDERS,)
    if ".." in parts:
        raise ValueError(f"holds {value!r}, which has '..' in it: name files from the tree's root")
    if any(_ANY_FOLDERS in part and part != _ANY_FOLDERS for part in parts):
        raise ValueError(f"holds {value!r}: '**' stands between slashes, as in 'a/**/b.txt'")
    if len(parts) > MAX_COMPONENTS or parts.count(_ANY_FOLDERS) > MAX_ANY_FOLDERS:
        raise ValueError(
            f"holds {value!r:.100}: an entry has at most {MAX_COMPONENTS} components, "
            f"{MAX_ANY_FOLDERS} of them '**'; name a folder further up"
        )
    return Pattern(value, parts, is_glob=any(not _WILD.isdisjoint(part) for part in parts))


class _Part(NamedTuple):
    """One component of a glob. size: its length in characters."""

    fits: Callable[[str], object]
    size: int


_Glob = Sequence[_Part | None]  # None: `**`


class Search:
    """Holds the names of a tree's files against entries, and notes which of these were of use.

    What it takes is counted, not timed: whether it is too much follows from tree and entries. For
    each `**` a name is gone through once: only the last one met can ever have to take more.
    """

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.used: set[Pattern] = set()
        names = [entry for entry in patterns if not entry.is_glob]
        self._below = [(entry, "/".join((*entry.parts, ""))) for entry in names]
        self._globs = [(entry, _compiled(entry)) for entry in patterns if entry.is_glob]
        self._work = 0

    def wants(self, name: str) -> bool:
        """Whether an entry stands for the file of this name.

        Raises:
            Invalid: with all names before, that took more than MAX_WORK.
        """
        parts = name.split("/") if self._globs else []
        self._work += len(parts)
        path = f"{name}/"
        found = [entry for entry, below in self._below if path.startswith(below)]
        found += [entry for entry, glob in self._globs if self._matches(glob, parts)]
        self.used.update(found)
        return bool(found)

    def _matches(self, glob: _Glob, name: Sequence[str]) -> bool:
        if self._work > MAX_WORK:
            raise Invalid(_TOO_MUCH)
        last = glob[-1]  # on its own it tells most files from those that are meant
        if last is not None and not self._fits(last, name[-1]):
            return False
        at = position = 0
        resume: tuple[int, int] | None = None
        while position < len(name):
            part = glob[at] if at < len(glob) else _END
            if part is None:
                at += 1
                resume = at, position
            elif self._fits(part, name[position]):
                at, position = at + 1, position + 1
            elif resume is not None:
                at, position = resume[0], resume[1] + 1
                resume = at, position
            else:
                return False
        return all(part is None for part in glob[at:])

    def _fits(self, part: _Part, component: str) -> bool:
        self._work += 1 + part.size * len(component) // 256  # sets and wildcards cost the product
        return part.fits(component) is not None


def _compiled(entry: Pattern) -> _Glob:
    return [
        None if part == _ANY_FOLDERS else _Part(re.compile(translate(part)).match, len(part))
        for part in entry.parts
    ]


_END = _Part(lambda _: None, 0)
