"""Runs inside of containers, as a program: lets a project's own build backend say how it is used.

In a job it makes the project importable before the tests run, by an editable installation
(PEP 660) into SITE, without a network: the backend was left in BUILD by the setup. In a setup it
says what else the backend needs, and what Poetry's tables ask for. It is sent with an archive and
is no part of the worker: Python 3.8 or later, the standard library, and what lies in BUILD.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import runpy
import site
import sys
import tempfile
import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

BUILD = "/opt/ciworker/build"
WORKSPACE = Path("/workspace")
SITE = WORKSPACE / "site"
CONSTRAINTS = Path("/var/tmp/ciworker/constraints.txt")  # noqa: S108 # a setup's own folder
SHOWN_LINES = 20
WANTED = ("test", "tests", "testing", "dev")
ADVICE = "it sees the inputs alone; say setup and setup-inputs in the job file"
INSTEAD = "the tests run on the tree as it is"


def main(command: str, *arguments: str) -> None:
    """Run one of the commands; the project's root is the working directory."""
    _isolate()
    commands: Mapping[str, Callable[..., None]] = {
        "install": install,
        "requires": requires,
        "poetry": poetry,
        "setup_py": setup_py,
    }
    commands[command](*arguments)


def install(text: str) -> None:
    """Install the project into SITE; where that fails say so, and make the tree importable.

    Args:
        text: JSON: `backend` and `path` as PEP 517's `build-backend` and `backend-path`,
            `variables` that tell a version, and whether it is `known` to be the project's:
            otherwise it is told only if the backend finds none, or fails for another reason.
    """
    plan = json.loads(text)
    if plan["known"]:
        os.environ.update(plan["variables"])
    failure: list[str] = []
    with _quietly(failure), tempfile.TemporaryDirectory() as folder:
        _install_wheel(Path(folder) / _build_wheel(folder, _load(plan["backend"], plan["path"])))
    if not failure:
        return
    if not plan["known"]:
        again = json.dumps({**plan, "known": True})
        os.execv(sys.executable, [sys.executable, "-I", __file__, "install", again])  # noqa: S606 # no shell is wanted
    _use_tree()
    reason, *lines = failure
    _tell(*lines, f"ciworker: the project could not be installed ({reason}); {INSTEAD}")


def requires(name: str, *path: str) -> None:
    """Print what a backend needs besides what its project names; asked with the inputs alone."""
    for variable in ("SETUPTOOLS_SCM_PRETEND_VERSION", "PDM_BUILD_SCM_VERSION", "PBR_VERSION"):
        os.environ.setdefault(variable, "0")  # it is not to fail for want of a repository
    needed: list[str] = []
    failure: list[str] = []
    with _quietly(failure):
        backend = _load(name, path)
        hook = "get_requires_for_build_editable"
        if not hasattr(backend, hook):
            hook = "get_requires_for_build_wheel"
        needed += getattr(backend, hook, list)()
    if failure and name.startswith("setuptools."):
        needed.append("wheel")  # what those of before 70.1 want, and say only if they succeed
    _write(needed)


def poetry(*chosen: str) -> None:
    """Print what Poetry's tables ask for, as requirements; versions as in its lock, if any.

    Args:
        chosen: extras and optional groups; other groups are taken anyway.
    """
    core = importlib.import_module("poetry.core.factory")
    package = core.Factory().create_poetry(Path.cwd()).package
    _check_python(package.python_constraint)
    if pins := _locked_by_poetry():
        CONSTRAINTS.write_text("\n".join(pins), encoding="utf-8")
        _write([f"-c {CONSTRAINTS}"])
    for name in sorted(package.dependency_group_names(include_optional=True)):
        group = package.dependency_group(name)
        if name in chosen or not group.is_optional():
            _write(_requirements(group.dependencies, chosen))


def setup_py(*chosen: str) -> None:
    """Print what a setup.py requires, by running it with a `setup` that does nothing.

    Args:
        chosen: extras; none: the first of WANTED that it has.
    """
    given: dict[str, Any] = {}
    for name in ("setuptools", "distutils.core"):
        module: Any = importlib.import_module(name)
        module.setup = _taker(given)
    failure: list[str] = []
    sys.path.insert(0, str(Path.cwd()))
    with _quietly(failure):
        runpy.run_path("setup.py", run_name="__main__")
    if failure:
        _tell(*failure[1:])
        sys.exit(f"ciworker: setup.py did not tell the dependencies ({failure[0]}): {ADVICE}")
    extras = given.get("extras_require") or {}
    chosen = chosen or tuple(name for name in WANTED if name in extras)[:1]
    for listed in (given.get("install_requires"), *(extras.get(name) for name in chosen)):
        _write(listed.splitlines() if isinstance(listed, str) else listed or ())


def _taker(given: dict[str, Any]) -> Callable[..., None]:
    def setup(**attributes: Any) -> None:
        given.update(attributes)

    return setup


# the build backend


def _isolate() -> None:
    """See the standard library and BUILD alone, child processes too: the tests' packages do not
    take part in the building."""
    sys.path[:] = [folder for folder in sys.path if "-packages" not in folder]
    site.addsitedir(BUILD)
    os.environ["PYTHONPATH"] = BUILD
    os.environ["PATH"] = os.pathsep.join((f"{BUILD}/bin", os.environ["PATH"]))


def _load(name: str, path: Sequence[str]) -> Any:
    """The object that has PEP 517's hooks."""
    sys.path[:0] = [str(Path(folder).resolve()) for folder in path]
    module, _, attributes = name.partition(":")
    backend = importlib.import_module(module)
    for attribute in filter(None, attributes.split(".")):
        backend = getattr(backend, attribute)
    return backend


def _build_wheel(folder: str, backend: Any) -> str:
    """The wheel's name in the folder; it holds copies where the backend knows no PEP 660."""
    build = getattr(backend, "build_editable", None) or backend.build_wheel
    name: str = build(folder)
    return name


def _install_wheel(wheel: Path) -> None:
    installer = importlib.import_module("installer")
    destinations = importlib.import_module("installer.destinations")
    sources = importlib.import_module("installer.sources")
    schemes = {
        "purelib": SITE,
        "platlib": SITE,
        "scripts": WORKSPACE / "bin",
        "headers": WORKSPACE / "include",
        "data": WORKSPACE,
    }
    destination = destinations.SchemeDictionaryDestination(
        {scheme: str(folder) for scheme, folder in schemes.items()},
        interpreter=sys.executable,
        script_kind="posix",
    )
    with sources.WheelFile.open(wheel) as source:
        installer.install(source, destination, additional_metadata={"INSTALLER": b"ciworker\n"})


def _use_tree() -> None:
    """Make importable what lies in the tree, as far as a guess goes."""
    root = Path.cwd()
    folders = [str(folder) for folder in (root / "src", root) if folder.is_dir()]
    SITE.mkdir(exist_ok=True)
    (SITE / "tree.pth").write_text("\n".join(folders), encoding="utf-8")


# Poetry


def _requirements(dependencies: Sequence[Any], chosen: Sequence[str]) -> Iterator[str]:
    for dependency in dependencies:
        if dependency.is_directory() or dependency.is_file():
            _tell(f"{dependency.pretty_name} is a path in the tree and is not installed")
        elif not dependency.is_optional() or set(dependency.in_extras) & set(chosen):
            yield dependency.to_pep_508(with_extras=False)


def _locked_by_poetry() -> Sequence[str]:
    """The versions that poetry.lock holds of what comes from an index, as constraints."""
    lock = Path("poetry.lock")
    if not lock.exists():
        return []
    compat = importlib.import_module("poetry.core.utils._compat")  # Python has its own since 3.11
    packages = compat.tomllib.loads(lock.read_text(encoding="utf-8")).get("package", [])
    names = [package["name"] for package in packages]
    return [
        f"{package['name']}=={package['version']}"
        for package in packages
        if package.get("source", {}).get("type", "legacy") == "legacy"
        and names.count(package["name"]) == 1  # of several, markers say which
    ]


def _check_python(constraint: Any) -> None:
    versions = importlib.import_module("poetry.core.constraints.version")
    version = platform.python_version()
    if not constraint.allows(versions.Version.parse(version)):
        sys.exit(f"the project needs Python {constraint}, and the image has {version}")


# output


@contextmanager
def _quietly(failure: list[str]) -> Iterator[None]:
    """Hold back what is printed, by child processes too.

    What is raised goes no further: `failure` gets its first line, then the last ones of all.
    """
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        try:
            for stream in kept:
                os.dup2(log.fileno(), stream)
            yield
        except (Exception, SystemExit) as error:  # noqa: BLE001 # a backend may raise anything
            sys.stdout.flush()
            log.seek(0)
            raised = "".join(traceback.format_exception_only(type(error), error)).splitlines()
            failure += [raised[0], *[*log.read().splitlines(), *raised][-SHOWN_LINES:]]
        finally:
            sys.stdout.flush()
            for stream, descriptor in kept.items():
                os.dup2(descriptor, stream)
                os.close(descriptor)


def _write(lines: Sequence[str] | Iterator[str]) -> None:
    sys.stdout.writelines(f"{line}\n" for line in lines)


def _tell(*lines: str) -> None:
    sys.stderr.writelines(f"{line}\n" for line in lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
