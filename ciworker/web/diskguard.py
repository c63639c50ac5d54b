"""New jobs are refused before a disk is full, so that those that run can store their ends."""

from ciworker.settings import bytes_of
from ciworker.units import format_size
from ciworker.web.context import Context
from ciworker.web.problems import Refused

RETRY_AFTER = 60
_DISKS = {
    "data": (
        "the disk of the worker's data folder",
        "free some of it (a smaller keep_jobs or store_size frees old workspaces; what the "
        "database does not use any more only a VACUUM gives back, as README says)",
    ),
    "engine": (
        "the disk of the Docker engine",
        "free some of it, for example by `ciworker env prune` or `docker image prune`",
    ),
}


async def check_room(context: Context) -> None:
    """Look at the disks that can fill.

    Raises:
        Refused: one has less than `min_free`: 503, with when to come back.
    """
    for name, disk in (await context.disks()).items():
        floor = bytes_of(context.settings.min_free, disk.size)
        if disk.free < floor:
            which, mend = _DISKS[name]
            raise Refused(
                503,
                f"{which} has {format_size(disk.free)} free, and no job is taken below min_free "
                f"({format_size(floor)}): {mend}, then submit again",
                {"Retry-After": str(RETRY_AFTER)},
            )
