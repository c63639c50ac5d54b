"""The job file: from TOML tables and a caller's overrides to a resolved `Spec`.

Pure: bytes and mappings in, values out. Every refusal is an `Invalid` whose sentence names the
key, what is wrong with it, and the nearest key that exists.
"""

import difflib
import re
import shlex
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from ciworker.domain.job import Cache, Spec
from ciworker.domain.patterns import Pattern, parse_pattern
from ciworker.domain.recipe import setup_run
from ciworker.errors import Invalid
from ciworker.units import format_duration, format_size, parse_duration, parse_size

JOB_FILE = ".ciworker.toml"
PYPROJECT = "pyproject.toml"
DEFAULT_RUN = "python -m pytest"
MIN_MEMORY = 16 * 2**20
MAX_COMMAND = 32 * 1024
MAX_SETUP_RUN = 100 * 1024  # quoting makes it longer; Linux takes 128 KiB as one argument
MAX_PATTERNS = 64
MAX_SECRETS = 64

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]+")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a job gets when it does not say, and the most it may ask for."""

    image: str
    allowed_images: Sequence[str]
    timeout: float
    max_timeout: float
    memory: int
    max_memory: int
    cpus: float
    max_cpus: float


@dataclass(frozen=True, slots=True)
class Wanted:
    """A spec that is resolved but for its setup: what that may read, only the tree can tell.

    setup: commands; none: no setup. inputs: the files that they may read. Each is None where
    nobody says anything of it.
    """

    spec: Spec
    setup: Sequence[str] | None = None
    inputs: Sequence[Pattern] | None = None


def resolve(
    files: Mapping[str, bytes],
    overrides: Mapping[str, object],
    bounds: Bounds,
    project: str = "unnamed",
) -> Wanted:
    """What is wanted of a job, from the files at its tree's root and what the caller overrides.

    Args:
        files: contents by name; only JOB_FILE and PYPROJECT are looked at.
        overrides: the job file's keys, `command` (a list, replaces `run`) and `cache`.
        bounds: defaults and limits.
        project: what it is called where nobody says.

    Raises:
        Invalid: for TOML that does not parse, unknown keys, wrong types or too high demands.
    """
    table = _job_table(files)
    wanted = {**table, **_checked(overrides, "the request", extra=REQUEST_KEYS)}
    run = wanted.pop("run", DEFAULT_RUN)
    command = wanted.pop("command", None)
    spec = Spec(
        image=wanted.get("image", bounds.image),
        run=shlex.join(command) if command else run,
        timeout=wanted.get("timeout", min(bounds.timeout, bounds.max_timeout)),
        memory=wanted.get("memory", min(bounds.memory, bounds.max_memory)),
        cpus=wanted.get("cpus", min(bounds.cpus, bounds.max_cpus)),
        network=wanted.get("network", False),
        project=wanted.get("project") or _project_name(files) or project,
        env={**table.get("env", {}), **wanted.get("env", {})},
        cache=wanted.get("cache", Cache.USE),
        secrets=_all_named("secrets", table, wanted),
        setup_secrets=_all_named("setup-secrets", table, wanted),
    )
    check_bounds(spec, bounds)
    if "setup-inputs" in wanted and "setup" not in wanted:
        raise Invalid("setup-inputs is of no use without setup: say the commands that read them")
    if spec.setup_secrets and wanted.get("setup") == []:
        raise Invalid("setup-secrets is of no use without a setup: leave it out")
    return Wanted(spec, wanted.get("setup"), wanted.get("setup-inputs"))


def _all_named(key: str, table: Mapping[str, Any], wanted: Mapping[str, Any]) -> Sequence[str]:
    """The job file's and the request's, as with `env`; each once, in order."""
    return tuple(sorted({*table.get(key, ()), *wanted.get(key, ())}))


def _job_table(files: Mapping[str, bytes]) -> dict[str, Any]:
    """`.ciworker.toml` if there is one, else `[tool.ciworker]`; values parsed."""
    if JOB_FILE in files:
        return _checked(_toml(files[JOB_FILE], JOB_FILE), JOB_FILE)
    tool = _toml(files.get(PYPROJECT, b""), PYPROJECT).get("tool", {})
    table = tool.get("ciworker", {}) if isinstance(tool, dict) else {}
    if not isinstance(table, dict):
        raise Invalid(f"[tool.ciworker] in {PYPROJECT} has to be a table")
    return _checked(table, f"[tool.ciworker] in {PYPROJECT}")


def _project_name(files: Mapping[str, bytes]) -> str | None:
    """`project.name` of a pyproject.toml; one that does not parse is not the worker's business."""
    try:
        project = _toml(files.get(PYPROJECT, b""), PYPROJECT).get("project", {})
    except Invalid:
        return None
    name = project.get("name") if isinstance(project, dict) else None
    return name if isinstance(name, str) and _PRINTABLE.fullmatch(name) else None


def _toml(data: bytes, name: str) -> dict[str, object]:
    try:
        return tomllib.loads(data.decode())
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        raise Invalid(f"{name} is not valid TOML: {error}") from error
    except RecursionError as error:
        raise Invalid(f"{name} is not valid TOML: it is nested too deeply") from error


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("has to be a text that is not empty")
    return _bounded(value)


def _bounded(text: str) -> str:
    if "\0" in text or len(text.encode()) > MAX_COMMAND:
        raise ValueError(f"has to be shorter than {MAX_COMMAND} bytes and hold no NUL")
    return text


def _label(value: object) -> str:
    text = _text(value)
    if len(text) > 200 or not _PRINTABLE.fullmatch(text):
        raise ValueError("has to be at most 200 printable characters on one line")
    return text


def _image(value: object) -> str:
    text = _label(value)
    if text.startswith("-") or any(c.isspace() for c in text):
        raise ValueError("is not the name of an image")
    return text


def _duration(value: object) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError("has to be more than 0")
    return seconds


def _memory(value: object) -> int:
    size = parse_size(value)
    if size < MIN_MEMORY:
        raise ValueError(f"has to be at least {format_size(MIN_MEMORY)}")
    return size


def _cpus(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("has to be a number of cores, such as 2 or 0.5")
    try:
        cpus = float(value)
    except (ValueError, OverflowError):
        cpus = 0.0
    if not 0.01 <= cpus < 10_000:
        raise ValueError("has to be a number of cores, such as 2 or 0.5")
    return cpus


def _boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("has to be true or false")
    return value


def _environment(value: object) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError('has to be a table, such as { TZ = "UTC" }')
    for name, text in value.items():
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            raise ValueError(f"holds {name!r}, which is no name of an environment variable")
        if not isinstance(text, str) or "\0" in text:
            raise ValueError(f"gives {name} a value that is no text")
        text.encode()  # half of a surrogate pair, which JSON can hold, is no text either
    return dict(value)


def _command(value: object) -> list[str]:
    if not isinstance(value, list) or not value:
        raise ValueError('has to be a list of words, such as ["pytest", "-x"]')
    words = [word for word in value if isinstance(word, str)]
    if len(words) < len(value):
        raise ValueError("holds something that is no text")
    _text(shlex.join(words))
    return words


def _setup(value: object) -> list[str]:
    if not isinstance(value, list):
        raise ValueError('has to be a list of commands, such as ["pip install -r dev.txt"]')
    commands = [command for command in value if isinstance(command, str) and command.strip()]
    if len(commands) < len(value):
        raise ValueError("holds something that is no command: each is a text that is not empty")
    check_commands(commands)
    return commands


def check_commands(commands: Sequence[str]) -> None:
    """Refuse a setup that is more than a shell takes.

    Raises:
        ValueError: saying the bound, as a sentence without its subject.
    """
    _bounded("\n".join(commands))
    if len(setup_run(commands).encode()) > MAX_SETUP_RUN:
        raise ValueError(f"has to be shorter than {MAX_SETUP_RUN} bytes when a shell quotes it")


def _setup_inputs(value: object) -> list[Pattern]:
    if not isinstance(value, list):
        raise ValueError('has to be a list of files and globs, such as ["requirements/*.txt"]')
    if len(value) > MAX_PATTERNS:
        raise ValueError(f"has to hold at most {MAX_PATTERNS} files and globs")
    return [parse_pattern(entry) for entry in value]


def _secrets(value: object) -> list[str]:
    if not isinstance(value, list) or len(value) > MAX_SECRETS:
        raise ValueError(f'has to be a list of at most {MAX_SECRETS} names, such as ["NPM_TOKEN"]')
    for name in value:
        if not isinstance(name, str) or not _ENV_NAME.fullmatch(name):
            raise ValueError(f"holds {name!r}, which is no name of an environment variable")
    return value


def _cache(value: object) -> Cache:
    for cache in Cache:
        if value == cache:
            return cache
    raise ValueError(f"has to be one of {', '.join(Cache)}")


_KEYS: Mapping[str, Callable[[object], object]] = {
    "image": _image,
    "run": _text,
    "timeout": _duration,
    "memory": _memory,
    "cpus": _cpus,
    "network": _boolean,
    "env": _environment,
    "project": _label,
    "setup": _setup,
    "setup-inputs": _setup_inputs,
    "secrets": _secrets,
    "setup-secrets": _secrets,
    "command": _command,
    "cache": _cache,
}
REQUEST_KEYS = ("command", "cache")
JOB_FILE_KEYS = tuple(key for key in _KEYS if key not in REQUEST_KEYS)


def _checked(table: Mapping[str, object], where: str, extra: Sequence[str] = ()) -> dict[str, Any]:
    known = (*JOB_FILE_KEYS, *extra)
    checked: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise Invalid(unknown_key(key, known, where))
        try:
            checked[key] = _KEYS[key](value)
        except ValueError as error:
            raise Invalid(f"{key} in {where}: {error}") from error
    return checked


def unknown_key(key: str, known: Sequence[str], where: str) -> str:
    """The sentence about a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
    return f"unknown key {key!r} in {where}: {hint}"


def check_bounds(spec: Spec, bounds: Bounds) -> None:
    """Refuse what asks for more than is allowed.

    Raises:
        Invalid: naming the key, the demand and the setting that bounds it.
    """
    if spec.timeout > bounds.max_timeout:
        raise Invalid(
            f"timeout of {format_duration(spec.timeout)} is more than the "
            f"{format_duration(bounds.max_timeout)} that this worker allows (max_job_timeout)"
        )
    if spec.memory > bounds.max_memory:
        raise Invalid(
            f"memory of {format_size(spec.memory)} is more than the "
            f"{format_size(bounds.max_memory)} that this worker allows (max_job_memory)"
        )
    if spec.cpus > bounds.max_cpus:
        raise Invalid(
            f"cpus of {spec.cpus:g} is more than the {bounds.max_cpus:g} "
            "that this worker allows (max_job_cpus)"
        )
    if not any(_matches(spec.image, pattern) for pattern in bounds.allowed_images):
        raise Invalid(
            f"image {spec.image!r} is not allowed on this worker; "
            f"allowed_images: {', '.join(bounds.allowed_images)}"
        )


def _matches(image: str, pattern: str) -> bool:
    """Part by part: `python:*` is a tag of python, not an image of a registry named python."""
    parts, wanted = image.split("/"), pattern.split("/")
    same_depth = len(parts) == len(wanted)
    return pattern == "*" or (same_depth and all(map(fnmatchcase, parts, wanted)))
