"""What the operator can set, from where it is taken, and what is said when it is wrong."""

import json
import os
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest
from pydantic import ValidationError

from ciworker.settings import SECRET_NAMES, Parking, SecretName, Settings, load
from ciworker.units import Rate


class Loaded(Protocol):
    def __call__(self, toml: str | bytes | None = None, /, **environment: str) -> Settings: ...


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """`load` with exactly these names in the environment, each without its prefix."""
    for name in os.environ:
        if name.upper().startswith("CIWORKER_"):
            monkeypatch.delenv(name)

    def load_with(toml: str | bytes | None = None, /, **environment: str) -> Settings:
        for name, value in environment.items():
            monkeypatch.setenv(f"CIWORKER_{name.upper()}", value)
        if toml is None:
            return load()
        file = tmp_path / "worker.toml"
        file.write_bytes(toml if isinstance(toml, bytes) else toml.encode())
        return load(file)

    return load_with


def refusal(loaded: Loaded, toml: str | bytes | None = None, /, **environment: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - each caller looks at the sentence
        loaded(toml, **environment)
    assert not isinstance(caught.value, ValidationError), "a sentence, not pydantic's report"
    return str(caught.value)


# The table of the contract, apart from what depends on the machine; environments brought their own.
DEFAULTS: Mapping[str, object] = {
    "host": "127.0.0.1",
    "port": 8480,
    "public_url": None,
    "allowed_hosts": (),
    "tls_cert": None,
    "tls_key": None,
    "trusted_proxies": (),
    "failed_token_rate": Rate(30, 60),
    "submit_rate": Rate(600, 60),
    "keep_audit": 365 * 24 * 3600,
    "docker_host": None,
    "resync_interval": 60,
    "transfer_timeout": 60,
    "stop_grace": 10,
    "start_attempts": 3,
    "job_timeout": 15 * 60,
    "max_job_timeout": 2 * 60 * 60,
    "job_memory": 2 * 1024**3,
    "job_cpus": 2,
    "job_pids": 512,
    "workspace_size": 1024**3,
    "max_setups": 2,
    "setup_timeout": 30 * 60,
    "setup_memory": 4 * 1024**3,
    "environments_size": 0.2,
    "no_output_timeout": None,
    "log_limit": 64 * 1024**2,
    "keep_jobs": 30 * 24 * 3600,
    "store_size": 0.2,
    "min_free": 1024**3,
    "max_upload": 256 * 1024**2,
    "max_unpacked": 1024**3,
    "max_members": 100_000,
    "default_image": "python:3.12-slim",
    "pull": "missing",
    "allowed_images": ("python:*",),
    "job_env": {},
    "job_mounts": (),
    "git_hosts": {},
    "git_allowed_addresses": (),
    "git_folders": (),
    "git_timeout": 300,
    "max_git": 1024**3,
    "pool": (),
    "webhooks": (),
    "hooks": (),
    "secrets_file": None,
    "secret_names": SECRET_NAMES,
    "log_format": "auto",
    "instance": None,
}
OF_THE_MACHINE = {"data_dir", "max_jobs", "max_memory", "max_job_memory", "max_job_cpus"}


def test_the_defaults_are_those_of_the_contract(loaded: Loaded) -> None:
    settings = loaded()
    assert {name: getattr(settings, name) for name in DEFAULTS} == DEFAULTS
    assert set(Settings.model_fields) == {*DEFAULTS, *OF_THE_MACHINE}


@pytest.mark.parametrize(
    ("text", "value"),
    [("20%", 0.2), ("100%", 1.0), ("0.5%", 0.005), ("50g", 50 * 1024**3), ("4096", 4096)],
)
def test_what_environments_may_take_is_a_share_of_a_disk_or_a_size(
    loaded: Loaded, text: str, value: float
) -> None:
    found = loaded(environments_size=text).environments_size
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["0%", "101%", "-5%", "x%", "%", "much", "-1"])
def test_another_kind_of_size_for_environments_is_refused_in_words(
    loaded: Loaded, text: str
) -> None:
    assert "environments_size" in refusal(loaded, environments_size=text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30d", 30 * 86400.0), ("1.5D", 129_600.0), ("12h", 43_200.0), ("90", 90.0)],
)
def test_jobs_are_kept_for_so_long(loaded: Loaded, text: str, seconds: float) -> None:
    assert loaded(keep_jobs=text).keep_jobs == seconds


@pytest.mark.parametrize("text", ["d", "-1d", "0d", "1w", "1h1d", "dd", "never", "36501d"])
def test_another_age_of_jobs_is_refused_in_words(loaded: Loaded, text: str) -> None:
    assert refusal(loaded, keep_jobs=text).startswith("setting keep_jobs: ")


@pytest.mark.parametrize("text", ["0", "0%", "-1"])
def test_a_store_of_no_size_is_refused(loaded: Loaded, text: str) -> None:
    assert refusal(loaded, store_size=text).startswith("setting store_size: ")


@pytest.mark.parametrize("name", ["keep_jobs", "max_job_timeout"])
def test_the_longest_duration_leads_to_an_instant(loaded: Loaded, name: str) -> None:
    span = timedelta(seconds=getattr(loaded(**{name: f"{36_500 * 24}h"}), name))
    assert datetime.now(UTC) - span < datetime.now(UTC) < datetime.now(UTC) + span
    assert refusal(loaded, **{name: f"{36_500 * 24 + 1}h"}).startswith(f"setting {name}: ")


def test_a_machine_gives_its_cores_and_most_of_its_memory(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 10**7}.__getitem__)
    settings = loaded()
    assert (settings.max_jobs, settings.max_job_cpus) == (3, 3.0)
    assert settings.max_memory == 4096 * 10**7 * 8 // 10
    assert settings.max_job_memory == 4096 * 10**7 // 2


def test_the_default_image_is_always_allowed(loaded: Loaded) -> None:
    settings = loaded(default_image="own:1", allowed_images='["a/*"]')
    assert settings.images == ("a/*", "own:1")


# --- from where ------------------------------------------------------------------------------


def test_a_name_in_the_environment_is_taken_in_any_case(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ciworker_port", "1")
    assert loaded(host="::1").port == 1


def test_a_file_gives_every_kind_of_value(loaded: Loaded) -> None:
    settings = loaded("""
        port = 0
        data_dir = "state"
        stop_grace = "5s"
        resync_interval = 30
        log_limit = "1g"
        job_cpus = 0.5
        allowed_hosts = ["a.example", "b.example"]
        job_env = { A = "1" }
        job_mounts = ["/etc/ca.pem:/ca.pem:ro"]
        pull = "never"
    """)
    assert settings.model_dump(include=settings.model_fields_set) == {
        "port": 0,
        "data_dir": Path("state"),
        "stop_grace": 5.0,
        "resync_interval": 30.0,
        "log_limit": 2**30,
        "job_cpus": 0.5,
        "allowed_hosts": ("a.example", "b.example"),
        "job_env": {"A": "1"},
        "job_mounts": ("/etc/ca.pem:/ca.pem:ro",),
        "pull": "never",
    }


def test_the_environment_goes_before_the_file_and_the_file_before_the_default(
    loaded: Loaded,
) -> None:
    settings = loaded('port = 1\nhost = "h"', port="2")
    assert (settings.port, settings.host, settings.start_attempts) == (2, "h", 3)


def test_one_file_leaves_nothing_behind_for_the_next_load(loaded: Loaded) -> None:
    assert loaded("port = 1").port == 1
    assert loaded().port == 8480


def test_settings_can_not_be_changed_later(loaded: Loaded) -> None:
    settings: Any = loaded()
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1


@pytest.mark.parametrize(
    ("name", "written", "value"),
    [
        ("public_url", "", None),
        ("public_url", "https://ci.example.org", "https://ci.example.org"),
        ("public_url", "HTTPS://CI.example.org:443/", "https://ci.example.org"),
        ("public_url", "http://ci:8480", "http://ci:8480"),
        ("public_url", "http://ci:80/", "http://ci"),
        ("public_url", "https://[2001:DB8::1]:8443", "https://[2001:db8::1]:8443"),
        ("public_url", "https://b\u00fccher.example", "https://xn--bcher-kva.example"),
        ("no_output_timeout", "10m", 600.0),
        ("stop_grace", "90", 90.0),
        ("job_timeout", "1.5h", 5400.0),
        ("max_upload", "512m", 512 * 2**20),
        ("max_upload", "1024", 1024),
        ("allowed_hosts", '["a", "b"]', ("a", "b")),
        ("allowed_hosts", "[]", ()),
        ("allowed_images", '["*"]', ("*",)),
        ("job_env", '{"PIP_CERT": "/ca.pem"}', {"PIP_CERT": "/ca.pem"}),
        ("job_mounts", '["/a:/b:ro", "/c:/d:ro"]', ("/a:/b:ro", "/c:/d:ro")),
        ("port", "65535", 65535),
        ("max_job_cpus", "0.5", 0.5),
        ("log_format", "json", "json"),
        ("data_dir", "/srv/ci", Path("/srv/ci")),
    ],
)
def test_a_value_in_the_environment_is_read_by_its_kind(
    loaded: Loaded, name: str, written: str, value: object
) -> None:
    assert getattr(loaded(**{name: written}), name) == value


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("PROT", "PORT"),
        ("MAX_JOB", "MAX_JOBS"),
        ("DATADIR", "DATA_DIR"),
        ("RESYNC", "RESYNC_INTERVAL"),
        ("job_timeuot", "JOB_TIMEOUT"),
    ],
)
def test_an_unknown_name_in_the_environment_is_refused_with_the_nearest(
    name: str, nearest: str
) -> None:
    with pytest.raises(ValueError, match="unknown setting") as caught:
        load(environ={f"CIWORKER_{name}": "1"})
    assert str(caught.value) == (
        f"unknown setting CIWORKER_{name} in the environment: did you mean CIWORKER_{nearest}?"
    )


def test_a_name_like_no_other_is_refused_with_where_to_look() -> None:
    name = "CIWORKER_" + "XQ" * 20
    with pytest.raises(ValueError, match="unknown setting") as caught:
        load(environ={name: "1"})
    assert str(caught.value) == (
        f"unknown setting {name} in the environment: see the README's table of settings"
    )


@pytest.mark.parametrize("name", ["CIWORKER", "CICLIENT_TOKEN", "MY_CIWORKER_PORT", "PATH"])
def test_names_of_others_are_none_of_ours(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "x")
    assert loaded().port == 8480


@pytest.mark.parametrize(
    ("toml", "sentence"),
    [
        ("prot = 1", "unknown setting prot: did you mean port?"),
        ("max_job = 1", "unknown setting max_job: did you mean max_jobs?"),
        ("CIWORKER_PORT = 1", "unknown setting CIWORKER_PORT: see the README's table of settings"),
        ("[pools]\nsize = 3", "unknown setting pools: did you mean pool?"),
    ],
)
def test_an_unknown_name_in_the_file_is_refused_with_the_nearest(
    loaded: Loaded, toml: str, sentence: str
) -> None:
    assert refusal(loaded, toml) == sentence


@pytest.mark.parametrize(
    ("name", "written", "sentence"),
    [
        ("stop_grace", "soon", "'soon' is no duration: write 90 (seconds), 90s, 10m or 2h"),
        ("stop_grace", "0", "has to be more than 0"),
        ("no_output_timeout", "0", "has to be more than 0"),
        ("log_limit", "2t", "'2t' is no size: write 1048576 (bytes), 512m or 2g"),
        ("max_upload", "0", "has to be more than 0"),
        ("port", "tea", "has to be a whole number"),
        ("port", "65536", "has to be at most 65535"),
        ("port", "-1", "has to be at least 0"),
        ("max_jobs", "0", "has to be at least 1"),
        ("start_attempts", "0", "has to be at least 1"),
        ("max_members", "0", "has to be at least 1"),
        ("job_pids", "15", "has to be at least 16"),
        ("job_cpus", "x", "has to be a number"),
        ("job_cpus", "0", "has to be more than 0"),
        ("max_job_cpus", "nan", "has to be more than 0"),
        ("pull", "often", "has to be 'missing', 'always' or 'never'"),
        ("log_format", "xml", "has to be 'auto', 'console' or 'json'"),
        ("allowed_hosts", "a.example", 'has to be JSON in the environment, such as ["a", "b"]'),
        ("job_env", "A=1", 'has to be JSON in the environment, such as {"KEY": "value"}'),
        ("submit_rate", "600", "600 is no rate: write 10/s, 600/m or 1000/h, or off"),
        ("submit_rate", "0/m", "'0/m' is no rate: write 10/s, 600/m or 1000/h, or off"),
        ("failed_token_rate", "1/d", "'1/d' is no rate: write 10/s, 600/m or 1000/h, or off"),
        ("host", "unix:x", "'unix:x' has to be unix:/PATH, absolute, of 107 bytes at most"),
        ("host", "unix:", "'unix:' has to be unix:/PATH, absolute, of 107 bytes at most"),
        ("host", "unix:/x/", "'unix:/x/' has to be unix:/PATH, absolute, of 107 bytes at most"),
        ("allowed_hosts", '"a.example"', "has to be a list"),
        ("job_env", "[]", "has to be a table"),
    ],
)
def test_a_wrong_value_is_refused_in_a_sentence_that_names_the_setting(
    loaded: Loaded, name: str, written: str, sentence: str
) -> None:
    assert refusal(loaded, **{name: written}) == f"setting {name}: {sentence}"


@pytest.mark.parametrize(
    "mount", ["", "/a", "/a:/b", "/a:/b:rw", "/a:/b:", "a:/b:ro", "/a:b:ro", "/a:/b:ro:z", ":/b:ro"]
)
def test_a_mount_that_is_not_read_only_or_not_absolute_is_refused(
    loaded: Loaded, mount: str
) -> None:
    assert refusal(loaded, f'job_mounts = ["/x:/y:ro", "{mount}"]') == (
        f"setting job_mounts.1: {mount!r} has to be SOURCE:TARGET:ro, both paths absolute"
    )


@pytest.mark.parametrize(
    "url",
    [
        "ci.example.org", "ci.example.org:8480", "//ci.example.org", "ftp://ci.example.org",
        "https://", "https:///", "https://ci.example.org/ci", "https://ci.example.org/ci/",
        "https://ci.example.org?", "https://ci.example.org/?a=b", "https://ci.example.org/#",
        "https://me@ci.example.org", "https://me:secret@ci.example.org",
        "https://:secret@ci.example.org", "https://ci.example.org:99999", "https://ci example.org",
        "-", " ",
    ],
)  # fmt: skip
def test_a_public_url_that_is_no_origin_is_refused(loaded: Loaded, url: str) -> None:
    assert refusal(loaded, public_url=url) == (
        "setting public_url: has to be https://HOST[:PORT], such as https://ci.example.org"
    )


@pytest.mark.parametrize(
    ("text", "rate"),
    [("10/s", Rate(10, 1)), (" 600/M ", Rate(600, 60)), ("1/h", Rate(1, 3600)), ("off", None)],
)
def test_a_rate_is_so_many_in_a_time(loaded: Loaded, text: str, rate: Rate | None) -> None:
    assert loaded(submit_rate=text).submit_rate == rate
    assert loaded(f'submit_rate = "{text}"').submit_rate == rate


def test_a_rate_is_told_as_people_say_it() -> None:
    assert [str(rate) for rate in (Rate(10, 1), Rate(600, 60), Rate(7, 3600))] == [
        "10 per second", "600 per minute", "7 per hour",
    ]  # fmt: skip


def test_proxies_are_addresses_networks_or_the_socket(loaded: Loaded) -> None:
    told = ("127.0.0.1", "10.0.0.0/8", "::1", "fd00::/8", "unix")
    assert loaded(f"trusted_proxies = {list(told)}").trusted_proxies == (
        "127.0.0.1/32", "10.0.0.0/8", "::1/128", "fd00::/8", "unix",
    )  # fmt: skip


@pytest.mark.parametrize("wrong", ["localhost", "10.0.0.1/8", "10.0.0.0/33", "*", "", "unix:"])
def test_another_proxy_is_refused_in_words(loaded: Loaded, wrong: str) -> None:
    told = refusal(loaded, f'trusted_proxies = ["127.0.0.1", "{wrong}"]')
    assert told.startswith(f"setting trusted_proxies.1: {wrong!r} has to be an address, a network")


def test_a_unix_socket_is_listened_on_instead_of_a_port(loaded: Loaded) -> None:
    assert loaded(host="unix:/run/x.sock").unix_path == Path("/run/x.sock")
    assert loaded(host="127.0.0.1").unix_path is None
    assert "107 bytes" in refusal(loaded, host="unix:/" + "x" * 107)
    assert loaded(host="unix:/" + "x" * 106).unix_path is not None


def test_a_certificate_and_its_key_belong_together_and_to_a_port(loaded: Loaded) -> None:
    both = {"tls_cert": "/a.pem", "tls_key": "/a.key"}
    assert loaded().scheme == "http"
    assert loaded(**both).scheme == "https"
    assert "Unix socket speaks no TLS" in refusal(loaded, host="unix:/run/x.sock", **both)


@pytest.mark.parametrize("alone", ["tls_cert", "tls_key"])
def test_one_of_them_alone_is_refused(loaded: Loaded, alone: str) -> None:
    assert refusal(loaded, **{alone: "/a"}) == (
        "tls_cert and tls_key belong together: set both, or none"
    )


def test_everything_that_is_wrong_is_told_at_once_a_sentence_a_line(loaded: Loaded) -> None:
    lines = refusal(loaded, "prot = 1\nport = 70000", stop_grace="x", pull="y").splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "setting port",
        "setting stop_grace",
        "setting pull",
        "unknown setting prot",
    ]


def test_a_worker_on_which_no_job_could_start_is_refused(loaded: Loaded) -> None:
    assert refusal(loaded, max_memory="1g", max_job_memory="4g") == (
        f"max_memory ({2**30} bytes) is less than one job's job_memory ({2**31} bytes): "
        "no job could ever start"
    )


@pytest.mark.parametrize(
    "limits",
    [
        {"max_memory": "2g", "job_memory": "2g", "max_job_memory": "2g"},
        {"max_memory": "1g", "job_memory": "2g", "max_job_memory": "1g"},
        {"max_memory": "1g", "job_memory": "1g", "max_job_memory": "2g"},
    ],
)
def test_a_worker_on_which_one_default_job_just_fits_is_accepted(
    loaded: Loaded, limits: dict[str, str]
) -> None:
    assert loaded(**limits).max_memory == int(limits["max_memory"][0]) * 2**30


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    for missing in (tmp_path / "no.toml", tmp_path):
        with pytest.raises(ValueError, match="there is no settings file") as caught:
            load(missing, {})
        assert str(caught.value) == f"there is no settings file {missing}"


@pytest.mark.parametrize("data", [b"port = ", b"\xff = 1", b"port = 1\nport = 2"])
def test_a_file_that_is_not_toml_is_refused_by_name(
    loaded: Loaded, tmp_path: Path, data: bytes
) -> None:
    assert refusal(loaded, data).startswith(f"{tmp_path / 'worker.toml'} is not valid TOML: ")


@pytest.mark.parametrize("value", ['{"a-b": "x"}', '{"A; rm": "x"}', '{"A": "a\\u0000b"}'])
def test_a_variable_for_jobs_that_no_shell_takes_is_refused(loaded: Loaded, value: str) -> None:
    with pytest.raises(ValueError, match="job_env"):
        loaded(job_env=value)


ENTRY = '[{"name": "tea", "size": 2, "memory": "1g"}'


def test_what_an_entry_of_the_pool_leaves_out_is_the_default(loaded: Loaded) -> None:
    settings = loaded(
        """
        default_image = "tea:1"
        job_memory = "1g"
        job_cpus = 1.5
        [[pool]]
        name = "plain"
        size = 2
        [[pool]]
        name = "own"
        image = "tea:2"
        network = true
        memory = "512m"
        cpus = 0.5
        size = 0
        [[pool]]
        name = "recent"
        environments = true
        size = 1
        """
    )
    assert settings.parkings == [
        Parking("plain", "tea:1", False, 2**30, 1.5, 2),
        Parking("own", "tea:2", True, 2**29, 0.5, 0),
        Parking("recent", None, False, 2**30, 1.5, 1),
    ]


@pytest.mark.parametrize(
    ("pool", "said"),
    [
        ('[{"name": "tea"}]', "setting pool.0.size: is missing: add it"),
        ('[{"size": 1}]', "setting pool.0.name: is missing: add it"),
        (
            '[{"name": "Tea", "size": 1}]',
            "setting pool.0.name: has to be made of small letters, digits and -",
        ),
        (f'[{{"name": "{33 * "x"}", "size": 1}}]', "name: has to be at most 32 characters long"),
        ('["tea"]', "setting pool.0: has to be a table"),
        ('[{"name": "tea", "size": 1, "network": 7}]', "pool.0.network: has to be true or false"),
        ('[{"name": "tea", "size": 1, "image": 7}]', "setting pool.0.image: has to be text"),
        ('[{"name": "tea", "size": -1}]', "setting pool.0.size: has to be at least 0"),
        ('[{"name": "tea", "size": 1, "memroy": 1}]', "pool.0.memroy: did you mean memory?"),
        ('[{"name": "tea", "size": 1, "memory": "x"}]', "setting pool.0.memory: 'x' is no size"),
        (
            f'{ENTRY[:-1]}, "environments": true, "image": "a"}}]',
            "setting pool.0: it names an image, and",
        ),
        (
            f'{ENTRY[:-1]}, "environments": true, "network": true}}]',
            "parked without a network: leave",
        ),
        ('[{"name": "tea", "size": 1, "cpus": 0}]', "setting pool.0.cpus: has to be more than 0"),
        (f"{ENTRY}, {ENTRY[1:]}]", "setting pool: two entries are called 'tea': rename one"),
        ('{"name": "tea", "size": 1}', "setting pool: has to be a list of tables: write [[pool]]"),
        ("tea", 'setting pool: has to be JSON in the environment, such as [{"name": "tea"'),
    ],
)
def test_an_entry_of_the_pool_that_cannot_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, pool: str, said: str
) -> None:
    monkeypatch.setenv("CIWORKER_POOL", pool)
    with pytest.raises(ValueError, match=re.escape(said)):
        load()


def test_a_pool_that_memory_does_not_allow_is_refused_with_the_sum(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"MAX_MEMORY": "3g", "JOB_MEMORY": "1g", "MAX_JOB_MEMORY": "2g"}.items():
        monkeypatch.setenv(f"CIWORKER_{name}", value)
    monkeypatch.setenv("CIWORKER_POOL", f'{ENTRY}, {{"name": "b", "size": 1, "memory": "1g"}}]')
    assert sum(entry.size for entry in load().parkings) == 3
    monkeypatch.setenv("CIWORKER_POOL", f'{ENTRY}, {{"name": "b", "size": 4, "memory": "1g"}}]')
    with pytest.raises(ValueError, match=r"take 6\.0 GiB together .* max_memory \(3\.0 GiB\): low"):
        load()
    monkeypatch.setenv(
        "CIWORKER_POOL", f'{ENTRY[:-1]}, "environments": true}}, {{"name": "b", "size": 2}}]'
    )
    with pytest.raises(ValueError, match=r"take 4\.0 GiB together .* max_memory"):
        load()
    monkeypatch.setenv("CIWORKER_POOL", '[{"name": "b", "size": 1, "memory": "2500m"}]')
    with pytest.raises(
        ValueError, match=r"'b' \(2\.4 GiB\) is more than max_job_memory \(2\.0 GiB"
    ):
        load()


def test_a_pool_and_a_pull_before_each_job_exclude_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CIWORKER_PULL", "always")
    monkeypatch.setenv("CIWORKER_POOL", f"{ENTRY}]")
    with pytest.raises(ValueError, match="set pull to missing or never, or all sizes to 0"):
        load()
    monkeypatch.setenv("CIWORKER_POOL", '[{"name": "b", "size": 0}]')
    assert load().parkings[0].size == 0
    monkeypatch.setenv("CIWORKER_POOL", f'{ENTRY[:-1]}, "environments": true}}]')
    assert load().parkings[0].image is None  # its key tells from which image it was made


HOOK = {"url": "https://chat.example.org/hooks/s3cret", "secret": "CHAT_SECRET"}


def webhooks(*entries: Mapping[str, object]) -> Settings:
    return Settings.model_validate({"webhooks": entries})


def test_a_webhook_is_called_by_its_host_unless_it_has_a_name() -> None:
    (plain,) = webhooks(HOOK).webhooks
    assert plain.called == "chat.example.org"
    (named,) = webhooks({**HOOK, "name": "chat"}).webhooks
    assert named.called == "chat"


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ([HOOK, HOOK], "two are called 'chat.example.org': give each a `name` of its own"),
        ([{**HOOK, "url": "ftp://s3cret"}], "has to be https://"),
        ([{**HOOK, "secret": "whsec_s3cret"}], "has to be whsec_ and the base64"),
        ([{**HOOK, "secret": "s3cret-text"}], "has to be whsec_ and the base64"),
        ([{**HOOK, "events": ["job.done"]}], "job.completed"),
        ([{**HOOK, "events": []}], "has to be a list of 1 or more entries"),
        ([{**HOOK, "secrets": "x"}], "did you mean secret"),
        ([{"url": "https://x"}], "webhooks.0.secret"),
    ],
)
def test_a_wrong_webhook_is_named_and_its_secrets_are_not_repeated(
    monkeypatch: pytest.MonkeyPatch, entries: object, sentence: str
) -> None:
    monkeypatch.setenv("CIWORKER_WEBHOOKS", json.dumps(entries))
    with pytest.raises(ValueError, match=re.escape(sentence)) as refused:
        load()
    assert "s3cret" not in str(refused.value)


HOOK_RULE = {"forge": "github", "repository": "https://github.com/acme/tea.git", "secret": "TEA"}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("HOOKS", [{**HOOK_RULE, "forge": "svn"}], "'github', 'gitlab' or 'forgejo'"),
        ("HOOKS", [{**HOOK_RULE, "secret": "not a name"}], "hooks.0.secret"),
        ("HOOKS", [{**HOOK_RULE, "event": "push"}], "did you mean events?"),
        ("GIT_HOSTS", {"h.org": {"status_token": "T"}}, "status_token needs `forge`"),
        ("GIT_HOSTS", {"h.org": {"api": "ftp://x"}}, "'ftp://x' has to be https://HOST/PATH"),
    ],
)
def test_what_forges_are_told_and_may_do_is_checked(
    monkeypatch: pytest.MonkeyPatch, name: str, value: object, sentence: str
) -> None:
    monkeypatch.setenv(f"CIWORKER_{name}", json.dumps(value))
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load()


def test_hosts_of_repositories_are_tables(loaded: Loaded) -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA=="
    toml = f'[git_hosts."h:8443"]\ntoken = "TOKEN"\nknown_hosts = ["h {key} me@h"]\n'
    found = loaded(toml).git_hosts["h:8443"]
    assert (found.token, found.username, found.ssh) == ("TOKEN", "x-access-token", False)
    assert found.known_hosts == (key,)
    assert loaded(git_hosts='{"h": {"ssh": true}}').git_hosts["h"].ssh


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"git_hosts": '{"h": {"tokn": "T"}}'}, "unknown setting git_hosts.h.tokn: did you mean"),
        ({"git_hosts": '{"H": {}}'}, "has to be HOST, or HOST:PORT, in lower case"),
        ({"git_hosts": '{"https://h": {}}'}, "has to be HOST, or HOST:PORT, in lower case"),
        ({"git_hosts": '{"h": {"token": "a b"}}'}, "setting git_hosts.h.token: "),
        (
            {"git_hosts": '{"h": {"username": "a\\nb"}}'},
            "setting git_hosts.h.username: has to be made of letters, digits and _.@+-",
        ),
        ({"git_hosts": '{"h": {"known_hosts": ["x"]}}'}, "write one as ssh-keyscan prints it"),
        ({"git_hosts": '{"h": {"ca_file": "ca.pem"}}'}, "has to be an absolute path"),
        ({"git_hosts": "h"}, "has to be JSON in the environment, such as "),
        ({"git_allowed_addresses": '["10.0.0.1/8"]'}, "write a network such as 10.1.0.0/16"),
        ({"git_folders": '["srv"]'}, "has to be an absolute path"),
    ],
)
def test_another_way_to_fetch_is_refused_in_words(
    loaded: Loaded, given: Mapping[str, str], sentence: str
) -> None:
    assert sentence in refusal(loaded, **given)


def test_a_secret_is_a_name_or_a_table(loaded: Loaded) -> None:
    found = loaded(
        """
        secret_names = ["NPM_TOKEN", { name = "KEY", sources = ["git"], roles = ["admin"] }]
        """
    ).secret_names
    assert found == (
        SecretName(name="NPM_TOKEN"),
        SecretName(name="KEY", sources=("git",), roles=("admin",)),
    )
    assert (found[0].sources, found[0].roles, found[0].setup) == (
        ("upload", "git"),
        ("submit", "admin"),
        False,
    )


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ('["A B"]', "setting secret_names.0.name: has to be made of letters, digits and _"),
        ('[{"name": "A", "mount": true}]', "setting secret_names.0: mount is for SSH_AUTH_SOCK"),
        (
            '[{"name": "SSH_AUTH_SOCK", "setup": true}]',
            "setting secret_names.0: a setup cannot have SSH_AUTH_SOCK",
        ),
        ('["A", "A"]', "setting secret_names: A is there twice: remove one"),
        ('[{"name": "A", "sorces": []}]', "secret_names.0.sorces: did you mean sources?"),
        (
            '[{"name": "A", "roles": ["read"]}]',
            "setting secret_names.0.roles.0: has to be 'submit' or 'admin'",
        ),
        ('{"name": "A"}', "setting secret_names: has to be a list, such as"),
        ("A", "setting secret_names: has to be JSON in the environment, such as"),
    ],
)
def test_secret_names_that_cannot_be_are_refused(
    monkeypatch: pytest.MonkeyPatch, names: str, said: str
) -> None:
    monkeypatch.setenv("CIWORKER_SECRET_NAMES", names)
    with pytest.raises(ValueError, match=re.escape(said)):
        load()
