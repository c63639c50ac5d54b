"""The engine port without Docker: real processes in namespaces of their own.

Nothing is scripted. A container here is a process with its own PID, mount, IPC and (without
`network`) network namespace, so it has real exit codes, signals, pipes and a real, empty
`/workspace`; `kill -1` inside reaches only what is inside. What the engine does around it is
kept as measured on Docker 20.10 (engine-facts); `test_contract.py` holds both to the same tests.

Kept: names and states; StdinOnce; attach before start; a reader of attach that stalls blocks the
writes and, once the process is gone, every call but `list`; a log with 16 KiB frames and U+FFFD;
a follow that loses the last line without newline; `kill`, `oom`, `die`, `start`, `destroy`
with replay of the last 256 events; that the network is made when it is missing, and that who was on
one that is gone cannot start again; which images are kept, under which names and labels, and what
keeps them; limits as figures. Not kept: that limits bite, an image's files, the read-only root and
what `installs` changes about it and its user, rotation of the log.

Faults are switched on by the knobs of `FakeEngine`: `fail`, `hold`, `crash`, `boot`, `restart`,
`oom`, `cut_events`, `events_paused`, `drop_events`, `call_timeout`, `images_by_name`, `registry`,
`networks`.
"""

import asyncio
import codecs
import contextlib
import json
import os
import signal as signals
import sys
import tempfile
import time
import uuid
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from ciworker.domain.container import (
    LABEL_INSTANCE,
    LABEL_KIND,
    LABEL_SPEC,
    Container,
    State,
    owner_of,
)
from ciworker.domain.log import FRAME, LogFrame, Stream
from ciworker.engine import network
from ciworker.engine.port import (
    KIND_IMAGE,
    LABEL_NAME,
    ContainerSpec,
    EngineInfo,
    Event,
    Image,
)
from ciworker.errors import (
    ContainerMissing,
    EngineRefused,
    EngineUnavailable,
    ImageInUse,
    ImageMissing,
    NameTaken,
)

REPLAY = 256  # events of all kinds that the engine remembers: engine-facts, rule 1
BUFFER = 64 * 1024  # bytes that a connection holds before a write blocks
BATCH = 256
UID = 1000
FOREIGN = "foreign"
BASE_BYTES = 300 * 10**6  # of an image that was not committed
LAYER_BYTES = 5 * 10**6  # of what a commit adds
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/",
}
_INIT = Path(__file__).with_name("container_init.py")


def _each_byte(error: UnicodeError) -> tuple[str, int]:
    """U+FFFD for every bad byte, as Go does it; Python's own handler gives fewer."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("fake-engine-each-byte", _each_byte)


class Changes:
    """Wakes all who wait at each change. Taken before looking, `next` misses none."""

    def __init__(self) -> None:
        self.next = asyncio.Event()

    def tell(self) -> None:
        self.next.set()
        self.next = asyncio.Event()


class LogCopier:
    """Cuts one stream into entries as docker's json-file driver does."""

    def __init__(self, stream: Stream, log: list[LogFrame]) -> None:
        self._stream = stream
        self._log = log
        self._rest = b""

    def feed(self, data: bytes) -> None:
        data = self._rest + data
        start = 0
        while True:
            end = data.find(b"\n", start, start + FRAME) + 1
            if not end and len(data) - start >= FRAME:
                end = start + FRAME
            if not end:
                break
            self._write(data[start:end])
            start = end
        self._rest = data[start:]

    def finish(self) -> None:
        if self._rest:
            self._write(self._rest)
            self._rest = b""

    def _write(self, data: bytes) -> None:
        text = data.decode("utf-8", "fake-engine-each-byte")
        self._log.append(LogFrame(self._stream, time.time_ns() // 10**6, text.encode()))


@dataclass(eq=False)
class Box:
    """One fake container."""

    id: str
    spec: ContainerSpec
    image: Image
    created_at: datetime
    state: State = State.CREATED
    exit_code: int = 0
    oom_killed: bool = False
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: str = ""
    log: list[LogFrame] = field(default_factory=list)
    attachments: list["FakeAttachment"] = field(default_factory=list)
    stdin: bytearray = field(default_factory=bytearray)
    stdin_ended: bool = False
    changes: Changes = field(default_factory=Changes)
    process: asyncio.subprocess.Process | None = None
    network: str = ""  # id of the one that it was on
    init: int | None = None  # a pidfd
    launch: asyncio.Task[None] | None = None
    life: asyncio.Task[None] | None = None

    @property
    def stuck(self) -> bool:
        """The process is gone, but its output is not read: the engine holds its lock."""
        return self.state.up and self.process is not None and self.process.returncode is not None

    @property
    def labels(self) -> Mapping[str, str]:
        return {**self.image.labels, **self.spec.labels}

    def send(self, signum: int) -> None:
        if self.init is None or self.process is None:
            return
        if signum == signals.SIGKILL:  # to unshare, whose exit code is ours; init dies with it
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                signals.pidfd_send_signal(self.init, signum)

    def snapshot(self) -> Container:
        changed = self.finished_at if self.state.down else self.started_at or self.created_at
        return replace(
            self.listed(),
            exit_code=self.exit_code if self.state.down else None,
            oom_killed=self.oom_killed,
            changed_at=changed,
            started_at=self.started_at,
            finished_at=self.finished_at,
            error=self.error,
            memory=self.spec.memory,
            cpus=self.spec.cpus,
        )

    def listed(self) -> Container:
        job, attempt = owner_of(self.labels, self.spec.name)
        return Container(
            id=self.id,
            name=self.spec.name,
            state=self.state,
            job=job,
            attempt=attempt,
            image=self.image.id,
            instance=self.labels.get(LABEL_INSTANCE, ""),
            kind=self.labels.get(LABEL_KIND, ""),
            spec=self.labels.get(LABEL_SPEC, ""),
        )


class FakeAttachment:
    """Implements `ciworker.engine.port.Attachment`."""

    def __init__(self, engine: "FakeEngine", box: Box) -> None:
        self._engine = engine
        self._box = box
        self._output: deque[tuple[Stream, bytes]] = deque()
        self._held = 0
        self._changes = Changes()
        self._closed = False
        self._ended = False
        self._broken: EngineUnavailable | None = None

    @property
    def open(self) -> bool:
        return not (self._closed or self._ended)

    async def write(self, data: bytes) -> None:
        async with self._engine.call("write", self._box.spec.name):
            self._assert_open()
            self._box.stdin += data
            self._box.changes.tell()
            while len(self._box.stdin) > BUFFER and not self._ended:
                await self._box.changes.next.wait()
                self._assert_open()

    async def read(self) -> tuple[Stream, bytes] | None:
        async with self._engine.call("read", self._box.spec.name):
            while not self._output:
                if self._broken:
                    raise self._broken
                if self._ended or self._closed:
                    return None
                await self._changes.next.wait()
            stream, data = self._output.popleft()
            self._held -= len(data)
            self._changes.tell()
            return stream, data

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._changes.tell()
        if self in self._box.attachments:
            self._box.attachments.remove(self)
            self._box.stdin_ended = True  # StdinOnce
        self._box.changes.tell()

    async def cut(self) -> None:
        """Break the connection, as a proxy would; the container runs on."""
        self._broken = EngineUnavailable("the connection to the container broke")
        await self.close()

    async def put(self, stream: Stream, data: bytes) -> None:
        while self._held >= BUFFER and not self._closed:
            await self._changes.next.wait()
        if not self._closed:
            self._output.append((stream, data))
            self._held += len(data)
            self._changes.tell()

    def end(self) -> None:
        self._ended = True
        self._changes.tell()
        self._box.changes.tell()

    def _assert_open(self) -> None:
        if self._closed or self._ended:
            raise EngineUnavailable("the connection to the container broke")


class Fault(NamedTuple):
    error: Exception
    after: bool


class FakeEngine:
    """Implements `ciworker.engine.port.Engine`; close it with `aclose` or `async with`.

    Attributes:
        images_by_name: what `image` and `create` find, with what was committed; `pull` adds
            those of `registry`.
        call_timeout: seconds after which a call on a stuck container gives up.
        calls: every call with the container or image it was about, in order.
        events_paused: the event streams stay open and silent; what was held back comes after.
        now, ahead: its clock, as far as containers are concerned.
        networks: ids by name; `foreign` is the id of one that somebody else made.
        drop_events: events for which it is true never reach a stream that is open; a new
            one may have them replayed.
    """

    def __init__(self, instance: str = "fake", images: Iterable[str] = ("fake",)) -> None:
        self.images_by_name = {name: _base_image(name) for name in images}
        self.registry: set[str] = set()
        self.call_timeout = 10.0
        self.calls: list[tuple[str, str]] = []
        self.drop_events: Callable[[Event], bool] = lambda _event: False
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        self.ahead = 0.0
        self.networks: dict[str, str] = {}
        self._instance = instance
        self._boxes: dict[str, Box] = {}
        self._committed: dict[str, Image] = {}  # by id, with or without a name
        self._parents: dict[str, str] = {}  # of those
        self._ended: list[asyncio.Task[None]] = []
        self._replay: deque[tuple[Box, Event]] = deque(maxlen=REPLAY)
        self._streams: list[asyncio.Queue[Event | EngineUnavailable]] = []
        self._paused: list[Event] | None = None
        self._last_event = 0
        self._down = False
        self._faults: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._gates: dict[str, asyncio.Event] = {}
        self._root = tempfile.TemporaryDirectory(prefix="fake-engine-")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Kill all that was started and wait for its end; open streams end."""
        self._down = True
        self._break_streams()
        for box in self._boxes.values():
            await self._detach(box)
        starts = [box.launch for box in self._boxes.values() if box.launch]
        await asyncio.gather(*starts, return_exceptions=True)
        for box in self._boxes.values():
            box.send(signals.SIGKILL)
        lives = [box.life for box in self._boxes.values() if box.life]
        await asyncio.gather(*lives, *self._ended)
        self._root.cleanup()

    # -- knobs ---------------------------------------------------------------------------------

    def fail(self, call: str, error: Exception, times: int = 1, *, after: bool = False) -> None:
        """The next `times` calls of this name raise `error`.

        `call` is a method of the port, or `read`, `write` of an attachment. With `after` the
        call is carried out first: the answer is what got lost.
        """
        self._faults[call].extend([Fault(error, after)] * times)

    def hold(self, call: str) -> asyncio.Event:
        """Calls of this name wait until the event that is returned is set."""
        self._gates[call] = asyncio.Event()
        return self._gates[call]

    def cut_events(self) -> None:
        """Every open event stream ends with EngineUnavailable."""
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.put_nowait(EngineUnavailable("the engine closed its event stream"))

    @property
    def events_paused(self) -> bool:
        return self._paused is not None

    @events_paused.setter
    def events_paused(self, paused: bool) -> None:
        held, self._paused = self._paused or [], [] if paused else None
        for event in held:
            self._deliver(event)

    async def crash(self, *, live_restore: bool = False) -> None:
        """The daemon is gone: streams break, calls fail, and the containers die unseen.

        With `live_restore` they run on, and one that ends meanwhile gives no event either.
        """
        self._down = True
        self._replay.clear()
        self._break_streams()
        for box in self._boxes.values():
            await self._detach(box)
            if box.state.up and not live_restore:
                box.send(signals.SIGKILL)
                await self._finished(box)
            box.changes.tell()

    def boot(self) -> None:
        """The daemon is back, with an empty memory of events."""
        self._down = False

    async def restart(self, *, live_restore: bool = False) -> None:
        await self.crash(live_restore=live_restore)
        self.boot()

    async def oom(self, container: str, *, whole: bool = True) -> None:
        """The kernel's memory limit strikes: the whole container, or one child of it."""
        box = self._box(container)
        box.oom_killed = True
        self._emit("oom", box)
        if whole:
            box.send(signals.SIGKILL)
            await self._finished(box)

    # -- the port ------------------------------------------------------------------------------

    async def ping(self) -> None:
        async with self.call("ping"):
            return

    async def info(self) -> EngineInfo:
        async with self.call("info"):
            return EngineInfo("fake", time.time())

    async def image(self, name: str) -> Image | None:
        async with self.call("image", name):
            return self._image(name)

    async def pull(self, name: str) -> None:
        async with self.call("pull", name):
            if name not in self.registry:
                raise ImageMissing(f"image {name!r} could not be pulled: not in the registry")
            self.images_by_name[name] = _base_image(name)

    async def commit(self, container: str, name: str, labels: Mapping[str, str]) -> str:
        async with self.call("commit", container):
            box = self._box(container)
            own = {LABEL_INSTANCE: self._instance, LABEL_KIND: KIND_IMAGE, LABEL_NAME: name}
            image = Image(
                id=f"sha256:{uuid.uuid4().hex * 2}",
                volumes=box.image.volumes,
                size=box.image.size + LAYER_BYTES,
                labels={**box.labels, **labels, **own},
            )
            self._committed[image.id] = self.images_by_name[name] = image
            self._parents[image.id] = box.image.id
            return image.id

    async def images(self, labels: Mapping[str, str]) -> Sequence[Image]:
        async with self.call("images"):
            wanted = {**labels, LABEL_INSTANCE: self._instance, LABEL_KIND: KIND_IMAGE}
            found = [self._named(image) for image in self._committed.values()]
            return [
                replace(image, volumes=())
                for image in found
                if wanted.items() <= image.labels.items() and self._is_told(image)
            ]

    async def remove_image(self, image: str) -> None:
        async with self.call("remove_image", image):
            found = self._image(image)
            if found is None:
                return
            by_name = image in self.images_by_name
            if reason := self._keeps(found, by_name=by_name):
                raise ImageInUse(f"image {image} stays, remove what uses it first: {reason}")
            for name in [image] if by_name else found.names:
                del self.images_by_name[name]
            if not by_name or (len(found.names) == 1 and not self._has_children(found)):
                self._committed.pop(found.id, None)
                self._parents.pop(found.id, None)

    async def create(self, spec: ContainerSpec) -> str:
        async with self.call("create", spec.name):
            if any(box.spec.name == spec.name for box in self._boxes.values()):
                raise NameTaken(f"the name {spec.name!r} is in use")
            image = self._image(spec.image)
            if image is None:
                raise ImageMissing(f"No such image: {spec.image}")
            if spec.network:
                self._network()
            box = Box(uuid.uuid4().hex * 2, spec, image, self.now())
            self._boxes[box.id] = box
            self._emit("create", box)
            return box.id

    async def attach(self, container: str) -> FakeAttachment:
        async with self.call("attach", container):
            box = self._box(container)
            attachment = FakeAttachment(self, box)
            box.attachments.append(attachment)
            return attachment

    async def hang_up(self) -> None:
        """The process that attached is gone, and its connections with it."""
        for box in self._boxes.values():
            for attachment in list(box.attachments):
                await attachment.close()

    async def start(self, container: str) -> None:
        async with self.call("start", container):
            box = self._box(container)
            if box.state.up:
                return
            if box.spec.network:
                self._connect(box)
            if box.launch is None:
                box.launch = asyncio.create_task(self._launch(box), name=f"start {box.spec.name}")
            await asyncio.shield(box.launch)  # a caller that goes away does not stop the engine

    async def rename(self, container: str, name: str) -> None:
        async with self.call("rename", container):
            box = self._box(container)
            if self._find(name) is not None:
                raise NameTaken(f"the name {name!r} is in use")
            box.spec = replace(box.spec, name=name)

    async def update(self, container: str, memory: int, cpus: float) -> None:
        async with self.call("update", container):
            box = self._box(container)
            box.spec = replace(box.spec, memory=memory, cpus=cpus)

    async def signal(self, container: str, signum: int) -> None:
        async with self.call("signal", container):
            box = self._find(container)
            if box is None or not box.state.up:
                return
            await self._unstuck(box)
            if not box.state.up:
                return
            self._emit("kill", box, signum)
            box.send(signum)
            if signum == signals.SIGKILL:
                await self._finished(box)

    async def remove(self, container: str) -> bool:
        async with self.call("remove", container):
            box = self._find(container)
            if box is None:
                return False
            if box.state.up:
                await self._unstuck(box)
            if box.state.up:
                self._emit("kill", box, signals.SIGKILL)
                box.send(signals.SIGKILL)
                await self._finished(box)
            if self._boxes.pop(box.id, None) is None:
                return False  # another call was quicker
            await self._detach(box)
            if box.life:
                self._ended.append(box.life)
            self._emit("destroy", box)
            return True

    async def inspect(self, container: str) -> Container | None:
        async with self.call("inspect", container):
            box = self._find(container)
            if box is None:
                return None
            await self._unstuck(box)
            return box.snapshot()

    async def list(self) -> Sequence[Container]:
        async with self.call("list"):
            return [box.listed() for box in self._boxes.values() if self._owned(box)]

    async def log(self, container: str, *, follow: bool) -> AsyncGenerator[Sequence[LogFrame]]:
        async with self.call("log", container):
            box = self._box(container)
            await self._unstuck(box)
        sent, live = 0, follow and box.state.up
        while True:
            change, up, end = box.changes.next, box.state.up, len(box.log)
            if live and not up and not _whole(box.log):
                end -= 1  # engine-facts, rule 8
            if frames := box.log[sent : min(sent + BATCH, end)]:
                sent += len(frames)
                yield frames
            elif not live or not up:
                return
            elif self._down:
                raise EngineUnavailable("the fake engine is down")
            else:
                await change.wait()

    async def restarted_since(self, event: Event) -> bool:
        async with self.call("restarted_since"):
            if any(known == event for _, known in self._replay):
                return False
            return len(self._replay) < REPLAY

    async def events(self, since: str) -> AsyncGenerator[Event | None]:
        async with self.call("events"):
            stream: asyncio.Queue[Event | EngineUnavailable] = asyncio.Queue()
            seconds, _, fraction = since.partition(".")
            first = int(seconds) * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)
            for box, event in self._replay:
                if self._owned(box) and event.at >= first and event.action != "create":
                    stream.put_nowait(event)
            self._streams.append(stream)
        try:
            yield None
            while not isinstance(item := await stream.get(), EngineUnavailable):
                yield item
            raise item
        finally:
            with contextlib.suppress(ValueError):
                self._streams.remove(stream)

    @contextlib.asynccontextmanager
    async def call(self, name: str, about: str = "") -> AsyncIterator[None]:
        """Around every call: counts it, holds it back, makes it fail."""
        self.calls.append((name, about))
        if gate := self._gates.get(name):
            await gate.wait()
        if self._down and name not in ("read", "write"):
            raise EngineUnavailable("the fake engine is down")
        fault = self._faults[name].popleft() if self._faults[name] else None
        if fault and not fault.after:
            raise fault.error
        yield
        if fault:
            raise fault.error

    # -- inside --------------------------------------------------------------------------------

    def _owned(self, box: Box) -> bool:
        ours = box.labels.get(LABEL_INSTANCE) == self._instance
        return ours and box.labels.get(LABEL_KIND) != KIND_IMAGE

    def _image(self, image: str) -> Image | None:
        by_id = {known.id: known for known in self.images_by_name.values()}
        found = self.images_by_name.get(image) or (self._committed | by_id).get(image)
        return self._named(found) if found else None

    def _named(self, image: Image) -> Image:
        names = [name for name, known in self.images_by_name.items() if known.id == image.id]
        return replace(image, names=tuple(names))

    def _is_told(self, image: Image) -> bool:
        if image.names:
            return image.labels.get(LABEL_NAME) in image.names
        return not self._has_children(image)

    def _has_children(self, image: Image) -> bool:
        return image.id in self._parents.values()

    def _keeps(self, image: Image, *, by_name: bool) -> str | None:
        """What is in the way of removing it."""
        if len(image.names) > 1:
            return None if by_name else "image is referenced in multiple repositories"
        for box in self._boxes.values():
            if box.image.id == image.id:
                state = "running" if box.state.up else "stopped"
                return f"image is being used by {state} container {box.id[:12]}"
        if self._has_children(image) and not by_name:
            return "image has dependent child images"
        return None

    def _network(self) -> str:
        """The id of our network, made if it is missing."""
        found = self.networks.setdefault(network.NAME, uuid.uuid4().hex)
        if found == FOREIGN:
            raise EngineRefused(f"the network {network.NAME!r} is not as the worker makes it")
        return found

    def _connect(self, box: Box) -> None:
        now = self._network()
        if box.network not in ("", now):
            raise EngineRefused(f"it cannot be started again: network {box.network} not found")
        box.network = now

    def _find(self, container: str) -> Box | None:
        named = (box for box in self._boxes.values() if box.spec.name == container)
        return self._boxes.get(container) or next(named, None)

    def _box(self, container: str) -> Box:
        if box := self._find(container):
            return box
        raise ContainerMissing(f"No such container: {container}")

    async def _launch(self, box: Box) -> None:
        try:
            await self._spawn(box)
        finally:
            box.launch = None

    async def _spawn(self, box: Box) -> None:
        process = await asyncio.create_subprocess_exec(
            *self._command(box.spec),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout
        said = (await process.stdout.readline()).decode().strip()
        word, _, rest = said.partition(" ")
        if word != "ready":
            _, noise = await process.communicate()
            box.error = rest or noise.decode(errors="replace").strip()
            raise EngineRefused(box.error)
        box.init, box.process = _pidfd(int(rest)), process
        box.state, box.started_at, box.finished_at = State.RUNNING, self.now(), None
        box.oom_killed = False
        box.life = asyncio.create_task(self._live(box, process), name=f"life of {box.spec.name}")
        self._emit("start", box)
        box.changes.tell()

    def _command(self, spec: ContainerSpec) -> Sequence[str]:
        root = os.geteuid() == 0
        config = {
            "root": self._root.name,
            "uid": UID if root else 0,  # without root: the only one that a user namespace maps
            "workspace_size": spec.workspace_size,
            "volumes": list(spec.volumes),
            "mounts": list(spec.mounts),
            "environment": {**ENVIRONMENT, "HOSTNAME": spec.name},
        }
        isolation = ["--mount", "--pid", "--ipc", "--fork", "--kill-child"]
        isolation += [] if root else ["--user", "--map-root-user"]
        isolation += [] if spec.network else ["--net"]
        init = [sys.executable, "-I", "-S", str(_INIT), json.dumps(config)]
        return ["setpriv", "--pdeathsig", "KILL", "unshare", *isolation, *init, *spec.command]

    async def _live(self, box: Box, process: asyncio.subprocess.Process) -> None:
        """One life: until the process is gone and all it wrote is read."""
        assert process.stdout
        assert process.stderr
        async with asyncio.TaskGroup() as tasks:
            writer = tasks.create_task(self._feed(box, process))
            readers = [
                tasks.create_task(self._copy(box, Stream.STDOUT, process.stdout)),
                tasks.create_task(self._copy(box, Stream.STDERR, process.stderr)),
            ]
            await asyncio.wait(readers)
            code = await process.wait()
            writer.cancel()
        if box.init is not None:
            os.close(box.init)
            box.init = None
        box.state, box.finished_at = State.EXITED, self.now()
        box.exit_code = code if code >= 0 else 128 - code
        box.stdin_ended = False  # it may be started again
        self._emit("die", box)
        await self._detach(box)
        box.changes.tell()

    async def _copy(self, box: Box, stream: Stream, source: asyncio.StreamReader) -> None:
        copier = LogCopier(stream, box.log)
        while data := await source.read(BUFFER):
            copier.feed(data)
            box.changes.tell()
            for attachment in tuple(box.attachments):
                await attachment.put(stream, data)
        copier.finish()

    async def _feed(self, box: Box, process: asyncio.subprocess.Process) -> None:
        assert process.stdin
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while True:
                change = box.changes.next
                if box.stdin:
                    data = bytes(box.stdin)
                    process.stdin.write(data)
                    await process.stdin.drain()
                    del box.stdin[: len(data)]
                    box.changes.tell()
                elif box.stdin_ended:
                    process.stdin.close()
                    return
                else:
                    await change.wait()

    async def _detach(self, box: Box) -> None:
        for attachment in box.attachments:
            attachment.end()
            if self._down:
                await attachment.close()
        box.attachments = []
        box.stdin.clear()
        box.changes.tell()

    async def _finished(self, box: Box) -> None:
        """As the engine does it: a kill answers when the container is down."""
        try:
            async with asyncio.timeout(self.call_timeout):
                while box.state.up:
                    await box.changes.next.wait()
        except TimeoutError as error:
            raise EngineUnavailable("the fake engine did not answer in time") from error

    async def _unstuck(self, box: Box) -> None:
        if box.stuck:
            await self._finished(box)

    def _emit(self, action: str, box: Box, signum: int | None = None) -> None:
        if self._down:
            return
        self._last_event = max(self._last_event + 1, time.time_ns())
        told = box.snapshot()
        member = told.name if told.parked else ""
        event = Event(action, box.id, told.job, told.attempt, self._last_event, signum, member)
        self._replay.append((box, event))
        if not self._owned(box) or action == "create":
            return
        if self._paused is not None:
            self._paused.append(event)
        else:
            self._deliver(event)

    def _deliver(self, event: Event) -> None:
        if not self.drop_events(event):
            for stream in self._streams:
                stream.put_nowait(event)

    def _break_streams(self) -> None:
        self._paused = None
        self.cut_events()


def _pidfd(pid: int) -> int | None:
    """None where the process has ended already."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


class FakeNetworks:
    """Implements `tests.engine.lab.Networks`."""

    def __init__(self, engine: FakeEngine) -> None:
        self._known = engine.networks

    async def exists(self) -> bool:
        return network.NAME in self._known

    async def remove(self) -> None:
        del self._known[network.NAME]

    async def make_another(self) -> None:
        self._known[network.NAME] = FOREIGN


def _base_image(name: str) -> Image:
    return Image(f"sha256:{name}", size=BASE_BYTES)


def _whole(log: Sequence[LogFrame]) -> bool:
    return not log or log[-1].data.endswith(b"\n")
