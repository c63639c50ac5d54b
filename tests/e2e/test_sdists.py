"""Projects that none of us wrote, as their authors published them: set up by the default recipe.

Each is submitted as it is, without a job file, and its tests say in the worker's container what
they say in a virtual environment on this machine. The package index is the real one.
"""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.driver import Worker
from tests.e2e.conftest import running
from tests.published import (
    ARRAYS,
    FOLDERS,
    HISTOGRAMS,
    HOOKS,
    Outside,
    Published,
    commit_all,
    index_settings,
    submitted,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def worker(tmp_path_factory: pytest.TempPathFactory, image: str) -> AsyncIterator[Worker]:
    folder = tmp_path_factory.mktemp("sdists") / "worker"
    settings = {"default_image": image, **index_settings()}
    async with running(Worker(folder, settings)) as started:
        yield started
        assert "Traceback" not in started.log.read_text()


@pytest.mark.parametrize(
    "project",
    [
        HISTOGRAMS,
        *(pytest.param(of, marks=pytest.mark.chaos) for of in (ARRAYS, FOLDERS, HOOKS)),
    ],
    ids=lambda project: project.name,
)
async def test_a_published_project_reports_what_it_reports_outside(
    project: Published, worker: Worker, tmp_path: Path
) -> None:
    own_copy = project.unpacked(tmp_path / "outside")
    outside = Outside.prepared(tmp_path / "venv", project, own_copy).pytest(own_copy)
    job = submitted(project.unpacked(tmp_path / "tree"), worker.client_environment)
    assert (job.code, job.summary) == (outside.code, outside.summary), job.out[-4000:] + job.err
    assert "passed" in job.summary


async def test_a_tag_gives_the_version_though_the_repository_is_not_packed(
    worker: Worker, tmp_path: Path
) -> None:
    tree = HOOKS.unpacked(tmp_path)
    (tree / "PKG-INFO").unlink()
    commit_all(tree, "1.98.76")
    job = submitted(tree, worker.client_environment)
    assert (job.code, reported_version(job.out)) == (0, "1.98.76"), job.out[-4000:] + job.err


def reported_version(out: str) -> str:
    """pluggy's own, as pytest tells it in its header."""
    found = re.search(r"\bpluggy-(\S+)$", out, re.MULTILINE)
    assert found, out
    return found[1]
