"""What is free in the middle of the heap goes back to the system."""

import asyncio
import ctypes
import subprocess
import sys

import pytest

from ciworker import memory

FREED_IN_THE_MIDDLE = """
import asyncio
import ctypes
from pathlib import Path
from ciworker import memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

memory.INTERVAL = 0.01
blocks = [bytes(1000) for _ in range(100_000)]
last = blocks[-1]
full = resident()
del blocks
freed = resident()

async def main():
    trimming = asyncio.create_task(memory.give_back_periodically())
    async with asyncio.timeout(60):
        while full - resident() < 20_000:
            await asyncio.sleep(0.01)
    trimming.cancel()

print(full - freed)
asyncio.run(main())
"""


def test_what_is_freed_below_what_is_used_goes_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREED_IN_THE_MIDDLE], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 2000  # pages: freeing alone gave nothing back


async def test_a_c_library_without_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    async with asyncio.timeout(5):
        await memory.give_back_periodically()
