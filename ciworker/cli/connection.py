"""How a command on the worker's machine reaches it: by its port, with TLS or not, or its socket."""

import socket
import ssl
from ipaddress import ip_address
from pathlib import Path

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection
from urllib3.exceptions import NewConnectionError

from ciworker.settings import Settings


def base_url(settings: Settings) -> str:
    """Where a worker with these settings listens, seen from this machine."""
    if settings.unix_path:
        return settings.host
    host = "127.0.0.1" if is_any(settings.host) else settings.host
    return url_of(settings, host)


def is_any(host: str) -> bool:
    """Whether it stands for all addresses of this machine."""
    try:
        return ip_address(host or "::").is_unspecified
    except ValueError:  # a name
        return False


def listens_at(settings: Settings) -> str:
    """As it is set, which may be all addresses."""
    return settings.host if settings.unix_path else url_of(settings, settings.host)


def url_of(settings: Settings, host: str) -> str:
    """Where it is asked at one of its addresses."""
    bracketed = f"[{host}]" if ":" in host else host
    return f"{settings.scheme}://{bracketed}:{settings.port}"


def connection(settings: Settings, host: str | None = None) -> HTTPConnectionPool:
    """To the worker with these settings; host: one of its addresses.

    With TLS it is trusted by its own certificate, whatever the names in it: they are for others.
    """
    if settings.unix_path:
        return unix_pool(str(settings.unix_path))
    host = host or ("127.0.0.1" if is_any(settings.host) else settings.host)
    if settings.tls_cert is None:
        return HTTPConnectionPool(host, settings.port)
    return HTTPSConnectionPool(
        host, settings.port, ssl_context=trusting(settings.tls_cert), assert_hostname=False
    )


def trusting(cert: Path) -> ssl.SSLContext:
    """Trusts this certificate and those that it signed, whatever their names.

    Raises:
        OSError: it cannot be read.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # it need not be a root
    try:
        context.load_verify_locations(cert)
    except OSError as error:  # ssl's own errors are OSErrors
        raise OSError(error.errno, f"tls_cert {cert} cannot be read: {error.strerror}") from error
    return context


def unix_pool(path: str) -> HTTPConnectionPool:
    """Connections to one Unix socket; the worker knows itself there as localhost."""

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

    pool = HTTPConnectionPool("localhost")
    pool.ConnectionCls = Connection
    return pool
