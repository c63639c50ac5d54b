"""Recipes in real containers: set up from the inputs alone, kept, then run as jobs are run.

The containers, their archives and their environment are the worker's own; who drives them is the
test. The package index is the real one.
"""

import asyncio
import re
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from textwrap import dedent

import pytest

from ciworker.control.launcher import Sender, container_spec
from ciworker.domain.job import Job, Kind, Spec, Status
from ciworker.domain.log import Stream
from ciworker.domain.recipe import (
    DEFAULT_INPUTS,
    SETUP_ENV,
    Recipe,
    default_recipe,
    included,
    setup_run,
)
from ciworker.engine.docker import DockerEngine
from ciworker.settings import Settings
from ciworker.source.spool import SpoolWriter, tar_member

pytestmark = pytest.mark.slow

PATIENCE = 120.0
HOST_SETTINGS = Path(__file__).parents[2] / "scripts" / "host_settings.py"
GIT = {"commit": "abcdef1234567890abcdef1234567890abcdef12", "describe": "v1.2.3-4-gabcdef1"}
RUN = "python -m pytest -q -p no:cacheprovider"


@dataclass(frozen=True)
class Ended:
    """How a container ended. environment: the image that it left, if it was a setup."""

    code: int | None
    out: str
    err: str
    environment: str = ""

    @property
    def lines(self) -> list[str]:
        """Of its output, without the start mark."""
        return self.out.splitlines()[1:]


@dataclass
class Room:
    """Runs setups and jobs of one test; nothing of them is left."""

    engine: DockerEngine
    settings: Settings
    image: str
    instance: str
    made: list[str] = field(default_factory=list)

    async def setup(self, commands: tuple[str, ...], tree: Mapping[str, str]) -> Ended:
        """A setup, with these files alone; kept as an image if it succeeds."""
        spec = self._spec(setup_run(commands), network=True, env=SETUP_ENV)
        job = self._job(spec, Kind.SETUP, {})
        ended = await self._run(job, self.image, tree)
        if ended.code == 0:
            name = f"ciworker-env:{self.instance}-{len(self.made)}"
            image = await self.engine.commit(job.container_name, name, {})
            ended = replace(ended, environment=image)
        await self.engine.remove(job.container_name)
        return ended

    async def prepared(self, tree: Mapping[str, str]) -> tuple[Recipe, Ended]:
        """The tree's recipe, set up from its inputs alone."""
        recipe = recipe_of(tree)
        setup = await self.setup(tuple(recipe.commands), inputs_of(tree))
        assert setup.code == 0, setup.out + setup.err
        return recipe, setup

    async def job(
        self,
        tree: Mapping[str, str],
        prepared: tuple[Recipe, Ended],
        run: str = RUN,
        vcs: Mapping[str, object] | None = None,
    ) -> Ended:
        recipe, setup = prepared
        spec = self._spec(run, backend=recipe.backend)
        job = self._job(spec, Kind.JOB, {"vcs": vcs} if vcs else {})
        ended = await self._run(job, setup.environment, tree)
        await self.engine.remove(job.container_name)
        return ended

    def _spec(self, run: str, **more: object) -> Spec:
        plain = Spec(self.image, run, 60.0, 2 * 2**30, 2.0, network=False, project="p")
        return replace(plain, **more)  # type: ignore[arg-type]  # a test's own fields

    def _job(self, spec: Spec, kind: Kind, source: Mapping[str, object]) -> Job:
        self.made.append(uuid.uuid4().hex)
        return Job(
            id=self.made[-1],
            status=Status.STARTING,
            spec=spec,
            created_at=datetime.now(UTC),
            mark_token="token",
            source=source,
            kind=kind,
            attempt=1,
        )

    async def _run(self, job: Job, image_name: str, tree: Mapping[str, str]) -> Ended:
        image = await self.engine.image(image_name)
        assert image is not None
        spool = self.settings.data_dir / job.id
        job = replace(job, tar_length=spooled(tree, spool))
        spec = container_spec(job, self.settings, self.instance, image, None)
        container = await self.engine.create(spec)
        attachment = await self.engine.attach(container)
        try:
            await self.engine.start(container)
            sending = asyncio.create_task(Sender(self.settings).send(job, attachment, spool, {}))
            output = {Stream.STDOUT: b"", Stream.STDERR: b""}
            async with asyncio.timeout(PATIENCE):
                while message := await attachment.read():
                    output[message[0]] += message[1]
                await sending
        finally:
            await attachment.close()
        ended = await self.engine.inspect(container)
        assert ended is not None
        assert ended.state.down
        return Ended(ended.exit_code, *(text.decode() for text in output.values()))


@pytest.fixture
async def room(image: str, tmp_path: Path) -> AsyncIterator[Room]:
    instance = f"test-{uuid.uuid4().hex[:12]}"
    lines = subprocess.run(
        [sys.executable, HOST_SETTINGS, "docker"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    env = [line.removeprefix("--env=") for line in lines if line.startswith("--env=")]
    settings = Settings(
        data_dir=tmp_path,
        job_env=dict(variable.split("=", 1) for variable in env),
        job_mounts=tuple(line[9:] for line in lines if line.startswith("--volume=")),
    )
    async with DockerEngine(None, instance) as engine:
        yield Room(engine, settings, image, instance)
        for container in await engine.list():
            await engine.remove(container.id)
        for left in await engine.images({}):
            await engine.remove_image(left.id)


def spooled(tree: Mapping[str, str], path: Path) -> int:
    writer = SpoolWriter(path)
    for name, text in tree.items():
        data = dedent(text).lstrip("\n").encode()
        writer.write(tar_member(f"src/{name}", data, 0o644, 1_700_000_000))
    writer.commit()
    return writer.length


def recipe_of(tree: Mapping[str, str]) -> Recipe:
    files = {name: dedent(text).encode() for name, text in inputs_of(tree).items()}
    return default_recipe(files, {name.partition("/")[0] for name in tree})


def inputs_of(tree: Mapping[str, str]) -> dict[str, str]:
    roots = [name for name in tree if "/" not in name]
    names = [name for name in roots if any(fnmatch(name, glob) for glob in DEFAULT_INPUTS)]
    for name in names:
        more = included(name, dedent(tree[name]).encode())
        names += [other for other in more if other in tree and other not in names]
    return {name: tree[name] for name in names}


SRC_LAYOUT = {
    "pyproject.toml": """
        [build-system]
        requires = ["setuptools>=64"]
        build-backend = "setuptools.build_meta"
        [project]
        name = "demo-app"
        version = "1.5"
        dependencies = ["iniconfig"]
        [project.optional-dependencies]
        test = ["pytest", "demo-app[more]"]
        more = ["six"]
        [project.scripts]
        demo-hello = "demo:hello"
        [project.entry-points.pytest11]
        demo = "demo.plugin"
        """,
    "src/demo/__init__.py": "def hello():\n    print('hello')\n",
    "src/demo/plugin.py": """
        import pytest

        @pytest.fixture
        def answer():
            return 42
        """,
    "tests/test_demo.py": """
        import importlib.metadata, os, subprocess, sys, demo, iniconfig, six

        def test_demo(answer):
            assert answer == 42
            assert subprocess.check_output(["demo-hello"]) == b"hello\\n"
            assert demo.__file__ == "/workspace/src/src/demo/__init__.py"
            assert importlib.metadata.version("demo-app") == "1.5"

        def test_nothing_is_left_of_the_building():
            assert not [path for path in sys.path if path.startswith("/opt/ciworker/build")]
            assert not [name for name in os.environ if "PRETEND" in name or name == "PYTHONPATH"]
            assert not os.path.exists("/var/tmp/ciworker")

        def test_the_environment_comes_first():
            assert os.environ["PATH"].startswith("/workspace/bin:/opt/ciworker/venv/bin:")
            assert os.environ["VIRTUAL_ENV"] == sys.prefix == "/opt/ciworker/venv"

        def test_bytecode_was_compiled():
            assert os.path.exists(iniconfig.__cached__)
        """,
}


async def test_a_project_in_src_is_installed_with_its_scripts_and_plugins(room: Room) -> None:
    prepared = await room.prepared(SRC_LAYOUT)
    ended = await room.job(SRC_LAYOUT, prepared)
    assert (ended.code, ended.err) == (0, ""), ended.out + ended.err
    assert "4 passed" in ended.out


async def test_a_version_from_tags_is_the_one_that_the_client_s_git_described(room: Room) -> None:
    tree = {
        "pyproject.toml": """
            [build-system]
            requires = ["hatchling", "hatch-vcs"]
            build-backend = "hatchling.build"
            [project]
            name = "demo"
            dynamic = ["version"]
            [tool.hatch.version]
            source = "vcs"
            """,
        "src/demo/__init__.py": "",
    }
    prepared = await room.prepared(tree)
    run = "python -c 'import demo, importlib.metadata as m; print(m.version(\"demo\"))'"
    told = await room.job(tree, prepared, run, vcs=GIT)
    assert (told.code, told.lines[-1], told.err) == (0, "1.2.4.dev4+gabcdef1", "")
    sdist = {**tree, "PKG-INFO": "Metadata-Version: 2.1\nName: demo\nVersion: 3.1\n"}
    assert (await room.job(sdist, prepared, run)).lines[-1] == "3.1"
    assert (await room.job(tree, prepared, run)).lines[-1] == "0"


async def test_a_project_that_pytest_depends_on_is_tested_itself(room: Room) -> None:
    tree = {
        "pyproject.toml": """
            [build-system]
            requires = ["flit_core"]
            build-backend = "flit_core.buildapi"
            [project]
            name = "iniconfig"
            version = "99"
            description = "not the published one"
            [dependency-groups]
            test = ["iniconfig[more]", "pytest"]
            [project.optional-dependencies]
            more = []
            """,
        "src/iniconfig/__init__.py": "class IniConfig: mine = True\n",
    }
    prepared = await room.prepared(tree)
    run = "cd / && python -c 'import iniconfig as i; print(i.IniConfig.mine, i.__file__)'"
    ended = await room.job(tree, prepared, run)
    assert ended.lines[-1] == "True /workspace/src/src/iniconfig/__init__.py"


async def test_poetry_s_groups_and_lock_are_heeded_without_poetry(room: Room) -> None:
    tree = {
        "pyproject.toml": """
            [build-system]
            requires = ["poetry-core"]
            build-backend = "poetry.core.masonry.api"
            [tool.poetry]
            name = "demo"
            version = "1"
            description = ""
            authors = []
            packages = [{ include = "demo", from = "src" }]
            [tool.poetry.dependencies]
            python = "^3.8"
            six = "^1"
            toolz = { version = "*", optional = true }
            [tool.poetry.extras]
            test = ["toolz"]
            [tool.poetry.group.dev.dependencies]
            iniconfig = "*"
            [tool.poetry.group.docs]
            optional = true
            [tool.poetry.group.docs.dependencies]
            sniffio = "*"
            """,
        "poetry.lock": """
            [[package]]
            name = "six"
            version = "1.16.0"
            """,
        "src/demo/__init__.py": "",
        "test_demo.py": """
            import importlib.util, demo, iniconfig, six, toolz

            def test_demo():
                assert six.__version__ == "1.16.0"
                assert importlib.util.find_spec("sniffio") is None
            """,
    }
    ended = await room.job(tree, await room.prepared(tree))
    assert ended.code == 0, ended.out + ended.err


async def test_requirements_that_name_the_tree_bring_its_dependencies(room: Room) -> None:
    tree = {
        "requirements.txt": "-r requirements/base.txt\n-e .[test]\n",
        "requirements/base.txt": "six\n-c ../constraints.txt\n",
        "constraints.txt": "six==1.16.0\n",
        "setup.cfg": """
            [metadata]
            name = demo
            version = attr: demo.__version__
            [options]
            install_requires = iniconfig
            packages = find:
            package_dir =
                = src
            [options.packages.find]
            where = src
            [options.extras_require]
            test = toolz
            """,
        "src/demo/__init__.py": "__version__ = '7'\n",
        "test_demo.py": """
            import importlib.metadata, demo, iniconfig, six, toolz

            def test_demo():
                assert six.__version__ == "1.16.0"
                assert importlib.metadata.version("demo") == "7"
            """,
    }
    ended = await room.job(tree, await room.prepared(tree))
    assert (ended.code, ended.err) == (0, ""), ended.out + ended.err


async def test_a_setup_script_tells_its_dependencies_without_the_tree(room: Room) -> None:
    tree = {
        "pyproject.toml": """
            [build-system]
            requires = ["setuptools<60"]
            build-backend = "setuptools.build_meta"
            """,
        "setup.py": """
            import setuptools
            setuptools.setup(
                name="demo",
                long_description=open("README.md").read(),
                packages=["demo"],
                package_dir={"": "src"},
                install_requires=["six"],
                extras_require={"test": ["toolz"], "docs": ["no-such-thing"]},
            )
            """,
        "README.md": "",
        "src/demo/__init__.py": "",
        "test_demo.py": "import demo, six, toolz\n\ndef test_demo():\n    pass\n",
    }
    ended = await room.job(tree, await room.prepared(tree))
    assert (ended.code, ended.err) == (0, ""), ended.out + ended.err


async def test_a_tree_that_its_backend_refuses_is_tested_as_it_is(room: Room) -> None:
    tree = {
        "pyproject.toml": """
            [build-system]
            requires = ["setuptools"]
            build-backend = "setuptools.build_meta"
            [project]
            name = "demo"
            version = "1"
            """,
        "one/__init__.py": "",
        "two/__init__.py": "",
    }
    prepared = await room.prepared(tree)
    ended = await room.job(tree, prepared, "cd / && python -c 'import one, two'", vcs=GIT)
    assert ended.code == 0, ended.out + ended.err
    assert ended.err.splitlines()[0].startswith("SystemExit: error: Multiple top-level packages")
    assert re.search(
        r"^ciworker: the project could not be installed \(.*\['(one|two)', '(one|two)'\]\.\); "
        r"the tests run on the tree as it is$",
        ended.err,
        re.MULTILINE,
    )


async def test_a_setup_ends_at_the_first_command_that_fails(room: Room) -> None:
    commands = ("echo 'first; \"one\"'; id -u; pwd; ls", "cd / && exit 7", "echo never")
    ended = await room.setup(commands, {"requirements.txt": ""})
    assert (ended.code, ended.environment) == (7, "")
    assert ended.lines == [
        "$ echo 'first; \"one\"'; id -u; pwd; ls",
        'first; "one"', "0", "/workspace/src", "requirements.txt",
        "$ cd / && exit 7",
    ]  # fmt: skip
    assert ended.err == "ciworker: the setup ends here: exit code 7 of: cd / && exit 7\n"


async def test_a_python_that_the_project_does_not_support_is_said(room: Room) -> None:
    tree = {
        "pyproject.toml": """
            [project]
            name = "demo"
            version = "1"
            requires-python = ">=4"
            dependencies = ["six"]
            """
    }
    ended = await room.setup(tuple(recipe_of(tree).commands), tree)
    assert ended.code == 2
    assert "No interpreter found for Python >=4" in ended.err


async def test_what_the_operator_set_for_pip_holds_for_uv(room: Room) -> None:
    settings = {
        "PIP_INDEX_URL": "https://index.invalid/simple",
        "PIP_EXTRA_INDEX_URL": "https://extra.invalid/simple https://more.invalid/simple",
        "PIP_TRUSTED_HOST": "index.invalid",
        "PIP_CERT": "/etc/ca.pem",
    }
    room.settings = room.settings.model_copy(update={"job_env": settings, "job_mounts": ()})
    names = "UV_DEFAULT_INDEX UV_INDEX UV_INDEX_STRATEGY UV_INSECURE_HOST SSL_CERT_FILE"
    ended = await room.setup((f"printenv {names}",), {})
    assert ended.lines[1:] == [
        settings["PIP_INDEX_URL"],
        settings["PIP_EXTRA_INDEX_URL"],
        "unsafe-best-match",
        settings["PIP_TRUSTED_HOST"],
        settings["PIP_CERT"],
    ]
