"""Makes environments and their images agree, as the controller does with jobs and containers.

A key says which environment to look at; the look reads its row, its setup job and its images
afresh, and `decide_environment` says what to do. Setups themselves are jobs: the controller runs
them. Each step may be repeated after a crash at any point of it.
"""

import asyncio
import os
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
    is_outdated,
    rebuilds,
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
    """What is wanted of an environment, and what is.

    fresh: the image that it should have; stale: others. missing: it should be there and is not.
    """

    environment: Environment
    setup: Job | None
    container: Container | None
    fresh: Image | None
    stale: Sequence[Image]
    waiting: Sequence[Job]
    missing: bool
    facts: EnvironmentFacts


class EnvironmentController:
    """Reconciles environments, one key at a time."""

    def __init__(self, parts: Parts, leave: Callable[[str], Awaitable[None]]) -> None:
        """Take the parts.

        Args:
            parts: of the worker.
            leave: have no container parked any more that was made from the image with this id.
        """
        self._leave = leave
        self._settings, self._clock = parts.settings, parts.clock
        self._engine, self._jobs, self._queue = parts.engine, parts.jobs, parts.queue
        self._environments, self._supervisor = parts.environments, parts.supervisor
        self._new_id, self._metrics, self._tallies = parts.new_id, parts.metrics, parts.tallies
        self._lives: dict[str, Life] = {}
        self._steps: Mapping[Step, Callable[[Look], Awaitable[bool]]] = {
            Step.BUILD: self._build,
            Step.CANCEL_BUILD: self._cancel_build,
            Step.COMMIT: self._commit,
            Step.RECORD_READY: self._record_ready,
            Step.RECORD_FAILED: self._record_failed,
            Step.RECORD_ABSENT: self._record_absent,
            Step.FORGET: self._forget,
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
            if action.step is Step.NOTHING:
                await self._rest(look)
                return
            if not await self._steps[action.step](look):
                return
        logger().error("an environment does not come to rest", environment=key, steps=MOST_STEPS)
        self._queue.add_after(environment_key(key), 1.0)

    async def keys(self) -> Sequence[str]:
        """Environments that have to be looked at: under way, or at odds with the images."""
        images: dict[str, list[str | None]] = {}
        for image in await self._engine.images({}):
            key = image.labels.get(LABEL_ENVIRONMENT, "")
            images.setdefault(key, []).append(image.labels.get(LABEL_BUILD))
        images.pop("", None)
        rows = {row.key: row for row in await self._environments.all()}
        strange = [key for key, builds in images.items() if _is_strange(rows.get(key), builds)]
        missing = [row.key for row in rows.values() if _is_missing(row, images.get(row.key))]
        return [*dict.fromkeys([*strange, *missing])]

    async def make_room(self) -> None:
        """Ask for the removal of those that were not used for longest, if all take too much."""
        everything = await self._environments.all()
        in_use = await self._jobs.environments_in_use()
        for environment in everything:
            if is_outdated(environment, self._clock.now()) and environment.key not in in_use:
                await self._environments.forget(environment.key)
        budget = await self._budget()
        for key in to_evict(everything, in_use, budget):
            await self.ask_removal(key, f"to keep all within {format_size(budget)}")

    async def _budget(self) -> int:
        """Bytes that all environments may take: a share is one of the disk that Docker uses."""
        wanted = self._settings.environments_size
        if isinstance(wanted, int):
            return wanted
        host = self._settings.docker_host or os.environ.get("DOCKER_HOST") or "unix://"
        root = str((await self._engine.info()).details.get("DockerRootDir", ""))
        local = host.startswith("unix://")
        disk = await asyncio.to_thread(_disk_size, root) if local else None
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
        fresh, stale = _sorted(environment, images)
        waiting = await self._jobs.waiting_for(key)
        missing = environment.status is EnvironmentStatus.READY and fresh is None
        facts = EnvironmentFacts(
            status=environment.status,
            wanted=any(missing or wants_build(job, environment) for job in waiting),
            awaited=any(environment.good is None or rebuilds(job) for job in waiting),
            used=bool(waiting) or key in await self._jobs.environments_in_use(),
            build=became,
            image=fresh is not None,
            stale=bool(stale),
            container=container is not None and container.state.down,
            attempts_left=became is Build.CANCELLED
            or environment.attempts < self._settings.start_attempts,
            committing=life.committing is not None,
            commit_failed=life.error is not None,
            removal=environment.removal is not None or environment.single,
        )
        return Look(environment, setup, container, fresh, stale, waiting, missing, facts)

    async def _rest(self, look: Look) -> None:
        """Nothing to do: whoever waits and can go on is told, should it have been missed."""
        if look.environment.status is not EnvironmentStatus.BUILDING:
            await self._wake(look.environment.key)

    def _life(self, key: str) -> Life:
        return self._lives.get(key) or Life()

    # building

    async def _build(self, look: Look) -> bool:
        """Commit that it is built, by which setup job; then queue that job."""
        environment, donor, setup_id = look.environment, look.waiting[0], self._new_id()
        spool = self._settings.spool_file(setup_id)
        try:
            length = await asyncio.to_thread(
                write_inputs, self._settings.spool_file(donor.id), environment.inputs, spool
            )
            building = await self._environments.change(
                environment,
                status=EnvironmentStatus.BUILDING,
                build=setup_id,
                good=None if look.missing else environment.good,
                builds=environment.builds + 1,
                attempts=environment.attempts + (look.facts.build is not Build.CANCELLED),
                removal=None,
                message=None,
                exit_code=None,
            )
            if building is not None:
                setup = self._setup_job(building, donor, length)
                await self._jobs.add(setup, submitter="", key=None)
        except SpoolCorrupt as error:
            await self._fail_donor(donor, error)
            return True
        except BaseException as error:
            spool.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise StoreUnavailable(f"the data folder takes no setup: {error}") from error
            raise
        if building is None:
            spool.unlink(missing_ok=True)
            return True
        self._lives.pop(environment.key, None)
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
            secrets=donor.spec.setup_secrets,
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
        failed = await self._jobs.move(
            donor.id,
            Expect(Status.QUEUED, donor.attempt),
            Status.FAILED,
            self._clock.now(),
            reason=Reason.WORKSPACE_INVALID,
            message=f"{error}: submit it again",
            log_complete=True,
        )
        if failed is not None:
            self._tallies.ended(donor, Reason.WORKSPACE_INVALID)
        self._queue.add(job_key(donor.id))  # so that what is remembered of it is forgotten

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
        life = self._lives.setdefault(look.environment.key, Life())
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
        await self._release_container(look)
        size = await self._layer_bytes(environment, look.fresh)
        ready = await self._environments.change(
            environment,
            status=EnvironmentStatus.READY,
            good=environment.build,
            layer=look.fresh.id,
            bytes=size,
            build_seconds=environment.build_seconds + seconds,
            attempts=0,
            ready_at=now,
            last_used_at=now,
        )
        if ready is None:
            return True
        self._metrics.setups.labels("ready").observe(seconds)
        logger().info(
            "environment ready",
            environment=environment.key[:SHOWN],
            seconds=round(seconds, 1),
            size=format_size(size),
        )
        await self._wake(environment.key)
        await self.make_room()
        return True

    async def _layer_bytes(self, environment: Environment, image: Image) -> int:
        base = await self._engine.image(environment.image_id)
        return max(0, image.size - (base.size if base else 0))

    async def _record_failed(self, look: Look) -> bool:
        """The one of before stays what it is, if there is one; who watched this setup fails."""
        environment, life, setup = look.environment, self._life(look.environment.key), look.setup
        message = setup.message if setup and setup.message else "its setup job was lost"
        exit_code = setup.exit_code if setup else None
        if life.error is not None:
            exit_code, message = None, _not_stored(life.error)
        await self._release_container(look)
        failed = await self._environments.change(
            environment,
            status=_before(environment, EnvironmentStatus.FAILED),
            build_seconds=environment.build_seconds + _seconds(setup),
            attempts=0,
            exit_code=exit_code,
            message=message,
        )
        if failed is not None:
            self._metrics.setups.labels("failed").observe(_seconds(setup))
        await self._wake(environment.key)
        return True

    async def _release_container(self, look: Look) -> None:
        """Nobody needs the setup's container any more; before the row says so, for good."""
        self._lives.pop(look.environment.key, None)
        if look.setup is not None:
            await self._jobs.note_quietly(look.setup.id, keep_until=None)
            self._queue.add(job_key(look.setup.id))

    async def _wake(self, key: str) -> None:
        """Have those who wait look again: asked for after the change, so that none is missed."""
        for job in await self._jobs.waiting_for(key):
            self._queue.add(job_key(job.id))
        self._queue.add(DISPATCH)

    # removing

    async def _record_absent(self, look: Look) -> bool:
        environment = look.environment
        await self._release_container(look)
        if environment.status is EnvironmentStatus.BUILDING and environment.good is not None:
            await self._environments.change(
                environment, status=EnvironmentStatus.READY, build=environment.good, attempts=0
            )
            return True
        if environment.single:
            return await self._forget(look)
        why = environment.removal or GONE
        if environment.status is EnvironmentStatus.BUILDING:
            why = "no job waited for it any more"
        await self._environments.change(
            environment,
            status=EnvironmentStatus.ABSENT,
            good=None,
            layer=None,
            bytes=0,
            attempts=0,
            removal=None,
            message=why,
        )
        return True

    async def _forget(self, look: Look) -> bool:
        self._lives.pop(look.environment.key, None)
        await self._environments.forget(look.environment.key)
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
                await self._leave(image.id)
                named = environment_tag(key) in image.names  # then others' names of it do not count
                await self._engine.remove_image(environment_tag(key) if named else image.id)
                logger().info("environment's image removed", environment=key[:SHOWN])
        except ImageInUse as error:
            logger().info("an image is in use", environment=key[:SHOWN], error=str(error))
            self._queue.add_after(environment_key(key), RETRY_IN_USE)
            return False
        return True


def _sorted(
    environment: Environment, images: Sequence[Image]
) -> tuple[Image | None, Sequence[Image]]:
    """The image that there should be, and those that should not.

    While it is rebuilt, the one of before is neither. A commit whose answer was lost may have
    left two, or may leave another one later, which takes the name: jobs start from the layer.
    """
    building = environment.status is EnvironmentStatus.BUILDING
    wanted = environment.build if building else environment.good
    made = [image for image in images if image.labels.get(LABEL_BUILD) == wanted]
    known = [image for image in made if image.id == environment.layer]
    named = [image for image in made if environment.tag in image.names]
    fresh = next(iter(known or named or made), None) if wanted else None
    kept = {environment.good} if building and environment.good else set()
    others = [image for image in images if image is not fresh]
    return fresh, [image for image in others if image.labels.get(LABEL_BUILD) not in kept]


def _not_stored(error: str) -> str:
    return (
        f"the environment could not be stored: {error}: make room on Docker's disk, "
        "or lower environments_size"
    )


def _before(environment: Environment, otherwise: EnvironmentStatus) -> EnvironmentStatus:
    """What an environment is again after a rebuild that came to nothing."""
    return EnvironmentStatus.READY if environment.good is not None else otherwise


def _is_strange(row: Environment | None, builds: Sequence[str | None]) -> bool:
    """Whether the images of a key are not just the one that it should have."""
    ready = row is not None and row.status is EnvironmentStatus.READY
    return not ready or row is None or builds != [row.good]


def _is_missing(row: Environment, builds: Sequence[str | None] | None) -> bool:
    if row.status is EnvironmentStatus.BUILDING or row.removal is not None or row.single:
        return True
    return row.status is EnvironmentStatus.READY and (not builds or row.good not in builds)


def _disk_size(folder: str) -> int | None:
    """Bytes of the disk that the folder is on; None where this process cannot see it."""
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
