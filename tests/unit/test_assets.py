"""The version that pages tell, by which their scripts keep away from those of another one."""

import re

import pytest

from ciworker.web.pages import read_assets, versioned

FILES = {"page.html": b"<html>\n<head>\n</head>", "a.js": b"one", "b.css": b"two"}


def version(page: bytes) -> bytes:
    """What this page tells, in its head and once."""
    (found,) = re.findall(rb'<head>\n  <meta name="version" content="([0-9a-f]{32})">', page)
    return bytes(found)


@pytest.mark.parametrize("name", FILES)
def test_the_version_is_another_one_when_any_file_is(name: str) -> None:
    first = version(versioned(FILES)["page.html"])
    again = version(versioned(dict(reversed(FILES.items())))["page.html"])
    other = version(versioned({**FILES, name: FILES[name] + b" "})["page.html"])
    assert first == again != other


def test_files_that_are_no_pages_are_served_as_they_are() -> None:
    made = versioned(FILES)
    assert {name: made[name] for name in ("a.js", "b.css")} == {"a.js": b"one", "b.css": b"two"}


def test_all_pages_tell_the_same_version() -> None:
    assets = read_assets()
    assert len({version(assets[name].body) for name in ("jobs.html", "job.html")}) == 1
