"""The runner pool of the worker that runs: up, down, status."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from ciworker.cli.api import call
from ciworker.domain.environment import SHOWN
from ciworker.harmless import harmless
from ciworker.settings import Settings
from ciworker.units import format_size

_NO_IMAGE = ": the engine has no such image: docker pull it, then `ciworker resync`"
_NO_LAYER = ": somebody removed its image: `ciworker resync`, and the next job sets it up anew"
_WHY = {
    "no_environment": ": no job has used an environment yet",
    "no_memory": ": jobs use what max_memory allows; it is started when they give some back",
}


def turn(settings: Settings, *, down: bool) -> tuple[list[str], bool]:
    """Have all members or none; a line for each bucket that is not empty, and whether all is done.

    Raises:
        Unreachable: there is no worker, or its engine or store does not answer.
    """
    done = call(settings, "POST", "/pool/down" if down else "/pool/up")
    lines = [
        f"[pool] {bucket}: {', '.join(names)}"
        for bucket, names in done.items()
        if names and bucket != "unchanged"
    ]
    return [*lines, f"[pool] unchanged: {len(done['unchanged'])}"], not done["failed"]


def status(settings: Settings) -> dict[str, Any]:
    """What is wanted and what there is, as the API says it."""
    return call(settings, "GET", "/pool")


def told(report: Mapping[str, Any]) -> Iterator[str]:
    """The same as lines for a person."""
    yield f"the pool is wanted {report['wanted']}"
    for entry in report["entries"]:
        members = [m for m in report["members"] if m["entry"] == entry["name"]]
        parked = sum(member["state"] == "parked" for member in members)
        network = "with network" if entry["network"] else "no network"
        yield (
            f"{entry['name']}: {parked} of {entry['size']} parked; "
            f"{entry['image'] or 'the environments used last'}, "
            f"{format_size(entry['memory'])}, {entry['cpus']:g} CPUs, {network}"
        )
        yield from map(_line, members)
    yield from (_line(member) for member in report["members"] if member["state"] == "unwanted")
    if not report["entries"]:
        yield "no entries: see `pool` in the README's table of settings"


def _line(member: Mapping[str, Any]) -> str:
    holds = f", environment {member['environment'][:SHOWN]}" if member["environment"] else ""
    return harmless(f"  {member['name']}  {member['state']}{holds}{_why(member)}")


def _why(member: Mapping[str, Any]) -> str:
    if member["job"]:
        return f" by {member['job']}"
    if member["state"] in _WHY:
        return _WHY[member["state"]]
    if member["state"] == "no_image":
        return _NO_LAYER if member["environment"] else _NO_IMAGE
    if member["error"] is None:
        return ""
    again = member["retry_at"] and datetime.fromisoformat(member["retry_at"])
    when = f"; tried again at {again:%H:%M:%S}" if again else ""
    return f": {member['error']} ({member['failures']} in a row){when}"
