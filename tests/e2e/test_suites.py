"""Suites that none of us wrote, as their authors published them, by the real client.

What the worker reports of each is what the same image reports by hand; and what is known of it.
"""

import asyncio
import io
import re
import shutil
import sys
import tarfile
from pathlib import Path

import pytest

from tests.conftest import WorkerFactory
from tests.driver import command

SUITES = {
    "toolz==1.0.0": "180 passed",
    "parso==0.8.4": "1351 passed",
    "pyflakes==3.2.0": "709 passed, 21 skipped",
}
DOWNLOAD_TIMEOUT = 60.0
SGR = re.compile(r"\x1b\[[0-9;]*m")
SUMMARY = re.compile(r"^=+ (?P<counts>.*) in [\d.]+s(?: \([\d:]+\))? =+$", re.MULTILINE)

# What the contract says of a job: its user, its environment, no network, nothing writable but
# the memory it runs in.
BY_HAND = [
    "--rm", "--interactive", "--network=none", "--read-only", "--user=1000:1000", "--init",
    "--cap-drop=ALL", "--security-opt=no-new-privileges", "--memory=2g", "--pids-limit=512",
    "--tmpfs=/workspace:uid=1000,gid=1000,mode=0700,exec", "--tmpfs=/tmp:exec,mode=1777",
    "--env=CI=true", "--env=PYTHONUNBUFFERED=1", "--env=FORCE_COLOR=1",
    "--env=TERM=xterm-256color", "--env=COLUMNS=120", "--env=HOME=/workspace",
]  # fmt: skip
UNPACK_AND_RUN = "cd /workspace && tar -xf - && cd src && exec python -m pytest"


@pytest.fixture(scope="module")
def downloads(pytestconfig: pytest.Config) -> Path:
    """Where what was downloaded stays for the next run."""
    cache = pytestconfig.cache
    assert cache is not None
    return cache.mkdir("suites")


@pytest.mark.parametrize("requirement", SUITES)
async def test_a_foreign_suite_reports_what_it_reports_by_hand(
    requirement: str, new_worker: WorkerFactory, downloads: Path, image: str, tmp_path: Path
) -> None:
    source = unpacked(await source_distribution(requirement, downloads), tmp_path)
    (source / ".ciworker.toml").write_text("setup = []\n")  # in the image alone, as by hand
    worker = new_worker()
    await worker.start()
    by_hand = await run_by_hand(source, image)
    code, out, err = await command("ciclient", "submit", str(source), env=worker.client_environment)
    assert summary(out.decode()) == summary(by_hand)
    assert SUITES[requirement] in summary(by_hand)
    assert (code, "passed" in err.decode()) == (0, True), err.decode()


async def source_distribution(requirement: str, folder: Path) -> Path:
    """The published archive, from the package index or from an earlier run."""
    name, _, version = requirement.partition("==")
    kept = folder / f"{name}-{version}.tar.gz"
    if not kept.exists():
        incoming = folder / f"incoming-{name}"
        await download(requirement, name, incoming)
        (incoming / kept.name).replace(kept)
    return kept


async def download(requirement: str, name: str, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--no-binary", name, "--dest", str(folder), requirement,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        async with asyncio.timeout(DOWNLOAD_TIMEOUT):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        said, _ = await process.communicate()
    if process.returncode != 0:
        told = said.decode().strip().rpartition("\n")[2]
        pytest.fail(f"{requirement} cannot be had from the package index: {told}", pytrace=False)


def unpacked(archive: Path, folder: Path) -> Path:
    """The folder that a source distribution holds."""
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    (found,) = (path for path in folder.iterdir() if (path / "PKG-INFO").is_file())
    return found


async def run_by_hand(source: Path, image: str) -> str:
    """What pytest prints of the folder in the same image, without a worker."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(source, "src")
    process = await asyncio.create_subprocess_exec(
        "docker", "run", *BY_HAND, image, "sh", "-c", UNPACK_AND_RUN,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate(archive.getvalue())
    return out.decode()


def summary(output: str) -> str:
    """The counts of pytest's last line, without colour and time."""
    found = SUMMARY.findall(SGR.sub("", output))
    assert found, output[-2000:]
    return str(found[-1])
