"""What the operator can set: environment (`CIWORKER_…`), else a TOML file, else the default."""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from platformdirs import user_data_path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    HttpUrl,
    SecretStr,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from ciworker.units import (
    CENTURY,
    KEY_PREFIX,
    Rate,
    format_size,
    key_of,
    parse_age,
    parse_duration,
    parse_rate,
    parse_size,
)

PREFIX = "CIWORKER_"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
UNIX = "unix:"
_LONGEST_SOCKET = 107  # bytes of a path, as Linux has it (unix(7))
_URL = TypeAdapter(HttpUrl)
_PLACE = re.compile(r"(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?|[0-9a-f:.]+", re.ASCII)
_LABEL = r"^[a-z0-9-]+$"
_DOTTED = r"^[a-z0-9.-]*$"
_NAME = r"^[A-Za-z_][A-Za-z0-9_]*$"
_USERNAME = r"^[A-Za-z0-9_.@+-]+$"
_HOST_KEY = re.compile(r"(?:\S+ +)?((?:ssh|ecdsa|sk)-\S+ +[A-Za-z0-9+/]+=*)(?: .*)?", re.ASCII)


def _variables(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not _VARIABLE.fullmatch(name) or "\0" in text:
            raise ValueError(
                f"{name!r} is no name of an environment variable, or its value has NUL"
            )
    return value


def _off(value: object) -> object:
    return None if value == "off" else value


def _rate(value: object) -> Rate | None:
    if value is None or isinstance(value, Rate):
        return value  # a default
    return None if value == "off" else parse_rate(value)


def _peer(value: str) -> str:
    """An address or network of one, as it is written; or `unix`: whoever comes by our socket."""
    if value == "unix":
        return value
    try:
        return str(ip_network(value))
    except ValueError:
        raise ValueError(
            f"{value!r} has to be an address, a network such as 10.0.0.0/8 without bits beyond "
            "its length, or unix"
        ) from None


def _share_or_size(value: object) -> int | float:
    """A share of a disk, such as `20%`, as a float; a size in bytes as an int."""
    if isinstance(value, str) and value.endswith("%"):
        value = _percentage(value)
    if isinstance(value, float):
        if not 0 < value <= 1:
            raise ValueError(f"{value!r} has to be a share such as 20%, or a size such as 50g")
        return value
    return parse_size(value)


def _percentage(text: str) -> float:
    try:
        return float(text[:-1]) / 100
    except ValueError:
        raise ValueError(f"{text!r} has to be a share such as 20%, or a size such as 50g") from None


def _mount(value: str) -> str:
    source, _, rest = value.partition(":")
    target, _, mode = rest.partition(":")
    if not (source.startswith("/") and target.startswith("/") and mode == "ro"):
        raise ValueError(f"{value!r} has to be SOURCE:TARGET:ro, both paths absolute")
    return value


def _host_key(value: str) -> str:
    """Type and key, of a line as `ssh-keyscan` or a known_hosts file has it."""
    match = _HOST_KEY.fullmatch(value.strip())
    if match is None:
        raise ValueError(f"{value!r} is no host key: write one as ssh-keyscan prints it")
    return match[1]


def _by_place(value: dict[str, "GitHost"]) -> dict[str, "GitHost"]:
    for place in value:
        if not _PLACE.fullmatch(place):
            raise ValueError(f"{place!r} has to be HOST, or HOST:PORT, in lower case")
    return value


def _network(value: object) -> IPv4Network | IPv6Network:
    try:
        return ip_network(str(value))
    except ValueError as error:
        raise ValueError(f"{error}: write a network such as 10.1.0.0/16, or an address") from None


def _absolute(value: Path) -> Path:
    if not value.is_absolute():
        raise ValueError(f"{str(value)!r} has to be an absolute path")
    return value


def _address(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        _URL.validate_python(value)
    except ValidationError:
        raise ValueError(f"{value!r} has to be https://HOST/PATH") from None
    return value.rstrip("/")


def _tables(value: object, info: ValidationInfo) -> object:
    if isinstance(value, dict):
        raise ValueError(f"has to be a list of tables: write [[{info.field_name}]] above each")
    return value


def _names(value: object) -> object:
    """A list of names, and of tables with a name."""
    if not isinstance(value, list | tuple):
        raise ValueError('has to be a list, such as ["TOKEN", { name = "KEY", setup = true }]')
    return [{"name": entry} if isinstance(entry, str) else entry for entry in value]


def _host(value: str) -> str:
    """A name, an address, or `unix:/PATH`."""
    if not value.startswith(UNIX):
        return value
    path = value.removeprefix(UNIX)
    if not path.startswith("/") or path.endswith("/") or len(path.encode()) > _LONGEST_SOCKET:
        raise ValueError(
            f"{value!r} has to be unix:/PATH, absolute, of {_LONGEST_SOCKET} bytes at most"
        )
    return value


def _origin(value: str | None) -> str | None:
    """A web address without path, as browsers write an origin; an empty one is none."""
    if not value:
        return None
    try:
        url = _URL.validate_python(value)
    except ValidationError:
        raise _no_origin() from None
    if url.path != "/" or {url.query, url.fragment, url.username, url.password} != {None}:
        raise _no_origin()
    return str(url).removesuffix("/")


def _no_origin() -> ValueError:
    return ValueError("has to be https://HOST[:PORT], such as https://ci.example.org")


Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, le=CENTURY)]
Age = Annotated[float, BeforeValidator(parse_age), Field(gt=0, le=CENTURY)]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
RateOrOff = Annotated[Rate | None, BeforeValidator(_rate)]
ShareOrSize = Annotated[int | float, BeforeValidator(_share_or_size)]


class PoolEntry(BaseModel):
    """Containers that are kept parked, all alike. What is left out is the settings' default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=_LABEL, max_length=32)
    image: str = Field("", description="`default_image` where empty")
    environments: bool = Field(False, description="instead of an image: those used last")
    network: bool = False
    memory: Annotated[Size | None, Field(description="bytes; `job_memory` where left out")] = None
    cpus: float | None = Field(None, gt=0)
    size: int = Field(ge=0)

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.environments and self.image:
            raise ValueError("it names an image, and wants environments: leave one of both out")
        if self.environments and self.network:
            raise ValueError("its environments are parked without a network: leave `network` out")
        return self


ForgeName = Literal["github", "gitlab", "forgejo"]


class GitHost(BaseModel):
    """How repositories of one host are fetched; nothing of it is used for another's.

    token: name of the secret that is the password of `username`, over https. ssh: the keys of the
    worker's SSH_AUTH_SOCK may be used. known_hosts: the host's keys; without them no ssh.
    ca_file: certificates to trust, instead of the system's. forge: what the host is, to be told of
    commits' jobs. status_token: name of the secret that may do that; without it nobody is told.
    api: its API's address, where that is not the forge's usual one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    token: str | None = Field(None, pattern=_NAME)
    username: str = Field("x-access-token", pattern=_USERNAME)
    ssh: bool = False
    known_hosts: tuple[Annotated[str, AfterValidator(_host_key)], ...] = ()
    forge: ForgeName | None = None
    api: Annotated[str | None, AfterValidator(_address)] = None
    status_token: str | None = Field(None, pattern=_NAME)
    ca_file: Annotated[Path | None, AfterValidator(lambda path: path and _absolute(path))] = None

    @model_validator(mode="after")
    def _is_known(self) -> Self:
        if self.status_token and self.forge is None:
            raise ValueError("status_token needs `forge`: github, gitlab or forgejo")
        return self


WebhookEvent = Literal[
    "job.queued",
    "job.starting",
    "job.running",
    "job.completed",
    "job.cancelled",
    "job.failed",
]


class WebhookEntry(BaseModel):
    """Who is told of jobs. secret: `whsec_…`, or the name of an environment variable of the
    worker's that holds such a text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: SecretStr
    secret: SecretStr
    name: str = Field("", pattern=_DOTTED, max_length=64)
    events: tuple[WebhookEvent, ...] = Field(
        ("job.completed", "job.cancelled", "job.failed"), min_length=1
    )

    @field_validator("url")
    @classmethod
    def _is_web(cls, value: SecretStr) -> SecretStr:
        try:
            _URL.validate_python(value.get_secret_value())
        except ValidationError:
            raise ValueError("has to be https://… or http://…") from None
        return value

    @field_validator("secret")
    @classmethod
    def _is_key_or_name(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if text.startswith(KEY_PREFIX) or not _VARIABLE.fullmatch(text):
            key_of(text)
        return value

    @property
    def called(self) -> str:
        """Its name, else its host; its whole URL may hold what is secret."""
        return self.name or str(_URL.validate_python(self.url.get_secret_value()).host)


class HookRule(BaseModel):
    """What pushes and pull requests of a repository make.

    repository: its URL, as it is fetched. secret: name of the secret that the forge signs with, or
    sends. secrets: what jobs may name in their job file, if secret_names have it. forks: whether
    commits of other people's repositories count too; they have no secrets.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    forge: ForgeName
    repository: str = Field(min_length=1)
    secret: str = Field(pattern=_NAME)
    events: tuple[Literal["push", "pull_request"], ...] = Field(
        ("push", "pull_request"), min_length=1
    )
    project: str | None = None
    secrets: tuple[Annotated[str, Field(pattern=_NAME)], ...] = ()
    forks: bool = False


class SecretName(BaseModel):
    """A secret that jobs may have: of trees that come so, submitted with such tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=_NAME, max_length=200)
    sources: tuple[Literal["upload", "git"], ...] = ("upload", "git")
    roles: tuple[Literal["submit", "admin"], ...] = ("submit", "admin")
    setup: bool = False
    mount: bool = False

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        is_agent = self.name == "SSH_AUTH_SOCK"
        if self.mount and not is_agent:
            raise ValueError("mount is for SSH_AUTH_SOCK alone: leave it out")
        if self.setup and is_agent:
            raise ValueError("a setup cannot have SSH_AUTH_SOCK: leave setup out")
        return self


SECRET_NAMES = tuple(
    SecretName(name=name)
    for name in ("GITHUB_TOKEN", "ANTHROPIC_API_KEY", "OPENAI_API_KEY", "SSH_AUTH_SOCK")
)


@dataclass(frozen=True, slots=True)
class Parking:
    """An entry of the pool, with nothing left to default. memory in bytes, of each member.

    image: None where members hold the environments that were used last.
    """

    name: str
    image: str | None
    network: bool
    memory: int
    cpus: float
    size: int


def bytes_of(wanted: int | float, disk: int) -> int:
    """Bytes of a `ShareOrSize` on a disk of `disk` bytes."""
    return wanted if isinstance(wanted, int) else int(disk * wanted)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _machine_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Settings(BaseSettings):
    """Durations in seconds, sizes in bytes, once read."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    data_dir: Path = Field(default_factory=lambda: user_data_path("ciworker"))
    host: Annotated[str, AfterValidator(_host)] = "127.0.0.1"
    port: int = Field(8480, ge=0, le=65535)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    public_url: Annotated[str | None, AfterValidator(_origin)] = None
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[Annotated[str, AfterValidator(_peer)], ...] = ()
    failed_token_rate: RateOrOff = Rate(30, 60)
    submit_rate: RateOrOff = Rate(600, 60)
    docker_host: str | None = None
    max_jobs: int = Field(default_factory=_cores, ge=1)
    max_memory: Size = Field(default_factory=lambda: _machine_memory() * 8 // 10)
    resync_interval: Duration = 60.0
    transfer_timeout: Duration = 60.0
    stop_grace: Duration = 10.0
    start_attempts: int = Field(3, ge=1)
    job_timeout: Duration = 15 * 60.0
    max_job_timeout: Duration = 2 * 3600.0
    job_memory: Size = 2 * 2**30
    max_job_memory: Size = Field(default_factory=lambda: _machine_memory() // 2)
    job_cpus: float = Field(2.0, gt=0)
    max_job_cpus: float = Field(default_factory=lambda: float(_cores()), gt=0)
    job_pids: int = Field(512, ge=16)
    max_setups: int = Field(2, ge=1)
    setup_timeout: Duration = 30 * 60.0
    setup_memory: Size = 4 * 2**30
    environments_size: ShareOrSize = 0.2
    workspace_size: Size = 2**30
    no_output_timeout: Annotated[Duration | None, BeforeValidator(_off)] = None
    log_limit: Size = 64 * 2**20
    max_upload: Size = 256 * 2**20
    max_unpacked: Size = 2**30
    max_members: int = Field(100_000, ge=1)
    default_image: str = "python:3.12-slim"
    pull: Literal["missing", "always", "never"] = "missing"
    allowed_images: tuple[str, ...] = ("python:*",)
    job_env: Annotated[dict[str, str], AfterValidator(_variables)] = Field(default_factory=dict)
    job_mounts: tuple[Annotated[str, AfterValidator(_mount)], ...] = ()
    git_hosts: Annotated[dict[str, GitHost], AfterValidator(_by_place)] = Field(
        default_factory=dict
    )
    git_allowed_addresses: tuple[
        Annotated[IPv4Network | IPv6Network, BeforeValidator(_network)], ...
    ] = ()
    git_folders: tuple[Annotated[Path, AfterValidator(_absolute)], ...] = ()
    git_timeout: Duration = 5 * 60.0
    max_git: Size = 2**30
    keep_jobs: Age = 30 * 86400.0
    keep_audit: Age = 365 * 86400.0
    store_size: Annotated[ShareOrSize, Field(gt=0)] = 0.2
    min_free: ShareOrSize = 2**30
    pool: Annotated[tuple[PoolEntry, ...], BeforeValidator(_tables)] = ()
    webhooks: Annotated[tuple[WebhookEntry, ...], BeforeValidator(_tables)] = ()
    hooks: Annotated[tuple[HookRule, ...], BeforeValidator(_tables)] = ()
    secrets_file: Path | None = None
    secret_names: Annotated[tuple[SecretName, ...], BeforeValidator(_names)] = SECRET_NAMES
    log_format: Literal["auto", "console", "json"] = "auto"
    instance: str | None = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if min(self.job_memory, self.max_job_memory) > self.max_memory:
            raise ValueError(
                f"max_memory ({self.max_memory} bytes) is less than one job's job_memory "
                f"({self.job_memory} bytes): no job could ever start"
            )
        return self

    @model_validator(mode="after")
    def _tls_fits(self) -> Self:
        if (self.tls_cert is None) is not (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together: set both, or none")
        if self.tls_cert is not None and self.unix_path is not None:
            raise ValueError(
                "tls_cert: a Unix socket speaks no TLS: leave it to the proxy, or set host to a "
                "name or an address"
            )
        return self

    @model_validator(mode="after")
    def _pool_fits(self) -> Self:
        names = [entry.name for entry in self.pool]
        for entry in self.parkings:
            if names.count(entry.name) > 1:
                raise ValueError(f"setting pool: two entries are called {entry.name!r}: rename one")
            if entry.memory > self.max_job_memory:
                raise ValueError(
                    f"setting pool: the memory of {entry.name!r} ({format_size(entry.memory)}) is "
                    f"more than max_job_memory ({format_size(self.max_job_memory)}): lower it"
                )
        promised = sum(entry.size * entry.memory for entry in self.parkings)
        if promised > self.max_memory:
            raise ValueError(
                f"setting pool: its members would take {format_size(promised)} together (size x "
                f"memory of all entries), more than max_memory ({format_size(self.max_memory)}): "
                "lower a size or a memory"
            )
        if self.pull == "always" and any(entry.size and entry.image for entry in self.parkings):
            raise ValueError(
                "setting pool: a parked container's image is older than its job, which `pull = "
                '"always"` forbids: set pull to missing or never, or all sizes to 0'
            )
        return self

    @model_validator(mode="after")
    def _webhooks_differ(self) -> Self:
        names = [webhook.called for webhook in self.webhooks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"setting webhooks: two are called {name!r}: give each a `name` of its own"
                )
        return self

    @model_validator(mode="after")
    def _secrets_differ(self) -> Self:
        names = [entry.name for entry in self.secret_names]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"setting secret_names: {twice} is there twice: remove one")
        return self

    @property
    def unix_path(self) -> Path | None:
        """Of the Unix socket that is listened on, instead of a port."""
        path = self.host.removeprefix(UNIX)
        return None if path == self.host else Path(path)

    @property
    def scheme(self) -> str:
        return "http" if self.tls_cert is None else "https"

    @property
    def parkings(self) -> Sequence[Parking]:
        """The entries of `pool`."""
        return [
            Parking(
                name=entry.name,
                image=None if entry.environments else entry.image or self.default_image,
                network=entry.network,
                memory=entry.memory or self.job_memory,
                cpus=entry.cpus or self.job_cpus,
                size=entry.size,
            )
            for entry in self.pool
        ]

    @property
    def images(self) -> tuple[str, ...]:
        """Patterns of the images that jobs may name; the default one is always among them."""
        return (*self.allowed_images, self.default_image)

    @property
    def database(self) -> Path:
        return self.data_dir / "ciworker.db"

    @property
    def spool(self) -> Path:
        """The folder of the stored workspaces."""
        return self.data_dir / "spool"

    def spool_file(self, job_id: str) -> Path:
        return self.spool / f"{job_id}.tar.zst"

    @property
    def fetches(self) -> Path:
        """The folder of what git fetches right now; whatever lies there at a start is left over."""
        return self.data_dir / "fetches"

    @property
    def secrets_key(self) -> Path:
        """The file with which the worker knows a secret again, without having stored it."""
        return self.data_dir / "secrets.key"

    @property
    def admin_token(self) -> Path:
        """The file that holds the first token's text, for clients on this machine."""
        return self.data_dir / "admin.token"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = cls.model_config.get("toml_file")
        sources = (init_settings, env_settings)
        return (*sources, TomlConfigSettingsSource(settings_cls)) if file else sources


def load(config: Path | None = None, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings.

    Args:
        config: a TOML file whose top-level keys are settings.
        environ: where mistyped names are looked for; the values come from the process's own.

    Raises:
        ValueError: one sentence a line, each naming the setting and what is wrong with it.
    """
    _refuse_unknown_names(environ)
    chosen = Settings if config is None else _with_file(config)
    try:
        return chosen()
    except ValidationError as error:
        raise ValueError("\n".join(_sentence(item) for item in error.errors())) from error
    except SettingsError as error:
        raise ValueError(_not_json(str(error))) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is not valid TOML: {error}") from error


def _with_file(config: Path) -> type[Settings]:
    if not config.is_file():
        raise ValueError(f"there is no settings file {config}")

    class FromFile(Settings):
        model_config = SettingsConfigDict(toml_file=config)

    return FromFile


def _refuse_unknown_names(environ: Mapping[str, str]) -> None:
    known = [PREFIX + name.upper() for name in Settings.model_fields]
    for name in environ:
        if name.upper().startswith(PREFIX) and name.upper() not in known:
            raise ValueError(f"unknown setting {name} in the environment{_nearest(name, known)}")


def _nearest(name: str, known: list[str]) -> str:
    spelled = {key.lower(): key for key in known}
    near = difflib.get_close_matches(name.lower(), spelled, n=1)
    return f": did you mean {spelled[near[0]]}?" if near else ": see the README's table of settings"


def _not_json(message: str) -> str:
    """pydantic-settings names the field in its message and nowhere else."""
    field = re.search(r'field "(\w+)"', message)
    if field is None:
        return message
    forms = {
        "job_env": '{"KEY": "value"}',
        "pool": '[{"name": "tea", "size": 2}]',
        "hooks": '[{"forge": "github", "repository": "https://…", "secret": "NAME"}]',
        "git_hosts": '{"github.com": {"token": "GITHUB_TOKEN"}}',
        "webhooks": '[{"url": "https://example.org/hook", "secret": "NAME"}]',
        "secret_names": '["TOKEN", {"name": "KEY", "setup": true}]',
    }
    form = forms.get(field[1], '["a", "b"]')
    return f"setting {field[1]}: has to be JSON in the environment, such as {form}"


_ENTRIES: Mapping[str, type[BaseModel]] = {
    "pool": PoolEntry,
    "webhooks": WebhookEntry,
    "hooks": HookRule,
    "git_hosts": GitHost,
    "secret_names": SecretName,
}


_PATTERNS = {
    _LABEL: "small letters, digits and -",
    _DOTTED: "small letters, digits, . and -",
    _NAME: "letters, digits and _, with no digit first",
    _USERNAME: "letters, digits and _.@+-",
}
_WHOLE = "a whole number"
_NUMBER = "a number"
_FLAG = "true or false"
_TEXT = "text"
_TABLE = "a table"
_LIST = "a list"

# By pydantic's type of error, with what its context has: https://docs.pydantic.dev/latest/errors/
_HAS_TO_BE = {
    "int_parsing": _WHOLE,
    "int_type": _WHOLE,
    "int_from_float": _WHOLE,
    "float_parsing": _NUMBER,
    "float_type": _NUMBER,
    "bool_parsing": _FLAG,
    "bool_type": _FLAG,
    "string_type": _TEXT,
    "path_type": "a path",
    "dict_type": _TABLE,
    "model_type": _TABLE,
    "model_attributes_type": _TABLE,
    "tuple_type": _LIST,
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le:.0f}",
    "literal_error": "{expected}",
    "string_pattern_mismatch": "made of {pattern}",
    "string_too_long": "at most {max_length} characters long",
    "string_too_short": "{min_length} or more characters long",
    "too_short": "a list of {min_length} or more entries",
}


def _plainly(item: Any) -> str:
    if item["type"] == "missing":
        return "is missing: add it"
    if form := _HAS_TO_BE.get(item["type"]):
        told = dict(item.get("ctx", {}))
        if pattern := told.get("pattern"):
            told["pattern"] = _PATTERNS[pattern]
        return "has to be " + form.format_map(told)
    return str(item["msg"]).removeprefix("Value error, ")


def _sentence(item: Any) -> str:  # pydantic's ErrorDetails, a TypedDict of its core
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = _ENTRIES[item["loc"][0]] if len(item["loc"]) > 1 else Settings
        return f"unknown setting {name}{_nearest(str(item['loc'][-1]), list(known.model_fields))}"
    message = _plainly(item)
    return f"setting {name}: {message}" if name else message
