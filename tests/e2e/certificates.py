"""Certificates for one test: each is its own authority, as `openssl` makes them."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.driver import Worker


@dataclass(frozen=True)
class Certificate:
    """PEM files."""

    cert: Path
    key: Path

    @property
    def settings(self) -> dict[str, str]:
        return {"tls_cert": str(self.cert), "tls_key": str(self.key)}

    def replace(self, by: "Certificate") -> None:
        """As a renewal does: whole files under the old names, one after the other."""
        by.cert.replace(self.cert)
        by.key.replace(self.key)


def certificate(
    folder: Path, name: str, password: str | None = None, days: int = 90
) -> Certificate:
    """A new one for localhost and this name."""
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    hidden = ["-nodes"] if password is None else ["-passout", f"pass:{password}"]
    words = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        *hidden, "-days", str(days), "-subj", f"/CN={name}",
        "-addext", f"subjectAltName=DNS:localhost,DNS:{name},IP:127.0.0.1",
        "-keyout", str(made.key), "-out", str(made.cert),
    ]  # fmt: skip
    subprocess.run(words, check=True, capture_output=True)
    made.key.chmod(0o600)
    return made


def trusting(worker: Worker, made: Certificate) -> dict[str, str]:
    """The environment of a client that trusts it, and nothing else."""
    return worker.client_environment | {"SSL_CERT_FILE": str(made.cert)}
