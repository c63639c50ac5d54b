"""Jobs whose tree the worker fetches, from servers of git that the tests start."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.driver import command
from tests.e2e.conftest import running, spooled
from tests.gitjobs import READS, TOKEN, Trusted, children_of_git, post, settings_for
from tests.gitservers import Authority, Https, Ssh, https, ssh
from tests.repositories import Made, made

pytestmark = pytest.mark.asyncio(loop_scope="module")

PASSWORD = "canary-of-a-password-7f3a"


@dataclass
class Tea:
    """A worker, the servers that it may fetch from, and two repositories behind them."""

    worker: Trusted
    https: Https
    ssh: Ssh
    public: Made
    private: Made

    async def submit(self, git: dict[str, str], **spec: Any) -> str:
        status, job = await post(self.worker, {"git": git, "run": READS, **spec})
        assert status == 201, job
        return str(job["id"])

    async def run(self, git: dict[str, str], **spec: Any) -> dict[str, Any]:
        return await self.worker.wait(await self.submit(git, **spec))


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def tea(tmp_path_factory: pytest.TempPathFactory, image: str) -> AsyncIterator[Tea]:
    folder = tmp_path_factory.mktemp("tea")
    root = folder / "served"
    (root / "private").mkdir(parents=True)
    public, private = made(root), made(root / "private", "green")
    public.commit({"leaf.txt": "oolong\n", "sub/leaf.txt": "assam\n"}, tag="v1")
    private.commit({"leaf.txt": "gyokuro\n"})
    authority = Authority.made(folder / "authority")
    async with https(root, authority, PASSWORD) as served, ssh(root, folder / "ssh") as shells:
        settings = settings_for(served, shells, authority)
        worker = Trusted(folder / "worker", {"default_image": image, **settings})
        worker.secrets = {TOKEN: PASSWORD, "SSH_AUTH_SOCK": str(shells.agent)}
        async with running(worker):
            yield Tea(worker, served, shells, public, private)
            assert "Traceback" not in worker.log.read_text()
            assert PASSWORD not in worker.log.read_text()


async def test_a_repository_is_fetched_over_https_and_its_commit_pinned(tea: Tea) -> None:
    commit = tea.public.commit({"leaf.txt": "oolong\n"})
    url = tea.https.url("tea.git")
    job = await tea.run({"url": url, "ref": "main"})
    assert (job["status"], job["reason"]) == ("completed", "passed"), job
    assert job["spec"]["git"] == {"url": url, "ref": "main", "subdirectory": None, "commit": commit}
    assert job["source"]["vcs"] == {"branch": "main", "commit": commit, "dirty": False}
    assert job["project"] == "tea"
    log = (await tea.worker.text(job["id"])).decode()
    head, _, out = log.partition("::endgroup::\n")
    assert head.startswith(f"::group::Fetch main of {url}\n")
    assert "Receiving objects: 100%" in head
    assert out == f"oolong\n{url}\nmain\n{commit}\n"


async def test_a_private_repository_is_fetched_with_the_token_of_its_host(tea: Tea) -> None:
    job = await tea.run({"url": tea.https.url("private/green.git")})
    assert job["reason"] == "passed", job
    log = await tea.worker.text(job["id"])
    assert b"gyokuro\n" in log
    assert PASSWORD.encode() not in log
    assert PASSWORD not in json.dumps(job)


async def test_a_private_repository_is_fetched_with_the_agent(tea: Tea) -> None:
    job = await tea.run({"url": tea.ssh.url("private/green.git")})
    assert job["reason"] == "passed", (job, await tea.worker.text(job["id"]))
    assert b"gyokuro\n" in await tea.worker.text(job["id"])


async def test_a_commit_that_is_no_branchs_newest_is_fetched_over_ssh(tea: Tea) -> None:
    old = tea.public.commit({"leaf.txt": "old\n"}, branch="aged")
    tea.public.commit({"leaf.txt": "new\n"}, branch="aged")
    job = await tea.run({"url": tea.ssh.url("tea.git"), "ref": old})
    assert job["reason"] == "passed", job
    assert b"old\n" in await tea.worker.text(job["id"])


async def test_the_client_submits_a_url_and_shows_what_was_pinned(tea: Tea) -> None:
    commit = tea.public.commit({"leaf.txt": "oolong\n"})
    env, url = tea.worker.client_environment, tea.https.url("tea.git")
    words = ("submit", "--git", url, "--ref", "main", "--", "cat", "leaf.txt")
    code, out, err = await command("ciclient", *words, env=env)
    assert code == 0, err
    assert out.endswith(b"::endgroup::\noolong\n")
    code, out, _ = await command("ciclient", "show", env=env)
    assert code == 0
    assert commit in out.decode()
    assert url in out.decode()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("private/green.git", "wants other credentials: see to TEA_TOKEN"),
        ("tea.git", "has no branch, tag or commit nothing-of-that-name"),
        ("none.git", "has no such repository"),
        ("moved/tea.git", "redirects, which is not followed"),
    ],
)
async def test_what_cannot_be_fetched_says_why(
    tea: Tea, path: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tea.https, "target", "https://169.254.169.254")
    if path.startswith("private"):
        monkeypatch.setattr(tea.https, "password", "another one")
    job = await tea.run({"url": tea.https.url(path), "ref": "nothing-of-that-name"})
    assert (job["status"], job["reason"]) == ("failed", "source_failed")
    assert reason in job["message"]
    assert "git: " in job["message"]
    log = await tea.worker.text(job["id"])
    assert job["message"].encode() in log
    assert PASSWORD not in log.decode() + json.dumps(job)
    assert job["id"] not in {path.name.partition(".")[0] for path in spooled(tea.worker)}
    assert list((tea.worker.data_dir / "fetches").iterdir()) == []


async def test_a_token_is_sent_to_its_own_host_alone(tea: Tea) -> None:
    """Another port is another host, though its name is the same."""
    authority = Authority(tea.https.root.parent / "authority")
    async with https(tea.https.root, authority, PASSWORD) as other:
        job = await tea.run({"url": other.url("private/green.git")})
    assert job["reason"] == "source_failed"
    assert {password for _, password in other.asked} <= {None}


async def test_neither_or_both_of_git_and_an_archive_are_refused(tea: Tea) -> None:
    status, problem = await post(tea.worker, {"run": "true"})
    assert (status, "`git`" in problem["detail"]) == (422, True)
    spec = {"git": {"url": tea.https.url("tea.git")}}
    status, problem = await tea.worker.post(b"x", spec)
    assert (status, "one or the other" in problem["detail"]) == (422, True)


@pytest.mark.parametrize(
    ("git", "sentence"),
    [
        ({"url": "ext::sh -c touch% /tmp/canary"}, "url in git has to be https://"),
        ({"url": "--upload-pack=touch /tmp/canary"}, "url in git has to be https://"),
        ({"url": "https://h/x", "ref": "--upload-pack=x"}, "ref in git"),
        ({"url": "https://h/x", "subdirectory": "../x"}, "subdirectory in git"),
        ({"url": "https://u:secret@h/x"}, "in the setting git_hosts"),
        ({"url": "http://h/x"}, "only https and ssh"),
        ({"url": "https://h/x", "reff": "main"}, "did you mean 'ref'"),
        ({}, "git.url in the part `spec`"),
    ],
)
async def test_a_source_that_is_none_is_refused_at_once(
    tea: Tea, git: dict[str, str], sentence: str
) -> None:
    status, problem = await post(tea.worker, {"git": git})
    assert status == 422
    assert sentence in problem["detail"]
    assert "secret" not in problem["detail"]


async def test_overrides_are_checked_before_anything_is_fetched(tea: Tea) -> None:
    asked = len(tea.https.asked)
    status, problem = await post(
        tea.worker, {"git": {"url": tea.https.url("tea.git")}, "memory": "1000000g"}
    )
    assert (status, "max_job_memory" in problem["detail"]) == (422, True)
    assert len(tea.https.asked) == asked


async def test_the_job_file_is_read_from_the_fetched_tree(tea: Tea) -> None:
    job_file = 'run = "cat cup.txt"\nproject = "cup"\nenv = { GIT_REF = "mine" }\n'
    tea.public.commit({"cup.txt": "full\n", ".ciworker.toml": job_file}, branch="cup")
    status, job = await post(
        tea.worker, {"git": {"url": tea.https.url("tea.git"), "ref": "cup"}, "timeout": "70s"}
    )
    assert status == 201, job
    job = await tea.worker.wait(job["id"])
    assert (job["project"], job["spec"]["timeout"]) == ("cup", 70)
    assert (await tea.worker.text(job["id"])).endswith(b"::endgroup::\nfull\n")


async def test_a_job_file_that_asks_for_too_much_fails_the_job_in_words(tea: Tea) -> None:
    tea.public.commit({".ciworker.toml": 'memry = "1g"\n'}, branch="wrong")
    job = await tea.run({"url": tea.https.url("tea.git"), "ref": "wrong"})
    assert job["reason"] == "source_failed"
    assert "did you mean 'memory'" in job["message"]
    commit = job["spec"]["git"]["commit"]
    assert commit is not None
    _, again = await tea.worker.call("POST", f"/jobs/{job['id']}/retry")
    assert again["spec"]["git"]["commit"] == commit


async def test_a_retry_runs_the_same_commit_though_the_branch_went_on(tea: Tea) -> None:
    tea.public.commit({"leaf.txt": "first\n"}, branch="moving")
    job = await tea.run({"url": tea.https.url("tea.git"), "ref": "moving"})
    tea.public.commit({"leaf.txt": "second\n"}, branch="moving")
    status, again = await tea.worker.call("POST", f"/jobs/{job['id']}/retry")
    assert status == 202
    again = await tea.worker.wait(again["id"])
    assert again["retry_of"] == job["id"]
    assert again["spec"] == job["spec"]
    assert (await tea.worker.text(again["id"])).startswith(b"first\n")


async def test_a_cancel_in_mid_fetch_ends_git_and_leaves_nothing(tea: Tea) -> None:
    tea.https.rest()
    job_id = await tea.submit({"url": tea.https.url("once/tea.git")})
    await tea.https.is_stalled()
    assert children_of_git(tea.worker)
    status, _ = await tea.worker.call("POST", f"/jobs/{job_id}/cancel")
    assert status == 202
    job = await tea.worker.wait(job_id)
    assert (job["status"], job["reason"]) == ("cancelled", "cancelled")
    assert list((tea.worker.data_dir / "fetches").iterdir()) == []
    assert children_of_git(tea.worker) == []
