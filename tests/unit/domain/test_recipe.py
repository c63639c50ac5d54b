"""What is set up for a tree, as the commands that say so."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciworker.domain.job import Backend
from ciworker.domain.recipe import (
    BUILD,
    DEFAULT_INPUTS,
    UV,
    VENV,
    Recipe,
    default_recipe,
    included,
    setup_run,
)
from ciworker.errors import Invalid

SETUPTOOLS = (
    '[build-system]\nrequires = ["setuptools>=61"]\nbuild-backend = "setuptools.build_meta"\n'
)
HATCHLING = '[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
POETRY = '[build-system]\nrequires = ["poetry-core"]\nbuild-backend = "poetry.core.masonry.api"\n'
PROJECT = '[project]\nname = "demo"\nversion = "1"\n'
TOLD = "/var/tmp/ciworker/requirements.txt"


def recipe(files: Mapping[str, str], *others: str) -> Recipe:
    """Of a tree with these inputs; what others there are is known by name."""
    contents = {name: dedent(text).encode() for name, text in files.items()}
    return default_recipe(contents, {name.partition("/")[0] for name in (*files, *others)})


def installs(found: Recipe) -> list[str]:
    """The commands that install dependencies, without how the project itself is left out."""
    commands = [c.partition(" | ")[2] if c.startswith("echo ") else c for c in found.commands]
    return [
        command.replace(" --excludes -", "")
        for command in commands
        if command.startswith("uv ") and BUILD not in command and VENV not in command
    ]


def backend_of(pyproject: str, *others: str) -> Backend | None:
    return recipe({"pyproject.toml": pyproject, "requirements.txt": ""}, *others).backend


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"pyproject.toml": ""},
        {"pyproject.toml": "[tool.ciworker]\ntimeout = 5\n[tool.ruff]\nline-length = 100\n"},
        {"pyproject.toml": PROJECT},
        {"setup.cfg": "[tool:pytest]\naddopts = -q\n"},
        {"setup.cfg": "no section\n"},
        {"constraints.txt": "six<2\n"},
    ],
)
def test_where_nothing_is_asked_for_nothing_is_set_up(files: dict[str, str]) -> None:
    assert recipe(files, "src", "tests", "setup_helper.py") == Recipe((), None)


def test_a_setup_script_alone_is_no_input_and_asks_for_nothing() -> None:
    assert recipe({}, "setup.py") == Recipe((), None)


def test_a_whole_recipe_gets_uv_and_ends_with_the_place_for_the_project() -> None:
    found = recipe({"pyproject.toml": HATCHLING + PROJECT + 'dependencies = ["six"]\n'})
    first, venv, build, more, dependencies, pytest_, site = found.commands
    assert f"'uv=={UV}'" in first
    assert venv.startswith("uv venv --quiet --system-site-packages")
    assert venv.endswith(f" {VENV}")
    assert build == f"uv pip install --target {BUILD} 'installer>=0.7,<2' hatchling"
    assert "project.py requires hatchling.build |" in more
    assert dependencies == "echo demo | uv pip install --excludes - -r pyproject.toml"
    assert pytest_.startswith("python -c 'import pytest' 2>/dev/null || ")
    assert site.endswith(">ciworker.pth")
    assert found.backend == Backend("hatchling.build", project="demo")


@pytest.mark.parametrize(
    ("files", "commands"),
    [
        ({"requirements.txt": ""}, ["uv pip install -r requirements.txt"]),
        (
            {"requirements.txt": "", "requirements-dev.txt": "", "requirements_test.txt": ""},
            ["uv pip install -r requirements.txt -r requirements_test.txt"],
        ),
        (
            {"requirements.txt": "", "dev-requirements.txt": "", "requirements-docs.txt": ""},
            ["uv pip install -r requirements.txt -r dev-requirements.txt"],
        ),
        (
            {"requirements.txt": "--extra-index-url https://example.org/simple\nsix\n"},
            ["uv pip install -r requirements.txt --index-strategy unsafe-best-match"],
        ),
        (
            {"requirements.txt": "six\n", "pyproject.toml": PROJECT + 'dependencies = ["attrs"]'},
            ["uv pip install -r requirements.txt"],
        ),
        (
            {"requirements.txt": "", "pyproject.toml": '[dependency-groups]\ntest = ["six"]\n'},
            ["uv pip install -r requirements.txt"],
        ),
    ],
)
def test_requirements_go_before_all_else(files: dict[str, str], commands: list[str]) -> None:
    assert installs(recipe(files)) == commands


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ('dependencies = ["six"]', ""),
        ('[project.optional-dependencies]\ndev = []\ntests = []', "--extra tests"),
        ('[project.optional-dependencies]\ndocs = []\nDev = []', "--extra Dev"),
        ('[dependency-groups]\ntest = []\ndev = []', "--group test"),
        (
            '[project.optional-dependencies]\ntest = []\n[dependency-groups]\ntest = []\ndev = []',
            "--extra test --group test",
        ),
        (
            '[project.optional-dependencies]\ndev = []\n[dependency-groups]\ntesting = []',
            "--group testing",
        ),
    ],
)  # fmt: skip
def test_the_first_extra_or_group_for_tests_comes_along(tables: str, words: str) -> None:
    found = recipe({"pyproject.toml": PROJECT + tables})
    assert installs(found) == [f"uv pip install -r pyproject.toml {words}".strip()]


@pytest.mark.parametrize(
    "line",
    ["-e .", ".", "./", "-e.", "--editable .", "--editable=.", "-e . # it", '-e ".[more]"',
     ".[more]", " -e  .[more] ; python_version > '3'", "-e file:.[more]"],
)  # fmt: skip
def test_a_requirements_file_that_names_the_tree_means_its_dependencies(line: str) -> None:
    project = PROJECT + 'dependencies = ["six"]\n[project.optional-dependencies]\nmore = ["attrs"]'
    found = recipe(
        {
            "requirements.txt": "-r requirements/all.txt\n",
            "requirements/all.txt": f"toolz\n{line}\n",
            "pyproject.toml": SETUPTOOLS + project,
        }
    )
    extra = " --extra more" if "more" in line else ""
    assert installs(found) == [f"uv pip install -r requirements.txt -r pyproject.toml{extra}"]
    (edit,) = [command for command in found.commands if command.startswith("sed ")]
    assert edit.endswith(" requirements/all.txt")


@pytest.mark.parametrize("line", ["-e ./part", "./part", "-r .", "six # .", "..", "-e ../x", ".x"])
def test_other_lines_with_a_dot_are_left_alone(line: str) -> None:
    found = recipe({"requirements.txt": f"{line}\n", "pyproject.toml": SETUPTOOLS + PROJECT})
    assert not [command for command in found.commands if command.startswith("sed ")]


def test_uv_s_lock_is_taken_as_it_is() -> None:
    found = recipe({"pyproject.toml": PROJECT + "[dependency-groups]\ntest = []", "uv.lock": ""})
    (sync,) = installs(found)
    assert sync.startswith("uv sync --active --frozen --inexact ")
    assert sync.endswith(
        " --no-install-project --no-install-workspace --no-install-local --group test"
    )


def test_a_workspace_without_a_project_of_its_own_is_locked_as_a_whole() -> None:
    found = recipe({"pyproject.toml": '[tool.uv.workspace]\nmembers = ["a"]\n', "uv.lock": ""})
    assert installs(found)[0].endswith(" --all-packages")


def test_a_lock_of_pep_751_is_taken_unless_it_wants_the_tree() -> None:
    project = {"pyproject.toml": PROJECT + 'dependencies = ["six"]'}
    lock = 'lock-version = "1.0"\nextras = ["test"]\n[[packages]]\nname = "six"\n'
    assert installs(recipe({**project, "pylock.toml": lock})) == [
        "uv pip install -r pylock.toml --extra test"
    ]
    found = recipe({**project, "pylock.toml": lock + 'directory = { path = "." }\n'})
    assert installs(found) == ["uv pip install -r pyproject.toml"]
    assert any("pylock.toml holds folders of the tree" in command for command in found.commands)


@pytest.mark.parametrize("lock", [{}, {"poetry.lock": ""}])
def test_poetry_s_tables_are_read_by_poetry_s_own_backend(lock: dict[str, str]) -> None:
    tables = '[tool.poetry]\nname = "demo"\n[tool.poetry.group.test.dependencies]\nsix = "*"\n'
    found = recipe({"pyproject.toml": POETRY + tables, **lock})
    assert f"uv pip install --target {BUILD} poetry-core" in found.commands
    assert any(command.endswith(f"project.py poetry test >{TOLD}") for command in found.commands)
    assert installs(found) == [f"uv pip install -r {TOLD}"]
    assert found.backend == Backend("poetry.core.masonry.api", project="demo")


def test_a_project_table_goes_before_poetry_s_unless_poetry_locked_it() -> None:
    tables = POETRY + PROJECT + 'dependencies = ["six"]\n[tool.poetry]\npackages = []\n'
    assert installs(recipe({"pyproject.toml": tables})) == ["uv pip install -r pyproject.toml"]
    locked = recipe({"pyproject.toml": tables, "poetry.lock": ""})
    assert installs(locked) == [f"uv pip install -r {TOLD}"]


def test_dependencies_that_setuptools_reads_from_files_are_read_from_these() -> None:
    tables = """\
        [project]
        name = "demo"
        dynamic = ["version", "dependencies"]
        [project.optional-dependencies]
        test = ["attrs>=1", "demo[more]"]
        more = ["toolz"]
        [tool.setuptools.dynamic]
        version = { attr = "demo.__version__" }
        dependencies = { file = ["deps/base.in"] }
        """
    found = recipe({"pyproject.toml": SETUPTOOLS + dedent(tables)}, "deps")
    assert installs(found) == ["uv pip install -r deps/base.in 'attrs>=1' toolz"]


def test_a_setup_cfg_is_read_without_running_anything() -> None:
    cfg = """\
        [metadata]
        name = demo
        [options]
        install_requires =
            six>=1 ; python_version > "3"
            # not this
            toolz
        [options.extras_require]
        test = attrs; iniconfig
        """
    found = recipe({"setup.cfg": cfg}, "setup.py")
    assert installs(found) == [
        "uv pip install 'six>=1 ; python_version > \"3\"' toolz attrs iniconfig"
    ]
    assert found.backend == Backend("setuptools.build_meta:__legacy__", project="demo")


def test_a_setup_script_is_asked_where_only_it_knows() -> None:
    found = recipe({"pyproject.toml": SETUPTOOLS, "setup.py": "setup(name='my.demo')"}, "src")
    assert any(command.endswith(f"project.py setup_py >{TOLD}") for command in found.commands)
    assert installs(found) == [f"uv pip install -r {TOLD}"]
    assert found.backend == Backend("setuptools.build_meta", project="my.demo")


def test_another_backend_is_asked_with_a_version_for_this_project_alone() -> None:
    tables = HATCHLING + '[project]\nname = "demo"\ndynamic = ["version", "dependencies"]\n'
    (command,) = [c for c in recipe({"pyproject.toml": tables}).commands if "VERSION" in c]
    assert command == (
        "echo demo | SETUPTOOLS_SCM_PRETEND_VERSION_FOR_DEMO=0 "
        "uv pip install --excludes - -r pyproject.toml"
    )


@pytest.mark.parametrize(
    ("pyproject", "others", "backend"),
    [
        (SETUPTOOLS + PROJECT, (), Backend("setuptools.build_meta", project="demo")),
        (
            '[build-system]\nrequires = []\nbuild-backend = "b:x"\nbackend-path = ["_b"]\n'
            + PROJECT,
            (),
            Backend("b:x", ("_b",), "demo"),
        ),
        (PROJECT, (), None),
        (PROJECT, ("setup.py",), Backend("setuptools.build_meta:__legacy__", project="demo")),
        ("", ("setup.py",), Backend("setuptools.build_meta:__legacy__")),
        ("[build-system]\nrequires = []\n", (), Backend("setuptools.build_meta:__legacy__")),
        (SETUPTOOLS + PROJECT + "[tool.uv]\npackage = false\n", (), None),
        (POETRY + "[tool.poetry]\npackage-mode = false\n", (), None),
        ('[project]\nname = "; rm -rf /"\n' + SETUPTOOLS, (), Backend("setuptools.build_meta")),
    ],
)
def test_the_build_backend_is_what_the_standards_say(
    pyproject: str, others: tuple[str, ...], backend: Backend | None
) -> None:
    assert backend_of(pyproject, *others) == backend


def test_without_a_backend_nothing_is_left_for_one() -> None:
    found = recipe({"pyproject.toml": PROJECT + 'dependencies = ["six"]'})
    assert not [command for command in found.commands if BUILD in command or ".pth" in command]


def test_pytest_s_own_project_gets_no_other_pytest() -> None:
    found = recipe({"pyproject.toml": HATCHLING + PROJECT.replace("demo", "pytest")})
    assert not [command for command in found.commands if "import pytest" in command]


@pytest.mark.parametrize(
    ("required", "version", "knows_excludes"),
    [
        (">=0.5", f"=={UV}", True),
        (">=0.5,<0.9", ">=0.5,<0.9", False),
        ("0.8.1", "==0.8.1", False),
        ("'; id", f"=={UV}", True),
    ],
)
def test_uv_comes_in_the_version_that_a_project_insists_on(
    required: str, version: str, knows_excludes: bool
) -> None:
    tables = f'dependencies = ["six"]\n[tool.uv]\nrequired-version = "{required}"\n'
    commands = recipe({"pyproject.toml": HATCHLING + PROJECT + tables}).commands
    assert commands[0].endswith(f"'uv{version}'")
    assert any("--excludes" in command for command in commands) is knows_excludes
    assert ("uv pip uninstall demo" in commands) is not knows_excludes


def test_a_pyproject_that_does_not_parse_is_refused_in_words() -> None:
    with pytest.raises(Invalid, match=r"pyproject\.toml is not valid TOML: "):
        recipe({"pyproject.toml": "[project\n"})
    assert included("pyproject.toml", b"[project\n") == ()


WRONG = st.sampled_from(["5", '""', "[]", "[5]", "{}", "true", "{ x = 5 }", '[["x"]]'])


@given(WRONG, WRONG, WRONG, st.sampled_from(["", "uv.lock", "pylock.toml", "poetry.lock"]))
def test_values_of_wrong_types_count_as_not_said(a: str, b: str, c: str, lock: str) -> None:
    text = f"""\
        project = {a}
        build-system = {b}
        dependency-groups = {c}
        [tool]
        uv = {a}
        poetry = {b}
        setuptools = {c}
        """
    files = {"pyproject.toml": text} | ({lock: f"packages = {a}\nextras = {b}\n"} if lock else {})
    assert isinstance(recipe(files), Recipe)


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("requirements.txt", "-r base.txt\n-c ./c.txt # why\nsix\n", ("base.txt", "c.txt")),
        ("requirements.txt", "-rbase.txt\n--requirement=a/b.txt\n", ("base.txt", "a/b.txt")),
        ("requirements.txt", "--constraint 'x y.txt'\n", ("x y.txt",)),
        ("deps/dev.txt", "-r base.txt\n-r ../top.txt\n", ("deps/base.txt", "top.txt")),
        ("requirements.txt", "-r ../out.txt\n-r /abs.txt\n-r https://example.org/x.txt\n", ()),
        ("requirements.txt", "# -r no.txt\nsix -r no.txt\n", ()),
        ("pyproject.toml", PROJECT, ()),
        ("pyproject.toml", SETUPTOOLS, ("setup.py",)),
        (
            "pyproject.toml",
            SETUPTOOLS + '[project]\ndynamic = ["dependencies"]\n'
            '[tool.setuptools.dynamic]\ndependencies = { file = "deps/a.in" }\n',
            ("deps/a.in",),
        ),
        ("pyproject.toml", HATCHLING + '[project]\ndynamic = ["dependencies"]\n', ()),
        ("setup.cfg", "[options]\ninstall_requires = file: a.txt, b.txt\n", ("a.txt", "b.txt")),
        ("setup.cfg", "[metadata]\nname = demo\n", ("setup.py",)),
        ("setup.py", "open('README.md')\nopen(\"../x\")\n'a b'\n", ("README.md",)),
        ("README.md", "-r base.txt\n", ()),
    ],
)  # fmt: skip
def test_inputs_name_further_inputs(name: str, text: str, names: tuple[str, ...]) -> None:
    assert included(name, text.encode()) == names


@given(st.sampled_from(["requirements.txt", "setup.py", "setup.cfg", "x/y.in"]), st.binary())
def test_whatever_an_input_holds_it_names_files_of_the_tree(name: str, data: bytes) -> None:
    for path in included(name, data):
        assert not path.startswith(("/", ".."))


@pytest.mark.parametrize(
    ("name", "is_input"),
    [
        ("requirements.txt", True),
        ("requirements-dev.txt", True),
        ("constraints.txt", True),
        ("test-requirements.txt", True),
        ("poetry.lock", True),
        ("setup.py", False),
        ("README.md", False),
    ],
)
def test_the_default_inputs_are_what_recipes_are_made_from(name: str, is_input: bool) -> None:
    assert any(fnmatchcase(name, pattern) for pattern in DEFAULT_INPUTS) is is_input


def test_a_setup_quotes_its_commands() -> None:
    assert "step 'echo '\"'\"'a b'\"'\"' $HOME'\n" in setup_run(["echo 'a b' $HOME"])
