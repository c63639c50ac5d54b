"""What the files at a tree's root say of the project in it: how it is built, what it depends on.

By the packaging standards (PEP 517, 518, 621, 735) and by what setuptools, Poetry and uv add to
them. Nothing is run: what only a build backend could tell is marked as such.
"""

import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from configparser import ConfigParser
from configparser import Error as ConfigError
from functools import cached_property
from itertools import pairwise

from ciworker.domain.job import Backend
from ciworker.errors import Invalid

PYPROJECT = "pyproject.toml"
SETUP_CFG = "setup.cfg"
SETUP_PY = "setup.py"
REQUIREMENTS = "requirements.txt"
UV_LOCK = "uv.lock"
PYLOCK = "pylock.toml"
POETRY_LOCK = "poetry.lock"

_SETUPTOOLS = "setuptools.build_meta:__legacy__"  # PEP 517's and PEP 518's defaults
_SETUPTOOLS_REQUIRES = ["setuptools>=40.8.0"]

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_NAME_IN_SETUP_PY = re.compile(r"\bname\s*=\s*[\"']([A-Za-z0-9._-]{1,200})[\"']", re.ASCII)
_LITERAL = re.compile(r"[\"']([\w./-]{1,200})[\"']")
_REQUIREMENT = re.compile(r"\s*(?P<name>[A-Za-z0-9._-]+)\s*(?:\[(?P<extras>[^]]*)\])?", re.ASCII)


class ProjectFiles:
    """A tree's project, as far as its files tell; values of a wrong type count as not said.

    files: contents of the files that a setup may read, by name; names: of everything at the tree's
    root. The properties raise `Invalid` for a pyproject.toml that does not parse.
    """

    def __init__(self, files: Mapping[str, bytes], names: frozenset[str]) -> None:
        self.files = files
        self.names = names

    @cached_property
    def pyproject(self) -> Mapping[str, object]:
        return parse_toml(self.files, PYPROJECT)

    @cached_property
    def project(self) -> Mapping[str, object]:
        return table(self.pyproject.get("project"))

    def tool(self, name: str) -> Mapping[str, object]:
        return table(table(self.pyproject.get("tool")).get(name))

    @cached_property
    def setup_cfg(self) -> Mapping[str, Mapping[str, str]]:
        """Its sections; none if it does not parse, which setuptools will say."""
        parser = ConfigParser(interpolation=None, strict=False)
        try:
            parser.read_string(self.files.get(SETUP_CFG, b"").decode("utf-8", "replace"))
        except ConfigError:
            return {}
        return {name: dict(section) for name, section in parser.items()}

    @cached_property
    def name(self) -> str | None:
        """The distribution's name, if it can be relied on."""
        poetry = self.tool("poetry").get("name")
        in_cfg = self.setup_cfg.get("metadata", {}).get("name")
        name = self.project.get("name") or poetry or in_cfg
        return name if isinstance(name, str) and _NAME.fullmatch(name) else None

    @cached_property
    def name_for_versions(self) -> str | None:
        """As `name`, or a guess that does no harm where it is wrong."""
        script = self.files.get(SETUP_PY, b"").decode("utf-8", "replace")
        guess = _NAME_IN_SETUP_PY.search(script)
        return self.name or (guess[1] if guess else None)

    @cached_property
    def is_poetry(self) -> bool:
        """Whether Poetry's own tables or its lock say what to install."""
        tables = bool(self.tool("poetry"))
        return tables and (not self.project or POETRY_LOCK in self.names)

    @cached_property
    def has_setuptools(self) -> bool:
        """Whether setuptools is meant where nobody says so."""
        sections = {"metadata", "options"} & self.setup_cfg.keys()
        return SETUP_PY in self.names or bool(sections)

    @cached_property
    def build_system(self) -> Mapping[str, object] | None:
        """PEP 517's table or its defaults; None if nothing is to be built."""
        if self.tool("uv").get("package") is False:
            return None
        if self.tool("poetry").get("package-mode") is False:
            return None
        if system := table(self.pyproject.get("build-system")):
            return system
        return {} if self.has_setuptools or self.tool("uv").get("package") is True else None

    @cached_property
    def backend(self) -> Backend | None:
        if self.build_system is None:
            return None
        name = self.build_system.get("build-backend")
        return Backend(
            name=name if isinstance(name, str) and name else _SETUPTOOLS,
            path=tuple(texts(self.build_system.get("backend-path"))),
            project=self.name_for_versions,
        )

    @property
    def build_requires(self) -> Sequence[str]:
        return texts((self.build_system or {}).get("requires", _SETUPTOOLS_REQUIRES))

    @cached_property
    def extras(self) -> Mapping[str, Sequence[str]]:
        """Words for uv, by extra: requirements, or files of them by `-r`."""
        if self.is_poetry:
            return dict.fromkeys(table(self.tool("poetry").get("extras")), ())
        if not self.project:
            section = self.setup_cfg.get("options.extras_require", {})
            return {name: _listed(text) for name, text in section.items()}
        optional = table(self.project.get("optional-dependencies"))
        by_file = table(self._setuptools_dynamic.get("optional-dependencies"))
        words = {name: texts(requirements) for name, requirements in optional.items()}
        return words | {name: _files_of(value) for name, value in by_file.items()}

    @cached_property
    def groups(self) -> Collection[str]:
        own = table(self.tool("poetry").get("group")) if self.is_poetry else {}
        return [*table(self.pyproject.get("dependency-groups")), *own]

    @cached_property
    def is_dynamic(self) -> bool:
        """Whether the dependencies stand somewhere else than in `[project]`."""
        return not self.project or "dependencies" in texts(self.project.get("dynamic"))

    @cached_property
    def listed(self) -> Sequence[str]:
        """Dynamic dependencies that setuptools takes from lists and files, as words for uv."""
        if self.project:
            return _files_of(self._setuptools_dynamic.get("dependencies"))
        return _listed(self.setup_cfg.get("options", {}).get("install_requires", ""))

    @cached_property
    def asks_setup_py(self) -> bool:
        """Whether setup.py alone can tell the dependencies."""
        return self._is_unsaid and self._by_setuptools and SETUP_PY in self.files

    @cached_property
    def asks_backend(self) -> bool:
        """Whether another backend than setuptools alone can tell the dependencies."""
        return self._is_unsaid and not self._by_setuptools

    @property
    def _is_unsaid(self) -> bool:
        return self.is_dynamic and not self.listed and self.backend is not None

    def extra_words(self, *extras: str) -> Iterator[str]:
        """The words for extras, with those of the project's other extras that they name.

        An extra counts once, however many name it.
        """
        seen: set[str] = set()
        words = self._unseen_words(extras, seen)
        while words:
            word = words.pop()
            match = _REQUIREMENT.match(word)
            if match and self.name and canonical(match["name"]) == canonical(self.name):
                named = (other.strip() for other in (match["extras"] or "").split(","))
                words += self._unseen_words(named, seen)
            else:
                yield word

    def _unseen_words(self, extras: Iterable[str], seen: set[str]) -> list[str]:
        """The words of those extras that are not in `seen`, last first; now they are in it."""
        fresh = [extra for extra in dict.fromkeys(extras) if extra not in seen]
        seen.update(fresh)
        return [word for extra in fresh for word in self.extras.get(extra, ())][::-1]

    def further_files(self) -> Sequence[str]:
        """Files that dynamic dependencies are read from: setup.py, where nothing else tells."""
        if not self.is_dynamic or not self._by_setuptools:
            return ()
        words = [*self.listed, *(word for extra in self.extras.values() for word in extra)]
        files = [word for flag, word in pairwise(words) if flag == "-r"]
        return files if self.listed else [*files, SETUP_PY]

    @property
    def _by_setuptools(self) -> bool:
        """Also where nothing is said: whether there is a setup.py may not be known."""
        system = self.build_system or {}
        return str(system.get("build-backend", _SETUPTOOLS)).startswith("setuptools.")

    @property
    def _setuptools_dynamic(self) -> Mapping[str, object]:
        return table(self.tool("setuptools").get("dynamic"))


def parse_toml(files: Mapping[str, bytes], name: str) -> Mapping[str, object]:
    """A file's tables; none where there is no such file.

    Raises:
        Invalid: it does not parse.
    """
    try:
        return tomllib.loads(files.get(name, b"").decode())
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{name} is not valid TOML: {error}") from error


def table(value: object) -> Mapping[str, object]:
    """A table of TOML; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def texts(value: object) -> Sequence[str]:
    """The texts of a list of TOML, or one that stands alone."""
    if isinstance(value, str):
        return [value]
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _files_of(value: object) -> Sequence[str]:
    """The words for setuptools' `{file = ...}`."""
    return [word for name in texts(table(value).get("file")) for word in ("-r", name)]


def _listed(text: str) -> Sequence[str]:
    """The words for a list of setup.cfg, which may be `file: ...`."""
    if text.strip().startswith("file:"):
        return _files_of({"file": re.split(r"[,\s]+", text.strip().removeprefix("file:").strip())})
    lines = text.splitlines() if "\n" in text else text.split(";")
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def canonical(name: str) -> str:
    """A distribution's, extra's or group's name as names are compared (PEP 503, 685, 735)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def named_in(script: str) -> Sequence[str]:
    """What may be names of files in a setup.py: its short literals."""
    return [match[1] for match in _LITERAL.finditer(script)]
