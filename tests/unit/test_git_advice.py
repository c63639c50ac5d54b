"""What git says becomes advice, whatever a repository and its host are called."""

import pytest

from ciworker.domain.git import parse_remote
from ciworker.source.access import Access
from ciworker.source.gitcommand import explain

AWAY = "Failed to connect to {host} port {port} after 0 ms: Couldn't connect to server"
UNABLE = "fatal: unable to access '{url}/': "


def advice(url: str, said: str) -> str:
    remote = parse_remote(url)
    named = {"url": remote.url, "host": remote.host, "port": remote.port, "path": remote.path}
    return explain(Access(remote), said.format(**named)).partition(" (git: ")[0]


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (UNABLE + "The requested URL returned error: 403", "tea.example wants other credentials"),
        ("fatal: Authentication failed for '{url}/'", "tea.example wants other credentials"),
        (UNABLE + "The requested URL returned error: 301", "tea.example redirects"),
        ("fatal: unable to update url base from redirection:", "tea.example redirects"),
        (
            UNABLE + "SSL certificate problem: self-signed certificate",
            "tea.example cannot be trust",
        ),
        ("fatal: repository '{url}/' not found", "tea.example has no such repository"),
        (UNABLE + AWAY, "git could not fetch it: fatal: unable to access"),
    ],
)
def test_gits_own_words_decide(said: str, wanted: str) -> None:
    assert advice("https://tea.example/acme/tea.git", said).startswith(wanted)


@pytest.mark.parametrize(
    "url",
    [
        "https://tea.example:8403/acme/tea.git",
        "https://tea.example:302/acme/tea.git",
        "https://tea.example/acme/certificate.git",
        "https://tea.example/SSL/redirect.git",
        "https://tea.example/error:%20403",
        "https://certificate.example/tea.git",
        "https://redirect/tea.git",
    ],
)
def test_a_name_is_no_reason(url: str) -> None:
    assert advice(url, UNABLE + AWAY).startswith("git could not fetch it: ")


@pytest.mark.parametrize("path", ["/srv/certificate.git", "certificate", "x", "d"])
def test_over_ssh_neither(path: str) -> None:
    said = "fatal: '{path}' does not appear to be a git repository"
    assert advice(f"git@tea.example:{path}", said).startswith("tea.example has no such repository")
    said = "git@tea.example: Permission denied (publickey)."
    assert advice(f"git@tea.example:{path}", said).startswith("tea.example takes none of the agent")
