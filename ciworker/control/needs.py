"""What a queued job needs before the queue may admit it: its environment.

The steps of a job that waits for one: find out which, show the lines of its setup, let it go.
"""

from collections.abc import Callable

from ciworker.control.keys import DISPATCH, environment_key, job_key
from ciworker.control.life import Life, let_go
from ciworker.control.look import Look
from ciworker.control.parts import Parts
from ciworker.control.pulls import Pulls
from ciworker.control.setuplog import SetupLog, Wait
from ciworker.domain.environment import (
    SHOWN,
    Environment,
    EnvironmentStatus,
    content_key,
    digest_of,
    need_of,
    wants_build,
    watches,
    why_built,
)
from ciworker.domain.job import Cache, Job, Kind, Need, Status
from ciworker.domain.recipe import SETUP_ENV, setup_run
from ciworker.engine.port import Image
from ciworker.errors import ImageMissing
from ciworker.source.shim import PROJECT_SCRIPT

LAST_LINES = 3
LAST_WORDS = 500  # characters of them
RETRY = 1.0
SETUP_VERSION = digest_of([setup_run(()), dict(SETUP_ENV), PROJECT_SCRIPT.decode()])
GONE = "its image was removed, by someone other than ciworker"


class Needs:
    """Sees to the environments of queued jobs."""

    def __init__(self, parts: Parts, pulls: Pulls) -> None:
        self._clock, self._engine = parts.clock, parts.engine
        self._jobs, self._logs = parts.jobs, parts.logs
        self._environments, self._queue = parts.environments, parts.queue
        self._feed, self._writer, self._supervisor = parts.feed, parts.writer, parts.supervisor
        self._metrics, self._tallies = parts.metrics, parts.tallies
        self._operator = digest_of(parts.settings.job_env)
        self._pulls = pulls

    async def need(self, job: Job, life: Life) -> Need:
        """How the job stands to its tree, and to its environment."""
        if job.unfetched:
            return Need.SOURCE if life.source_error is None else Need.NO_SOURCE
        if not job.waits:
            return Need.NOTHING
        environment = await self._environment(job)
        return need_of(job, environment, told=job.build is None or _is_told(life))

    async def resolve(self, look: Look) -> bool:
        """Find out which environment the job needs.

        Raises:
            ImageMissing: what it would be built from cannot be had.
        """
        job = look.job
        image = await self._pulls.image(job.id, job.spec.image, self._again(job))
        if image is None:
            return False
        environment = self._wanted(job, image)
        if await self._environments.get(environment.key) is None:
            await self._environments.add(environment)
        await self._jobs.note_quietly(job.id, environment=environment.key)
        return True

    async def watch_setup(self, look: Look) -> bool:
        """See that the environment is built, and that the job shows the lines of its setup."""
        job, life = look.job, look.life
        environment = await self._environment(job)
        assert environment is not None
        if watches(job, environment) and job.build != environment.build:
            await self.let_go(life)
            said = f"waits for its environment {environment.key[:SHOWN]}: setup {environment.build}"
            said += await self._why_again(job, environment)
            await self._jobs.note(job.id, self._clock.now(), said, build=environment.build)
            return True
        if life.setup_task is not None and life.setup_task.done() and not _is_told(life):
            await self.let_go(life)  # it was cut off; lines are counted on from what is stored
        if job.build is not None and life.setup_log is None:
            await self._copy(job, life, environment)
        if wants_build(job, environment):
            self._queue.add(environment_key(environment.key))
        return False

    async def release(self, look: Look) -> bool:
        """Its environment is ready: from now on the job is like any other in the queue."""
        job, now = look.job, self._clock.now()
        assert job.environment is not None
        hit = job.build is None
        await self._environments.used(job.environment, now, hit=hit)
        how = "was there already" if hit else "is ready"
        await self.let_go(look.life)
        await self._jobs.note(
            job.id, now, f"its environment {job.environment[:SHOWN]} {how}", waits=False
        )
        self._metrics.environment_uses.labels("hit" if hit else "miss").inc()
        self._tallies.released(job.id)
        self._queue.add(DISPATCH)
        return True

    async def image(self, job: Job) -> Image | None:
        """The image to start the job from; None when the one of its environment is gone.

        That is noted with the environment, so that the job waits for another one.

        Raises:
            ImageMissing: what a setup builds on is gone.
        """
        if job.kind is Kind.SETUP:
            name = str(job.source["image_id"])
            image = await self._engine.image(name)
            if image is None:
                raise ImageMissing(f"the image {job.spec.image!r} ({name}) was removed meanwhile")
            return image
        assert job.environment is not None
        environment = await self._environment(job)
        layer = environment.layer if environment else None
        image = await self._engine.image(layer) if layer else None
        if image is None and environment and environment.status is EnvironmentStatus.READY:
            await self._environments.change(
                environment,
                status=EnvironmentStatus.ABSENT,
                good=None,
                layer=None,
                bytes=0,
                message=GONE,
            )
        return image

    async def image_id(self, job: Job) -> str | None:
        """The id of the image that the job would start from; None where it is not there."""
        if job.environment is not None:
            environment = await self._environment(job)
            return environment.layer if environment else None
        image = await self._engine.image(job.spec.image)
        return image.id if image else None

    async def failure(self, job: Job) -> tuple[str, int | None]:
        """What a failed setup means for a job that waited for it: a sentence, its exit code."""
        environment = await self._environment(job)
        if environment is not None and environment.build == job.build:
            message, exit_code = environment.message, environment.exit_code
        else:  # another build has begun meanwhile
            setup = await self._jobs.current(job.build) if job.build else None
            message, exit_code = (setup.message, setup.exit_code) if setup else (None, None)
        said = await self._last_words(job.build) if exit_code else ""
        return f"its setup failed: {message}{said}", exit_code

    async def _last_words(self, setup: str | None) -> str:
        """The last lines of a setup, behind a colon."""
        if setup is None:
            return ""
        last, lines = (await self._logs.end(setup)).last, list[bytes]()
        async for chunk in self._logs.stream(setup, max(0, last - LAST_LINES), last):
            lines += [line.text.strip() for line in chunk.lines()]
        text = " | ".join(line.decode(errors="replace") for line in lines if line)
        return f": {text[-LAST_WORDS:]}" if text else ""

    async def _why_again(self, job: Job, environment: Environment) -> str:
        """What became of the setup that it waited for until now."""
        before = await self._jobs.current(job.build) if job.build else None
        if before is None or before.status is not Status.FAILED:
            return ""
        return f", try {environment.attempts}: {before.id} came to no end: {before.message}"

    async def let_go(self, life: Life) -> None:
        """End the copying of lines; what was taken to be stored is stored.

        Raises:
            StoreUnavailable: lines still wait for the store.
        """
        await let_go(life.setup_log, life.setup_task)
        life.setup_log = life.setup_task = None

    async def _environment(self, job: Job) -> Environment | None:
        return await self._environments.get(job.environment) if job.environment else None

    def _wanted(self, job: Job, image: Image) -> Environment:
        spec = job.spec
        single = job.id if spec.cache is Cache.OFF else None
        return Environment(
            key=content_key(
                image.id,
                spec.setup,
                spec.setup_inputs,
                self._operator,
                single,
                version=SETUP_VERSION,
                secrets=spec.setup_secrets,
            ),
            status=EnvironmentStatus.ABSENT,
            project=spec.project,
            image=spec.image,
            image_id=image.id,
            commands=spec.setup,
            inputs=spec.setup_inputs,
            operator=self._operator,
            created_at=self._clock.now(),
            single=single is not None,
        )

    async def _copy(self, job: Job, life: Life, environment: Environment) -> None:
        assert job.build is not None
        wait = Wait(job.id, job.build, environment.builds, await self._headline(environment))
        life.setup_log = SetupLog(
            wait,
            feed=self._feed,
            writer=self._writer,
            end=await self._logs.end(job.id),
            current=self._jobs.current,
            on_complete=self._again(job),
        )
        life.setup_task = self._supervisor.spawn(
            life.setup_log.run(),
            name=f"setup lines of {job.id}",
            on_error=lambda: self._queue.add_after(job_key(job.id), RETRY),
        )

    async def _headline(self, environment: Environment) -> str:
        before = await self._environments.of_project(environment.project)
        others = [other for other in before if other.key != environment.key]
        return (
            f"Set up the environment {environment.key[:SHOWN]} ({why_built(environment, others)})"
        )

    def _again(self, job: Job) -> Callable[[], None]:
        return lambda: self._queue.add(job_key(job.id))


def _is_told(life: Life) -> bool:
    """Whether the job's log has all lines of the setup that it watches."""
    return life.setup_log is not None and life.setup_log.complete
