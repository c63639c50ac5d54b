"""Starts containers: what is wanted of one, and the sending of a job's archive."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TypedDict

from ciworker.domain.container import (
    KIND_POOL,
    LABEL_ATTEMPT,
    LABEL_INSTANCE,
    LABEL_JOB,
    LABEL_KIND,
    LABEL_POOL,
    LABEL_SPEC,
)
from ciworker.domain.job import Git, Job, Kind
from ciworker.domain.mark import start_mark
from ciworker.domain.secrets import Secret
from ciworker.engine.port import Attachment, ContainerSpec, Image
from ciworker.errors import EngineUnavailable
from ciworker.settings import Parking, Settings
from ciworker.source.archive import SpoolCorrupt
from ciworker.source.shim import (
    AGENT_SOCKET,
    CONTAINER_COMMAND,
    PROJECT_MEMBER,
    PROJECT_SCRIPT,
    RUN_MEMBER,
    run_script,
)
from ciworker.source.spool import END_OF_ARCHIVE, clean_tar, tar_member
from ciworker.telemetry import logger

ENGINE_LOG_FACTOR = 8
ENGINE_LOG_EXTRA = 64 * 2**20


class _Common(TypedDict):
    """What is wanted of every container."""

    image: str
    command: Sequence[str]
    pids: int
    workspace_size: int
    log_max_size: int
    mounts: Sequence[str]
    volumes: Sequence[str]


def engine_log_size(settings: Settings) -> int:
    """`max-size` of the engine's own log: so large that it only bounds the disk."""
    return ENGINE_LOG_FACTOR * settings.log_limit + ENGINE_LOG_EXTRA


def container_spec(
    job: Job, settings: Settings, instance: str, image: Image, agent: str | None
) -> ContainerSpec:
    """What is wanted of this attempt's container; agent: a socket on the worker's machine."""
    spec = ContainerSpec(
        name=job.container_name,
        labels={
            LABEL_INSTANCE: instance,
            LABEL_KIND: job.kind.value,
            LABEL_JOB: job.id,
            LABEL_ATTEMPT: str(job.attempt),
        },
        memory=job.spec.memory,
        cpus=job.spec.cpus,
        network=job.spec.network,
        installs=job.kind is Kind.SETUP,
        **_common(settings, image),
    )
    if agent is None:
        return spec
    return replace(spec, mounts=(*spec.mounts, f"{agent}:{AGENT_SOCKET}:ro"))


def member_spec(
    entry: Parking, name: str, settings: Settings, instance: str, image: Image
) -> ContainerSpec:
    """What is wanted of a member of the pool: what is wanted of a job's, but for the job."""
    spec = ContainerSpec(
        name=name,
        labels={},
        memory=entry.memory,
        cpus=entry.cpus,
        network=entry.network,
        **_common(settings, image),
    )
    labels = {
        LABEL_INSTANCE: instance,
        LABEL_KIND: KIND_POOL,
        LABEL_POOL: entry.name,
        LABEL_SPEC: _hash_of(spec),
    }
    return replace(spec, labels=labels)


def _common(settings: Settings, image: Image) -> _Common:
    return {
        "image": image.id,
        "command": CONTAINER_COMMAND,
        "pids": settings.job_pids,
        "workspace_size": settings.workspace_size,
        "log_max_size": engine_log_size(settings),
        "mounts": settings.job_mounts,
        "volumes": image.volumes,
    }


def _hash_of(spec: ContainerSpec) -> str:
    """Of everything but name and labels."""
    wanted = {name: value for name, value in asdict(spec).items() if name not in ("name", "labels")}
    return sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()


class Sender:
    """Sends a job's length and archive into its attached container."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def send(
        self, job: Job, attachment: Attachment, spool: Path, secrets: Mapping[str, Secret]
    ) -> None:
        """Send everything; that it is sent has been committed.

        Args:
            job: whose attempt the container is.
            attachment: to it.
            spool: the stored workspace.
            secrets: for the job's environment, by name.

        Raises:
            SpoolCorrupt: the stored workspace is missing or damaged.
        """
        last = self._last_members(job, secrets)
        try:
            await attachment.write(b"%d\n" % (job.tar_length + len(last)))
            for piece in _counted(spool, job.tar_length):
                await attachment.write(piece)
            await attachment.write(last)
        except EngineUnavailable as error:
            logger().info("sending broke off", error=str(error))
            await attachment.close()  # the shim's input ends: it gives up, and so do we at once

    def _last_members(self, job: Job, secrets: Mapping[str, Secret]) -> bytes:
        vcs = job.source.get("vcs")
        values = {name: secret.reveal() for name, secret in secrets.items()}
        script = run_script(
            job.spec.run,
            {**_git_variables(job.spec.git), **job.spec.env, **self._settings.job_env, **values},
            start_mark(job.mark_token, job.id, job.attempt),
            job.spec.backend,
            vcs if isinstance(vcs, Mapping) else None,
        )
        now = datetime.now(UTC).timestamp()
        members = tar_member(RUN_MEMBER, script, 0o600, now) + END_OF_ARCHIVE
        if job.spec.backend is None and job.kind is Kind.JOB:
            return members
        return tar_member(PROJECT_MEMBER, PROJECT_SCRIPT, 0o600, now) + members


def _git_variables(git: Git | None) -> Mapping[str, str]:
    if git is None:
        return {}
    return {"GIT_URL": git.url, "GIT_REF": git.ref, "GIT_COMMIT": git.commit or ""}


def _counted(spool: Path, length: int) -> Iterator[bytes]:
    """The clean tar; a spool file of another length than the job's is damaged."""
    sent = 0
    for piece in clean_tar(spool):
        sent += len(piece)
        yield piece
    if sent != length:
        raise SpoolCorrupt(f"the stored workspace has {sent} bytes, not {length}")
