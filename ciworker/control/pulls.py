"""Images: looked up before each start, pulled beside the work queue, once for all who wait."""

import asyncio
import contextvars
from collections.abc import Callable
from typing import Literal

from ciworker.control.supervisor import Supervisor
from ciworker.engine.port import Engine, Image
from ciworker.errors import ImageMissing, TryAgain
from ciworker.telemetry import logger

RETRY_FIRST = 0.5
RETRY_MOST = 30.0

Policy = Literal["missing", "always", "never"]


class Pulls:
    """Pulls under way, by image, and what came of them, by job."""

    def __init__(self, engine: Engine, supervisor: Supervisor, policy: Policy) -> None:
        self._engine, self._supervisor, self._policy = engine, supervisor, policy
        self._waiting: dict[str, dict[str, Callable[[], None]]] = {}
        self._answers: dict[str, ImageMissing | None] = {}

    async def image(self, job_id: str, name: str, again: Callable[[], None]) -> Image | None:
        """The image of a job, or None while it is pulled; `again` is called once it is.

        Raises:
            ImageMissing: the engine has none and the pull failed, or `pull` is `never`.
        """
        answered = job_id in self._answers
        if answered and (error := self._answers.pop(job_id)) is not None:
            raise error
        if answered or self._policy != "always":
            image = await self._engine.image(name)
            if image is not None:
                return image
        if answered:
            raise ImageMissing(f"the engine pulled {name!r} and yet has no image of that name")
        if self._policy == "never":
            raise ImageMissing(f"the engine has no image {name!r}, and `pull` is set to never")
        self._wait(job_id, name, again)
        return None

    def _wait(self, job_id: str, name: str, again: Callable[[], None]) -> None:
        if name in self._waiting:
            self._waiting[name][job_id] = again
            return
        self._waiting[name] = {job_id: again}
        spawn, pull = self._supervisor.spawn, self._pull(name)
        # it is nobody's alone: its lines in the log carry no job's id, not the first one's either
        contextvars.Context().run(spawn, pull, name=f"pull {name}")

    def forget(self, job_id: str) -> None:
        """The job does not ask any more."""
        self._answers.pop(job_id, None)
        for waiting in self._waiting.values():
            waiting.pop(job_id, None)

    async def _pull(self, name: str) -> None:
        logger().info("pulling an image", image=name)
        error: ImageMissing | None = ImageMissing(f"the pull of {name!r} failed: see the log")
        try:
            error = await self._answer(name)
        finally:
            for job_id, again in self._waiting.pop(name).items():
                self._answers[job_id] = error
                again()

    async def _answer(self, name: str) -> ImageMissing | None:
        """What the pull came to; tried again for as long as the engine is away and a job waits."""
        delay = RETRY_FIRST
        while self._waiting[name]:
            try:
                return await self._pulled(name)
            except TryAgain as error:
                logger().warning(
                    "a pull is tried again", image=name, error=str(error), retry_in=delay
                )
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_MOST)
        return None

    async def _pulled(self, name: str) -> ImageMissing | None:
        try:
            await self._engine.pull(name)
        except ImageMissing as error:
            logger().warning("an image could not be pulled", image=name, error=str(error))
            return error
        return None
