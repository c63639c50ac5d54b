"""Which server and token are used; a token never goes to a server it was not meant for."""

import json
import os
from pathlib import Path

import pytest

from ciclient.config import find_access, login_path, normalise_server, store_login
from ciclient.errors import Usage

ELSEWHERE = "https://ci.example.org"


def token_file(folder: Path, token: str = "t0ken", mode: int = 0o600) -> Path:
    path = folder / "token"
    path.write_text(f"{token}\n")
    path.chmod(mode)
    return path


def test_a_first_run_uses_this_machine_s_own_worker(home: Path) -> None:
    admin = home / ".local" / "share" / "ciworker" / "admin.token"
    admin.parent.mkdir(parents=True)
    admin.write_text("admin-token\n")
    admin.chmod(0o600)
    access = find_access(None, None)
    assert (access.server, access.token) == ("http://127.0.0.1:8480", "admin-token")
    assert access.token_from == str(admin)


def test_the_admin_token_is_found_in_the_worker_s_data_dir(tmp_path: Path) -> None:
    (tmp_path / "admin.token").write_text("admin-token")
    environ = {"CIWORKER_DATA_DIR": str(tmp_path)}
    assert find_access("http://localhost:9999", None, environ).token == "admin-token"
    assert find_access(ELSEWHERE, None, environ).token is None


def test_option_environment_and_login_file_come_in_this_order(tmp_path: Path) -> None:
    path = token_file(tmp_path, "by-option")
    (tmp_path / "by-file").write_text("by-token-file")
    store_login("http://login:1", "by-login")
    full = {
        "CICLIENT_SERVER": "http://environ:1",
        "CICLIENT_TOKEN": "by-environ",
        "CICLIENT_TOKEN_FILE": str(tmp_path / "by-file"),
    }
    option = find_access("http://option:1/", path, full)
    assert (option.server, option.token) == ("http://option:1", "by-option")
    environ = find_access(None, None, full)
    assert (environ.server, environ.token) == ("http://environ:1", "by-environ")
    assert find_access(None, None, full | {"CICLIENT_TOKEN": ""}).token == "by-token-file"
    login = find_access(None, None, {})
    assert (login.server, login.token) == ("http://login:1", "by-login")


def test_a_stored_token_goes_to_no_other_server() -> None:
    store_login(ELSEWHERE, "secret")
    assert find_access(ELSEWHERE + "/", None, {}).token == "secret"
    for other in ("https://evil.example.org", "http://ci.example.org", f"{ELSEWHERE}:8443"):
        assert find_access(other, None, {}).token is None


def test_a_login_file_is_for_its_owner_only(home: Path) -> None:
    os.umask(0)
    try:
        path = store_login(ELSEWHERE, "secret")
    finally:
        os.umask(0o022)
    assert path == login_path() == home / ".config" / "ciclient" / "login.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert json.loads(path.read_text()) == {"server": ELSEWHERE, "token": "secret"}
    assert list(path.parent.iterdir()) == [path]


def test_a_token_file_that_others_can_read_is_warned_of(tmp_path: Path) -> None:
    path = token_file(tmp_path, mode=0o640)
    assert find_access(ELSEWHERE, path, {}).warnings == (
        f"others can read the token in {path}; run: chmod 600 {path}",
    )
    path.chmod(0o600)
    assert find_access(ELSEWHERE, path, {}).warnings == ()


def test_the_token_is_in_no_representation() -> None:
    access = find_access(ELSEWHERE, None, {"CICLIENT_TOKEN": "secret"})
    assert access.token == "secret"
    assert "secret" not in repr(access)


@pytest.mark.parametrize(
    "url", ["localhost:8480", "ftp://x", "http://", "http://x:99999", "http://[::1", "http://x?a"]
)
def test_what_is_no_server_s_url_is_refused(url: str) -> None:
    with pytest.raises(Usage):
        normalise_server(url)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(Usage) as caught:
        normalise_server("http://user:hunter2@host")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("token", ["", " \n", "two words", "line\nbreak", "caf\xe9"])
def test_what_is_no_token_is_refused(token: str) -> None:
    with pytest.raises(Usage) as caught:
        find_access(ELSEWHERE, None, {"CICLIENT_TOKEN": token or " "})
    assert "caf" not in str(caught.value)


def test_a_token_file_that_is_missing_or_no_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="nosuch: No such file"):
        find_access(ELSEWHERE, tmp_path / "nosuch", {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(Usage, match="it is no text"):
        find_access(ELSEWHERE, tmp_path / "binary", {})


def test_a_broken_login_file_is_named(home: Path) -> None:
    login_path().parent.mkdir(parents=True)
    login_path().write_text("{")
    with pytest.raises(Usage, match=r"login\.json"):
        find_access(None, None, {})
