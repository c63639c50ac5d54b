"""Images are pulled as the operator wants it, once for all who wait."""

import asyncio

import pytest

from ciworker.domain.job import Reason, Status
from tests.unit.control.conftest import NewLab


@pytest.mark.parametrize(
    ("policy", "image", "pulls", "reason"),
    [
        ("missing", "fake", 0, Reason.PASSED),
        ("missing", "remote", 1, Reason.PASSED),
        ("missing", "nowhere", 1, Reason.IMAGE_MISSING),
        ("always", "remote", 1, Reason.PASSED),
        ("always", "both", 1, Reason.PASSED),
        ("always", "nowhere", 1, Reason.IMAGE_MISSING),
        ("never", "fake", 0, Reason.PASSED),
        ("never", "remote", 0, Reason.IMAGE_MISSING),
    ],
)
async def test_a_policy_says_when_an_image_is_pulled(
    new_lab: NewLab, policy: str, image: str, pulls: int, reason: Reason
) -> None:
    async with new_lab(pull=policy).life() as life:
        life.engine.registry = {"remote", "both"}
        life.engine.images_by_name["both"] = life.engine.images_by_name["fake"]

        ended = await life.ended(await life.submit(image=image))

        assert ended.reason is reason
        assert life.calls("pull") == pulls
        if reason is Reason.IMAGE_MISSING:
            assert image in (ended.message or "")
        following = await life.submit()
        life.engine.registry.add("fake")
        assert (await life.ended(following)).reason is Reason.PASSED


@pytest.mark.parametrize(
    ("registry", "reason"), [({"remote"}, Reason.PASSED), (set(), Reason.IMAGE_MISSING)]
)
async def test_one_pull_serves_all_who_wait_for_it(
    new_lab: NewLab, registry: set[str], reason: Reason
) -> None:
    async with new_lab(max_jobs=8).life() as life:
        life.engine.registry = registry
        gate = life.engine.hold("pull")
        jobs = [await life.submit(image="remote") for _ in range(8)]
        async with asyncio.timeout(5):
            while life.calls("image") < 8:
                await asyncio.sleep(0.005)
        assert life.calls("pull") == 1
        gate.set()

        assert {(await life.ended(job)).reason for job in jobs} == {reason}
        assert life.calls("pull") == 1


async def test_a_pull_of_one_image_does_not_hold_up_another(new_lab: NewLab) -> None:
    async with new_lab(max_jobs=2).life() as life:
        life.engine.registry = {"slow"}
        gate = life.engine.hold("pull")
        slow = await life.submit(image="slow")
        quick = await life.submit()

        assert (await life.ended(quick)).reason is Reason.PASSED
        gate.set()
        assert (await life.ended(slow)).reason is Reason.PASSED


async def test_a_job_can_be_cancelled_while_its_image_is_pulled(new_lab: NewLab) -> None:
    async with new_lab(max_jobs=2).life(clean=False) as life:
        life.engine.registry = {"slow"}
        gate = life.engine.hold("pull")
        job = await life.submit(image="slow")
        await life.until(job, lambda found: found.status is Status.STARTING)

        await life.cancel(job)
        ended = await life.ended(job)
        gate.set()

        assert ended.status is Status.CANCELLED
        assert await life.engine.list() == []
