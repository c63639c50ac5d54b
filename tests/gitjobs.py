"""Workers that fetch from the servers of tests, and what is asked of them."""

import json
from pathlib import Path
from typing import Any

from tests.driver import Worker
from tests.gitservers import USERNAME, Authority, Https, Ssh

TOKEN = "TEA_TOKEN"
READS = "cat leaf.txt; echo $GIT_URL; echo $GIT_REF; echo $GIT_COMMIT"


class Trusted(Worker):
    """A worker whose environment has the values of secrets."""

    secrets: dict[str, str]

    @property
    def environment(self) -> dict[str, str]:
        return super().environment | self.secrets


async def post(worker: Worker, spec: dict[str, Any]) -> tuple[int, Any]:
    boundary = "x" * 20
    part = f'--{boundary}\r\nContent-Disposition: form-data; name="spec"\r\n\r\n{json.dumps(spec)}'
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    body = f"{part}\r\n--{boundary}--\r\n".encode()
    return await worker.call("POST", "/jobs", data=body, headers=headers)


def settings_for(served: Https, shells: Ssh, authority: Authority) -> dict[str, str]:
    hosts = {
        served.place: {"token": TOKEN, "username": USERNAME, "ca_file": str(authority.file)},
        shells.place: {"ssh": True, "known_hosts": [shells.host_key]},
    }
    return {
        "git_hosts": json.dumps(hosts),
        "git_allowed_addresses": json.dumps(["127.0.0.0/8", "::1"]),
    }


def children_of_git(worker: Worker) -> list[str]:
    """Processes, dead ones left out, that work in the folder of the worker's fetches."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            cwd = (process / "cwd").readlink()
        except OSError:
            continue
        if cwd.is_relative_to(worker.data_dir / "fetches"):
            found.append(process.name)
    return found
