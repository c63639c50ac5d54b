"""Submits that speak of a setup: what is stored of it, and what is refused with nothing left.

No setup runs here: the jobs ask for an image that this machine lacks and the worker may not pull.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.driver import Worker, command, tree
from tests.e2e.conftest import spooled

pytestmark = pytest.mark.asyncio(loop_scope="module")

NO_IMAGE = "ciworker-test-no-such-image:1"
SETTINGS = {"allowed_images": json.dumps([NO_IMAGE]), "pull": "never"}

REQUIREMENTS = b"-r deps/test.txt\n"
FILES = {"requirements.txt": REQUIREMENTS, "deps/test.txt": b"six\n", "test_a.py": b""}


def digests(*names: str) -> dict[str, str]:
    return {name: sha256(FILES[name]).hexdigest() for name in names}


async def stored(worker: Worker, files: Mapping[str, bytes], **spec: Any) -> dict[str, Any]:
    """The job as its submit was answered; it has ended since."""
    status, job = await worker.post(tree(files), {"image": NO_IMAGE, **spec})
    assert (status, job["status"]) == (201, "queued"), job
    ended = await worker.wait(job["id"])
    assert ended["reason"] == "image_missing"
    assert ended["spec"] == job["spec"]
    answer: dict[str, Any] = job
    return answer


@pytest.mark.parametrize(
    ("files", "spec", "words"),
    [
        pytest.param(
            {},
            {"setup": ["a"], "setup-inputs": ["gone.txt"]},
            "setup-inputs names 'gone.txt', which is not in the tree: correct it, or see that it "
            "is packed (what git ignores is not)",
            id="an input that is missing",
        ),
        pytest.param(
            {},
            {"setup": ["a"], "setup-inputs": ["*.lock"]},
            "setup-inputs holds '*.lock', which no file of the tree matches",
            id="a glob of nothing",
        ),
        pytest.param(
            {".ciworker.toml": b"setup = ['a']\nsetup-inputs = ['deps/gone.txt']"},
            {},
            "names 'deps/gone.txt'",
            id="the job file's missing input",
        ),
        pytest.param({}, {"setup-inputs": ["a"]}, "of no use without setup", id="no setup"),
        pytest.param({}, {"setup": "pip"}, "setup in the part `spec`", id="setup as text"),
        pytest.param({}, {"setup": [""]}, "no command", id="an empty command"),
        pytest.param({}, {"setup": ["a"], "setup-inputs": ["/a"]}, "absolute", id="absolute"),
        pytest.param({}, {"setup": ["a"], "setup-inputs": ["../a"]}, "'..'", id="a way out"),
        pytest.param({}, {"setup_inputs": ["a"]}, "did you mean 'setup-inputs'", id="underscore"),
        pytest.param({}, {"setups": ["a"]}, "did you mean 'setup'", id="unknown key"),
        pytest.param({}, {"cache": "no"}, "cache in the part `spec`", id="cache's value"),
        pytest.param(
            {".ciworker.toml": b"cache = 'off'"}, {}, "unknown key 'cache'", id="cache in the file"
        ),
        pytest.param(
            {".ciworker.toml": b"setup = 'a'"}, {}, "a list of commands", id="the file's text"
        ),
        pytest.param(
            {f"deps/{n}": b"" for n in range(1001)},
            {"setup": ["a"], "setup-inputs": ["deps"]},
            "over 1,000 files",
            id="too many inputs",
        ),
        pytest.param(
            {".ciworker.toml": b"", "pyproject.toml": b"[["}, {}, "pyproject.toml", id="no TOML"
        ),
    ],
)
async def test_what_is_refused_leaves_nothing(
    shared: Worker, files: dict[str, bytes], spec: dict[str, Any], words: str
) -> None:
    before = spooled(shared), await shared.call("GET", "/jobs")
    status, problem = await shared.post(tree({**FILES, **files}), {"image": NO_IMAGE, **spec})
    assert (status, words in problem["detail"]) == (422, True), problem
    assert (spooled(shared), await shared.call("GET", "/jobs")) == before


async def test_commands_and_the_inputs_that_they_may_read_are_stored(shared: Worker) -> None:
    job = await stored(shared, FILES, **{"setup": ["a", "b"], "setup-inputs": ["deps/*"]})
    assert job["spec"]["setup"] == ["a", "b"]
    assert job["spec"]["setup_inputs"] == digests("deps/test.txt")
    assert (job["spec"]["backend"], job["spec"]["cache"]) == (None, "use")


async def test_the_job_files_setup_reads_the_default_inputs(shared: Worker) -> None:
    job = await stored(shared, {**FILES, ".ciworker.toml": b"setup = ['a']"})
    assert job["spec"]["setup"] == ["a"]
    assert job["spec"]["setup_inputs"] == digests("requirements.txt", "deps/test.txt")


async def test_a_tree_with_requirements_has_a_setup_by_default(shared: Worker) -> None:
    job = await stored(shared, FILES)
    assert any("requirements.txt" in command for command in job["spec"]["setup"])
    assert job["spec"]["setup_inputs"] == digests("requirements.txt", "deps/test.txt")


async def test_a_project_has_its_build_backend_by_default(shared: Worker) -> None:
    pyproject = b'[build-system]\nrequires = ["flit_core"]\nbuild-backend = "flit_core.buildapi"\n'
    job = await stored(shared, {"pyproject.toml": pyproject + b'[project]\nname = "demo"\n'})
    backend = job["spec"]["backend"]
    assert (backend["name"], backend["path"]) == ("flit_core.buildapi", [])
    assert set(job["spec"]["setup_inputs"]) == {"pyproject.toml"}


@pytest.mark.parametrize(
    ("files", "spec"),
    [
        ({"test_a.py": b""}, {}),
        (FILES, {"setup": []}),
        ({**FILES, ".ciworker.toml": b"setup = []"}, {}),
        ({**FILES, ".ciworker.toml": b"setup = ['a']\nsetup-inputs = ['x']"}, {"setup": []}),
    ],
)
async def test_without_a_setup_nothing_is_read(
    shared: Worker, files: dict[str, bytes], spec: dict[str, Any]
) -> None:
    job = await stored(shared, files, **spec)
    assert (job["spec"]["setup"], job["spec"]["setup_inputs"]) == ([], {})


@pytest.mark.parametrize(
    ("asked", "again"), [(None, "use"), ("use", "use"), ("rebuild", "use"), ("off", "off")]
)
async def test_a_retry_has_the_same_setup_and_rebuilds_nothing(
    shared: Worker, asked: str | None, again: str
) -> None:
    job = await stored(shared, FILES, **({} if asked is None else {"cache": asked}))
    assert job["spec"]["cache"] == (asked or "use")
    status, retried = await shared.call("POST", f"/jobs/{job['id']}/retry")
    assert (status, retried["spec"]) == (202, job["spec"] | {"cache": again})
    await shared.wait(retried["id"])


@pytest.mark.parametrize(
    ("option", "cache"), [("--rebuild", "rebuild"), ("--no-cache", "off"), ("--detach", "use")]
)
async def test_the_client_says_what_to_do_with_kept_environments(
    shared: Worker, tmp_path: Path, option: str, cache: str
) -> None:
    (tmp_path / "requirements.txt").write_text("six\n")
    code, out, err = await command(
        "ciclient", "submit", str(tmp_path), "--detach", "--image", NO_IMAGE, option,
        env=shared.client_environment,
    )  # fmt: skip
    assert code == 0, err
    job = await shared.wait(out.decode().strip())
    assert job["spec"]["cache"] == cache
