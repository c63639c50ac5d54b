"""TLS on one side only, or a certificate that is refused: what is said of it."""

import socket
import ssl
from urllib.parse import urlsplit

from ciclient.errors import Unreachable

HANDSHAKE_TIMEOUT = 2.0  # seconds
_PLAIN = ("wrong version number", "record layer failure")  # OpenSSL's words until 3.1, and since
_UNTRUSTED = frozenset({18, 19, 20, 21})  # OpenSSL's verify codes of an issuer nobody knows


def failure(error: Exception, server: str) -> Unreachable:
    """Why TLS with `server` failed; `error` is urllib3's, around ssl's."""
    reason = error.args[0] if error.args else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return _refused_certificate(reason, server)
    if any(words in str(error).lower() for words in _PLAIN):
        mend = f"try http{server.removeprefix('https')}"
        return Unreachable("scheme", f"{server} seems to speak plain HTTP there", mend)
    mend = "see what listens there, and its log"
    return Unreachable("tls", f"no TLS connection to {server}: {error}", mend)


def missing(server: str) -> Unreachable:
    """It was asked without TLS, and speaks it."""
    mend = f"try https{server.removeprefix('http')}"
    return Unreachable("scheme", f"{server} seems to speak TLS there", mend)


def is_spoken(server: str) -> bool:
    """Whether this server agrees on TLS at the port of its URL, whoever it is; sends nothing."""
    parts = urlsplit(server)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    address = (parts.hostname or "", parts.port or 80)
    try:
        with (
            socket.create_connection(address, HANDSHAKE_TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=parts.hostname),
        ):
            return True
    except OSError:  # ssl's errors among them
        return False


def _refused_certificate(reason: ssl.SSLCertVerificationError, server: str) -> Unreachable:
    if reason.verify_code in _UNTRUSTED:
        mend = "name the file of its CA, or of the self-signed certificate itself, in SSL_CERT_FILE"
        return Unreachable("tls", f"the certificate of {server} is not trusted here", mend)
    why = reason.verify_message.rstrip(".")
    mend = "name the server as its certificate does, or have its operator renew that"
    return Unreachable("tls", f"the certificate of {server} is refused ({why})", mend)
