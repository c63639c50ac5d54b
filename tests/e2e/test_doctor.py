"""`ciworker doctor`: every trouble, made for real, is named, with the line that mends it."""

import asyncio
import contextlib
import errno
import http.server
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from ciworker.cli import doctor, probe, reach
from ciworker.cli.doctor import examine
from ciworker.cli.finding import Finding
from ciworker.cli.firewall import is_shut
from ciworker.settings import Settings
from ciworker.store.migrations import STEPS
from tests.chaos.disks import read_only
from tests.conftest import WorkerFactory
from tests.driver import Worker, command, free_port
from tests.store.lab import other_process

FAKETIME = {"FAKETIME_DONT_FAKE_MONOTONIC": "1"}


def settings(worker: Worker, **more: Any) -> Settings:
    """What the operator's commands read for this worker."""
    known = {k: v for k, v in worker.settings.items() if k in Settings.model_fields}
    return Settings.model_validate(known | more)


async def looked(worker: Worker, **more: Any) -> Mapping[str, Finding]:
    """By check; what is wrong has a line that mends it."""
    found = await examine(settings(worker, **more))
    assert len({finding.check for finding in found}) == len(found)
    for finding in found:
        assert finding.ok or finding.mend, finding
        assert finding.ok == (finding.mend == "") or finding.check == probe.CHECK, finding
        assert "\n" not in finding.mend
    return {finding.check: finding for finding in found}


@pytest.fixture(autouse=True)
def quick_probe() -> Iterator[None]:
    """What jobs reach is asked in tests/e2e/test_probe.py and test_looking_around.py."""
    with pytest.MonkeyPatch.context() as patched:  # of its own: `monkeypatch` ends before others
        patched.setattr(probe, "PATIENCE", 0.2)
        yield


async def test_missing_git_is_a_trouble_where_repositories_are_to_be_fetched(
    absent: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await looked(absent))["git"].ok
    monkeypatch.setenv("PATH", str(tmp_path))
    found = (await looked(absent))["git"]
    assert (found.ok, found.detail.startswith("git, setpriv, prlimit missing: ")) == (True, True)
    found = (await looked(absent, git_folders=["/srv/git"]))["git"]
    assert (found.ok, "apt-get install git" in found.mend) == (False, True)


@pytest.fixture
def absent(new_worker: WorkerFactory) -> Worker:
    """A worker that was never started."""
    return new_worker()


@pytest.fixture
async def stopped(worker: Worker) -> Worker:
    await worker.stop()
    return worker


def wrong(found: Mapping[str, Finding]) -> set[str]:
    return {finding.check for finding in found.values() if not finding.ok}


async def test_nothing_is_wrong_with_a_worker_that_runs(worker: Worker) -> None:
    code, out, _ = await command("ciworker", "doctor", "--json", env=worker.environment)
    document = json.loads(out)
    assert code == 0, document
    assert [item["check"] for item in document] == [
        "data folder", "secrets", "store", "git", "engine", "clock", "default image",
        "jobs' network", "engine's disk", "data disk", "worker", "firewall",
    ]  # fmt: skip
    assert all(set(item) == {"check", "ok", "detail", "mend"} for item in document)
    assert document[-1]["detail"].endswith("listens on 127.0.0.1: for this machine alone")


async def test_a_worker_that_does_not_run_is_told_and_its_port_looked_at(absent: Worker) -> None:
    found = await looked(absent)
    assert wrong(found) == {"worker"}
    assert found["worker"].mend == "ciworker serve"
    assert "will be made" in found["store"].detail
    assert f":{absent.port} is free" in found["port"].detail
    code, out, _ = await command("ciworker", "doctor", env=absent.environment)
    assert (code, b"FAIL  worker: " in out) == (1, True)


# engine, image, disk, clock


async def test_an_engine_that_is_stopped_is_told_from_one_that_is_missing(
    absent: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = f"unix://{tmp_path}/none.sock"
    stopped = (await looked(absent, docker_host=host))["engine"]
    assert (stopped.ok, stopped.mend) == (False, "systemctl start docker")
    assert "Docker is stopped: there is no" in stopped.detail
    monkeypatch.setenv("PATH", str(tmp_path))
    missing = (await looked(absent, docker_host=host))["engine"]
    assert (missing.ok, missing.detail) == (False, "Docker is not installed")
    assert missing.mend.startswith("apt-get install docker.io")


async def test_a_socket_without_an_engine_behind_it_is_told(absent: Worker) -> None:
    with short_folder() as folder:
        left = socket.socket(socket.AF_UNIX)
        left.bind(f"{folder}/dead.sock")  # nobody listens, as after a crash
        found = (await looked(absent, docker_host=f"unix://{folder}/dead.sock"))["engine"]
        left.close()
    assert (found.ok, found.mend) == (False, "systemctl start docker")


async def test_an_engine_that_does_not_answer_is_not_waited_for_for_ever(
    absent: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "ENGINE_TIMEOUT", 0.2)
    with short_folder() as folder:
        async with mute(f"{folder}/mute.sock"):
            found = (await looked(absent, docker_host=f"unix://{folder}/mute.sock"))["engine"]
    assert (found.ok, found.mend) == (False, "systemctl start docker")


def test_a_socket_that_is_forbidden_is_told_with_the_group_that_opens_it() -> None:
    with short_folder() as folder, socket.socket(socket.AF_UNIX) as closed:
        path = f"{folder}/docker.sock"
        closed.bind(path)
        Path(path).chmod(0o660)
        found = as_nobody(Settings(data_dir=Path(folder) / "data", docker_host=f"unix://{path}"))
    (engine,) = (item for item in found if item["check"] == "engine")
    assert (engine["ok"], "forbidden to this user" in engine["detail"]) == (False, True)
    assert engine["mend"].startswith("usermod -aG docker")


def as_nobody(settings: Settings) -> list[dict[str, Any]]:
    """What a process without any rights finds."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            found = asyncio.run(examine(settings))
            os.write(writing, json.dumps([asdict(finding) for finding in found]).encode())
        finally:
            os._exit(0)  # whatever it raised: no second pytest goes on from here
    os.close(writing)
    with os.fdopen(reading) as pipe:
        document: list[dict[str, Any]] = json.loads(pipe.read())
    os.waitpid(child, 0)
    return document


@contextlib.contextmanager
def short_folder() -> Iterator[str]:
    """A socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ciw-") as folder:
        Path(folder).chmod(0o777)
        yield folder


@contextlib.asynccontextmanager
async def mute(path: str) -> AsyncIterator[None]:
    """Takes connections, and never says a word."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()  # until the client gives up
        writer.close()

    async with await asyncio.start_unix_server(serve, path):
        yield


async def test_the_disk_of_an_engine_elsewhere_is_not_looked_for_here(absent: Worker) -> None:
    async with bridged_engine() as host:
        found = await looked(absent, docker_host=host)
    assert found["engine"].ok
    assert "engine's disk" not in found


@contextlib.asynccontextmanager
async def bridged_engine() -> AsyncIterator[str]:
    """The real engine, by TCP."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(2**16):
            writer.write(data)
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, calls = await asyncio.open_unix_connection("/var/run/docker.sock")
        await asyncio.gather(pass_on(reader, calls), pass_on(answers, writer))

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_worker_that_is_frozen_is_not_waited_for_for_ever(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "WORKER_TIMEOUT", 0.3)
    assert worker.process is not None
    worker.process.send_signal(signal.SIGSTOP)
    try:
        found = await looked(worker)
    finally:
        worker.process.send_signal(signal.SIGCONT)
    assert not found["worker"].ok
    assert "does not answer within 0.3 s" in found["worker"].detail
    assert f"(process {worker.process.pid}), then restart it" in found["worker"].mend
    assert found["store"].ok


async def test_an_address_of_no_engine_is_refused_in_words(absent: Worker) -> None:
    found = (await looked(absent, docker_host="carrier-pigeon://roof"))["engine"]
    assert (found.ok, "docker_host" in found.mend) == (False, True)


@pytest.mark.parametrize(
    ("pull", "words"), [("missing", "the first job waits for its pull"), ("never", "pull is never")]
)
async def test_an_image_that_is_missing_is_told(absent: Worker, pull: str, words: str) -> None:
    image = "ciworker-test-nowhere:1"
    found = (await looked(absent, default_image=image, pull=pull))["default image"]
    assert (found.ok, words in found.detail) == (False, True)
    assert found.mend.startswith(f"docker pull {image}")


async def test_disks_below_the_floor_are_told(absent: Worker) -> None:
    for floor in ("100%", "900000g"):
        found = await looked(absent, min_free=floor)
        assert wrong(found) >= {"data disk", "engine's disk"}
        assert "less than min_free" in found["data disk"].detail
        assert "keep_jobs" in found["data disk"].mend
        assert "prune" in found["engine's disk"].mend


async def test_a_clock_that_is_another_than_the_engine_s_is_told(absent: Worker) -> None:
    env = {**absent.environment, **FAKETIME}
    process = await asyncio.create_subprocess_exec(
        "faketime", "-f", "+1h", sys.executable, "-m", "ciworker", "doctor", "--json",
        env=env, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    (found,) = (item for item in json.loads(out) if item["check"] == "clock")
    assert (found["ok"], "NTP" in found["mend"]) == (False, True)
    assert any(f"differ by {n}" in found["detail"] for n in ("3599", "3600"))


# store and permissions


async def test_a_store_that_is_held_whole_future_or_damaged_is_told_apart(stopped: Worker) -> None:
    path = stopped.data_dir / "ciworker.db"
    assert (await looked(stopped))["store"].detail == "whole, and no worker holds it"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        connection.execute("PRAGMA user_version = 999")
    future = (await looked(stopped))["store"]
    assert (future.ok, "version 999" in future.detail) == (False, True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {version}")
    page = bytearray(path.read_bytes())
    page[4096:] = b"\xff" * (len(page) - 4096)
    path.write_bytes(page)
    damaged = (await looked(stopped))["store"]
    assert (damaged.ok, bool(damaged.mend)) == (False, True)
    path.write_bytes(b"this is no database" * 999)
    none = (await looked(stopped))["store"]
    assert (none.ok, bool(none.mend)) == (False, True)


async def test_of_a_store_that_another_process_locks_it_is_told_by_whom(stopped: Worker) -> None:
    with other_process(stopped.data_dir / "ciworker.db") as other:
        await other.does("BEGIN IMMEDIATE")
        found = (await looked(stopped))["store"]
        assert (found.ok, f"(process {other.pid}) holds it" in found.detail) == (False, True)


async def test_what_others_can_read_or_nobody_write_is_told(stopped: Worker) -> None:
    stopped.data_dir.chmod(0o755)
    token = stopped.data_dir / "admin.token"
    token.chmod(0o644)
    open_to_all = (await looked(stopped))["data folder"]
    assert (open_to_all.ok, open_to_all.mend) == (False, f"chmod 600 {token}")
    token.chmod(0o600)
    assert (await looked(stopped))["data folder"].ok
    with read_only(stopped.data_dir):
        found = (await looked(stopped))["data folder"]
        assert (found.ok, "cannot be written" in found.detail) == (False, True)
        none = await looked(stopped, data_dir=str(stopped.data_dir / "below" / "it"))
        assert "cannot be made" in none["data folder"].detail
        assert none["data folder"].mend.startswith("mkdir -p ")


async def test_the_files_beside_the_database_are_looked_at_too(worker: Worker) -> None:
    worker.data_dir.chmod(0o755)
    for beside in ("wal", "shm"):
        path = worker.data_dir / f"ciworker.db-{beside}"
        path.chmod(0o644)
        assert (await looked(worker))["data folder"].mend == f"chmod 600 {path}"
        path.chmod(0o600)
    assert (await looked(worker))["data folder"].ok


async def test_a_store_that_is_looked_at_stays_as_it_is(stopped: Worker) -> None:
    path = stopped.data_dir / "ciworker.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {len(STEPS) - 1}")
    assert (await looked(stopped))["store"].ok
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (len(STEPS) - 1,)


async def test_a_token_that_the_worker_does_not_take_is_told(worker: Worker) -> None:
    (worker.data_dir / "admin.token").write_text("another worker's\n")
    found = (await looked(worker))["worker"]
    assert (found.ok, "wrong or revoked" in found.detail) == (False, True)
    assert "admin.token" in found.mend


# who reaches it


async def test_a_port_that_another_program_has_is_told(absent: Worker) -> None:
    with socket.create_server(("127.0.0.1", absent.port)):
        found = (await looked(absent))["port"]
    assert (found.ok, "Address already in use" in found.detail) == (False, True)
    assert f"sport = :{absent.port}" in found.mend
    found = (await looked(absent, host="192.0.2.250"))["port"]
    assert (found.ok, "Cannot assign" in found.detail) == (False, True)


@contextlib.contextmanager
def firewall(address: str, port: int) -> Iterator[None]:
    """Drops what comes to this port."""
    rule = ["INPUT", "-d", address, "-p", "tcp", "--dport", str(port), "-j", "DROP"]
    subprocess.run(["iptables", "-I", *rule], check=True)
    try:
        yield
    finally:
        subprocess.run(["iptables", "-D", *rule], check=True)


async def test_a_port_that_listens_beyond_this_machine_is_asked_at_every_address(
    new_worker: WorkerFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "TIMEOUT", 1.0)
    worker = new_worker(host="0.0.0.0")
    worker.set(allowed_hosts='["ci.example.org"]')
    await worker.start()
    named: dict[str, Any] = {"allowed_hosts": ("ci.example.org",)}
    fine = (await looked(worker, **named))["firewall"]
    assert fine.ok, fine
    bridge = "172.17.0.1"  # Docker's own
    assert f"port {worker.port} answers at " in fine.detail
    assert bridge in fine.detail
    nameless = (await looked(worker, allowed_hosts=()))["firewall"]
    assert (nameless.ok, "has no name" in nameless.detail) == (False, True)
    assert fine.detail.endswith(f":{worker.port}/healthz")
    with firewall(bridge, worker.port):
        shut = (await looked(worker, **named))["firewall"]
    assert (shut.ok, f"{bridge} (no answer within" in shut.detail) == (False, True)
    assert f"let TCP port {worker.port} in" in shut.mend


CLOSED = "-P INPUT DROP", "-A INPUT -i lo -j ACCEPT"
KNOWN = "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
SSH = "-A INPUT -p tcp -m multiport --dports 22,8000:8479 -j ACCEPT"


def listed(*rules: str) -> str:
    """What the real program shows of these, in a network of its own."""
    ran = subprocess.run(
        ["unshare", "--net", "sh", "-ec", "\n".join(f"iptables {rule}" for rule in (*rules, "-S"))],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    return ran.stdout


@pytest.mark.parametrize(
    ("shut", "rules"),
    [
        (False, []),
        (False, ["-A INPUT -p tcp --dport 8480 -j DROP -s 192.0.2.1"]),
        (True, [*CLOSED, KNOWN, SSH, "-A INPUT -p icmp -j ACCEPT"]),
        (True, [*CLOSED, "-N in", "-A INPUT -j in", "-A in -p udp --dport 8480 -j ACCEPT"]),
        (True, [KNOWN, SSH, "-A INPUT -j REJECT --reject-with icmp-host-prohibited"]),
        (True, [*CLOSED, "-N else", "-A else -j ACCEPT"]),
        (False, [*CLOSED, "-A INPUT -p tcp --dport 8480 -j ACCEPT"]),
        (False, [*CLOSED, "-A INPUT -p tcp -m multiport --dports 80,8400:8500 -j ACCEPT"]),
        (False, [*CLOSED, "-A INPUT -p tcp ! --dport 22 -j ACCEPT"]),
        (False, [*CLOSED, "-A INPUT -s 10.0.0.0/8 -j ACCEPT"]),
        (False, [*CLOSED, "-A INPUT ! -i lo -j ACCEPT"]),
        (False, [*CLOSED, "-A INPUT ! -p udp -j ACCEPT"]),
        (False, [*CLOSED, "-A INPUT -m conntrack --ctstate NEW -j ACCEPT"]),
        (False, [*CLOSED, "-A INPUT -m conntrack ! --ctstate INVALID -j ACCEPT"]),
        (False, [*CLOSED, "-N in", "-A INPUT -g in", "-A in -p tcp --dport 8480 -j ACCEPT"]),
        (False, ["-A INPUT -s 10.0.0.0/8 -j RETURN", "-A INPUT -j DROP"]),
        (False, ["-P FORWARD DROP", "-N in", "-A in -j DROP"]),
    ],
)
def test_a_port_that_no_rule_can_let_others_in_to_is_shut(shut: bool, rules: list[str]) -> None:
    assert is_shut(listed(*rules), 8480) == shut


async def test_rules_that_shut_others_out_are_told_though_our_own_connections_pass(
    new_worker: WorkerFactory, tmp_path: Path
) -> None:
    """The real program, as it answers where such rules are in force."""
    rules = tmp_path / "rules"
    rules.write_text(listed(*CLOSED, KNOWN, SSH))
    program = tmp_path / "iptables"
    program.write_text(f"#!/bin/sh\ncat {rules}\n")
    program.chmod(0o755)
    worker = new_worker(host="0.0.0.0")
    await worker.start()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        found = (await looked(worker, allowed_hosts=("ci.example.org",)))["firewall"]
    assert (found.ok, "iptables let no other machine in" in found.detail) == (False, True)
    assert f"let TCP port {worker.port} in" in found.mend


async def test_a_worker_on_all_addresses_of_both_families_is_asked_at_both(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker(host="::")
    await worker.start()
    asked = reach._listening(settings(worker))
    assert {"127.0.0.1", "::1", "172.17.0.1"} <= set(asked)
    for host in asked:
        assert reach._trouble_at(settings(worker), host) == ""
    assert "::1" not in reach._listening(settings(worker, host="0.0.0.0"))


async def test_without_ipv6_its_port_is_a_finding(
    absent: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = socket.socket

    def without_ipv6(family: int = -1, *more: Any, **named: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return real(family, *more, **named)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    found = (await looked(absent, host="::1"))["port"]
    assert (found.ok, "not supported" in found.detail) == (False, True)


class Stranger(http.server.BaseHTTPRequestHandler):
    """A web server that is no worker."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<h1>It works!</h1>")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def stranger() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Stranger) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.01,))
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        serving.join()


async def test_a_public_url_is_asked_and_its_trouble_named(worker: Worker) -> None:
    async def told(url: str) -> Finding:
        return (await looked(worker, public_url=url))["public_url"]

    assert (await told(worker.url)).ok
    for url, words, mend in (
        ("http://nosuch.invalid", "no such name", "DNS"),
        (f"http://127.0.0.1:{free_port()}", "Connection refused", "start the proxy"),
        (f"https://127.0.0.1:{worker.port}", "TLS", "certificate"),
        (f"http://127.1.1.1:{worker.port}/", "Connection refused", "start the proxy"),
    ):
        found = await told(url)
        assert not found.ok, found
        assert words in found.detail
        assert mend in found.mend
    with stranger() as url:
        found = await told(url)
    assert (found.ok, "HTTP 200, and not the worker's" in found.detail) == (False, True)
    assert f"pass everything on to {worker.url}" in found.mend


async def test_a_public_url_whose_host_the_worker_does_not_know_is_told(
    new_worker: WorkerFactory,
) -> None:
    worker = new_worker(host="0.0.0.0")
    await worker.start()
    found = await looked(worker, public_url=f"http://172.17.0.1:{worker.port}")
    told = found["public_url"]
    assert (told.ok, "HTTP 403" in told.detail) == (False, True)
    assert "allowed_hosts" in told.mend


async def test_a_public_url_that_never_answers_is_not_waited_for_for_ever(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as mute_server:
        url = f"http://127.0.0.1:{mute_server.getsockname()[1]}"
        found = (await looked(worker, public_url=url))["public_url"]
    assert (found.ok, "no answer within" in found.detail) == (False, True)
    assert "firewall" in found.mend


def test_what_these_tests_need_is_there() -> None:
    for program in ("faketime", "iptables", "unshare"):
        assert shutil.which(program), f"install Debian's {program}: scripts/test does"
