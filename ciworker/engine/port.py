"""What the worker asks of a container engine.

The lifecycle is create, attach, start, (signal), remove. Every call is one step that may be
repeated after a crash: `create` of a name that exists raises NameTaken, `start` of a started
container and `remove` of a missing one do nothing. Events are hints; the truth is `inspect`.

All calls but the streams are bounded in time. They raise EngineUnavailable where the engine does
not answer (try again) and EngineRefused where it says no (final).
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ciworker.domain.container import Container
from ciworker.domain.log import LogFrame, Stream

KIND_IMAGE = "environment"  # the kind of every image we made, and of whatever inherits its labels
LABEL_NAME = "ciworker.image"  # of an image: the name it was made under


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """What is wanted of a container, fixed at its creation.

    memory, workspace_size, log_max_size in bytes; mounts as `source:target:ro`; volumes are the
    paths that the image declares and that have to be covered. installs: it is root and may write
    to its file system, as far as the installation of packages needs that.
    """

    name: str
    image: str
    command: Sequence[str]
    labels: Mapping[str, str]
    memory: int
    cpus: float
    pids: int
    network: bool
    workspace_size: int
    log_max_size: int
    mounts: Sequence[str] = ()
    volumes: Sequence[str] = ()
    installs: bool = False


@dataclass(frozen=True, slots=True)
class Image:
    """An image that the engine has. size: bytes, with the layers that it shares with others.

    volumes: paths that it declares. names: its tags, as `repository:tag`; none where others have
    taken them over.
    """

    id: str
    volumes: Sequence[str] = ()
    size: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    names: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the engine's event stream, about a container of ours.

    at: nanoseconds since the epoch, the engine's clock. signal: of a `kill`. member: the name of
    a pool's member that no job has taken.
    """

    action: str
    container: str
    job: str
    attempt: int
    at: int
    signal: int | None = None
    member: str = ""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the engine says of itself. now: its clock, in seconds since the epoch."""

    version: str
    now: float
    details: Mapping[str, object] = field(default_factory=dict)


class Attachment(Protocol):
    """The three standard streams of one container, on one connection.

    A reader that stalls blocks the container's control: whoever holds one reads it or closes it.
    """

    @property
    def open(self) -> bool:
        """False once it was closed, or its end is known here."""

    async def write(self, data: bytes) -> None:
        """Write to stdin; returns when the connection can take more."""

    async def read(self) -> tuple[Stream, bytes] | None:
        """What the container wrote next; None at the end of its output.

        Raises:
            EngineUnavailable: the connection broke.
        """

    async def close(self) -> None:
        """Let go of the connection; the container runs on."""


class Engine(Protocol):
    """See the module's docstring for what holds for all calls."""

    @property
    def ahead(self) -> float:
        """Seconds by which its clock is ahead of ours, as far as `info` told; 0 on one machine."""

    async def ping(self) -> None:
        """Whether the engine takes new connections, and answers at once.

        One that stops closes its door first and only then ends its containers, and meanwhile
        still answers on connections that are open (Docker 20.10.24).

        Raises:
            EngineUnavailable: it does not.
        """

    async def info(self) -> EngineInfo: ...

    async def image(self, name: str) -> Image | None: ...

    async def pull(self, name: str) -> None:
        """Raises ImageMissing with the registry's reason; it may take minutes."""

    async def commit(self, container: str, name: str, labels: Mapping[str, str]) -> str:
        """Keep a container's file system as an image; it may take minutes. The image's id.

        Mounts and tmpfs are left out. An image that had the name before loses it. Started by hand,
        the image gives a root shell; such a container is none of ours, whatever it inherits.

        Args:
            container: not up.
            name: `repository:tag`.
            labels: of the image, on top of the container's own; our instance and `KIND_IMAGE`
                are added.

        Raises:
            ContainerMissing; EngineFailed where the disk is full.
        """

    async def images(self, labels: Mapping[str, str]) -> Sequence[Image]:
        """Those that `commit` made, with all these labels; their volumes are not told.

        One that others named, or made from ours, is theirs; one that they made from an image of
        ours that lost its name hides that image until it is gone itself.
        """

    async def remove_image(self, image: str) -> None:
        """By id or name, with its last name; does nothing if it is gone.

        Raises:
            ImageInUse: a container or, as to its id, an image was made from it, or it has several
                names; the message says which.
        """

    async def create(self, spec: ContainerSpec) -> str:
        """The new container's id. With `network` it is on a network of ours, which is made if it is
        missing.

        Raises:
            NameTaken, ImageMissing; EngineRefused where a network has that name which does not keep
            its containers apart.
        """

    async def attach(self, container: str) -> Attachment:
        """Open before `start`, so that no byte is missed. Raises ContainerMissing."""

    async def start(self, container: str) -> None:
        """The network that it is on is made again if somebody removed it.

        Raises:
            EngineRefused: its command cannot be started, or it was up before on a network that is
                gone; ContainerMissing.
        """

    async def rename(self, container: str, name: str) -> None:
        """Raises NameTaken, ContainerMissing."""

    async def update(self, container: str, memory: int, cpus: float) -> None:
        """Other limits, in bytes and cores, from now on.

        Raises:
            EngineRefused: the engine or the kernel takes none of this; ContainerMissing.
        """

    async def signal(self, container: str, signum: int) -> None:
        """To the container's init; does nothing if the container is not up."""

    async def remove(self, container: str) -> bool:
        """With its anonymous volumes; kills it first if it is up.

        Whether this call removed it: False if it is gone, or another one removes it.
        """

    async def inspect(self, container: str) -> Container | None:
        """By id or name."""

    async def list(self) -> Sequence[Container]:
        """All containers that we made; without exit codes."""

    def log(self, container: str, *, follow: bool) -> AsyncGenerator[Sequence[LogFrame]]:
        """The engine's own log from its first entry, in batches.

        With `follow` it goes on while the container runs, but its end is no proof that nothing is
        missing (engine-facts, rule 8); without, on a container that is down, it is complete.

        Raises:
            ContainerMissing, EngineUnavailable; EngineRefused after the last entry that can be
            read, where the log is damaged.
        """

    async def restarted_since(self, event: Event) -> bool:
        """Whether the engine was restarted after this event, which empties what it can replay.

        No if it cannot be told, as other events have pushed this one out.
        """

    def events(self, since: str) -> AsyncGenerator[Event | None]:
        """Events of our containers from `since` (inclusive, `"seconds.nanoseconds"`).

        The first item is None: the engine has answered and the stream is open.

        Raises:
            EngineUnavailable: the stream ended or broke; it never ends otherwise.
        """


def event_time(event: Event) -> str:
    """An event's time as `since` and `until` take it, exact to the nanosecond."""
    return f"{event.at // 10**9}.{event.at % 10**9:09d}"
