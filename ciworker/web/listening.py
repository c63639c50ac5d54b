"""Where the worker listens: a TCP port, with TLS or without, or a Unix socket."""

import asyncio
import errno
import os
import socket
import ssl
import stat
from pathlib import Path

from aiohttp import web

from ciworker.settings import Settings
from ciworker.telemetry import logger

DEAD_PEER = 60.0  # seconds that a peer may leave unacknowledged what was sent to it
HANDSHAKE_TIMEOUT = 10.0  # seconds for TLS to be agreed on
BACKLOG = 1024
SOCKET_MODE = 0o660  # of a Unix socket: its owner and its group may ask us
_OTHERS = 0o037  # what a key's file may not let its group do, or others

_Stamp = tuple[tuple[int, int, int], ...]


def listen(settings: Settings) -> socket.socket:
    """A socket that listens as the settings say.

    Raises:
        OSError: that cannot be; it says what to do.
    """
    listener = _on_path(settings.unix_path) if settings.unix_path else _on_port(settings)
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener


def _on_port(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:  # `::` takes IPv4 too, whatever the system's default
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    # Inherited by every connection: without it a quiet stream's dead peer stays for 15 minutes.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAD_PEER * 1000))
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        where = f"{settings.host}:{settings.port}"
        raise OSError(f"cannot listen on {where}: {_why_no_port(error)}") from error
    return listener


def _why_no_port(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "another program has this port: stop it, or set `port`"
    return f"{error.strerror}: set `host` or `port`"


def _on_path(path: Path) -> socket.socket:
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)  # nobody may ask before the mode is what it shall be
    try:
        listener.bind(str(path))
        path.chmod(SOCKET_MODE)
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {path}: {error.strerror}; make its folder, writable for user "
            f"{os.getuid()}"
        ) from error
    finally:
        os.umask(mask)
    return listener


def _remove_stale(path: Path) -> None:
    """What a worker left that was killed; never what somebody listens on, nor another file.

    Raises:
        OSError: it is one of those.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # binding says what is wrong, if anything is
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, f"{path} is no socket: remove it, or set another host")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError as error:
            told = f"cannot tell whether somebody listens on {path}: {error}"
            raise OSError(errno.EADDRINUSE, f"{told}; remove it if nobody does") from error
    raise OSError(errno.EADDRINUSE, f"somebody listens on {path}: stop that, or set another host")


class Site(web.BaseSite):
    """A listening socket of either kind; aiohttp's own know no deadline for a handshake."""

    def __init__(
        self, runner: web.AppRunner, listener: socket.socket, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(runner, ssl_context=tls, backlog=BACKLOG)
        self._listener = listener

    @property
    def name(self) -> str:
        return str(self._listener.getsockname())

    async def start(self) -> None:
        await super().start()
        loop, server, tls = asyncio.get_running_loop(), self._runner.server, self._ssl_context
        assert server is not None
        deadline = None if tls is None else HANDSHAKE_TIMEOUT
        if self._listener.family == socket.AF_UNIX:
            self._server = await loop.create_unix_server(
                server, sock=self._listener, backlog=self._backlog
            )
        else:
            self._server = await loop.create_server(
                server,
                sock=self._listener,
                ssl=tls,
                backlog=self._backlog,
                ssl_handshake_timeout=deadline,
            )


def tls(settings: Settings) -> ssl.SSLContext | None:
    """What connections speak, if the settings name a certificate.

    Its files are looked at again whenever somebody connects: what was renewed serves from then on,
    and as long as the new ones cannot be used the old ones do.

    Raises:
        ValueError: they cannot be used; it says what to do.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return _Certificate(settings.tls_cert, settings.tls_key).context


class _Certificate:
    """A certificate with its chain, and its key. context: for new connections."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert, self._key = cert, key
        self._stamp = self._stamped()
        self._current = self._loaded()
        self.context = self._current
        self.context.sni_callback = self._on_connection

    def _on_connection(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _of: ssl.SSLContext
    ) -> None:
        if (stamp := self._stamped()) != self._stamp:
            self._stamp = stamp
            self._renew()
        if self._current is not self.context:
            connection.context = self._current

    def _renew(self) -> None:
        try:
            self._current = self._loaded()
        except ValueError as error:
            logger().error("the renewed certificate cannot be used", error=str(error))
        else:
            logger().info("the renewed certificate is used", file=str(self._cert))

    def _stamped(self) -> _Stamp:
        """Differs once a file was changed or replaced; of one that is not there, too."""
        return tuple(_stamp(path) for path in (self._cert, self._key))

    def _loaded(self) -> ssl.SSLContext:
        _check_key(self._key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._cert, self._key, password=_no_password)
        except (OSError, ValueError) as error:  # ssl's own errors are OSErrors
            raise ValueError(
                f"tls_cert {self._cert} and tls_key {self._key} cannot be used "
                f"({error.strerror if isinstance(error, OSError) else error}): give PEM files, "
                "the certificate with its chain, and its own key without a password"
            ) from error
        return context


def _no_password() -> bytes:
    """Instead of a question on the terminal."""
    raise ValueError("the key has a password")


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return found.st_ino, found.st_mtime_ns, found.st_size


def _check_key(key: Path) -> None:
    """See that nobody else can read the key; its group may: Debian's ssl-cert is one.

    Raises:
        ValueError: others can, or it is not there.
    """
    try:
        mode = key.stat().st_mode
    except OSError as error:
        raise ValueError(f"tls_key {key} cannot be read: {error.strerror}") from error
    if mode & _OTHERS:
        raise ValueError(f"others can read or write tls_key {key}: run chmod 600 {key}")
