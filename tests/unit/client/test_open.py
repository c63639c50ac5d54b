"""`ciclient open`: which page, through which link, in which browser."""

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ciclient.errors import Nonsense
from ciclient.open import show, usable_link
from ciclient.state import remember
from tests.unit.client.conftest import Ciclient, Result
from tests.unit.client.fakeworker import TOKEN, FakeWorker, ulid

NOTE = "the link is good for one use, within 5 minutes\n"

Open = Callable[..., Result]


@pytest.fixture
def in_browser(worker: FakeWorker, here: Path) -> Open:
    """Runs `ciclient open` as a process: what a browser is, is found out once per process."""

    def invoke(*arguments: str, **environ: str) -> Result:
        display = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
        kept = {name: text for name, text in os.environ.items() if name not in display}
        own = {"CICLIENT_SERVER": worker.url, "CICLIENT_TOKEN": TOKEN}
        done = subprocess.run(
            [sys.executable, "-c", "from ciclient.cli import main; main()", "open", *arguments],
            env=kept | own | environ, cwd=here, capture_output=True, check=False,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr.decode())

    return invoke


@pytest.fixture
def browser(tmp_path: Path) -> Path:
    """A browser that writes down what it was told to open, beside itself."""
    path = tmp_path / "browser"
    path.write_text(f'#!/bin/sh\necho "$1" >>{tmp_path}/opened\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def asked_for(worker: FakeWorker) -> list[str]:
    """The pages that links were asked for."""
    return [json.loads(body)["next"] for body in worker.bodies]


def test_the_link_of_a_job_is_printed_alone_on_stdout(
    worker: FakeWorker, ciclient: Ciclient
) -> None:
    job_id = worker.add_job()
    result = ciclient("open", job_id[:12].lower(), "--print")
    assert (result.code, result.out) == (0, f"{worker.url}/login?code=once\n")
    assert result.err == NOTE
    assert asked_for(worker) == [f"/jobs/{job_id}"]
    (request,) = worker.asked("POST", "/login-codes")
    assert request.headers["Content-Type"] == "application/json"


def test_without_a_job_it_is_the_newest_of_this_folder(
    worker: FakeWorker, ciclient: Ciclient, here: Path
) -> None:
    job_id = worker.add_job()
    remember(worker.url, here, job_id)
    assert ciclient("open", "--print").code == 0
    assert asked_for(worker) == [f"/jobs/{job_id}"]


def test_without_any_job_here_it_is_the_list(
    worker: FakeWorker, ciclient: Ciclient, here: Path
) -> None:
    worker.add_job()
    assert ciclient("open", "--print").code == 0
    assert asked_for(worker) == ["/"]


def test_no_link_is_made_for_an_unknown_job(worker: FakeWorker, ciclient: Ciclient) -> None:
    result = ciclient("open", ulid(7), "--print")
    assert (result.code, result.out, worker.bodies) == (2, "", [])
    assert "there is no job" in result.err


def test_a_browser_gets_the_link_and_the_terminal_does_not(
    worker: FakeWorker, in_browser: Open, browser: Path
) -> None:
    job_id = worker.add_job()
    result = in_browser(job_id, BROWSER=f"{browser} %s")
    assert (result.code, result.out) == (0, "")
    assert result.err == f"opened /jobs/{job_id} in the browser\n"
    opened = browser.with_name("opened").read_text()
    assert opened == f"{worker.url}/login?code=once\n"


def test_print_leaves_the_browser_alone(
    worker: FakeWorker, in_browser: Open, browser: Path
) -> None:
    result = in_browser("--print", BROWSER=f"{browser} %s")
    assert (result.code, result.out) == (0, f"{worker.url}/login?code=once\n")
    assert not browser.with_name("opened").exists()


def test_where_no_browser_can_be_the_link_is_printed(
    worker: FakeWorker, in_browser: Open, browser: Path
) -> None:
    browser.rename(browser.with_name("w3m"))  # one for the terminal, which knows no scripts
    result = in_browser(PATH=f"{browser.parent}:{os.environ['PATH']}")
    assert (result.code, result.out) == (0, f"{worker.url}/login?code=once\n")
    assert result.err == NOTE
    assert not browser.with_name("opened").exists()


def test_a_browser_that_fails_leaves_the_link_to_be_printed(
    worker: FakeWorker, in_browser: Open
) -> None:
    result = in_browser(BROWSER="false %s")
    assert (result.code, result.out) == (0, f"{worker.url}/login?code=once\n")


def test_no_browser_is_tried_where_linux_has_no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def note(url: str) -> bool:
        tried.append(url)
        return True

    monkeypatch.setattr("webbrowser.open", note)
    monkeypatch.setattr(sys, "platform", "linux")
    assert not show("http://ci/login", {"DISPLAY": ""})
    assert tried == []
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        assert show(f"http://ci/{name}", {name: ":0"})
    monkeypatch.setattr(sys, "platform", "darwin")
    assert show("http://ci/mac", {})
    assert len(tried) == 4


@pytest.mark.parametrize(
    ("link", "server", "usable"),
    [
        ("http://ci:8480/login?code=x", "http://ci:8480", "http://ci:8480/login?code=x"),
        ("http://ci/login?code=x", "https://ci", "https://ci/login?code=x"),
        ("https://ci.example/login?code=x", "http://10.0.0.1:8480", None),
        ("http://ci:8480/login?code=x", "https://ci", None),
    ],
)
def test_a_link_to_the_server_itself_gets_the_scheme_by_which_it_is_known(
    link: str, server: str, usable: str | None
) -> None:
    assert usable_link(link, server) == (usable or link)


@pytest.mark.parametrize(
    "link",
    [
        "",
        "/login?code=x",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "https:///login",
        "--new-window http://ci/",
        "http://ci/\x1b]0;x\x07",
        "http://ci/ x",
        "http://ci/\n",
        "http://ci\n.evil/",
        "http://cí/é",
    ],
)
def test_what_is_no_web_address_is_not_opened(link: str) -> None:
    with pytest.raises(Nonsense, match="no web address"):
        usable_link(link, "http://ci")


@pytest.mark.parametrize("link", [7, ["http://ci/"], {"url": "http://ci/"}])
def test_an_answer_without_a_link_is_said(
    worker: FakeWorker, ciclient: Ciclient, here: Path, link: object
) -> None:
    worker.link = link
    result = ciclient("open", "--print")
    assert (result.code, result.out) == (5, "")
    assert "no link" in result.err


def test_a_refusal_is_the_servers_own_sentence(
    worker: FakeWorker, ciclient: Ciclient, here: Path
) -> None:
    detail = "there is nothing here: see /openapi.json"
    worker.refusals["/api/v1/login-codes"] = [(404, detail, {})]
    result = ciclient("open", "--print")
    assert (result.code, result.out) == (5, "")
    assert detail in result.err
