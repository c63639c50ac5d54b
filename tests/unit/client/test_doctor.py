"""`ciclient doctor` tells missing from stopped from forbidden, with one mending line each."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.client.conftest import Ciclient
from tests.unit.client.fakeworker import FakeWorker


def checks(ciclient: Ciclient, *arguments: str) -> dict[str, dict[str, Any]]:
    result = ciclient("doctor", "--json", *arguments)
    document = json.loads(result.out)
    found = {check["name"]: check for check in document["checks"]}
    failed = [check for check in found.values() if check["state"] == "failed"]
    assert document["ok"] is (result.code == 0) is (not failed)
    assert all(check["mend"] for check in failed)
    return found


def states(found: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: check["state"] for name, check in found.items()}


NAMES = ["server", "reachable", "ready", "token", "clock", "git", "state"]


def test_all_is_well(ciclient: Ciclient) -> None:
    assert states(checks(ciclient)) == dict.fromkeys(NAMES, "ok")
    result = ciclient("doctor")
    assert result.code == 0
    assert [line.split()[1] for line in result.out.splitlines()] == NAMES


def test_a_stopped_server_is_told_from_an_unknown_host(ciclient: Ciclient) -> None:
    stopped = checks(ciclient, "--server", "http://127.0.0.1:1")
    assert "ciworker serve" in stopped["reachable"]["mend"]
    assert [stopped[name]["state"] for name in ("ready", "token", "clock")] == ["skipped"] * 3
    unknown = checks(ciclient, "--server", "http://nosuch.invalid")
    assert "its host name is not known" in unknown["reachable"]["detail"]
    assert "correct the host's name" in unknown["reachable"]["mend"]


def test_plain_http_behind_https_is_told_with_the_other_scheme(
    worker: FakeWorker, ciclient: Ciclient
) -> None:
    server = worker.url.replace("http", "https")
    found = checks(ciclient, "--server", server)["reachable"]
    assert found["detail"] == f"{server} seems to speak plain HTTP there"
    assert found["mend"] == f"try {worker.url}"


def test_a_forbidden_host_name_is_told(worker: FakeWorker, ciclient: Ciclient) -> None:
    worker.refusals["/healthz"] = [(403, "the host name x is not allowed", {})]
    assert "allowed_hosts" in checks(ciclient)["reachable"]["mend"]


def test_an_engine_that_does_not_answer_is_told_in_the_worker_s_words(
    worker: FakeWorker, ciclient: Ciclient
) -> None:
    worker.refusals["/readyz"] = [(503, "the Docker engine does not answer", {})]
    found = checks(ciclient)
    assert found["ready"]["state"] == "failed"
    assert found["ready"]["detail"] == "the Docker engine does not answer"


def test_a_missing_token_is_told_from_a_wrong_one(
    ciclient: Ciclient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CICLIENT_TOKEN", "wrong-token")
    wrong = checks(ciclient)["token"]
    assert "from CICLIENT_TOKEN: this needs a token" in wrong["detail"]
    monkeypatch.delenv("CICLIENT_TOKEN")
    assert checks(ciclient)["token"]["detail"] == "none was found"


def test_a_token_that_others_can_read_is_told(
    ciclient: Ciclient, tmp_path: Path, worker: FakeWorker
) -> None:
    from tests.unit.client.fakeworker import TOKEN

    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o644)
    found = checks(ciclient, "--token-file", str(path))["token"]
    assert found["mend"] == f"chmod 600 {path}"


def test_clocks_that_disagree_are_told(worker: FakeWorker, ciclient: Ciclient) -> None:
    worker.clock_ahead = 3600
    clock = checks(ciclient)["clock"]
    assert clock["state"] == "failed"
    assert clock["detail"].startswith(("3599", "3600"))


def test_a_missing_git_and_a_state_folder_that_cannot_be_written_are_told(
    ciclient: Ciclient, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    (home / ".local").mkdir()
    (home / ".local" / "state").write_text("a file in the way")
    found = states(checks(ciclient))
    assert (found["git"], found["state"]) == ("failed", "failed")
