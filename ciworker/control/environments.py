"""Makes environments and their images agree, as the controller does with jobs and containers.

A key says which environment to look at; the look reads its row, its setup job and its images
afresh, and `decide_environment` says what to do. Setups themselves are jobs: the controller runs
them. Each step may be repeated after a crash at any point of it.
"""

import asyncio
import secrets
import shutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

from ciworker.control.keys import DISPATCH, environment_key, job_key
from ciworker.control.look import Outcome
from ciworker.control.needs import GONE
from ciworker.control.parts import Parts
from ciworker.domain.container import LABEL_BUILD, LABEL_ENVIRONMENT, Container
from ciworker.domain.decide import Bucket
from ciworker.domain.environment import (
    SHOWN,
    Build,
    Environment,
    EnvironmentAction,
    EnvironmentFacts,
    EnvironmentStatus,
    Step,
    build_of,
    decide_environment,
    environment_tag,
    to_evict,
    wants_build,
)
from ciworker.domain.job import Job, Kind, Reason, Spec, Status
from ciworker.domain.recipe import SETUP_ENV, setup_run
from ciworker.engine.port import Image
from ciworker.errors import (
    ContainerMissing,
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    ImageInUse,
    StoreUnavailable,
)
from ciworker.source.archive import SpoolCorrupt
from ciworker.source.inputs import write_inputs
from ciworker.store.jobs import Expect
from ciworker.telemetry import logger
from ciworker.units import format_size

MOST_STEPS = 20
RETRY_COMMIT = 1.0
RETRY_IN_USE = 30.0
RETRY_BUILD = 0.5
REMOVAL_WAIT = 60.0
REMOTE_SIZE = 20 * 2**30  # for all environments, where a share of Docker's disk is not known
NOBODY_WAITS = "ciworker: no job waits for it any more"


@dataclass(slots=True)
class Life:
    """What only this process knows of an environment. error: of the last commit, for good."""

    committing: asyncio.Task[None] | None = None
    failures: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Look:
    """What is wanted of an environment, and what is. fresh: the image of its newest setup."""

    environment: Environment
    setup: Job | None
    container: Container | None
    fresh: Image | None
    stale: Sequence[Image]
    waiting: Sequence[Job]
    facts: EnvironmentFacts


class EnvironmentController:
    """Reconciles environments, one key at a time."""

    def __init__(self, parts: Parts) -> None:
        self._settings, self._clock = parts.settings, parts.clock
        self._engine, self._jobs, self._queue = parts.engine, parts.jobs, parts.queue
        self._environments, self._supervisor = parts.environments, parts.supervisor
        self._new_id = parts.new_id
        self._lives: dict[str, Life] = {}
        self._steps: Mapping[Step, Callable[[Look], Awaitable[bool]]] = {
            Step.BUILD: self._build,
            Step.CANCEL_BUILD: self._cancel_build,
            Step.COMMIT: self._commit,
            Step.RECORD_READY: self._record_ready,
            Step.RECORD_FAILED: self._record_failed,
            Step.RECORD_ABSENT: self._record_absent,
            Step.REMOVE: self._remove,
        }

    # what others call

    async def reconcile(self, key: str, outcomes: list[Outcome]) -> None:
        """Look, decide, act, until there is nothing left to do."""
        for _ in range(MOST_STEPS):
            environment = await self._environments.get(key)
            if environment is None:
                await self._remove_unknown(key, outcomes)
                return
            look = await self._look(environment)
            action = decide_environment(look.facts)
            outcomes.append(_outcome(look, action))
            if action.step is Step.NOTHING or not await self._steps[action.step](look):
                return
        logger().error("an environment does not come to rest", environment=key, steps=MOST_STEPS)
        self._queue.add_after(environment_key(key), 1.0)

    async def keys(self) -> Sequence[str]:
        """Environments that have to be looked at: under way, or at odds with the images."""
        images: dict[str, set[str | None]] = {}
        for image in await self._engine.images({}):
            key = image.labels.get(LABEL_ENVIRONMENT, "")
            images.setdefault(key, set()).add(image.labels.get(LABEL_BUILD))
        images.pop("", None)
        rows = {row.key: row for row in await self._environments.all()}
        strange = [key for key, builds in images.items() if _is_strange(rows.get(key), builds)]
        missing = [row.key for row in rows.values() if _is_missing(row, images.get(row.key))]
        return [*dict.fromkeys([*strange, *missing])]

    async def make_room(self) -> None:
        """Ask for the removal of those that were not used for longest, if all take too much."""
        everything = await self._environments.all()
        in_use = await self._jobs.environments_in_use()
        budget = await self._budget()
        for key in to_evict(everything, in_use, budget):
            await self.ask_removal(key, f"to keep all within {format_size(budget)}")

    async def _budget(self) -> int:
        """Bytes that all environments may take: a share is one of the disk that Docker uses."""
        wanted = self._settings.environments_size
        if isinstance(wanted, int):
            return wanted
        root = str((await self._engine.info()).details.get("DockerRootDir", ""))
        disk = await asyncio.to_thread(_disk_size, root)
        return REMOTE_SIZE if disk is None else int(disk * wanted)

    async def ask_removal(self, key: str, why: str) -> None:
        """Have an environment removed, as soon as no job needs it."""
        environment = await self._environments.get(key)
        if environment is not None:
            await self._environments.change(environment, removal=why)
        self._queue.add(environment_key(key))

    async def remove(self, key: str, why: str) -> None:
        """As `ask_removal`; returns once that was tried.

        Raises:
            EngineUnavailable: the engine does not answer.
        """
        await self.ask_removal(key, why)
        try:
            async with asyncio.timeout(REMOVAL_WAIT):
                await self._queue.join(environment_key(key))
        except TimeoutError:
            raise EngineUnavailable("the engine takes long to remove it: look again") from None

    # looking

    async def _look(self, environment: Environment) -> Look:
        key, life = environment.key, self._life(environment.key)
        setup = await self._jobs.current(environment.build) if environment.build else None
        became = build_of(setup)
        container = None
        if environment.status is EnvironmentStatus.BUILDING and setup and became is Build.PASSED:
            container = await self._engine.inspect(setup.container_name)
        images = await self._engine.images({LABEL_ENVIRONMENT: key})
        fresh = _fresh(environment, images)
        waiting = await self._jobs.waiting_for(key)
        missing = environment.status is EnvironmentStatus.READY and fresh is None
        wanted = any(missing or wants_build(job, environment) for job in waiting)
        facts = EnvironmentFacts(
            status=environment.status,
            wanted=wanted,
            used=bool(waiting) or key in await self._jobs.environments_in_use(),
            build=became,
            image=fresh is not None,
            stale=len(images) > (fresh is not None),
            container=container is not None and container.state.down,
            attempts_left=environment.attempts < self._settings.start_attempts,
            committing=life.committing is not None,
            commit_failed=life.error is not None,
            removal=environment.removal is not None or environment.single,
        )
        stale = [image for image in images if image is not fresh]
        return Look(environment, setup, container, fresh, stale, waiting, facts)

    def _life(self, key: str) -> Life:
        return self._lives.setdefault(key, Life())

    # building

    async def _build(self, look: Look) -> bool:
        """Commit that it is built, by which setup job; then queue that job."""
        environment, donor = look.environment, look.waiting[0]
        setup_id = self._new_id()
        spool = self._settings.spool_file(setup_id)
        try:
            length = await asyncio.to_thread(
                write_inputs, self._settings.spool_file(donor.id), environment.inputs, spool
            )
        except SpoolCorrupt as error:
            await self._fail_donor(donor, error)
            return True
        except OSError as error:
            raise StoreUnavailable(f"the data folder takes no setup: {error}") from error
        self._lives.pop(environment.key, None)
        building = await self._environments.change(
            environment,
            status=EnvironmentStatus.BUILDING,
            build=setup_id,
            builds=environment.builds + 1,
            attempts=environment.attempts + 1,
            removal=None,
            message=None,
            exit_code=None,
        )
        if building is None:
            spool.unlink(missing_ok=True)
            return True
        await self._jobs.add(self._setup_job(building, donor, length), submitter="", key=None)
        logger().info("setting up", environment=environment.key[:SHOWN], setup=setup_id)
        await self._wake(environment.key)
        return False

    def _setup_job(self, environment: Environment, donor: Job, length: int) -> Job:
        assert environment.build is not None
        settings, now = self._settings, self._clock.now()
        backoff = RETRY_BUILD * 2**environment.attempts if environment.attempts > 1 else 0.0
        spec = Spec(
            image=environment.image,
            run=setup_run(environment.commands),
            timeout=settings.setup_timeout,
            memory=min(settings.setup_memory, settings.max_memory),
            cpus=settings.max_job_cpus,
            network=True,
            project=environment.project,
            env=SETUP_ENV,
        )
        return Job(
            id=environment.build,
            kind=Kind.SETUP,
            status=Status.QUEUED,
            spec=spec,
            created_at=now,
            mark_token=secrets.token_hex(16),
            tar_length=length,
            priority=donor.priority,
            source={"kind": "setup", "image_id": environment.image_id},
            environment=environment.key,
            not_before=now + timedelta(seconds=backoff) if backoff else None,
        )

    async def _fail_donor(self, donor: Job, error: SpoolCorrupt) -> None:
        await self._jobs.move(
            donor.id,
            Expect(Status.QUEUED, donor.attempt),
            Status.FAILED,
            self._clock.now(),
            reason=Reason.WORKSPACE_INVALID,
            message=f"{error}: submit it again",
            log_complete=True,
        )

    async def _cancel_build(self, look: Look) -> bool:
        assert look.setup is not None
        if not look.setup.cancel_asked:
            now = self._clock.now()
            await self._jobs.note(
                look.setup.id, now, "no job waits for it any more", cancel_by=NOBODY_WAITS
            )
        self._queue.add(job_key(look.setup.id))
        return False

    # keeping

    async def _commit(self, look: Look) -> bool:
        """Make the image, beside the work queue: it may take minutes."""
        life = self._life(look.environment.key)
        life.committing = self._supervisor.spawn(
            self._committed(look, life), name=f"commit {look.environment.tag}"
        )
        return False

    async def _committed(self, look: Look, life: Life) -> None:
        again = 0.0
        try:
            await self._make_image(look)
        except EngineFailed as error:
            again = await self._commit_failed(look, life, error)
        except EngineUnavailable as error:
            logger().warning("an environment's image waits for the engine", error=str(error))
            again = RETRY_COMMIT
        except ContainerMissing:
            logger().warning("a setup's container went away", environment=look.environment.key)
        except EngineRefused as error:
            life.error = str(error)
        finally:
            life.committing = None
            self._queue.add_after(environment_key(look.environment.key), again)

    async def _make_image(self, look: Look) -> None:
        environment = look.environment
        assert look.container is not None
        assert environment.build is not None
        await self._engine.commit(
            look.container.id,
            environment.tag,
            {LABEL_ENVIRONMENT: environment.key, LABEL_BUILD: environment.build},
        )

    async def _commit_failed(self, look: Look, life: Life, error: EngineFailed) -> float:
        """The engine could not: with less on its disk it may. Seconds until the next try."""
        life.failures += 1
        logger().warning(
            "an environment could not be stored", environment=look.environment.key, error=str(error)
        )
        if life.failures >= self._settings.start_attempts:
            life.error = str(error)
            return 0.0
        await self._remove_all_unused("the engine had no room for another")
        return float(RETRY_COMMIT * 2**life.failures)

    async def _remove_all_unused(self, why: str) -> None:
        in_use = await self._jobs.environments_in_use()
        for environment in await self._environments.all():
            if environment.layer is not None and environment.key not in in_use:
                await self.ask_removal(environment.key, why)

    async def _record_ready(self, look: Look) -> bool:
        environment, setup, now = look.environment, look.setup, self._clock.now()
        assert look.fresh is not None
        seconds = _seconds(setup)
        size = await self._layer_bytes(environment, look.fresh)
        ready = await self._environments.change(
            environment,
            status=EnvironmentStatus.READY,
            layer=look.fresh.id,
            bytes=size,
            build_seconds=environment.build_seconds + seconds,
            attempts=0,
            ready_at=now,
            last_used_at=now,
        )
        if ready is None:
            return True
        logger().info(
            "environment ready",
            environment=environment.key[:SHOWN],
            seconds=round(seconds, 1),
            size=format_size(size),
        )
        await self._end_build(look)
        await self.make_room()
        return True

    async def _layer_bytes(self, environment: Environment, image: Image) -> int:
        base = await self._engine.image(environment.image_id)
        return max(0, image.size - (base.size if base else 0))

    async def _record_failed(self, look: Look) -> bool:
        life, setup = self._life(look.environment.key), look.setup
        message = setup.message if setup and setup.message else "its setup job was lost"
        if life.error is not None:
            message = (
                f"the environment could not be stored: {life.error}: make room on Docker's disk, "
                "or lower environments_size"
            )
        failed = await self._environments.change(
            look.environment,
            status=EnvironmentStatus.FAILED,
            build_seconds=look.environment.build_seconds + _seconds(setup),
            attempts=0,
            exit_code=setup.exit_code if setup else None,
            message=message,
        )
        if failed is not None:
            await self._end_build(look)
        return True

    async def _end_build(self, look: Look) -> None:
        """Nobody needs the setup's container any more; whoever waited may go on."""
        self._lives.pop(look.environment.key, None)
        if look.setup is not None:
            await self._jobs.note_quietly(look.setup.id, keep_until=None)
            self._queue.add(job_key(look.setup.id))
            spool = self._settings.spool_file(look.setup.id)
            await asyncio.to_thread(spool.unlink, missing_ok=True)
        await self._wake(look.environment.key)

    async def _wake(self, key: str) -> None:
        """Have those who wait look again: asked for after the change, so that none is missed."""
        for job in await self._jobs.waiting_for(key):
            self._queue.add(job_key(job.id))
        self._queue.add(DISPATCH)

    # removing

    async def _record_absent(self, look: Look) -> bool:
        environment = look.environment
        self._lives.pop(environment.key, None)
        if environment.single:
            await self._environments.forget(environment.key)
            return True
        why = environment.removal or GONE
        if environment.status is EnvironmentStatus.BUILDING:
            why = "no job waited for it any more"
        await self._environments.change(
            environment,
            status=EnvironmentStatus.ABSENT,
            layer=None,
            bytes=0,
            attempts=0,
            removal=None,
            message=why,
        )
        if look.setup is not None:
            await self._end_build(look)
        return True

    async def _remove(self, look: Look) -> bool:
        targets = look.stale or ([look.fresh] if look.fresh else [])
        return await self._remove_images(look.environment.key, targets)

    async def _remove_unknown(self, key: str, outcomes: list[Outcome]) -> None:
        """Images of ours that no row tells of: a store of before, or a job's own that is over."""
        images = await self._engine.images({LABEL_ENVIRONMENT: key})
        if images and await self._remove_images(key, images):
            outcomes.append(Outcome(Bucket.REMOVED, _name(key), key, None, heard=True))

    async def _remove_images(self, key: str, images: Sequence[Image]) -> bool:
        """False when a container still needs one: it is tried again later."""
        try:
            for image in images:
                named = environment_tag(key) in image.names  # then others' names of it do not count
                await self._engine.remove_image(environment_tag(key) if named else image.id)
                logger().info("environment's image removed", environment=key[:SHOWN])
        except ImageInUse:
            self._queue.add_after(environment_key(key), RETRY_IN_USE)
            return False
        return True


def _fresh(environment: Environment, images: Sequence[Image]) -> Image | None:
    """The image of the newest setup; a commit whose answer was lost may have left two."""
    made = [image for image in images if image.labels.get(LABEL_BUILD) == environment.build]
    named = [image for image in made if environment.tag in image.names]
    return next(iter(named or made), None) if environment.build else None


def _is_strange(row: Environment | None, builds: set[str | None]) -> bool:
    """Whether the images of a key are not just the one of its newest build."""
    ready = row is not None and row.status is EnvironmentStatus.READY
    return not ready or row is None or builds != {row.build}


def _is_missing(row: Environment, builds: set[str | None] | None) -> bool:
    if row.status is EnvironmentStatus.BUILDING or row.removal is not None or row.single:
        return True
    return row.status is EnvironmentStatus.READY and (not builds or row.build not in builds)


def _disk_size(folder: str) -> int | None:
    """Bytes of the disk that the folder is on; None where it is another machine's."""
    try:
        return shutil.disk_usage(folder).total
    except OSError:
        return None


def _seconds(setup: Job | None) -> float:
    if setup is None or setup.started_at is None or setup.finished_at is None:
        return 0.0
    return max(0.0, (setup.finished_at - setup.started_at).total_seconds())


def _name(key: str) -> str:
    return f"ciworker-env:{key[:SHOWN]}"


def _outcome(look: Look, action: EnvironmentAction) -> Outcome:
    """An image that is gone has no event: who finds that has repaired something."""
    environment = look.environment
    repaired = action.step is Step.RECORD_ABSENT and environment.removal is None
    return Outcome(
        action.bucket,
        _name(environment.key),
        environment.key,
        environment.ready_at if repaired else None,
        heard=not repaired,
    )
