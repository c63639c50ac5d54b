"""The port on a real Docker engine, by aiodocker.

Short calls must not wait behind the streams' connections (aiodocker's pool holds 100, engine-facts
rule 15), and a ping must not use a connection that is open already: so there are three clients.
aiodocker has no default timeouts, so every short call gets one here.
"""

import asyncio
import contextlib
import functools
import json
import os
import re
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import aiodocker
import aiohttp
from aiodocker.stream import Stream as DockerStream
from yarl import URL

from ciworker.domain.container import (
    KIND_POOL,
    LABEL_INSTANCE,
    LABEL_KIND,
    LABEL_SPEC,
    Container,
    State,
    number,
    owner_of,
)
from ciworker.domain.log import LogFrame, Stream
from ciworker.domain.skew import clock_ahead
from ciworker.engine import network
from ciworker.engine.output import AttachParser, FrameParser
from ciworker.engine.port import (
    KIND_IMAGE,
    LABEL_NAME,
    ContainerSpec,
    EngineInfo,
    Event,
    Image,
    event_time,
)
from ciworker.engine.sandbox import container_config, limits_config
from ciworker.errors import (
    ContainerMissing,
    EngineFailed,
    EngineRefused,
    EngineUnavailable,
    ImageInUse,
    ImageMissing,
    NameTaken,
)
from ciworker.metrics import EngineMetrics, Metrics
from ciworker.telemetry import logger

CALL_TIMEOUT = 30.0
PING_TIMEOUT = 2.0
PULL_TIMEOUT = 900.0
COMMIT_TIMEOUT = 900.0
NETWORK_TIMEOUT = 5.0  # for whoever else is about to make ours
NETWORK_PAUSE = 0.1
MOST_LINE = 4 * 2**20
EVENT_ACTIONS = ("kill", "oom", "die", "start", "destroy")
MOST_REPLAYED = 256  # events of all kinds that the engine keeps: moby's `eventsLimit`

_SOCKETS = ("/var/run/docker.sock", "/run/docker.sock")
_NO_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_read=None)
_BROKEN = (aiohttp.ClientError, OSError, EOFError, json.JSONDecodeError)
_CALLS: list[str] = []
_STREAMS = ("log", "events")
_NO_NETWORK = re.compile(r"network \S+ not found")

P = ParamSpec("P")
T = TypeVar("T")


def _measured(
    method: Callable[Concatenate["DockerEngine", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["DockerEngine", P], Coroutine[Any, Any, T]]:
    """A call whose time and errors are counted under its name."""
    name = method.__name__.removeprefix("_")
    _CALLS.append(name)

    @functools.wraps(method)
    async def measured(engine: "DockerEngine", /, *args: P.args, **kwargs: P.kwargs) -> T:
        with engine.metrics.call(name, EngineUnavailable):
            return await method(engine, *args, **kwargs)

    return measured


class _Conflict(ContainerMissing):
    """409: the container cannot take this call, as it is not running or is being removed."""


class DockerEngine:
    """Implements `ciworker.engine.port.Engine` for the containers of one instance."""

    def __init__(
        self,
        host: str | None,
        instance: str,
        metrics: EngineMetrics | None = None,
        hosts: Path | None = None,
    ) -> None:
        """Make the clients; connects at the first call.

        Args:
            host: `unix://…` or `tcp://…`; None for `DOCKER_HOST`, else the local socket.
            instance: the value of the instance label that makes a container ours.
            metrics: where calls are counted.
            hosts: the hosts file of containers without network, see `sandbox`; an engine that is
                on another machine, or not in this one's file system, is told to do without.
        """
        self.metrics = metrics or Metrics().engine
        self.metrics.know(_CALLS, _STREAMS, EVENT_ACTIONS)
        self.host = host or os.environ.get("DOCKER_HOST") or _local_socket()
        self.ahead = 0.0
        self._instance, self._hosts = instance, hosts
        self._calls = _client(self.host)
        self._streams = _client(self.host)
        self._pings = _client(self.host, force_close=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in (self._calls, self._streams, self._pings):
            await client.close()
            await client.connector.close()

    @_measured
    async def ping(self) -> None:
        with self._translated():
            async with asyncio.timeout(PING_TIMEOUT), self._pings._query("_ping"):
                pass

    @_measured
    async def info(self) -> EngineInfo:
        asked = time.time()
        answer = await self._json("info")
        now = datetime.fromisoformat(answer["SystemTime"]).timestamp()
        self.ahead = clock_ahead(now, asked, time.time(), self.ahead)
        return EngineInfo(str(answer["ServerVersion"]), now, answer)

    @_measured
    async def image(self, name: str) -> Image | None:
        try:
            answer = await self._json(f"images/{name}/json")
        except ContainerMissing:
            return None
        config = answer.get("Config") or {}
        return Image(
            id=answer["Id"],
            volumes=tuple(config.get("Volumes") or ()),
            size=answer["Size"],
            labels=config.get("Labels") or {},
            names=_names(answer),
        )

    async def pull(self, name: str) -> None:
        tagged = name if ":" in name.rpartition("/")[2] or "@" in name else f"{name}:latest"
        try:
            await self._pull(tagged)
        except (EngineRefused, EngineFailed) as error:
            raise ImageMissing(f"image {name!r} could not be pulled: {error}") from error

    @_measured
    async def _pull(self, tagged: str) -> None:
        try:
            async with asyncio.timeout(PULL_TIMEOUT):
                await self._pull_to_its_end(tagged)
        except TimeoutError as error:
            raise EngineFailed(f"it took longer than {PULL_TIMEOUT:g} s") from error

    async def _pull_to_its_end(self, tagged: str) -> None:
        with self._translated():
            async with self._streams._query(  # rule 14: its own wrappers hide errors
                "images/create", "POST", params={"fromImage": tagged}, timeout=_NO_TIMEOUT
            ) as response:
                with contextlib.closing(response):
                    async for line in _lines(response.content):
                        _raise_pull_error(json.loads(line))

    @_measured
    async def commit(self, container: str, name: str, labels: Mapping[str, str]) -> str:
        repository, _, tag = name.rpartition(":")
        own = {LABEL_INSTANCE: self._instance, LABEL_KIND: KIND_IMAGE, LABEL_NAME: name}
        answer = await self._json(
            "commit",
            "POST",
            params={"container": container, "repo": repository, "tag": tag, "pause": "0"},
            # What is not said here the engine takes from the container's own configuration.
            data={"Cmd": ["sh"], "Labels": {**labels, **own}},
            timeout=COMMIT_TIMEOUT,
        )
        return str(answer["Id"])

    @_measured
    async def images(self, labels: Mapping[str, str]) -> Sequence[Image]:
        wanted = {**labels, LABEL_INSTANCE: self._instance, LABEL_KIND: KIND_IMAGE}
        filters = json.dumps({"label": [f"{key}={value}" for key, value in wanted.items()]})
        answer = await self._json("images/json", params={"filters": filters})
        found = [Image(i["Id"], (), i["Size"], i["Labels"], _names(i)) for i in answer]
        # one that somebody made from ours has inherited the label, under a name of its own
        return [i for i in found if not i.names or i.labels.get(LABEL_NAME) in i.names]

    @_measured
    async def remove_image(self, image: str) -> None:
        try:
            await self._done(f"images/{image}", "DELETE", {"noprune": "1"})
        except _Conflict as error:
            reason = str(error).rpartition(" - ")[2]  # before it stands advice to use force
            raise ImageInUse(f"image {image} stays, remove what uses it first: {reason}") from error
        except ContainerMissing:
            return

    @_measured
    async def create(self, spec: ContainerSpec) -> str:
        try:
            return await self._create(spec)
        except _Conflict as error:
            raise NameTaken(str(error)) from error
        except ContainerMissing as error:
            raise ImageMissing(str(error)) from error
        except EngineRefused as error:
            if self._hosts is None or f"does not exist: {self._hosts}" not in str(error):
                raise
            logger().warning(
                "the engine does not see the worker's data folder: containers start slower",
                error=str(error),
            )
            self._hosts = None
            return await self._create(spec)

    async def _create(self, spec: ContainerSpec) -> str:
        if spec.network:
            await self._network()
        config = container_config(spec, self._hosts)
        answer = await self._json(
            "containers/create", "POST", params={"name": spec.name}, data=config
        )
        return str(answer["Id"])

    @_measured
    async def _network(self) -> None:
        """Have our network. Other workers may make it meanwhile; anyone may remove it again."""
        give_up = asyncio.get_running_loop().time() + NETWORK_TIMEOUT
        while True:
            with contextlib.suppress(ContainerMissing):
                network.assert_safe(await self._json(f"networks/{network.NAME}"))
                return
            try:
                await self._json("networks/create", "POST", data=network.network_config())
            except EngineRefused as error:  # its name is taken by now, or its interface's
                if asyncio.get_running_loop().time() > give_up:
                    raise EngineRefused(f"its network cannot be made: {error}") from error
                await asyncio.sleep(NETWORK_PAUSE)
            else:
                return

    @_measured
    async def attach(self, container: str) -> "DockerAttachment":
        async def setup() -> tuple[URL, bytes | None, bool]:
            query = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
            return URL(f"containers/{container}/attach").with_query(query), None, False

        stream = DockerStream(self._streams, setup, _NO_TIMEOUT)
        with self._translated():
            async with asyncio.timeout(CALL_TIMEOUT):
                await stream._init()  # open now, before the container starts
        _parse_in_batches(stream)
        return DockerAttachment(stream)

    @_measured
    async def start(self, container: str) -> None:
        try:
            await self._done(f"containers/{container}/start", "POST")
        except (EngineRefused, EngineFailed) as error:
            if not _NO_NETWORK.search(str(error)):
                raise
            await self._start_on_new_network(container)

    async def _start_on_new_network(self, container: str) -> None:
        """The network was removed after the container was created.

        One that was up before wants the network that it was on, and no other of that name.
        """
        await self._network()
        try:
            await self._done(f"containers/{container}/start", "POST")
        except ContainerMissing as error:
            raise EngineRefused(f"it cannot be started again: {error}") from error

    @_measured
    async def rename(self, container: str, name: str) -> None:
        try:
            await self._done(f"containers/{container}/rename", "POST", {"name": name})
        except _Conflict as error:
            raise NameTaken(str(error)) from error

    @_measured
    async def update(self, container: str, memory: int, cpus: float) -> None:
        try:
            await self._json(
                f"containers/{container}/update", "POST", data=limits_config(memory, cpus)
            )
        except EngineFailed as error:  # how it tells of limits that the kernel does not take
            raise EngineRefused(str(error)) from error

    @_measured
    async def signal(self, container: str, signum: int) -> None:
        with contextlib.suppress(ContainerMissing):  # or 409: it is not running
            await self._done(f"containers/{container}/kill", "POST", {"signal": str(signum)})

    @_measured
    async def remove(self, container: str) -> bool:
        try:
            await self._done(f"containers/{container}", "DELETE", {"force": "1", "v": "1"})
        except ContainerMissing:  # or 409: removal is under way
            return False
        return True

    @_measured
    async def inspect(self, container: str) -> Container | None:
        try:
            answer = await self._json(f"containers/{container}/json")
        except ContainerMissing:
            return None
        return _container(answer)

    @_measured
    async def list(self) -> Sequence[Container]:
        filters = json.dumps({"label": [f"{LABEL_INSTANCE}={self._instance}"]})
        answer = await self._json("containers/json", params={"all": "1", "filters": filters})
        return [_listed(item) for item in answer if _is_ours(item["Labels"])]

    async def log(self, container: str, *, follow: bool) -> AsyncGenerator[Sequence[LogFrame]]:
        params = {"stdout": "1", "stderr": "1", "timestamps": "1", "follow": str(int(follow))}
        parser = FrameParser()
        silence = None if follow else CALL_TIMEOUT
        path = f"containers/{container}/logs"
        async with self._stream("log", path, params, silence) as content:  # rule 13
            async for data in content.iter_any():
                if frames := parser.feed(data):
                    yield frames
            if parser.failure:
                raise EngineRefused(f"the engine's log is damaged: {parser.failure}")
            if parser.truncated:
                raise EngineUnavailable("the engine's log broke off in the middle of an entry")

    async def restarted_since(self, event: Event) -> bool:
        at = event_time(event)
        known = await self._past_events({"since": at, "until": at, "filters": self._filters})
        if event in [_event(line) for line in known]:
            return False
        if await self._has_all_events():
            return True
        # Others' events have pushed it out. An engine makes its bridge anew when it boots
        # (Docker 20.10.24), unless it has none or finds containers of before alive. Then the
        # restart stays unknown: how jobs ended, or that lines of their logs were lost with it.
        made = await self._bridge_made_at()
        return made is not None and made.timestamp() * 10**9 > event.at

    async def _has_all_events(self) -> bool:
        """Whether no event since the engine's boot is pushed out.

        What is newer than `until` is not told, though it takes up room: so few events prove that
        only if the oldest one stays.
        """
        before, now = await self._events_until_now(), await self._events_until_now()
        return len(now) < MOST_REPLAYED and before[:1] in ([], now[:1])

    async def _events_until_now(self) -> Sequence[Mapping[str, Any]]:
        now = (await self.info()).now
        return await self._past_events({"since": "0", "until": f"{now:.9f}"})

    async def _past_events(self, window: Mapping[str, str]) -> Sequence[Mapping[str, Any]]:
        with self._translated():
            async with (
                asyncio.timeout(CALL_TIMEOUT),
                self._stream("events", "events", window) as lines,
            ):
                return [json.loads(line) async for line in _lines(lines)]

    async def _bridge_made_at(self) -> datetime | None:
        """None where the engine was told to have none."""
        try:
            return _instant((await self._json("networks/bridge"))["Created"])
        except ContainerMissing:
            return None

    async def events(self, since: str) -> AsyncGenerator[Event | None]:
        window = {"since": since, "filters": self._filters}
        async with self._stream("events", "events", window) as lines:  # rule 14: own the loop
            yield None
            async for text in _lines(lines):
                line = json.loads(text)
                if _is_ours(line["Actor"].get("Attributes")):
                    event = _event(line)
                    known = event.action in EVENT_ACTIONS
                    self.metrics.events.labels(event.action if known else "other").inc()
                    yield event
            raise EngineUnavailable("the engine closed its event stream")

    @property
    def _filters(self) -> str:
        return json.dumps(
            {
                "type": ["container"],
                "label": [f"{LABEL_INSTANCE}={self._instance}"],
                "event": list(EVENT_ACTIONS),
            }
        )

    @contextlib.asynccontextmanager
    async def _stream(
        self, name: str, path: str, params: Mapping[str, str], silence: float | None = None
    ) -> AsyncIterator[aiohttp.StreamReader]:
        """A response without an end in sight; bounded in time only until it opens.

        name: under which its errors are counted. silence: seconds between two of its pieces, if
        that is bounded too.
        """
        timeout = aiohttp.ClientTimeout(total=None, sock_read=silence)
        async with contextlib.AsyncExitStack() as opened:
            opened.enter_context(self.metrics.stream(name, EngineUnavailable))
            opened.enter_context(self._translated())
            async with asyncio.timeout(CALL_TIMEOUT):
                response = await opened.enter_async_context(
                    self._streams._query(path, params=dict(params), timeout=timeout)
                )
            # aiodocker 0.27 leaves that to the garbage collector, and until then the engine
            # writes to somebody who does not read
            opened.callback(response.close)
            yield response.content

    async def _json(
        self,
        path: str,
        method: str = "GET",
        *,
        params: Mapping[str, str] | None = None,
        data: Mapping[str, object] | None = None,
        timeout: float | None = None,
    ) -> Any:  # whatever the engine answers
        with self._translated():
            async with asyncio.timeout(timeout or CALL_TIMEOUT):
                return await self._calls._query_json(  # one way for all calls
                    path, method, params=dict(params or {}), data=data
                )

    async def _done(self, path: str, method: str, params: Mapping[str, str] | None = None) -> None:
        with self._translated():
            async with (
                asyncio.timeout(CALL_TIMEOUT),
                self._calls._query(path, method, params=dict(params or {})),
            ):
                pass

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except TimeoutError as error:
            raise EngineUnavailable("the Docker engine did not answer in time") from error
        except aiodocker.DockerError as error:
            raise self._translate(error) from error
        except _BROKEN as error:
            raise EngineUnavailable(
                f"the Docker engine at {self.host} does not answer: {error}"
            ) from error

    def _translate(self, error: aiodocker.DockerError) -> Exception:
        message = error.message.strip() or f"the engine answered {error.status}"
        if error.status >= 900:  # aiodocker's own number for 'no connection'
            return EngineUnavailable(
                f"the Docker engine at {self.host} cannot be reached: start it, then see "
                "`ciworker doctor`"
            )
        if error.status >= 500:
            return EngineFailed(message)
        if error.status == 404:
            return ContainerMissing(message)
        return _Conflict(message) if error.status == 409 else EngineRefused(message)


class DockerAttachment:
    """Implements `ciworker.engine.port.Attachment`."""

    def __init__(self, stream: DockerStream) -> None:
        self._stream = stream

    @property
    def open(self) -> bool:
        response = self._stream._resp
        if self._stream._closed or response is None or response.connection is None:
            return False
        transport = response.connection.transport
        return transport is not None and not transport.is_closing()

    async def write(self, data: bytes) -> None:
        try:
            await self._stream.write_in(data)
        except (*_BROKEN, RuntimeError, AssertionError) as error:
            # aiodocker asserts that the transport is there; a broken one has none
            raise EngineUnavailable("the connection to the container broke") from error

    async def read(self) -> tuple[Stream, bytes] | None:
        try:
            message = await self._stream.read_out()
        except _BROKEN as error:
            raise EngineUnavailable("the connection to the container broke") from error
        return (Stream(message.stream), message.data) if message else None

    async def close(self) -> None:
        try:
            await self._stream.close()
        except AssertionError:
            # aiodocker 0.27 asserts a connection; one that broke is closed already
            self._stream._closed = True


def _parse_in_batches(stream: DockerStream) -> None:
    """Before anything came: the container is not started."""
    response, queue = stream._resp, stream._queue
    assert response is not None
    assert response.connection is not None
    assert response.connection.protocol is not None
    assert queue is not None
    response.connection.protocol.set_parser(AttachParser(queue), queue)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of a stream; aiohttp's own reader refuses those over 128 KiB, and labels are long."""
    rest = b""
    async for data in content.iter_any():
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line
        if len(rest) > MOST_LINE:
            raise EngineUnavailable(f"the engine sent a line of more than {MOST_LINE} bytes")


def _local_socket() -> str:
    found = next((path for path in _SOCKETS if Path(path).exists()), _SOCKETS[0])
    return f"unix://{found}"


def _client(host: str, *, force_close: bool = False) -> aiodocker.Docker:
    """A client without a limit on connections; its own session bounds nothing in time.

    force_close: each call has a connection of its own.
    """
    connector: aiohttp.BaseConnector
    if host.startswith("unix://"):
        path = host.removeprefix("unix://")
        connector = aiohttp.UnixConnector(path, limit=0, force_close=force_close)
        return aiodocker.Docker(url="unix://localhost", connector=connector)
    if host.startswith(("tcp://", "http://")):
        connector = aiohttp.TCPConnector(limit=0, force_close=force_close)
        return aiodocker.Docker(url=re.sub("^tcp://", "http://", host), connector=connector)
    raise EngineRefused(f"docker_host {host!r} is not supported: use unix:// or tcp://")


def _raise_pull_error(line: Mapping[str, Any]) -> None:
    if "error" in line:
        raise EngineRefused(str(line["error"]))


def _is_ours(labels: Mapping[str, str] | None) -> bool:
    """Whether a container with our instance label has it from us.

    One that somebody started by hand from an environment has inherited all of its labels.
    """
    return (labels or {}).get(LABEL_KIND) != KIND_IMAGE


def _names(answer: Mapping[str, Any]) -> Sequence[str]:
    """An image's tags; before version 25 the engine writes `<none>:<none>` for none."""
    return tuple(tag for tag in answer.get("RepoTags") or () if tag != "<none>:<none>")


def _instant(text: str) -> datetime | None:
    """An RFC 3339 time; the engine writes the year 1 for 'never'."""
    return None if text.startswith("0001") else datetime.fromisoformat(text)


def _container(answer: Mapping[str, Any]) -> Container:
    state, limits = answer["State"], answer["HostConfig"]
    labels, name = answer["Config"]["Labels"] or {}, answer["Name"].removeprefix("/")
    started, finished = _instant(state["StartedAt"]), _instant(state["FinishedAt"])
    status = State(state["Status"])
    changed = finished if status.down else started if status.up else _instant(answer["Created"])
    return replace(
        _labelled(answer["Id"], name, status, labels),
        exit_code=state["ExitCode"] if status.down else None,
        oom_killed=bool(state["OOMKilled"]),
        changed_at=changed,
        started_at=started,
        finished_at=finished,
        error=state.get("Error") or "",
        image=answer["Image"],
        memory=limits["Memory"],
        cpus=limits["NanoCpus"] / 1e9,
    )


def _listed(item: Mapping[str, Any]) -> Container:
    name = item["Names"][0].removeprefix("/") if item["Names"] else item["Id"]
    listed = _labelled(item["Id"], name, State(item["State"]), item["Labels"] or {})
    return replace(listed, image=item["ImageID"])


def _labelled(container: str, name: str, state: State, labels: Mapping[str, str]) -> Container:
    """What is known of it without a look at itself."""
    job, attempt = owner_of(labels, name)
    return Container(
        id=container,
        name=name,
        state=state,
        job=job,
        attempt=attempt,
        instance=labels.get(LABEL_INSTANCE, ""),
        kind=labels.get(LABEL_KIND, ""),
        spec=labels.get(LABEL_SPEC, ""),
    )


def _event(line: Mapping[str, Any]) -> Event:
    actor = line["Actor"]
    told = actor.get("Attributes") or {}  # its labels, and more: the name, a signal
    name = told.get("name", "")
    job, attempt = owner_of(told, name)
    return Event(
        action=line["Action"],
        container=actor["ID"],
        job=job,
        attempt=attempt,
        at=int(line["timeNano"]),
        signal=number(told["signal"]) if "signal" in told else None,
        member=name if told.get(LABEL_KIND) == KIND_POOL and not job else "",
    )
