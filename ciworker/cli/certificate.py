"""Whether the worker's certificate can be used, and for how long."""

import ssl
import time
from collections.abc import Iterator
from pathlib import Path

from ciworker.cli.connection import trusting
from ciworker.cli.finding import Finding
from ciworker.settings import Settings
from ciworker.units import plural
from ciworker.web.listening import tls

SOON = 14 * 86400.0  # seconds before its end in which it should have been renewed
_FLIGHTS = 10  # messages to and fro; a handshake takes three at most
_RENEW = "renew it and write it to tls_cert and tls_key: it is taken up without a restart"


def certificate(settings: Settings) -> Iterator[Finding]:
    """Nothing where there is none."""
    check = "certificate"
    try:
        context = tls(settings)
    except ValueError as error:
        yield Finding(check, False, str(error), "see what it says")
        return
    if context is None or settings.tls_cert is None:
        return
    try:
        left = _ends_at(settings.tls_cert, context) - time.time()
    except ssl.SSLError as error:
        yield Finding(check, False, f"{settings.tls_cert}: {error}", _RENEW)
        return
    told = f"{settings.tls_cert} is good for {plural(round(left / 86400), 'day')}"
    yield Finding(check, True, told) if left > SOON else Finding(check, False, told, _RENEW)


def _ends_at(cert: Path, context: ssl.SSLContext) -> float:
    """Seconds since the epoch, as a client that trusts it sees them in a handshake."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = trusting(cert).wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(_FLIGHTS):
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    told = client.getpeercert()
    assert told is not None
    return float(ssl.cert_time_to_seconds(str(told["notAfter"])))
