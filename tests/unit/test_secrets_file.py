"""The file of secrets: read as its owner's alone, read again when it changes, never quoted."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from ciworker.domain.secrets import Rule, Secret
from ciworker.errors import SecretsRefused
from ciworker.settings import SecretName, Settings
from ciworker.source.secrets import KEY_BYTES, Secrets, fingerprint_key, read_secrets, rules_of

VALUE = "s3cret-value"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "secrets.toml"
    write(path, f'TOKEN = "{VALUE}"\nKEY = """\nfirst line\nsecond line\n"""\nEMPTY = ""\n')
    return path


def write(path: Path, text: str) -> None:
    path.touch(0o600)
    path.write_text(text)


def revealed(secrets: Secrets, name: str) -> str | None:
    found = secrets.value(name)
    return None if found is None else found.reveal()


def refusal(path: Path) -> str:
    with pytest.raises(SecretsRefused) as caught:
        Secrets(path, {})
    assert VALUE not in str(caught.value)
    assert caught.value.__cause__ is None or VALUE not in str(caught.value.__cause__)
    return str(caught.value)


def test_values_come_from_the_file_then_from_the_environment(file: Path) -> None:
    secrets = Secrets(file, {"TOKEN": "from-environment", "OTHER": "from-environment"})

    assert revealed(secrets, "TOKEN") == VALUE
    assert revealed(secrets, "KEY") == "first line\nsecond line\n"
    assert revealed(secrets, "OTHER") == "from-environment"
    assert revealed(secrets, "NONE") is None


def test_without_a_file_there_is_the_environment_alone() -> None:
    assert revealed(Secrets(None, {"TOKEN": VALUE}), "TOKEN") == VALUE


def test_an_empty_value_is_none_and_a_short_one_is_told_apart(file: Path) -> None:
    secrets = Secrets(file, {"SHORT": "12345", "NOTHING": ""})

    assert [revealed(secrets, name) for name in ("EMPTY", "NOTHING", "SHORT")] == [None] * 3
    assert secrets.why_missing("EMPTY") == "has no value on this worker"
    assert secrets.why_missing("NOTHING") == "has no value on this worker"
    assert secrets.why_missing("SHORT").startswith("has no line of 6 characters")


def test_a_file_that_changes_is_read_again(file: Path) -> None:
    secrets = Secrets(file, {})
    write(file, 'TOKEN = "another-value"')
    assert revealed(secrets, "TOKEN") == "another-value"
    assert revealed(secrets, "KEY") is None

    new = file.with_suffix(".new")
    write(new, 'TOKEN = "yet-another-one"')
    new.rename(file)
    assert revealed(secrets, "TOKEN") == "yet-another-one"


def test_a_change_while_the_file_is_first_read_is_seen_later(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path) -> Mapping[str, Secret]:
        found = read_secrets(path)
        write(path, 'TOKEN = "a-longer-value-than-before"')
        return found

    with monkeypatch.context() as patch:
        patch.setattr("ciworker.source.secrets.read_secrets", read)
        secrets = Secrets(file, {})

    assert revealed(secrets, "TOKEN") == "a-longer-value-than-before"


@pytest.mark.parametrize("trouble", ["syntax", "access", "gone", "short"])
def test_a_change_that_cannot_be_read_leaves_the_values_of_before(
    file: Path, trouble: str, capsys: pytest.CaptureFixture[str]
) -> None:
    secrets = Secrets(file, {})
    match trouble:
        case "syntax":
            write(file, f'TOKEN = "{VALUE}')
        case "access":
            file.chmod(0o640)
        case "gone":
            file.unlink()
        case _:
            write(file, 'TOKEN = "12345"')

    assert [revealed(secrets, "TOKEN") for _ in range(3)] == [VALUE] * 3

    said = "".join(capsys.readouterr())
    assert said.count("the secrets file is not read again") == 1
    assert VALUE not in said

    file.unlink(missing_ok=True)
    write(file, 'TOKEN = "mended-value"')
    assert revealed(secrets, "TOKEN") == "mended-value"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o644])
def test_a_file_that_others_can_read_or_write_is_refused_with_the_mend(
    file: Path, mode: int
) -> None:
    file.chmod(mode)
    assert refusal(file) == f"others can read or write secrets_file {file}: chmod 600 {file}"


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_file_of_ours_alone_is_taken(file: Path, mode: int) -> None:
    file.chmod(mode)
    assert revealed(Secrets(file, {}), "TOKEN") == VALUE


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(file: Path) -> None:
    os.chown(file, 12345, -1)
    assert refusal(file) == f"secrets_file {file} belongs to user 12345: chown 0 {file}"


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)

    assert refusal(pipe) == f"secrets_file {pipe} is no file"
    assert "is no file" in refusal(tmp_path) or "cannot be read" in refusal(tmp_path)
    assert "cannot be read: No such file" in refusal(tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'TOKEN = "{VALUE}', "is not valid TOML: it has to hold lines like NAME"),
        (f"TOKEN={VALUE}", "is not valid TOML"),
        (f'TOKEN = ["{VALUE}"]\nN = 1', "N, TOKEN has to be a text"),
        (f'[table]\nTOKEN = "{VALUE}"', "table has to be a text"),
        ('TOKEN = "12345"', "the value of TOKEN has no line of 6 characters"),
        ("#" * 2**20 + "\n", "is larger than 1048576 bytes"),
    ],
)
def test_a_file_that_holds_something_else_is_refused_in_words(
    file: Path, text: str, said: str
) -> None:
    write(file, text)
    assert said in refusal(file)


def test_an_admin_may_have_what_any_token_that_submits_may(tmp_path: Path) -> None:
    names = (
        SecretName(name="A", roles=("submit",), sources=("git",), setup=True),
        SecretName(name="B", roles=("admin",)),
        SecretName(name="C", roles=()),
    )
    both, git = frozenset({"upload", "git"}), frozenset({"git"})

    assert rules_of(Settings(data_dir=tmp_path, secret_names=names)) == {
        "A": Rule("A", git, frozenset({"submit", "admin"}), setup=True),
        "B": Rule("B", both, frozenset({"admin"})),
        "C": Rule("C", both, frozenset()),
    }


def test_the_key_of_fingerprints_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "secrets.key"

    key = fingerprint_key(path)

    assert len(key) == KEY_BYTES
    assert fingerprint_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kept", [b"", b"k" * (KEY_BYTES - 1), b"k" * (KEY_BYTES + 1)])
def test_a_key_that_is_damaged_is_refused_and_left_as_it_is(tmp_path: Path, kept: bytes) -> None:
    path = tmp_path / "secrets.key"
    path.write_bytes(kept)

    with pytest.raises(OSError, match=f"has {len(kept)} bytes, not {KEY_BYTES}: remove it"):
        fingerprint_key(path)
    assert path.read_bytes() == kept
