"""What is set up for a tree that does not say so: its dependencies, pytest, its build backend.

Dependencies go into a virtual environment at VENV that sees the image's own packages; the build
backend goes to BUILD, where the tests do not see it. The project itself is not there when an
environment is built: its backend installs it in each job, by `ciworker/source/project.py`.

All of a recipe is shell commands that a person can read in the log, and run. They are part of the
environment's key, so that another version of anything that is named here builds anew. Of uv's ways
that are not pip's: it compiles no bytecode unless told to (a job's root file system is read-only,
so nothing would ever be cached), reads none of pip's variables, heeds a project's
`requires-python` in `uv venv` and not in `uv pip install`, and knows nothing of system
packages when it resolves.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from posixpath import dirname, join, normpath
from shlex import quote

from ciworker.domain.job import Backend
from ciworker.domain.pyproject import (
    POETRY_LOCK,
    PYLOCK,
    PYPROJECT,
    REQUIREMENTS,
    SETUP_CFG,
    SETUP_PY,
    UV_LOCK,
    ProjectFiles,
    canonical,
    named_in,
    parse_toml,
    table,
    texts,
)
from ciworker.domain.version import NO_VERSION, project_variables
from ciworker.errors import Invalid

UV = "0.13.8"
INSTALLER = "installer>=0.7,<2"  # two lines of versions: no single one is for all of Python 3.8+
POETRY_CORE = "poetry-core"

VENV = "/opt/ciworker/venv"
BUILD = "/opt/ciworker/build"
SITE = "/workspace/site"
PROJECT_SCRIPT = "/workspace/.ciworker/project.py"
_SCRATCH = "/var/tmp/ciworker"  # noqa: S108 # a container's disk, where /tmp is memory

TEST_REQUIREMENTS = (
    "requirements-test.txt",
    "requirements_test.txt",
    "requirements-tests.txt",
    "requirements_tests.txt",
    "test-requirements.txt",
    "requirements-dev.txt",
    "requirements_dev.txt",
    "dev-requirements.txt",
)
DEFAULT_INPUTS: Sequence[str] = (
    "requirements*.txt",
    "constraints*.txt",
    "test-requirements.txt",
    "dev-requirements.txt",
    PYPROJECT,
    SETUP_CFG,
    UV_LOCK,
    PYLOCK,
    POETRY_LOCK,
)
"""Patterns of names at a tree's root: what a setup may read if nobody says otherwise."""

WANTED = ("test", "tests", "testing", "dev")  # extras and groups, in this order

SETUP_ENV: Mapping[str, str] = {
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "TMPDIR": f"{_SCRATCH}/tmp",  # noqa: S108 # as above
    "XDG_CACHE_HOME": f"{_SCRATCH}/cache",
    "DEBIAN_FRONTEND": "noninteractive",
    "PIP_BREAK_SYSTEM_PACKAGES": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "PIP_PROGRESS_BAR": "off",
    "PIP_ROOT_USER_ACTION": "ignore",
    "UV_BREAK_SYSTEM_PACKAGES": "1",
    "UV_COMPILE_BYTECODE": "1",
    "UV_HTTP_RETRIES": "2",
    "UV_HTTP_TIMEOUT": "15",
    "UV_NO_PROGRESS": "1",
}
"""A setup's own variables; an index that does not answer fails it within a minute."""

# uv prefers an index that was added, pip takes the best of all: who set pip's variable meant that.
# A subshell runs each command, so that none sees what another set.
_PRELUDE = f"""\
umask 022
mkdir -p "$TMPDIR"
export PATH="$PATH:{_SCRATCH}/tools/bin"
if [ -z "$UV_DEFAULT_INDEX$UV_INDEX_URL" ] && [ -n "$PIP_INDEX_URL" ]; then
  export UV_DEFAULT_INDEX="$PIP_INDEX_URL"
fi
if [ -z "$UV_INDEX$UV_EXTRA_INDEX_URL" ] && [ -n "$PIP_EXTRA_INDEX_URL" ]; then
  export UV_INDEX="$PIP_EXTRA_INDEX_URL"
  export UV_INDEX_STRATEGY="${{UV_INDEX_STRATEGY:-unsafe-best-match}}"
fi
if [ -z "$UV_INSECURE_HOST" ] && [ -n "$PIP_TRUSTED_HOST" ]; then
  export UV_INSECURE_HOST="$PIP_TRUSTED_HOST"
fi
if [ -z "$SSL_CERT_FILE" ] && [ -n "$PIP_CERT" ]; then
  export SSL_CERT_FILE="$PIP_CERT"
fi
step() {{
  printf '$ %s\\n' "$1"
  (
    if [ -d {VENV} ]; then
      export VIRTUAL_ENV={VENV} PATH="{VENV}/bin:$PATH"
    fi
    exec sh -c "$1"
  ) || {{
    code=$?
    printf 'ciworker: the setup ends here: exit code %s of: %s\\n' "$code" "$1" >&2
    exit "$code"
  }}
}}
"""

_GET_UV = (
    "python3 -m pip --version >/dev/null 2>&1 || python3 -m ensurepip; "
    f"python3 -m pip install --quiet --timeout 15 --retries 2 --target {_SCRATCH}/tools 'uv{{}}'"
)
_MAKE_VENV = (
    f"uv venv --quiet --system-site-packages --no-managed-python --no-python-downloads {VENV}"
)
_UV_SYNC = (
    "uv sync --active --frozen --inexact --no-python-downloads "
    "--no-install-project --no-install-workspace --no-install-local"
)
_ADD_SITE = (
    f"cd {VENV}/lib/python*/site-packages && "
    f"echo \"import site; site.addsitedir('{SITE}')\" >ciworker.pth"
)
_RUN_PROJECT_SCRIPT = f"python -I {PROJECT_SCRIPT}"
_TOLD = f"{_SCRATCH}/requirements.txt"  # by what only a container can ask

_INCLUDE = re.compile(r"\s*(?:-r|-c|--requirement|--constraint)(?:\s*=|\s)?\s*(?P<name>[^#]+)")
# The project itself, in a requirements file; it reads the same to Python and to sed -E.
_SELF = r"""\s*((-e|--editable)[ =]*)?"?(file:)?\./?(\[[^]]*\])?"?\s*([;#].*)?"""
_EXTRAS_OF_SELF = 4
_DROP_SELF = rf"\,^{_SELF}$,d"
_UV_VERSION = re.compile(r"(?!>=[0-9. ]+$)[<>=!~0-9., *]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Recipe:
    """commands: none if there is nothing to set up. backend: what installs the project, if any."""

    commands: Sequence[str]
    backend: Backend | None


def setup_run(commands: Sequence[str]) -> str:
    """The shell command line of a setup: each command by `sh -c`, in order, shown before it runs.

    The first that fails ends it, with its exit code; what is temporary is removed at the end.
    """
    steps = "".join(f"step {quote(command)}\n" for command in commands)
    return f"{_PRELUDE}{steps}rm -rf {_SCRATCH}"


def default_recipe(files: Mapping[str, bytes], names: Collection[str]) -> Recipe:
    """What to set up for a tree, from the files that a setup may read.

    Args:
        files: contents of the default inputs, and of what they include, by name.
        names: of everything at the tree's root, files and folders.

    Raises:
        Invalid: for a pyproject.toml or a lock file that does not parse.
    """
    tree = ProjectFiles(files, frozenset(names))
    steps = _steps(tree) if files else []
    if not steps and (tree.backend is None or not files):
        return Recipe((), None)
    build = _build_steps(tree) if tree.backend else []
    commands = (_get_uv(tree), _MAKE_VENV, *build, *steps, *_pytest(tree), *_last_steps(tree))
    return Recipe(commands, tree.backend)


def included(name: str, data: bytes) -> Sequence[str]:
    """Names, within the tree, of further files that an input makes its own; they may not exist.

    Of a requirements file those that it includes; of a project's metadata those that its
    dependencies are read from; of a setup.py that is one of these what it may read itself.
    """
    if name in (PYPROJECT, SETUP_CFG):
        found = _further_files(name, data)
    elif name == SETUP_PY:
        found = named_in(data.decode("utf-8", "replace"))
    elif name.endswith((".txt", ".in")):
        found = _includes(data.decode("utf-8", "replace"))
    else:
        return ()
    paths = (normpath(join(dirname(name), path)) for path in found)
    return tuple(path for path in paths if not path.startswith(("..", "/")) and path != ".")


def _further_files(name: str, data: bytes) -> Sequence[str]:
    try:
        return ProjectFiles({name: data}, frozenset()).further_files()
    except Invalid:
        return ()  # `default_recipe` will say so


def _includes(text: str) -> Sequence[str]:
    names = (match["name"].strip() for match in map(_INCLUDE.match, text.splitlines()) if match)
    return [name.strip("\"'") for name in names if "://" not in name]


# steps: each is a shell command


def _steps(tree: ProjectFiles) -> Sequence[str]:
    """The commands that install the dependencies."""
    if REQUIREMENTS in tree.names:
        return _from_requirements(tree)
    if tree.is_poetry:
        return _from_poetry(tree)
    if UV_LOCK in tree.names and (tree.project or tree.groups or tree.tool("uv")):
        return [_from_uv_lock(tree)]
    if PYLOCK in tree.names:
        return _from_pylock(tree)
    return _from_metadata(tree)


def _from_requirements(tree: ProjectFiles) -> Sequence[str]:
    contents = {
        name: data.decode("utf-8", "replace")
        for name, data in tree.files.items()
        if name.endswith((".txt", ".in"))
    }
    itself = {
        name: found for name, text in contents.items() if (found := _itself(text)) is not None
    }
    companion = _companion(tree)
    extras = sorted(set().union(*itself.values()))
    also, groups = ([], []) if companion or extras else _wanted(tree)
    words = ["-r", REQUIREMENTS, *companion]
    if itself or ((also or groups) and not tree.is_dynamic):
        words += _metadata(tree, [*extras, *also], groups)
    if any("--extra-index-url" in text for text in contents.values()):
        words += ["--index-strategy", "unsafe-best-match"]  # as pip, for which they are written
    steps = [f"sed -i -E {quote(_DROP_SELF)} {quote(name)}" for name in sorted(itself)]
    if _TOLD in words:
        steps.append(_tell("setup_py", extras))
    return [*steps, _install(tree, words)]


def _itself(text: str) -> set[str] | None:
    """The extras of the project itself that a requirements file asks for; None: not of it."""
    found = [match for line in text.splitlines() if (match := re.fullmatch(_SELF, line))]
    if not found:
        return None
    extras = ",".join((match[_EXTRAS_OF_SELF] or "").strip("[]") for match in found)
    return {extra.strip() for extra in extras.split(",") if extra.strip()}


def _from_poetry(tree: ProjectFiles) -> Sequence[str]:
    extras, groups = _wanted(tree)
    chosen = dict.fromkeys([*extras, *groups])
    return [
        f"uv pip install --target {BUILD} {POETRY_CORE}",
        _tell("poetry", [*chosen]),
        _install(tree, ["-r", _TOLD]),
    ]


def _from_uv_lock(tree: ProjectFiles) -> str:
    words = _flags(*_wanted(tree))
    if not tree.project:
        words = [*words, "--all-packages"]  # of a workspace whose root is no project
    return " ".join((_UV_SYNC, *map(quote, words)))


def _from_pylock(tree: ProjectFiles) -> Sequence[str]:
    """By the lock, unless it wants folders of the tree, which are not there."""
    lock = parse_toml(tree.files, PYLOCK)
    packages = lock.get("packages")
    if isinstance(packages, list) and any("directory" in table(one) for one in packages):
        note = f"{PYLOCK} holds folders of the tree: the dependencies are taken from {PYPROJECT}"
        return [f"echo {quote(note)}", *_from_metadata(tree)]
    extras, groups = _choose(texts(lock.get("extras")), texts(lock.get("dependency-groups")))
    return [_install(tree, ["-r", PYLOCK, *_flags(extras, groups)])]


def _from_metadata(tree: ProjectFiles) -> Sequence[str]:
    extras, groups = _wanted(tree)
    words = [*_metadata(tree, extras, groups)]
    if not extras and not groups:
        words += _companion(tree)
    if not words:
        return []
    asked = [_tell("setup_py", extras)] if _TOLD in words else []
    return [*asked, _install(tree, words)]


def _companion(tree: ProjectFiles) -> Sequence[str]:
    """Words for the first file of test requirements that there is."""
    return next((["-r", name] for name in TEST_REQUIREMENTS if name in tree.names), [])


def _metadata(tree: ProjectFiles, extras: Sequence[str], groups: Sequence[str]) -> Sequence[str]:
    """Words for the project's own dependencies, with those of extras and groups."""
    if tree.asks_setup_py:
        return ["-r", _TOLD, *_flags([], groups)]
    if tree.asks_backend or not tree.is_dynamic:
        some = tree.is_dynamic or extras or groups or texts(tree.project.get("dependencies"))
        return ["-r", PYPROJECT, *_flags(extras, groups)] if some else []
    optional = tree.extra_words(*extras)
    return [*tree.listed, *optional, *_flags([], groups)]


def _wanted(tree: ProjectFiles) -> tuple[Sequence[str], Sequence[str]]:
    return _choose(tree.extras, tree.groups)


def _choose(
    extras: Collection[str], groups: Collection[str]
) -> tuple[Sequence[str], Sequence[str]]:
    """Those of the first name in WANTED that an extra, a group, or one of each has."""
    for name in WANTED:
        chosen = [extra for extra in extras if canonical(extra) == name]
        alike = [group for group in groups if canonical(group) == name]
        if chosen or alike:
            return chosen, alike
    return [], []


def _flags(extras: Sequence[str], groups: Sequence[str]) -> Sequence[str]:
    by_extra = [word for extra in extras for word in ("--extra", extra)]
    return [*by_extra, *(word for group in groups for word in ("--group", group))]


def _install(tree: ProjectFiles, words: Sequence[str]) -> str:
    """Install into VENV, but never another release of the project: it would hide the tree."""
    listed = " ".join(map(quote, words))
    told = ""
    if tree.asks_backend and PYPROJECT in words:  # it has no repository to ask for a version
        variables = project_variables(NO_VERSION, tree.name_for_versions)
        told = "".join(f"{name}={value} " for name, value in variables.items())
    if not _hides_tree(tree) or _other_uv(tree):
        return f"{told}uv pip install {listed}"
    return f"echo {tree.name} | {told}uv pip install --excludes - {listed}"


def _tell(command: str, words: Sequence[str]) -> str:
    return " ".join((_RUN_PROJECT_SCRIPT, command, *map(quote, words), f">{_TOLD}"))


def _get_uv(tree: ProjectFiles) -> str:
    return _GET_UV.format(_other_uv(tree) or f"=={UV}")


def _other_uv(tree: ProjectFiles) -> str | None:
    """The version that the project insists on, if that may be an older one."""
    required = tree.tool("uv").get("required-version")
    if not isinstance(required, str) or not _UV_VERSION.fullmatch(required):
        return None
    return f"=={required}" if required[0].isdigit() else required


def _build_steps(tree: ProjectFiles) -> Sequence[str]:
    assert tree.backend is not None
    requires = " ".join(map(quote, (INSTALLER, *tree.build_requires)))
    backend = " ".join(map(quote, (tree.backend.name, *tree.backend.path)))
    into = f"uv pip install --target {BUILD}"
    return [f"{into} {requires}", f"{_RUN_PROJECT_SCRIPT} requires {backend} | {into} --quiet -r -"]


def _hides_tree(tree: ProjectFiles) -> bool:
    """Whether another release of the project, as a dependency's dependency, would be tested."""
    return tree.backend is not None and tree.name is not None


def _last_steps(tree: ProjectFiles) -> Sequence[str]:
    steps = []
    if _hides_tree(tree) and _other_uv(tree):  # an older uv knows no --excludes
        steps.append(f"uv pip uninstall {tree.name}")
    return [*steps, _ADD_SITE] if tree.backend else steps


def _pytest(tree: ProjectFiles) -> Sequence[str]:
    if tree.backend is not None and canonical(tree.name or "") == "pytest":
        return []
    return [f"python -c 'import pytest' 2>/dev/null || {_install(tree, ['pytest'])}"]
