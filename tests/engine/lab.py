"""What a test needs of an engine: specs, short runs, a tape of its events."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from ciworker.domain.container import (
    LABEL_ATTEMPT,
    LABEL_INSTANCE,
    LABEL_JOB,
    LABEL_KIND,
    Container,
)
from ciworker.domain.log import LogFrame, Stream
from ciworker.engine.port import Attachment, ContainerSpec, Engine, Event

PATIENCE = 20.0  # seconds after which a test fails instead of hanging


def children() -> set[int]:
    """The process ids of this process' own children, zombies too."""
    found: set[int] = set()
    for thread in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            found.update(map(int, (thread / "children").read_text().split()))
    return found


class EventTape:
    """All events since it was opened, in order."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._more = asyncio.Event()

    async def record(self, events: AsyncIterator[Event | None], opened: asyncio.Event) -> None:
        async for event in events:
            if event is None:
                opened.set()
            else:
                self.events.append(event)
                self._more.set()

    def of(self, container: str) -> list[Event]:
        return [event for event in self.events if event.container == container]

    def actions(self, container: str) -> list[str]:
        return [event.action for event in self.of(container)]

    async def until(self, action: str, container: str) -> Event:
        """The first event of this kind, now or later."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self._more.clear()
                for event in self.of(container):
                    if event.action == action:
                        return event
                await self._more.wait()


class Networks(Protocol):
    """The engine's own network of ours, as its operator handles it."""

    async def exists(self) -> bool: ...

    async def remove(self) -> None: ...

    async def make_another(self) -> None:
        """One of that name whose containers reach each other."""


@dataclass(frozen=True)
class Lab:
    """An engine and one instance label, or a second one for strangers' containers."""

    engine: Engine
    kind: str
    instance: str
    image: str
    limit_calls: Callable[[float], None]  # seconds until a call gives up
    networks: Networks

    @property
    def stranger(self) -> str:
        return f"{self.instance}-stranger"

    def spec(self, *command: str, name: str = "job", **changes: Any) -> ContainerSpec:
        spec = ContainerSpec(
            name=f"{self.instance}-{name}",
            image=self.image,
            command=command or ("true",),
            labels={
                LABEL_INSTANCE: self.instance,
                LABEL_KIND: "job",
                LABEL_JOB: "01JOB",
                LABEL_ATTEMPT: "2",
            },
            memory=256 * 2**20,
            cpus=1,
            pids=64,
            network=False,
            workspace_size=16 * 2**20,
            log_max_size=64 * 2**20,
        )
        return replace(spec, **changes)

    def script(self, text: str, **changes: Any) -> ContainerSpec:
        return self.spec("sh", "-c", text, **changes)

    async def attached(self, spec: ContainerSpec) -> tuple[str, Attachment]:
        """Created, attached, started."""
        container = await self.engine.create(spec)
        attachment = await self.engine.attach(container)
        await self.engine.start(container)
        return container, attachment

    async def run(self, spec: ContainerSpec, stdin: bytes = b"") -> tuple[str, dict[Stream, bytes]]:
        """To the end of its output, attached all the time."""
        container, attachment = await self.attached(spec)
        try:
            if stdin:
                await attachment.write(stdin)
            return container, await read_all(attachment)
        finally:
            await attachment.close()

    async def down(self, container: str) -> Container:
        """Waits until it has exited."""
        async with asyncio.timeout(PATIENCE):
            while True:
                found = await self.engine.inspect(container)
                assert found is not None
                if found.state.down:
                    return found
                await asyncio.sleep(0.02)  # events are what some of these tests are about

    def tag(self, key: str = "key") -> str:
        """The name of an image that no other test has."""
        return f"ciworker-env:{self.instance}-{key}"

    async def commit(
        self, spec: ContainerSpec, key: str = "key", labels: Mapping[str, str] | None = None
    ) -> str:
        """The id of the image that a container leaves behind; the container is gone."""
        container, _ = await self.run(spec)
        await self.down(container)
        image = await self.engine.commit(container, self.tag(key), labels or {})
        await self.engine.remove(container)
        return image

    async def log(self, container: str, *, follow: bool = False) -> list[LogFrame]:
        async with asyncio.timeout(PATIENCE):
            return [
                frame
                async for frames in self.engine.log(container, follow=follow)
                for frame in frames
            ]

    @contextlib.asynccontextmanager
    async def tape(self, since: str | None = None) -> AsyncIterator[EventTape]:
        """Records until the end of the block."""
        start = since or f"{(await self.engine.info()).now:.9f}"
        tape, opened = EventTape(), asyncio.Event()
        recorder = asyncio.create_task(tape.record(self.engine.events(start), opened))
        try:
            async with asyncio.timeout(PATIENCE):
                await opened.wait()
            yield tape
        finally:
            recorder.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await recorder


async def read_all(attachment: Attachment) -> dict[Stream, bytes]:
    output = {Stream.STDOUT: b"", Stream.STDERR: b""}
    async with asyncio.timeout(PATIENCE):
        while message := await attachment.read():
            stream, data = message
            output[stream] += data
    return output


def text_of(frames: Sequence[LogFrame], stream: Stream) -> bytes:
    return b"".join(frame.data for frame in frames if frame.stream is stream)
