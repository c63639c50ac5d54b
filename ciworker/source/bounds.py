"""What the settings say about the trees and the specs that jobs come with."""

from ciworker.domain.jobfile import Bounds
from ciworker.settings import Settings
from ciworker.source.archive import Limits

_PER_MEMBER = 4 * 1024  # bytes of a tar beside a file's contents: header, padding, a long name


def bounds_of(settings: Settings) -> Bounds:
    """What a job gets when it does not say, and the most it may ask for."""
    return Bounds(
        image=settings.default_image,
        allowed_images=settings.images,
        timeout=settings.job_timeout,
        max_timeout=settings.max_job_timeout,
        memory=settings.job_memory,
        max_memory=min(settings.max_job_memory, settings.max_memory),
        cpus=settings.job_cpus,
        max_cpus=settings.max_job_cpus,
    )


def upload_limits(settings: Settings) -> Limits:
    """Caps on an upload."""
    return Limits(settings.max_upload, settings.max_unpacked, settings.max_members)


def tree_limits(settings: Settings) -> Limits:
    """Caps on a tree that git writes: it is not packed, so what is unpacked bounds it."""
    packed = settings.max_unpacked + (settings.max_members + 1) * _PER_MEMBER
    return Limits(packed, settings.max_unpacked, settings.max_members)
