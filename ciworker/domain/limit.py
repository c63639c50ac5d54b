"""Limits that a job can run into without being stopped for it: told in its message, no reason."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum

from ciworker.units import format_size


class Limit(StrEnum):
    """The values are what a container calls them in its limits mark."""

    PIDS = "pids"
    WORKSPACE_BYTES = "workspace-bytes"
    WORKSPACE_FILES = "workspace-files"
    TMP_BYTES = "tmp-bytes"
    TMP_FILES = "tmp-files"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a container may have: processes; bytes and files of each folder that it may write to."""

    pids: int
    folder_bytes: int
    folder_files: int


def limit_sentences(met: Collection[Limit], bounds: Bounds) -> Sequence[str]:
    """What a job ran into, and what can be done about it; in the order of `Limit`."""
    return [_sentence(limit, bounds) for limit in Limit if limit in met]


def _sentence(limit: Limit, bounds: Bounds) -> str:
    if limit is Limit.PIDS:
        return (
            f"the job reached its limit of {bounds.pids:,} processes: "
            "the operator can allow more with job_pids"
        )
    name, _, what = limit.partition("-")
    if what == "bytes":
        return (
            f"/{name} is full ({format_size(bounds.folder_bytes)}): "
            "the operator can allow more with workspace_size"
        )
    return (
        f"/{name} holds as many files as it may ({bounds.folder_files:,}): "
        "have the job remove those that it no longer needs"
    )
