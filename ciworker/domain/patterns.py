"""Names and globs of files in a tree, as `setup-inputs` holds them. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

MAX_PATTERN = 1000

_ANY_FOLDERS = "**"
_WILD = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Pattern:
    """One entry. A name stands for a file, or for all files below a folder; a glob for files.

    text: as it was given. parts: components, of which `**` stands for any number, none too.
    """

    text: str
    parts: tuple[str, ...]
    is_glob: bool

    def matches(self, name: tuple[str, ...]) -> bool:
        """Whether the file of these components is one that the entry stands for."""
        if not self.is_glob:
            return name[: len(self.parts)] == self.parts
        last = self.parts[-1]  # on its own it tells most files from those that are meant
        return (last == _ANY_FOLDERS or fnmatchcase(name[-1], last)) and _matches(self.parts, name)


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
    return Pattern(value, parts, is_glob=any(not _WILD.isdisjoint(part) for part in parts))


def _matches(pattern: Sequence[str], name: Sequence[str]) -> bool:
    """Linear in the name for each `**`: only the last one met can ever have to take more."""
    at = position = 0
    resume: tuple[int, int] | None = None
    while position < len(name):
        if at < len(pattern) and pattern[at] == _ANY_FOLDERS:
            at += 1
            resume = at, position
        elif at < len(pattern) and fnmatchcase(name[position], pattern[at]):
            at, position = at + 1, position + 1
        elif resume is not None:
            at, position = resume[0], resume[1] + 1
            resume = at, position
        else:
            return False
    return all(part == _ANY_FOLDERS for part in pattern[at:])
