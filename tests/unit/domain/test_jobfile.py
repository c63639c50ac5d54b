"""The job file: what is taken from where, and every refusal as a sentence that names the mend."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import pytest

from ciworker.domain.job import Cache, Spec
from ciworker.domain.jobfile import (
    JOB_FILE,
    JOB_FILE_KEYS,
    MAX_COMMAND,
    MAX_SETUP_RUN,
    MIN_MEMORY,
    PYPROJECT,
    REQUEST_KEYS,
    Bounds,
    Wanted,
    resolve,
)
from ciworker.errors import Invalid

BOUNDS = Bounds(
    image="python:3.12-slim",
    allowed_images=("python:*", "own/tests"),
    timeout=900.0,
    max_timeout=7200.0,
    memory=2 * 2**30,
    max_memory=8 * 2**30,
    cpus=2.0,
    max_cpus=4.0,
)


def wanted(
    job_file: str | None = None,
    pyproject: str | None = None,
    overrides: Mapping[str, object] | None = None,
    bounds: Bounds = BOUNDS,
) -> Wanted:
    texts = {JOB_FILE: job_file, PYPROJECT: pyproject}
    files = {name: text.encode() for name, text in texts.items() if text is not None}
    return resolve(files, overrides or {}, bounds)


def spec(
    job_file: str | None = None,
    pyproject: str | None = None,
    overrides: Mapping[str, object] | None = None,
    bounds: Bounds = BOUNDS,
) -> Spec:
    return wanted(job_file, pyproject, overrides, bounds).spec


def refusal(
    job_file: str | None = None,
    pyproject: str | None = None,
    overrides: Mapping[str, object] | None = None,
    bounds: Bounds = BOUNDS,
) -> str:
    with pytest.raises(Invalid) as caught:
        spec(job_file, pyproject, overrides, bounds)
    return str(caught.value)


# --- what is taken from where ----------------------------------------------------------------


def test_a_tree_that_says_nothing_gets_the_defaults() -> None:
    assert spec() == Spec(
        image="python:3.12-slim",
        run="python -m pytest",
        timeout=900.0,
        memory=2 * 2**30,
        cpus=2.0,
        network=False,
        project="unnamed",
        env={},
    )


def test_every_key_of_the_job_file_is_taken() -> None:
    text = """
        image = "python:3.11"
        run = "make test"
        timeout = "10m"
        memory = "512m"
        cpus = 0.5
        network = true
        env = { TZ = "UTC", EMPTY = "" }
        project = "demo"
    """
    assert spec(text) == Spec(
        image="python:3.11",
        run="make test",
        timeout=600.0,
        memory=512 * 2**20,
        cpus=0.5,
        network=True,
        project="demo",
        env={"TZ": "UTC", "EMPTY": ""},
    )


def test_the_keys_are_those_of_the_contract() -> None:
    contract = {"image", "run", "timeout", "memory", "cpus", "network", "env", "project"}
    assert set(JOB_FILE_KEYS) == contract | {
        "setup",
        "setup-inputs",
        "secrets",
        "setup-secrets",
    }


def test_the_table_in_pyproject_is_taken_when_there_is_no_job_file() -> None:
    assert spec(pyproject='[tool.ciworker]\nrun = "make"').run == "make"


@pytest.mark.parametrize(("job_file", "run"), [('run = "own"', "own"), ("", "python -m pytest")])
def test_a_job_file_replaces_the_table_in_pyproject_wholly(job_file: str, run: str) -> None:
    found = spec(job_file, '[tool.ciworker]\nrun = "make"\ntimeout = 5\nunknown = 1')
    assert (found.run, found.timeout) == (run, 900.0)


@pytest.mark.parametrize("job_file", ['image = "python:3.10"\ncpus = 1\nrun = "a"'])
def test_what_the_caller_overrides_goes_before_the_file(job_file: str) -> None:
    found = spec(job_file, overrides={"image": "python:3.13", "cpus": 3})
    assert (found.image, found.cpus, found.run) == ("python:3.13", 3.0, "a")


def test_other_files_are_not_looked_at() -> None:
    files = {"setup.cfg": b"\xff", "sub/.ciworker.toml": b"run = 1"}
    assert resolve(files, {}, BOUNDS).spec == spec()


@pytest.mark.parametrize(
    "pyproject", ["", "[tool.other]\na = 1", "tool = 3", "[build-system]\nrequires = []"]
)
def test_a_pyproject_without_our_table_says_nothing(pyproject: str) -> None:
    assert spec(pyproject=pyproject) == spec()


def test_the_defaults_never_ask_for_more_than_is_allowed() -> None:
    small = replace(BOUNDS, max_timeout=60.0, max_memory=2**29, max_cpus=1.0)
    found = spec(bounds=small)
    assert (found.timeout, found.memory, found.cpus) == (60.0, 2**29, 1.0)


# --- the command -----------------------------------------------------------------------------


def test_a_command_replaces_run_and_reaches_the_shell_word_by_word() -> None:
    words = ["pytest", "-k", "a or b", "it's", "$HOME", "*", ""]
    found = spec('run = "make"', overrides={"command": words, "run": "other"})
    assert shlex.split(found.run) == words
    assert found.run != " ".join(words)


def test_a_command_is_no_key_of_the_job_file() -> None:
    assert "unknown key 'command' in .ciworker.toml" in refusal('command = ["pytest"]')


# --- the setup -------------------------------------------------------------------------------


def test_of_a_setup_that_nobody_mentions_nothing_is_wanted() -> None:
    assert wanted("run = 'a'") == Wanted(spec("run = 'a'"), setup=None, inputs=None)


def test_commands_and_inputs_are_taken_in_their_order() -> None:
    found = wanted("setup = ['b', \"a\\nb\"]\nsetup-inputs = ['./x//y/', '*.lock', '.']")
    assert found.setup == ["b", "a\nb"]
    assert found.inputs is not None
    assert [(p.text, p.parts) for p in found.inputs] == [
        ("./x//y/", ("x", "y")),
        ("*.lock", ("*.lock",)),
        (".", ("**",)),
    ]


@pytest.mark.parametrize("setup", ["setup = []", "setup = ['a']"])
def test_no_inputs_at_all_are_something_else_than_none_said(setup: str) -> None:
    assert wanted(setup).inputs is None
    assert wanted(f"{setup}\nsetup-inputs = []").inputs == []


def test_a_setup_can_be_overridden_and_left_out() -> None:
    table = "setup = ['a']\nsetup-inputs = ['x']"
    assert wanted(table, overrides={"setup": ["b"]}).setup == ["b"]
    assert wanted(table, overrides={"setup": []}).setup == []
    inputs = wanted(table, overrides={"setup-inputs": ["y"]}).inputs
    assert inputs is not None
    assert [pattern.text for pattern in inputs] == ["y"]


def test_inputs_without_a_setup_that_reads_them_are_refused() -> None:
    sentence = "setup-inputs is of no use without setup: say the commands that read them"
    assert refusal("setup-inputs = ['a']") == sentence
    assert refusal(overrides={"setup-inputs": ["a"]}) == sentence


@pytest.mark.parametrize("cache", Cache)
def test_what_is_asked_of_the_cache_is_the_callers_alone_to_say(cache: Cache) -> None:
    assert spec().cache is Cache.USE
    assert spec(overrides={"cache": cache.value}).cache is cache
    assert "unknown key 'cache' in .ciworker.toml" in refusal(f"cache = '{cache}'")


def test_secrets_of_the_job_file_and_of_the_caller_add_up() -> None:
    job_file = "secrets = ['B', 'A']\nsetup-secrets = ['D']"
    found = spec(job_file, overrides={"secrets": ["C", "A"], "setup-secrets": ["D", "C"]})
    assert (found.secrets, found.setup_secrets) == (("A", "B", "C"), ("C", "D"))


def test_secrets_for_a_setup_that_there_is_not_are_refused() -> None:
    sentence = refusal("setup = []\nsetup-secrets = ['A']")
    assert sentence == "setup-secrets is of no use without a setup: leave it out"


# --- the project's name ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("job_file", "pyproject", "overrides", "project"),
    [
        pytest.param(None, '[project]\nname = "lib"', {}, "lib", id="pyproject's"),
        pytest.param("", '[project]\nname = "lib"', {}, "lib", id="beside a job file"),
        pytest.param('project = "own"', '[project]\nname = "lib"', {}, "own", id="the job file's"),
        pytest.param('project = "own"', None, {"project": "mine"}, "mine", id="the caller's"),
        pytest.param(None, "[project]\nversion = '1'", {}, "unnamed", id="none"),
        pytest.param(None, "[project]\nname = 3", {}, "unnamed", id="no text"),
        pytest.param(None, "project = 3", {}, "unnamed", id="no table"),
        pytest.param(None, '[project]\nname = "a\\nb"', {}, "unnamed", id="two lines"),
        pytest.param(None, '[project]\nname = ""', {}, "unnamed", id="empty"),
    ],
)
def test_a_project_is_named_by_the_first_who_does(
    job_file: str | None, pyproject: str | None, overrides: dict[str, object], project: str
) -> None:
    assert spec(job_file, pyproject, overrides).project == project


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("imaeg", "image"),
        ("time_out", "timeout"),
        ("mem", "memory"),
        ("cpu", "cpus"),
        ("networks", "network"),
        ("environ", "env"),
        ("projekt", "project"),
        ("Run", "run"),
        ("setup_inputs", "setup-inputs"),
        ("Setup", "setup"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_that_exists(key: str, nearest: str) -> None:
    where = {
        ".ciworker.toml": refusal(f"{key} = 1"),
        "[tool.ciworker] in pyproject.toml": refusal(pyproject=f"[tool.ciworker]\n{key} = 1"),
        "the request": refusal(overrides={key: 1}),
    }
    for place, sentence in where.items():
        assert sentence == f"unknown key {key!r} in {place}: did you mean {nearest!r}?"


def test_a_key_that_is_like_no_other_is_refused_with_all_that_exist() -> None:
    sentence = refusal("zzzzzz = 1")
    assert sentence == (
        "unknown key 'zzzzzz' in .ciworker.toml: known are "
        "image, run, timeout, memory, cpus, network, env, project, setup, setup-inputs, "
        "secrets, setup-secrets"
    )
    assert refusal(overrides={"zzzzzz": 1}).endswith("setup-secrets, command, cache")


@pytest.mark.parametrize("key", ["priority", "vcs", "git", "cache"])
def test_what_is_no_key_yet_or_of_another_part_is_refused(key: str) -> None:
    assert f"unknown key {key!r}" in refusal(f"{key} = 1")


class Wrong(NamedTuple):
    """Values that a key can not have, and what is said about each."""

    key: str
    words: str
    values: Sequence[object]


NOT_EMPTY = "has to be a text that is not empty"
WRONG = [
    Wrong("image", NOT_EMPTY, (3, "", "  ", None, [])),
    Wrong("image", "is not the name of an image", ("-v", "a b", "a\u2003b")),
    Wrong("image", "printable characters on one line", ("python:\u202e3", "a\n")),
    Wrong("run", NOT_EMPTY, (3, "", "\n", ["a"])),
    Wrong("run", "hold no NUL", ("a\0b",)),
    Wrong("run", f"shorter than {MAX_COMMAND} bytes", ("x" * (MAX_COMMAND + 1),)),
    Wrong("run", f"shorter than {MAX_COMMAND} bytes", ("é" * (MAX_COMMAND // 2 + 1),)),
    Wrong("timeout", "is no duration", ("soon", -1, True, [], "1d", None)),
    Wrong("timeout", "has to be more than 0", (0, "0s", 0.0)),
    Wrong("memory", "is no size", ("lots", -1, True, {}, "1t", None, 10**400)),
    Wrong("memory", "at least 16.0 MiB", (0, "1k", MIN_MEMORY - 1)),
    Wrong("cpus", "has to be a number of cores", ("two", 0, -1, 0.009, "nan", "inf", 10_000)),
    Wrong("cpus", "has to be a number of cores", (True, [], None, 10**400)),
    Wrong("network", "has to be true or false", (0, 1, "true", "no", None, [])),
    Wrong("env", "has to be a table", ("A=1", ["A=1"], 3, None)),
    Wrong(
        "env",
        "no name of an environment variable",
        [{name: "x"} for name in ("", "1A", "A-B", "A=B", "A B", "É", "A\n")],
    ),
    Wrong("env", "gives A a value that is no text", ({"A": 1}, {"A": True}, {"A": "a\0"})),
    Wrong("project", NOT_EMPTY, (3, "", " ", None)),
    Wrong(
        "project",
        "at most 200 printable characters on one line",
        ("a\nb", "a\x1b[31m", "x" * 201, "a\x7f", "\x9b1m", "a\u2067b"),
    ),
    Wrong("setup", "has to be a list of commands", ("make", None, {}, 3, True)),
    Wrong("setup", "holds something that is no command", ([1], ["a", ""], [" "], [["a"]], [None])),
    Wrong("setup", "hold no NUL", (["a\0"],)),
    Wrong("setup", f"shorter than {MAX_COMMAND} bytes", (["x" * (MAX_COMMAND + 1)],)),
    Wrong("setup", f"shorter than {MAX_COMMAND} bytes", (["x" * (MAX_COMMAND // 2)] * 2,)),
    Wrong("setup", f"shorter than {MAX_SETUP_RUN} bytes when a shell", (["'" * 25_000],)),
    Wrong("setup", f"shorter than {MAX_SETUP_RUN} bytes when a shell", (["a"] * 15_000,)),
    Wrong("setup-inputs", "has to be a list of files and globs", ("a", None, {}, 3)),
    Wrong("setup-inputs", "which is no name of a file", ([""], [1], [None], ["a\nb"], ["\u202e"])),
    Wrong("setup-inputs", "an absolute path", (["/a"], ["a", "//"])),
    Wrong("setup-inputs", "which has '..' in it", (["../a"], ["a/.."], [".."], ["**/../a"])),
    Wrong("setup-inputs", "'**' stands between slashes", (["a**"], ["**.txt"], ["***"])),
    Wrong("setup-inputs", "holds a name of over 1000 characters", (["x" * 1001],)),
    Wrong("setup-inputs", "at most 32 components", (["a/" * 32 + "b"], ["**/" * 5 + "b"])),
    Wrong("setup-inputs", "at most 64 files and globs", (["a"] * 65,)),
    Wrong("secrets", "has to be a list of at most 64 names", ("A", None, {}, 3, ["A"] * 65)),
    Wrong("secrets", "no name of an environment variable", ([""], ["1A"], [3], ["A", "B C"])),
    Wrong("setup-secrets", "has to be a list of at most 64 names", ("A", None)),
    Wrong("cache", "has to be one of use, rebuild, off", ("no", True, None, ["off"], "")),
    Wrong("command", "has to be a list of words", ("pytest", [], None, {}, 3)),
    Wrong("command", "holds something that is no text", ([1], ["a", None])),
    Wrong("command", "hold no NUL", (["a\0"],)),
    Wrong("command", f"shorter than {MAX_COMMAND} bytes", (["x" * MAX_COMMAND, "y"],)),
]


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        pytest.param(key, value, words, id=f"{key}={value!r:.20}")
        for key, words, values in WRONG
        for value in values
    ],
)
def test_a_wrong_value_is_refused_with_its_key_and_what_is_wrong(
    key: str, value: object, words: str
) -> None:
    sentence = refusal(overrides={key: value})
    assert sentence.startswith(f"{key} in the request: ")
    assert words in sentence


def test_a_command_may_be_as_long_as_a_shell_takes_it() -> None:
    assert MAX_COMMAND == 32_768


def test_every_key_has_wrong_values_among_these() -> None:
    assert {wrong.key for wrong in WRONG} == {*JOB_FILE_KEYS, *REQUEST_KEYS}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run", "x" * MAX_COMMAND),
        ("memory", MIN_MEMORY),
        ("cpus", 0.01),
        ("project", "x" * 200),
        ("project", "Größe 日本"),
        ("timeout", 0.1),
        ("env", {"_a1": "é\n"}),
    ],
)
def test_what_is_just_acceptable_is_accepted(key: str, value: object) -> None:
    assert getattr(spec(overrides={key: value}), key) == value


def test_a_value_in_a_file_is_refused_with_the_name_of_the_file() -> None:
    assert refusal("cpus = false").startswith("cpus in .ciworker.toml: has to be")
    sentence = refusal(pyproject="[tool.ciworker]\ncpus = false")
    assert sentence.startswith("cpus in [tool.ciworker] in pyproject.toml: has to be")


@pytest.mark.parametrize("key", ["run", "image", "project"])
def test_half_of_a_surrogate_pair_is_no_text(key: str) -> None:
    """JSON can hold one; nothing could be written with it later."""
    half = json.loads('"\\ud800"')
    assert refusal(overrides={key: half}).startswith(f"{key} in the request: ")
    assert refusal(overrides={"env": {"A": half}}).startswith("env in the request: ")
    assert refusal(overrides={"command": [half]}).startswith("command in the request: ")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param(b"run = ", "Invalid value", id="not TOML"),
        pytest.param(b"run = 'a'\nrun = 'b'", "overwrite", id="a key twice"),
        pytest.param(b"\xff", "codec can't decode", id="not UTF-8"),
        pytest.param(b"cpus = " + b"9" * 5000, "5000 digits", id="a number without end"),
        pytest.param(b"env = " + b"[" * 50_000, "nested too deeply", id="nested without end"),
    ],
)
@pytest.mark.parametrize("name", [JOB_FILE, PYPROJECT])
def test_a_file_that_is_not_toml_is_refused_by_its_name(name: str, data: bytes, words: str) -> None:
    with pytest.raises(Invalid) as caught:
        resolve({name: data}, {}, BOUNDS)
    assert str(caught.value).startswith(f"{name} is not valid TOML: ")
    assert words in str(caught.value)


def test_our_table_in_pyproject_has_to_be_a_table() -> None:
    assert refusal(pyproject="tool.ciworker = 3") == (
        "[tool.ciworker] in pyproject.toml has to be a table"
    )


# --- bounds ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "most", "more", "sentence"),
    [
        ("timeout", "2h", 7201, "timeout of 7201s is more than the 2h"),
        ("memory", "8g", "9g", "memory of 9.0 GiB is more than the 8.0 GiB"),
        ("cpus", 4, 4.5, "cpus of 4.5 is more than the 4"),
    ],
)
def test_a_job_may_ask_for_the_most_that_is_allowed_and_no_more(
    key: str, most: object, more: object, sentence: str
) -> None:
    assert getattr(spec(overrides={key: most}), key) == getattr(BOUNDS, f"max_{key}")
    refused = refusal(overrides={key: more})
    assert refused == f"{sentence} that this worker allows (max_job_{key})"


@pytest.mark.parametrize("image", ["python:3.12-slim", "python:", "own/tests"])
def test_an_image_that_matches_a_pattern_is_allowed(image: str) -> None:
    assert spec(overrides={"image": image}).image == image


@pytest.mark.parametrize(
    "image", ["python", "Python:3", "evil/python:3", "own/tests2", "own/tests:1", "host/own/tests"]
)
def test_an_image_that_matches_no_pattern_is_refused_with_the_patterns(image: str) -> None:
    assert refusal(overrides={"image": image}) == (
        f"image {image!r} is not allowed on this worker; allowed_images: python:*, own/tests"
    )


@pytest.mark.parametrize(
    ("image", "pattern", "allowed"),
    [
        ("python:3.12-slim", "python:*", True),
        ("python:5000/evil", "python:*", False),
        ("registry.example/team/tests:1", "registry.example/team/*", True),
        ("registry.example/team/deep/tests:1", "registry.example/team/*", False),
        ("registry.example/team/deep/tests:1", "*", True),
    ],
)
def test_a_pattern_of_images_is_matched_part_by_part(
    image: str, pattern: str, allowed: bool
) -> None:
    bounds = replace(BOUNDS, allowed_images=(pattern,))
    if allowed:
        assert resolve({}, {"image": image}, bounds).spec.image == image
    else:
        with pytest.raises(Invalid, match="not allowed"):
            resolve({}, {"image": image}, bounds)


def test_variables_of_an_override_are_added_to_those_of_the_job_file() -> None:
    files = {".ciworker.toml": b'env = { TZ = "UTC", A = "file" }'}
    spec = resolve(files, {"env": {"A": "override"}}, BOUNDS).spec
    assert spec.env == {"TZ": "UTC", "A": "override"}


def test_a_broken_pyproject_beside_a_job_file_is_left_to_the_tests() -> None:
    files = {".ciworker.toml": b'run = "true"', "pyproject.toml": b"[["}
    assert resolve(files, {}, BOUNDS).spec.run == "true"
