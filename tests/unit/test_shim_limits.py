"""How a container finds out which limits its job ran into, from files as each kernel has them.

That a real kernel's limits bite and are told, tests/e2e/test_hostile_jobs.py shows.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from ciworker.domain.limit import Limit
from ciworker.domain.mark import LimitsMarks, marks_of
from ciworker.source.shim import run_script

MIB = 2**20
V1 = {
    "pids/pids.events": "max 0\n",
    "memory/memory.usage_in_bytes": f"{5 * MIB}\n",
    "memory/memory.limit_in_bytes": f"{64 * MIB}\n",
    "memory/memory.stat": "cache 0\nrss 0\ninactive_file 0\nactive_file 0\n",
}
V2 = {
    "pids.events": "max 0\n",
    "memory.current": f"{5 * MIB}\n",
    "memory.max": f"{64 * MIB}\n",
    "memory.stat": "anon 0\nshmem 0\ninactive_file 0\nactive_file 0\n",
}
KERNELS = pytest.mark.parametrize("kernel", [V1, V2], ids=["v1", "v2"])


class Box:
    """A container's files, and whether its folders take more; nothing else of one."""

    def __init__(self, root: Path) -> None:
        self._root = root
        for name in ("workspace", "tmp", "cgroup"):
            (root / name).mkdir()

    def fill(self, name: str) -> None:
        """Whoever writes to this folder is refused, as by a full one."""
        tried = self._root / name / ".ciworker-limits"
        tried.unlink(missing_ok=True)
        tried.mkdir()

    def told(self, kernel: Mapping[str, str], run: str = "true") -> frozenset[Limit]:
        for name, text in kernel.items():
            file = self._root / "cgroup" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        marks = marks_of("token", "01J", 1)
        script = run_script(run, {}, marks).decode()
        for path in ("/workspace", "/$folder"):
            script = script.replace(path, f"{self._root}{path}")
        script = script.replace("/sys/fs/cgroup", f"{self._root}/cgroup")
        script = script.replace("kill -TERM -1", "false")  # here it would reach the whole machine
        assert "kill -TERM" not in script
        done = subprocess.run(["sh", "-c", script], capture_output=True, check=False)
        assert done.returncode == 3
        assert done.stderr == b""
        return LimitsMarks("token", "01J", 1).told(done.stdout)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


@KERNELS
def test_a_fork_that_was_refused_is_told(box: Box, kernel: Mapping[str, str]) -> None:
    assert box.told(kernel, "exit 3") == frozenset()
    refused = {name: text.replace("max 0", "max 17") for name, text in kernel.items()}
    assert box.told(refused, "exit 3") == {Limit.PIDS}


def test_without_any_of_these_files_only_folders_are_told(box: Box) -> None:
    assert box.told({}, "exit 3") == frozenset()
    box.fill("tmp")
    assert box.told({}, "exit 3") == {Limit.TMP_BYTES}


@KERNELS
def test_folders_are_not_tried_while_memory_is_used_up(box: Box, kernel: Mapping[str, str]) -> None:
    box.fill("tmp")
    box.fill("workspace")
    both = {Limit.TMP_BYTES, Limit.WORKSPACE_BYTES}
    assert box.told(kernel, "exit 3") == both
    used_up = {name: text.replace(f"{5 * MIB}", f"{64 * MIB - 1}") for name, text in kernel.items()}
    assert box.told(used_up, "exit 3") == frozenset()
    cache = f"inactive_file {MIB}\nactive_file {MIB}\n"
    reclaimable = {
        name: text.replace("inactive_file 0\nactive_file 0\n", cache)
        for name, text in used_up.items()
    }
    assert box.told(reclaimable, "exit 3") == both


def test_memory_without_a_limit_is_never_used_up(box: Box) -> None:
    box.fill("tmp")
    assert box.told({**V2, "memory.max": "max\n"}, "exit 3") == {Limit.TMP_BYTES}
