"""What the operator can set: environment (`CIWORKER_…`), else a TOML file, else the default."""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from ciworker.units import format_size, parse_duration, parse_size

PREFIX = "CIWORKER_"
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_URL = TypeAdapter(HttpUrl)


def _variables(value: dict[str, str]) -> dict[str, str]:
    for name, text in value.items():
        if not _VARIABLE.fullmatch(name) or "\0" in text:
            raise ValueError(
                f"{name!r} is no name of an environment variable, or its value has NUL"
            )
    return value


def _off(value: object) -> object:
    return None if value == "off" else value


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


def _age(value: object) -> float:
    """A duration that may also be in days, such as `30d`."""
    if not isinstance(value, str) or not value.lower().endswith("d"):
        return parse_duration(value)
    try:
        return parse_duration(f"{value[:-1]}h") * 24
    except ValueError:
        raise ValueError(f"{value!r} is no duration: write 12h or 30d") from None


def _mount(value: str) -> str:
    source, _, rest = value.partition(":")
    target, _, mode = rest.partition(":")
    if not (source.startswith("/") and target.startswith("/") and mode == "ro"):
        raise ValueError(f"{value!r} has to be SOURCE:TARGET:ro, both paths absolute")
    return value


def _tables(value: object) -> object:
    if isinstance(value, dict):
        raise ValueError("has to be a list of tables: write [[pool]] above each")
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


CENTURY = 36_500 * 86400.0  # seconds; of some thousand years no instant could be reckoned

Duration = Annotated[float, BeforeValidator(parse_duration), Field(gt=0, le=CENTURY)]
Age = Annotated[float, BeforeValidator(_age), Field(gt=0, le=CENTURY)]
Size = Annotated[int, BeforeValidator(parse_size), Field(gt=0)]
ShareOrSize = Annotated[int | float, BeforeValidator(_share_or_size)]


class PoolEntry(BaseModel):
    """Containers that are kept parked, all alike. What is left out is the settings' default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=r"^[a-z0-9-]+$", max_length=32)
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
    host: str = "127.0.0.1"
    port: int = Field(8480, ge=0, le=65535)
    public_url: Annotated[str | None, AfterValidator(_origin)] = None
    allowed_hosts: tuple[str, ...] = ()
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
    keep_jobs: Age = 30 * 86400.0
    store_size: Annotated[ShareOrSize, Field(gt=0)] = 0.2
    min_free: ShareOrSize = 2**30
    pool: Annotated[tuple[PoolEntry, ...], BeforeValidator(_tables)] = ()
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
    forms = {"job_env": '{"KEY": "value"}', "pool": '[{"name": "tea", "size": 2}]'}
    form = forms.get(field[1], '["a", "b"]')
    return f"setting {field[1]}: has to be JSON in the environment, such as {form}"


def _sentence(item: Any) -> str:  # pydantic's ErrorDetails, a TypedDict of its core
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        known = Settings if len(item["loc"]) == 1 else PoolEntry
        return f"unknown setting {name}{_nearest(str(item['loc'][-1]), list(known.model_fields))}"
    message = item["msg"].removeprefix("Value error, ")
    return f"setting {name}: {message}" if name else message
