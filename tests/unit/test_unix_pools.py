"""Both command lines talk to a Unix socket, and say why they cannot."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from urllib3 import HTTPConnectionPool, Timeout
from urllib3.exceptions import NewConnectionError

from ciclient import unixsocket
from ciworker.cli import connection

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\ntea"
Pool = Callable[[str], HTTPConnectionPool]
pools = pytest.mark.parametrize(
    "pool",
    [connection.unix_pool, lambda path: unixsocket.unix_pool(path, maxsize=2, blocksize=4096)],
    ids=["ciworker", "ciclient"],
)


@pools
def test_it_is_asked_under_its_local_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pool: Pool
) -> None:
    monkeypatch.chdir(tmp_path)  # a short path
    heads: list[bytes] = []

    def answer(server: socket.socket) -> None:
        peer, _ = server.accept()
        with peer:
            heads.append(peer.recv(4096))
            peer.sendall(OK)

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind("tea.sock")
        server.listen()
        answering = threading.Thread(target=answer, args=(server,))
        answering.start()
        with pool("tea.sock") as there:
            found = there.urlopen("GET", "/pot", timeout=Timeout(total=60), retries=False)
            assert (found.status, found.data) == (200, b"tea")
        answering.join()
    assert heads[0].startswith(b"GET /pot HTTP/1.1\r\nHost: localhost\r\n")


@pools
@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/nowhere/tea.sock", "No such file or directory"),
        ("/" + "x" * 107, "AF_UNIX path too long"),
    ],
)
def test_where_it_cannot_be_reached_it_is_said_why(pool: Pool, path: str, why: str) -> None:
    with pool(path) as there, pytest.raises(NewConnectionError, match=f"{path}: {why}"):
        there.urlopen("GET", "/", retries=False)
