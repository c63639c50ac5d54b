"""What jobs are given, where several are given something at once."""

import asyncio
from pathlib import Path

import pytest

from ciworker.control import credentials
from ciworker.control.credentials import Credentials
from ciworker.errors import StoreUnavailable
from ciworker.settings import Settings
from ciworker.source.secrets import Secrets, fingerprint_key
from tests.unit.control.conftest import NewLab

ENVIRON = {"GITHUB_TOKEN": "s3cret-value"}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The keys that were looked for, in the order in which that began."""
    paths: list[Path] = []

    def make(path: Path) -> bytes:
        paths.append(path)
        return fingerprint_key(path)

    monkeypatch.setattr(credentials, "fingerprint_key", make)
    return paths


def started(settings: Settings) -> Credentials:
    """Those of a worker that has just started."""
    return Credentials(settings, Secrets(None, ENVIRON))


async def test_the_first_jobs_with_secrets_share_one_key(new_lab: NewLab, made: list[Path]) -> None:
    lab = new_lab()
    first = started(lab.settings)
    jobs = [lab.new_job("true", secrets=("GITHUB_TOKEN",)) for _ in range(8)]

    grants = await asyncio.gather(*(first.grant(job) for job in jobs))

    assert made == [lab.settings.secrets_key]
    assert len({grant.fingerprints["GITHUB_TOKEN"] for grant in grants}) == 1
    later = await started(lab.settings).grant(jobs[0])
    assert later.fingerprints == grants[0].fingerprints


@pytest.mark.parametrize("kept", [b"", b"cut"], ids=["empty", "cut"])
async def test_no_fingerprint_is_made_with_a_key_that_is_damaged(
    new_lab: NewLab, kept: bytes
) -> None:
    lab = new_lab()
    given, key = started(lab.settings), lab.settings.secrets_key
    key.write_bytes(kept)
    job = lab.new_job("true", secrets=("GITHUB_TOKEN",))

    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=f"{key} has {len(kept)} bytes, not 32: remove"):
            await given.grant(job)
    key.unlink()
    assert (await given.grant(job)).fingerprints.keys() == ENVIRON.keys()
