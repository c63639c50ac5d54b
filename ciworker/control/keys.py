"""Keys of the work queue: what has to be looked at. They carry no facts."""

from enum import StrEnum
from typing import NamedTuple


class Kind(StrEnum):
    JOB = "job"
    STRAY = "stray"  # a container of ours that its job does not own up to
    ENVIRONMENT = "environment"
    POOL = "pool"  # a member of the pool, by name
    DISPATCH = "dispatch"


class Key(NamedTuple):
    kind: Kind
    id: str = ""


DISPATCH = Key(Kind.DISPATCH)


def job_key(job_id: str) -> Key:
    return Key(Kind.JOB, job_id)


def stray_key(container: str) -> Key:
    return Key(Kind.STRAY, container)


def environment_key(key: str) -> Key:
    return Key(Kind.ENVIRONMENT, key)


def pool_key(member: str) -> Key:
    return Key(Kind.POOL, member)
