"""Which server, with which token, and where each came from.

A token is only ever sent to the server it belongs to: the login file's to the server it was
stored with, the admin token of this machine's worker to this machine.
"""

import json
import os
import stat
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from ciclient.errors import Usage

LOCAL_SERVER = "http://127.0.0.1:8480"
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


@dataclass(frozen=True, slots=True)
class Access:
    """`warnings` are sentences about token files that others can read."""

    server: str
    server_from: str
    token: str | None = field(default=None, repr=False)
    token_from: str | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Token:
    value: str = field(repr=False)
    origin: str
    path: Path | None = None


def find_access(
    server: str | None, token_file: Path | None, environ: Mapping[str, str] = os.environ
) -> Access:
    """The options first, then the environment, the login file, this machine's own worker."""
    login = _read_login(login_path())
    chosen, origin = _choose_server(server, environ, login)
    token = (
        _given_token(token_file, environ)
        or _login_token(login, chosen)
        or _local_admin_token(chosen, environ)
    )
    if token is None:
        return Access(chosen, origin)
    warnings = () if token.path is None else tuple(_mode_warning(token.path))
    return Access(chosen, origin, token.value, token.origin, warnings)


def normalise_server(url: str) -> str:
    """`scheme://host[:port][/prefix]` without a slash at the end, or `unix:/path`.

    Raises:
        Usage: it is neither.
    """
    if url.startswith("unix:"):
        return _normal_socket(url)
    try:
        parts = urlsplit(url)
        valid = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise Usage(f"{url!r} is no URL: {error}") from error
    if not valid:
        raise Usage(f"{url!r} is no server's URL; one looks like {LOCAL_SERVER}")
    if parts.username or parts.query or parts.fragment:
        raise Usage("a server's URL holds no user name, password, query or fragment")
    return f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"


def _normal_socket(url: str) -> str:
    path = url.removeprefix("unix:")
    if not path.startswith("/") or path.startswith("//") or not path.isprintable():
        raise Usage(f"{url!r} names no socket; one looks like unix:/run/ciworker/ciworker.sock")
    if "?" in path or "#" in path:
        raise Usage("a socket's path holds no ? and no #")
    return url


def is_loopback(server: str) -> bool:
    """Whether it is this machine: its token need not be asked for, and nobody listens in."""
    return server.startswith("unix:") or urlsplit(server).hostname in _LOOPBACK


def read_token(path: Path) -> str:
    """The token in a file, or on stdin for `-`; raises Usage when there is none."""
    try:
        text = sys.stdin.read() if path == Path("-") else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise Usage(f"can't read the token file {path}: {reason}") from error
    return check_token(text, str(path))


def check_token(text: str, origin: str) -> str:
    """The token without the white space around it; raises Usage when that is no token."""
    token = text.strip()
    if not token:
        raise Usage(f"the token from {origin} is empty")
    if not token.isascii() or not token.isprintable() or " " in token:
        raise Usage(f"the token from {origin} is not one word of plain characters")
    return token


def login_path() -> Path:
    from platformdirs import user_config_path

    return user_config_path("ciclient") / "login.json"


def store_login(server: str, token: str) -> Path:
    """Writes both, readable by the owner only, in one step; raises Usage if it can't."""
    path = login_path()
    document = json.dumps({"server": server, "token": token}, indent=2) + "\n"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, document)
    except OSError as error:
        raise Usage(f"can't write {path}: {error.strerror}") from error
    return path


def write_whole(path: Path, text: str) -> None:
    """Replaces a file (0600) in one step: a reader sees the old text or the new, never a part."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _choose_server(
    option: str | None, environ: Mapping[str, str], login: Mapping[str, str]
) -> tuple[str, str]:
    if option:
        return normalise_server(option), "--server"
    if from_environ := environ.get("CICLIENT_SERVER"):
        return normalise_server(from_environ), "CICLIENT_SERVER"
    if stored := login.get("server"):
        return normalise_server(stored), str(login_path())
    return LOCAL_SERVER, "the default"


def _given_token(token_file: Path | None, environ: Mapping[str, str]) -> _Token | None:
    if token_file is not None:
        return _Token(read_token(token_file), f"--token-file {token_file}", token_file)
    if token := environ.get("CICLIENT_TOKEN"):
        return _Token(check_token(token, "CICLIENT_TOKEN"), "CICLIENT_TOKEN")
    if name := environ.get("CICLIENT_TOKEN_FILE"):
        path = Path(name)
        return _Token(read_token(path), f"CICLIENT_TOKEN_FILE ({path})", path)
    return None


def _login_token(login: Mapping[str, str], server: str) -> _Token | None:
    token = login.get("token")
    if not token or login.get("server") != server:
        return None
    path = login_path()
    return _Token(check_token(token, str(path)), str(path), path)


def _local_admin_token(server: str, environ: Mapping[str, str]) -> _Token | None:
    if not is_loopback(server):
        return None
    path = _worker_data_dir(environ) / "admin.token"
    if not os.access(path, os.R_OK):
        return None
    return _Token(read_token(path), str(path), path)


def _worker_data_dir(environ: Mapping[str, str]) -> Path:
    if folder := environ.get("CIWORKER_DATA_DIR"):
        return Path(folder)
    from platformdirs import user_data_path

    return user_data_path("ciworker")


def _read_login(path: Path) -> dict[str, str]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise Usage(f"can't read {path}: {error}; `ciclient login URL` writes it anew") from error
    if not isinstance(document, dict):
        raise Usage(f"{path} is no login file; `ciclient login URL` writes it anew")
    return {key: value for key, value in document.items() if isinstance(value, str)}


def _mode_warning(path: Path) -> list[str]:
    try:
        status = path.stat()
    except OSError:
        return []
    if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o077:
        return []
    return [f"others can read the token in {path}; run: chmod 600 {path}"]
