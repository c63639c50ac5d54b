"""schemathesis asks every route of /openapi.json for what its schema allows, and for what not.

No answer is a 5xx, and none is another than the document says. Streams have no end and are left
out, as is what ends the worker.
"""

import asyncio
import re
import sys
from pathlib import Path

import pytest

from tests.driver import Worker

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.fuzz]

SETTINGS = {"failed_token_rate": "off", "submit_rate": "off", "max_jobs": "1"}

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
)
LEFT_OUT = r"/events$|/api/v1/drain$"


async def fuzzed(worker: Worker, *words: str) -> int:
    """How many requests were made; fails if an answer is wrong.

    What `Allow` says is not looked at: `prune` could be an environment's id, which one may DELETE.
    """
    program = Path(sys.executable).parent / "schemathesis"
    process = await asyncio.create_subprocess_exec(
        program, "run", f"{worker.url}/openapi.json",
        "--header", f"Authorization: Bearer {worker.token}",
        "--exclude-path-regex", LEFT_OUT,
        "--checks", ",".join(CHECKS),
        "--phases", "examples,coverage,fuzzing",
        "--seed", "1", "--warnings", "off",
        *words,
        cwd=worker.data_dir.parent,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()[-6000:]
    told = re.search(r"([\d,]+) generated", out.decode())
    assert told is not None, out.decode()[-3000:]
    return int(told[1].replace(",", ""))


@pytest.mark.slow
async def test_no_answer_breaks_the_schema(shared: Worker) -> None:
    assert await fuzzed(shared, "--max-examples", "5") > 300


@pytest.mark.chaos
@pytest.mark.timeout(900)
async def test_no_answer_breaks_the_schema_in_ten_minutes(shared: Worker) -> None:
    assert await fuzzed(shared, "--max-time", "600") > 5000
