"""Published projects, as repositories behind a server: their tests say what they say outside.

They are fetched over https and over ssh, from a tag, set up by the default recipe, and get their
version from the tag. The package index is the real one.
"""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.e2e.conftest import running
from tests.gitjobs import Trusted, settings_for
from tests.gitservers import Authority, Https, Ssh, https, ssh
from tests.published import (
    FOLDERS,
    HISTOGRAMS,
    Ended,
    Outside,
    Published,
    ended,
    index_settings,
)
from tests.repositories import served

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
]


class Forge:
    """A worker, and the servers that it fetches from."""

    def __init__(self, worker: Trusted, web: Https, shell: Ssh) -> None:
        self.worker, self.root = worker, web.root
        self._web, self._shell = web, shell

    def url(self, scheme: str, name: str) -> str:
        return self._web.url(name) if scheme == "https" else self._shell.url(name)

    async def submitted(self, url: str, ref: str) -> Ended:
        """What `ciclient submit` says, followed to the end; in a thread, for the servers serve."""
        ciclient = str(Path(sys.executable).parent / "ciclient")
        words = [ciclient, "submit", "--git", url, "--ref", ref]
        return await asyncio.to_thread(ended, words, self.worker.client_environment)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def forge(tmp_path_factory: pytest.TempPathFactory, image: str) -> AsyncIterator[Forge]:
    folder = tmp_path_factory.mktemp("forge")
    (folder / "served").mkdir()
    authority = Authority.made(folder / "authority")
    root = folder / "served"
    async with https(root, authority, "none") as web, ssh(root, folder / "ssh") as shell:
        fetching = settings_for(web, shell, authority)
        settings = {"default_image": image, **index_settings(), **fetching}
        worker = Trusted(folder / "worker", settings)
        worker.secrets = {"SSH_AUTH_SOCK": str(shell.agent)}
        async with running(worker):
            yield Forge(worker, web, shell)
            assert "Traceback" not in worker.log.read_text()


@pytest.mark.parametrize(
    ("project", "scheme"),
    [(HISTOGRAMS, "https"), (FOLDERS, "ssh")],
    ids=lambda given: given if isinstance(given, str) else given.name,
)
async def test_a_fetched_project_reports_what_it_reports_outside(
    project: Published, scheme: str, forge: Forge, tmp_path: Path
) -> None:
    own_copy = project.unpacked(tmp_path / "outside")
    prepared = await asyncio.to_thread(Outside.prepared, tmp_path / "venv", project, own_copy)
    outside = await asyncio.to_thread(prepared.pytest, own_copy)
    bare = served(project.unpacked(tmp_path / "tree"), forge.root, project.name, project.version)
    job = await forge.submitted(forge.url(scheme, bare.name), project.version)
    assert (job.code, job.summary) == (outside.code, outside.summary), job.out[-4000:] + job.err
    assert "passed" in job.summary
