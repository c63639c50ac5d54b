"""HTTP over a Unix socket, for a worker that listens on one; the rest is urllib3's own."""

import socket

from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError


class UnixConnection(HTTPConnection):
    """path: of the socket; each pool's connections have its own."""

    path = ""

    def connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        timeout = self.timeout
        sock.settimeout(timeout if isinstance(timeout, int | float) else None)
        try:
            sock.connect(self.path)
        except TimeoutError as error:
            sock.close()
            raise ConnectTimeoutError(self, f"{self.path} did not answer") from error
        except OSError as error:
            sock.close()
            raise NewConnectionError(self, f"{self.path}: {error.strerror}") from error
        self.sock = sock


class UnixPool(HTTPConnectionPool):
    """Connections to one socket; the worker knows itself there as localhost."""

    def __init__(self, path: str, maxsize: int, blocksize: int) -> None:
        super().__init__("localhost", maxsize=maxsize, blocksize=blocksize)
        self.ConnectionCls = type("Connection", (UnixConnection,), {"path": path})
