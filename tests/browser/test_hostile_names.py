"""Row 39: what people name through the API is text on both pages, and nothing of it runs."""

import pytest
from playwright.async_api import expect

from ciclient.sanitise import clean
from tests.browser.conftest import Visit
from tests.conftest import Attack
from tests.driver import Worker
from tests.gitjobs import post

RUNS = "<img/src=x/onerror=window.ran=1>"
NAMES = (
    "<script>window.ran=1</script>",
    "<img src=x onerror=window.ran=1>",
    '"><svg onload=window.ran=1>',
    "' onmouseover='window.ran=1",
    "javascript:window.ran=1",
    "</script></title></textarea><script>window.ran=1</script>",
    "{{constructor.constructor('window.ran=1')()}}",
    "${window.ran=1}",
)


async def named(worker: Worker) -> list[str]:
    """Jobs whose project, message, environment, setup, branch, repository and ref are such."""
    jobs = []
    for name in NAMES:
        vcs = {"branch": name, "commit": name, "describe": name}
        more = {"env": {"X": name}, "vcs": vcs}
        jobs.append(await worker.submit(f"exit 3 # {name}", project=name, **more))
    jobs.append(await worker.submit("true", setup=[f"false # {name}" for name in NAMES]))
    git = {"url": "https://127.0.0.1:1/'onerror='window.ran=1;", "ref": RUNS}
    status, job = await post(worker, {"git": git, "project": NAMES[0]})
    assert status == 201, job
    jobs.append(job["id"])
    for job_id in jobs:
        await worker.wait(job_id)
    return jobs


@pytest.mark.attacks(39)
async def test_whatever_jobs_and_their_parts_are_called_no_page_runs_it(
    visit: Visit, shared: Worker, attack: Attack
) -> None:
    jobs = await named(shared)
    page = await visit(shared)
    for name in NAMES:
        await expect(page.get_by_text(clean(name), exact=True).first).to_be_visible()
    paths = ["/", *(f"/jobs/{job_id}" for job_id in jobs)]
    for path in paths:
        await page.goto(f"{shared.url}{path}")
        await expect(page.locator(".project" if path == "/" else "#history").first).to_be_visible()
        assert await page.evaluate("() => window.ran") is None
        assert await page.locator("main :is(img, script, svg[onload], [onmouseover])").count() == 0
        assert await page.locator("a[href^='javascript:']").count() == 0
    attack(39, tried=len(paths) * len(NAMES))
