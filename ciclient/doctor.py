"""`ciclient doctor`: real checks, each with the one line that mends it.

Missing is told from stopped, and stopped from forbidden. What can't be checked because an earlier
check failed is reported as skipped, never as well.
"""

import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Literal

from ciclient import git
from ciclient.api import PREFIX, Api, Probe
from ciclient.config import Access
from ciclient.errors import TryAgain, Unreachable
from ciclient.state import state_folder

SKEW = 30.0  # seconds; a Date header has whole seconds and the reply needs its time

_MEND_UNREACHABLE = {
    "dns": "correct the host's name: --server, CICLIENT_SERVER or `ciclient login URL`",
    "refused": "start the worker there (`ciworker serve`), or correct the port",
    "timeout": "see that the machine is up and no firewall drops the port",
    "lost": "see what listens there: it took the connection and did not answer",
}


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    state: Literal["ok", "failed", "skipped"]
    detail: str
    mend: str | None = None


def examine(access: Access) -> list[Check]:
    return [_server(access), *_answers(access), _git(), _state_folder()]


def healthy(checks: list[Check]) -> bool:
    return not any(check.state == "failed" for check in checks)


def as_document(checks: list[Check]) -> dict[str, object]:
    return {"ok": healthy(checks), "checks": [asdict(check) for check in checks]}


def as_text(checks: list[Check]) -> str:
    lines = []
    for check in checks:
        lines.append(f"{check.state:<8} {check.name:<10} {check.detail}")
        if check.mend is not None:
            lines.append(f"{'':<8} {'':<10} -> {check.mend}")
    return "\n".join(lines)


def _server(access: Access) -> Check:
    return Check("server", "ok", f"{access.server} (from {access.server_from})")


def _answers(access: Access) -> Iterator[Check]:
    with Api(access) as api:
        try:
            alive = api.probe("/healthz")
        except Unreachable as error:
            mend = error.mend or _MEND_UNREACHABLE[error.cause]
            yield Check("reachable", "failed", error.sentence, mend)
            for name in ("ready", "token", "clock"):
                yield Check(name, "skipped", "the server can't be reached")
            return
        yield _reachable(alive)
        yield _ready(api)
        yield _token(api)
        yield _clock(alive)


def _reachable(alive: Probe) -> Check:
    if alive.status == 200:
        return Check("reachable", "ok", "/healthz answers")
    mend = "name a ciworker's own URL; if this is one, its log says what is wrong"
    if alive.status == 403:
        mend = "add the host's name to the worker's allowed_hosts, or set its public_url"
    return Check("reachable", "failed", f"/healthz: {alive.detail}", mend)


def _ready(api: Api) -> Check:
    try:
        probe = api.probe("/readyz")
    except TryAgain as error:
        return Check("ready", "failed", str(error), _MEND_UNREACHABLE["lost"])
    if probe.status == 200:
        return Check("ready", "ok", "engine and store answer")
    return Check("ready", "failed", probe.detail, "run `ciworker doctor` on the server's machine")


def _token(api: Api) -> Check:
    access = api.access
    login = f"ciclient login {access.server}"
    if access.token is None:
        return Check("token", "failed", "none was found", f"run: {login}")
    try:
        probe = api.probe(f"{PREFIX}/jobs", {"limit": 1})
    except TryAgain as error:
        return Check("token", "failed", str(error), _MEND_UNREACHABLE["lost"])
    if probe.status != 200:
        detail = f"the one from {access.token_from}: {probe.detail}"
        return Check("token", "failed", detail, f"ask for a new token and run: {login}")
    if access.warnings:
        return Check("token", "failed", *access.warnings[0].split("; run: ", 1))
    return Check("token", "ok", f"accepted (from {access.token_from})")


def _clock(alive: Probe) -> Check:
    try:
        there = parsedate_to_datetime(alive.date or "")
    except ValueError:
        return Check("clock", "skipped", "the server does not tell its time")
    skew = abs((datetime.now(UTC) - there.replace(tzinfo=there.tzinfo or UTC)).total_seconds())
    if skew <= SKEW:
        return Check("clock", "ok", "agrees with the server's")
    detail = f"{skew:.0f} s away from the server's: ages and durations are shown wrong"
    return Check("clock", "failed", detail, "set the clocks (NTP) of this machine and the server")


def _git() -> Check:
    answer = git.ask(Path.cwd(), "version")
    if answer.ok:
        return Check("git", "ok", answer.out.decode("utf-8", "replace").strip())
    mend = "install git: without it .gitignore is read by ciclient, and no commit is told"
    return Check("git", "failed", answer.problem, mend)


def _state_folder() -> Check:
    folder = state_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        mend = f"make {folder} writable: the newest job of a folder is remembered there"
        return Check("state", "failed", f"{folder}: {os.strerror(error.errno or 0)}", mend)
    return Check("state", "ok", f"{folder} can be written")
