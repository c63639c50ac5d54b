"""Whether the worker's port is reached as it is configured: asked by real connections."""

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import ifaddr
import orjson
import urllib3
from urllib3 import HTTPConnectionPool, connection_from_url
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NameResolutionError,
    NewConnectionError,
    ReadTimeoutError,
    SSLError,
)

from ciworker.cli.connection import base_url, connection, is_any, url_of
from ciworker.cli.finding import Finding
from ciworker.cli.firewall import shuts
from ciworker.settings import Settings

TIMEOUT = 5.0
_LOCAL = ("127.", "::1", "localhost")
_NO_NAME = "there is no such name"
_TIMED_OUT = f"no answer within {TIMEOUT:g} s"
_FORBIDDEN = "HTTP 403: the worker does not know the Host that it was asked for"
_OPEN_FIREWALL = "let TCP port {port} in: see `nft list ruleset` or `iptables -S INPUT`"


def reach(settings: Settings, *, running: bool) -> Iterator[Finding]:
    """Where the worker is reached.

    Args:
        settings: its own.
        running: it answers on this machine; else only the port itself can be looked at.
    """
    if not running:
        yield _port(settings)
        return
    yield _addresses(settings)
    if settings.public_url:
        yield _public(settings, settings.public_url)


def _port(settings: Settings) -> Finding:
    """No worker listens: could one?"""
    if settings.unix_path:
        return _socket(settings.unix_path)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    where = f"{settings.host}:{settings.port}"
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((settings.host, settings.port))
    except OSError as error:
        mend = f"see `ss -ltnp 'sport = :{settings.port}'`, or set host and port to free ones"
        return Finding("port", False, f"{where} cannot be used: {error.strerror}", mend)
    return Finding("port", True, f"{where} is free; who reaches it can be seen once a worker runs")


def _socket(path: Path) -> Finding:
    folder = path.parent
    if os.access(folder, os.W_OK | os.X_OK):
        return Finding("port", True, f"{path} can be made, or taken over if nobody listens on it")
    mend = f"mkdir -p {folder}; chown {os.getuid()} {folder}"
    return Finding("port", False, f"{path} cannot be made", mend)


def _addresses(settings: Settings) -> Finding:
    """Whether others may reach it: our own connections, and what the rules plainly say."""
    check, port = "firewall", settings.port
    if settings.unix_path:
        return Finding(check, True, f"{settings.unix_path} is for this machine and its proxy alone")
    hosts = _listening(settings)
    outside = [host for host in hosts if not host.startswith(_LOCAL)]
    if not outside:
        said = f"port {port} listens on {', '.join(hosts)}: for this machine alone"
        return Finding(check, True, said)
    shut = [f"{host} ({why})" for host in outside if (why := _trouble_at(settings, host))]
    if shut:
        mend = _OPEN_FIREWALL.format(port=port)
        return Finding(check, False, f"port {port} does not answer at {', '.join(shut)}", mend)
    programs = {"ip6tables" if ":" in host else "iptables" for host in outside}
    if shutting := [program for program in sorted(programs) if shuts(program, port)]:
        said = f"{' and '.join(shutting)} let no other machine in to port {port}"
        return Finding(check, False, said, _OPEN_FIREWALL.format(port=port))
    if not (settings.public_url or settings.allowed_hosts):
        return Finding(
            check,
            False,
            f"port {port} listens on {', '.join(outside)}, but has no name that others may ask for",
            f"set public_url, such as {url_of(settings, outside[0])}, or host to 127.0.0.1",
        )
    said = (
        f"port {port} answers at {', '.join(outside)}, asked from this machine; what a "
        f"firewall does shows from another: curl -i {url_of(settings, outside[0])}/healthz"
    )
    return Finding(check, True, said)


def _listening(settings: Settings) -> list[str]:
    """The addresses that the worker's host stands for; `::` takes both families.

    Link-local ones need a zone: left out.
    """
    if not is_any(settings.host):
        return [settings.host]
    found = []
    for adapter in ifaddr.get_adapters():
        for each in adapter.ips:
            address = each.ip if isinstance(each.ip, str) else each.ip[0]
            if (each.is_IPv4 or ":" in settings.host) and not address.startswith("fe80:"):
                found.append(address)
    return found


def _public(settings: Settings, url: str) -> Finding:
    check = "public_url"
    trouble = _trouble(connection_from_url(url), {})
    if not trouble:
        return Finding(check, True, f"{url} leads to a worker")
    mends = {
        _NO_NAME: "add the name to the DNS, or correct public_url",
        "Connection refused": "start the proxy that it names, or correct public_url",
        _TIMED_OUT: "let its port in at the firewall there",
        "TLS": "give it a certificate that this machine trusts, or correct public_url",
        _FORBIDDEN: "have the proxy pass Host on as it came, or add what it sends to allowed_hosts",
    }
    mend = next((mend for word, mend in mends.items() if word in trouble), None)
    mend = mend or f"have what answers there pass everything on to {base_url(settings)}"
    return Finding(check, False, f"{url}: {trouble}", mend)


def _trouble_at(settings: Settings, host: str) -> str:
    """Why the worker does not answer at this address; "" if it does.

    It is asked under the local name that every worker knows.
    """
    local = {"Host": f"127.0.0.1:{settings.port}"}
    return _trouble(connection(settings, host), local)


def _trouble(to: HTTPConnectionPool, headers: Mapping[str, str]) -> str:
    """Why no worker answers there; "" if one does."""
    try:
        with to as pool:
            answer = pool.urlopen(
                "GET", "/healthz", headers=headers, timeout=urllib3.Timeout(TIMEOUT), retries=False
            )
    except HTTPError as error:
        return _named(error)
    if answer.status == 403:
        return _FORBIDDEN
    if answer.status != 200 or not _is_ours(answer.data):
        return f"HTTP {answer.status}, and not the worker's"
    return ""


def _is_ours(body: bytes) -> bool:
    try:
        return bool(orjson.loads(body) == {"status": "ok"})
    except orjson.JSONDecodeError:
        return False


def _named(error: HTTPError) -> str:
    if isinstance(error, NameResolutionError):
        return _NO_NAME
    if isinstance(error, NewConnectionError):  # before the next: it is one of those, too
        return str(error).rpartition("] ")[2]
    if isinstance(error, ConnectTimeoutError | ReadTimeoutError):
        return _TIMED_OUT
    if isinstance(error, SSLError):
        return f"TLS: {error}"
    return f"it broke off: {error}"
