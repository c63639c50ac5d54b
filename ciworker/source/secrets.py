"""Where the values of secrets come from: the file that `secrets_file` names, else the environment.

The file wins: it is read again when it has changed, while an environment stays as it was when the
worker started. It is TOML, a text for each name, as only that says the same of quotes, backslashes
and several lines to everyone.
"""

import os
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from secrets import token_bytes

from ciworker.domain.secrets import Rule, Secret, refusal
from ciworker.errors import SecretsRefused
from ciworker.files import sync_folder
from ciworker.settings import Settings
from ciworker.telemetry import logger

MOST_FILE = 2**20
KEY_BYTES = 32


class Secrets:
    """Values by name, for whoever in this process may use them."""

    def __init__(self, file: Path | None, environ: Mapping[str, str] = os.environ) -> None:
        """Read the file, if there is one.

        Raises:
            SecretsRefused: it cannot be read, others can read it too, or it holds no secrets.
        """
        self._file, self._environ = file, environ
        self._read: Mapping[str, Secret] = {}
        self._seen: tuple[int, ...] | None = None
        if file is not None:
            self._seen = _state(file)  # before it is read: a change meanwhile is seen later
            self._read = read_secrets(file)

    def value(self, name: str) -> Secret | None:
        """The value that is there now; None where there is none that can be kept secret."""
        self._read_again()
        if name in self._read:
            return self._read[name]
        text = self._environ.get(name, "")
        return Secret(text) if text and refusal(text) is None else None

    def text(self, name: str) -> str | None:
        """The value that is there now, in clear, for whoever sends it itself."""
        value = self.value(name)
        return value.reveal() if value else None

    def why_missing(self, name: str) -> str:
        """Why there is no value, as a sentence without its subject."""
        text = self._environ.get(name, "")
        return (refusal(text) if text else None) or "has no value on this worker"

    def _read_again(self) -> None:
        """If it has changed. What cannot be read is no change, so that no job loses its mask."""
        if self._file is None or (state := _state(self._file)) == self._seen:
            return
        self._seen = state
        try:
            self._read = read_secrets(self._file)
        except SecretsRefused as error:
            logger().error("the secrets file is not read again", error=str(error))
        else:
            logger().info("the secrets file was read again", names=sorted(self._read))


def read_secrets(path: Path) -> Mapping[str, Secret]:
    """The secrets of a file, by name; those that are empty are left out.

    Raises:
        SecretsRefused: it cannot be read, others can read it too, or it holds no secrets.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            _check_access(path, os.fstat(descriptor))
            data = file.read(MOST_FILE + 1)
    except OSError as error:
        raise SecretsRefused(f"secrets_file {path} cannot be read: {error.strerror}") from error
    if len(data) > MOST_FILE:
        raise SecretsRefused(f"secrets_file {path} is larger than {MOST_FILE} bytes")
    try:
        table = tomllib.loads(data.decode())
    except ValueError:  # its message would quote the file
        raise SecretsRefused(
            f'secrets_file {path} is not valid TOML: it has to hold lines like NAME = "value"'
        ) from None
    return {name: Secret(text) for name, text in _checked(path, table).items() if text}


def _check_access(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise SecretsRefused(f"secrets_file {path} is no file")
    if found.st_uid != os.getuid():
        raise SecretsRefused(
            f"secrets_file {path} belongs to user {found.st_uid}: chown {os.getuid()} {path}"
        )
    if found.st_mode & 0o077:
        raise SecretsRefused(f"others can read or write secrets_file {path}: chmod 600 {path}")


def _checked(path: Path, table: Mapping[str, object]) -> Mapping[str, str]:
    texts = {name: text for name, text in table.items() if isinstance(text, str)}
    if strange := sorted(table.keys() - texts.keys()):
        raise SecretsRefused(f"secrets_file {path}: {', '.join(strange)} has to be a text")
    for name, text in texts.items():
        if text and (reason := refusal(text)):
            raise SecretsRefused(f"secrets_file {path}: the value of {name} {reason}")
    return texts


def _state(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return (
        found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns,
        found.st_mode, found.st_uid,
    )  # fmt: skip


def rules_of(settings: Settings) -> Mapping[str, Rule]:
    """The setting `secret_names`, by name; an admin may have what any token that submits may."""
    return {
        entry.name: Rule(
            entry.name,
            frozenset(entry.sources),
            frozenset({*entry.roles, "admin"} if entry.roles else ()),
            setup=entry.setup,
            mount=entry.mount,
        )
        for entry in settings.secret_names
    }


def fingerprint_key(path: Path) -> bytes:
    """The key of fingerprints, made if it is not there. It is no part of a backup of the store.

    One at a time.

    Raises:
        OSError: it cannot be read or written, or has not `KEY_BYTES` bytes.
    """
    if not path.exists():
        temporary = path.with_suffix(".new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(descriptor)
        temporary.rename(path)
        sync_folder(path.parent)
    key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise OSError(
            f"{path} has {len(key)} bytes, not {KEY_BYTES}: remove it to have another one made "
            "(what running jobs with secrets print is then withheld)"
        )
    return key
