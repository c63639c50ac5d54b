"""What the worker that runs tells others of jobs: test, list, redeliver."""

import time
from collections.abc import Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from ciworker.cli.api import call
from ciworker.cli.finding import Finding
from ciworker.errors import CiworkerError
from ciworker.harmless import harmless
from ciworker.settings import Settings
from ciworker.units import plural

PATIENCE = 15.0  # seconds; a try takes 10 at most
LOOK_INTERVAL = 0.1
_DELIVERIES = "/webhooks/deliveries"


def tested(settings: Settings, name: str | None) -> list[dict[str, Any]]:
    """Send a test message to one webhook, or to all; how each fared at its first try.

    Raises:
        Unknown: the settings name no such webhook.
    """
    body = {} if name is None else {"name": name}
    sent = call(settings, "POST", "/webhooks/test", body)["items"]
    ends = time.monotonic() + PATIENCE
    found = [_delivery(settings, item["id"]) for item in sent]
    while not all(item["tries"] for item in found) and time.monotonic() < ends:
        time.sleep(LOOK_INTERVAL)
        found = [_delivery(settings, item["id"]) for item in sent]
    return found


def listed(settings: Settings, *, everything: bool) -> dict[str, Any]:
    """The webhooks, and the messages that are not delivered; with `everything` those too."""
    found = call(settings, "GET", "/webhooks")["items"]
    states = ["delivered"] * everything + ["given_up", "pending"]
    return {"webhooks": found, "deliveries": _newest(settings, states)}


def redelivered(settings: Settings, delivery_id: str) -> None:
    """Have a message sent again.

    Raises:
        Unknown: there is none. Refused: it is pending.
    """
    call(settings, "POST", f"{_DELIVERIES}/{quote(delivery_id, safe='')}/redeliver")


def told(report: Mapping[str, Any]) -> Iterator[str]:
    """What `listed` found, as lines for a person."""
    for item in report["webhooks"]:
        waits = f"{item['pending']} pending"
        if item["pending"]:
            waits += f" ({item['failing']} tried in vain), since {item['oldest_pending_at']}"
        yield f"{item['name']}: {item['host']}; {', '.join(item['events'])}; {waits}"
    if not report["webhooks"]:
        yield "no webhooks: see `webhooks` in the README's table of settings"
    yield from map(line, report["deliveries"])


def line(item: Mapping[str, Any]) -> str:
    """One message, and how it fares."""
    about = f" {item['job']}" if item["job"] else ""
    tries = f"{item['tries']} tries" if item["tries"] != 1 else "1 try"
    answer = f", answer {item['answer']}" if item["answer"] else ""
    error = f": {item['error']}" if item["error"] else ""
    again = f"; tried again at {item['next_try_at']}" if item["next_try_at"] else ""
    return harmless(
        f"{item['id']}  {item['state']}  {item['endpoint']}  {item['type']}{about}  "
        f"{tries}{answer}{error}{again}"
    )


def findings(settings: Settings) -> Iterator[Finding]:
    """For `doctor`: what a worker that answers says of each webhook, and of each forge that is
    told of commits."""
    forges = [place for place, host in settings.git_hosts.items() if host.status_token]
    if not settings.webhooks and not forges:
        return
    try:
        items = call(settings, "GET", "/webhooks")["items"]
        failed = _newest(settings, ["given_up", "pending"], "&failed=true&limit=500")
    except CiworkerError as error:
        yield Finding("webhooks", False, str(error), "ciworker webhook list")
        return
    for item in items:
        yield _finding(item, _of(failed, "webhook", item["name"]))
    for place in forges:
        told = _of(failed, "status", place)
        yield _status_finding(place, [d for d in told if _may_be_mended(d)])


def _of(failed: list[dict[str, Any]], kind: str, endpoint: str) -> list[dict[str, Any]]:
    return [d for d in failed if (d["kind"], d["endpoint"]) == (kind, endpoint)]


def _may_be_mended(delivery: Mapping[str, Any]) -> bool:
    """Not what the forge refuses for good; but a 404 is also what it says to a token that may not
    see the repository.
    """
    return bool(delivery["state"] == "pending" or delivery["answer"] == HTTPStatus.NOT_FOUND)


def _finding(item: Mapping[str, Any], failed: list[dict[str, Any]]) -> Finding:
    check = f"webhook {item['name']}"
    if not failed and not item["failing"]:
        waiting = plural(item["pending"], "message")
        return Finding(check, True, f"waiting for {item['host']}: {waiting}")
    given_up = sum(delivery["state"] == "given_up" for delivery in failed)
    detail = f"{plural(item['failing'], 'message')} tried in vain, {given_up} given up"
    detail += f"; the newest: {failed[0]['error']}" if failed else ""
    mend = f"mend that, then ciworker webhook test {item['name']}"
    if given_up:
        mend += "; what was given up: ciworker webhook list, then webhook redeliver"
    return Finding(check, False, detail, mend)


def _status_finding(place: str, failed: list[dict[str, Any]]) -> Finding:
    check = f"statuses at {place}"
    if not failed:
        return Finding(check, True, "none was told in vain")
    detail = f"{len(failed)} told in vain; the newest: {failed[0]['error']}"
    return Finding(check, False, detail, f"see status_token and api in git_hosts for {place}")


def _newest(settings: Settings, states: Sequence[str], more: str = "") -> list[dict[str, Any]]:
    """Messages in these states, newest first."""
    pages = [call(settings, "GET", f"{_DELIVERIES}?state={state}{more}") for state in states]
    found = [item for page in pages for item in page["items"]]
    return sorted(found, key=lambda item: str(item["id"]), reverse=True)


def _delivery(settings: Settings, delivery_id: str) -> dict[str, Any]:
    return call(settings, "GET", f"{_DELIVERIES}/{delivery_id}")
