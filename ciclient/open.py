"""`ciclient open`: a page of the worker in the browser, through a fresh one-time link."""

import os
import re
import sys
import webbrowser
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ciclient.errors import Nonsense
from ciclient.jobs import find_job
from ciclient.state import newest

if TYPE_CHECKING:
    from ciclient.api import Api

_LINK = re.compile(r"https?://[^/\s]+/[!-~]*", re.ASCII)
_CHOICE_OR_DISPLAY = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")


def page_of(api: "Api", reference: str | None) -> str:
    """The path of a job's page; without a reference and a newest job here, of the list's."""
    if reference is None and newest(api.access.server, Path.cwd()) is None:
        return "/"
    return f"/jobs/{find_job(api, reference).id}"


def usable_link(link: str, server: str) -> str:
    """The worker's link as it can be opened from here.

    Behind a proxy that speaks TLS, a worker without a public_url takes its own scheme for ours.

    Raises:
        Nonsense: it is no web address.
    """
    if not _LINK.fullmatch(link):
        raise Nonsense("the server's link is no web address: is this a ciworker?")
    known, own = urlsplit(server), link.partition("://")[2]
    return f"{known.scheme}://{own}" if own.partition("/")[0] == known.netloc else link


def show(link: str, environ: Mapping[str, str] = os.environ) -> bool:
    """Open it in a browser; False where there is none.

    Linux without a display has at most browsers for the terminal, which know no scripts.
    """
    if sys.platform == "linux" and not any(environ.get(name) for name in _CHOICE_OR_DISPLAY):
        return False
    return webbrowser.open(link)
