"""HTTP over a Unix socket, for a worker that listens on one; the rest is urllib3's own."""

import socket

from urllib3 import HTTPConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.exceptions import NewConnectionError


def unix_pool(path: str, maxsize: int, blocksize: int) -> HTTPConnectionPool:
    """Connections to one socket; the worker knows itself there as localhost."""

    class Connection(HTTPConnection):
        def connect(self) -> None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            timeout = self.timeout
            sock.settimeout(timeout if isinstance(timeout, int | float) else None)
            try:
                sock.connect(path)
            except OSError as error:
                sock.close()
                raise NewConnectionError(self, f"{path}: {error.strerror or error}") from error
            self.sock = sock

    pool = HTTPConnectionPool("localhost", maxsize=maxsize, blocksize=blocksize)
    pool.ConnectionCls = Connection
    return pool
