"""Reads one container's output, wherever it can be had whole.

Live it reads the attached stream, which is cheap and complete. A reader of attach that stalls
blocks the container's control, so between it and the store stands a bounded buffer; when that is
full, and stays so, the connection is dropped and the pump goes on from the engine's own log, as it
does for an adopted container or after a broken connection. What was read is all there is when the
attached stream ended by itself after the container went down, or when the engine's log was read to
its end without `follow` after that (engine-facts, rules 7-12). It is the whole log only if the
engine was not kept waiting by the reader of attach until it let go of the rest (`Arrivals`).
"""

import asyncio
import time
from collections.abc import Callable

from ciworker.control.credentials import NOTHING, Grant
from ciworker.control.logkeeper import LogKeeper, LogLimits
from ciworker.domain.arrivals import Arrivals
from ciworker.domain.container import Container
from ciworker.domain.job import Job
from ciworker.domain.log import Skipper
from ciworker.engine.port import Attachment, Engine
from ciworker.errors import ContainerMissing, EngineRefused, EngineUnavailable
from ciworker.feed.feed import Topic
from ciworker.store.logs import LogEnd, LogWriter
from ciworker.telemetry import logger

__all__ = ["END_OF_STREAM_WAIT", "LogLimits", "LogPump"]

END_OF_STREAM_WAIT = 1.0  # the end of an attached stream may never come: engine-facts, rule 8
RETRY_DELAY = 0.5
STALL = 1.0  # seconds that a job which is quicker than the store may wait for it


class LogPump(LogKeeper):
    """One container's way into the log.

    attached: the attached stream is being read.
    """

    def __init__(
        self,
        job: Job,
        container: str,
        *,
        engine: Engine,
        writer: LogWriter,
        topic: Topic,
        end: LogEnd,
        limits: LogLimits,
        on_progress: Callable[[], None],
        grant: Grant = NOTHING,
    ) -> None:
        """Take up where the stored log ends; the arguments not named here are the keeper's.

        Args:
            container: the engine's id of it.
            engine: where the container is.
            on_progress: is also called when only a look at the container tells how to go on.
        """
        super().__init__(
            job,
            writer=writer,
            topic=topic,
            end=end,
            limits=limits,
            on_progress=on_progress,
            grant=grant,
        )
        self.attached = False

        self._container, self._engine = container, engine
        self._is_down = False
        self._finished = 0.0  # when the container went down, by our clock
        self._told = asyncio.Event()
        self._source_ended: float | None = None
        self._arrivals = Arrivals()
        self._patience = asyncio.timeout(None)

    async def run(self, attachment: Attachment | None) -> None:
        """Read until the log is complete.

        Args:
            attachment: opened before the container was started; None to read the engine's log.
        """
        if attachment is not None and await self._read_attached(attachment):
            ended = time.time()
            await self._wait_to_be_told()
            if self._is_down and self._finished <= ended:
                self._finish_read()
                return
            # else a connection that was cut, or an engine that stopped, ended it: a clean end too
        while not self.ended:
            await self._read_engine_log()

    def container_up(self) -> None:
        """The controller looked: the container is up. An ended source is then followed again."""
        ended = self._source_ended
        if ended is not None and time.monotonic() - ended >= END_OF_STREAM_WAIT:
            self._told.set()

    def container_down(self, container: Container | None) -> None:
        """The controller looked: the container is down, or gone."""
        if self._is_down:
            return
        self._is_down = True
        if container is not None and container.finished_at is not None:
            self._finished = container.finished_at.timestamp() - self._engine.ahead
        else:
            self._finished = time.time() - END_OF_STREAM_WAIT
        self._told.set()
        if self._patience.when() is None and self._source_ended is None:
            self._set_patience(END_OF_STREAM_WAIT)

    def give_up(self) -> None:
        """The rest of the log cannot be had: what was read is all there is."""
        if not self.ended:
            self.incomplete = True
            self.finish()

    async def _read_attached(self, attachment: Attachment) -> bool:
        """True when the stream ended by itself."""
        self.attached = True
        try:
            async with self._patiently():
                while (message := await attachment.read()) is not None:
                    self._arrivals.add(len(message[1]), time.time())
                    self.feed(*message)
                    if self._is_down:  # and its stream has not ended: it goes on to be patient
                        self._set_patience(STALL + END_OF_STREAM_WAIT)
                    if self.overflows and not await self.room(STALL):
                        self._arrivals.drop(time.time())
                        logger().warning("attach dropped: the store is slower than the job")
                        return False
                self._source_ended = time.monotonic()
                return True
        except (EngineUnavailable, TimeoutError) as error:
            logger().info("attached stream lost", error=str(error))
            return False
        finally:
            self.attached = False
            await attachment.close()

    async def _read_engine_log(self) -> None:
        await self.room()
        self.start_over()
        follow = not self._is_down
        try:
            async with self._patiently():
                await self._read_frames(follow=follow)
        except (ContainerMissing, EngineRefused):
            self._lose()
        except TimeoutError:
            return  # it is down, and the followed stream did not end: read it without `follow`
        except EngineUnavailable as error:
            logger().info("engine's log lost", error=str(error))
            await asyncio.sleep(RETRY_DELAY)
        else:
            if follow:
                self._source_ended = time.monotonic()
                await self._wait_to_be_told()
            else:
                self._finish_read()

    def _finish_read(self) -> None:
        """All that the engine has was read."""
        if self._arrivals.held_up(self._finished):
            self.incomplete = True
        self.finish()

    async def _read_frames(self, *, follow: bool) -> None:
        skipper = Skipper(self.cursor)
        async for frames in self._engine.log(self._container, follow=follow):
            for frame in frames:
                if skipper.wants(frame):
                    self.feed_frame(frame)
                else:
                    self.pass_over(frame)
            await self.room()

    def _lose(self) -> None:
        self.incomplete = True
        self.finish(unreadable=True)

    async def _wait_to_be_told(self) -> None:
        """The source is at its end: only a look at the container says what that means.

        The event that tells of its exit is about to come; a look is asked for if it does not.
        """
        if not self._is_down:
            self._told.clear()
            again = asyncio.get_running_loop().call_later(END_OF_STREAM_WAIT, self._on_progress)
            try:
                await self._told.wait()
            finally:
                again.cancel()
        self._source_ended = None

    def _patiently(self) -> asyncio.Timeout:
        """Bounds a read in time from when the container is known to be down."""
        self._patience = asyncio.timeout(None)
        return self._patience

    def _set_patience(self, seconds: float) -> None:
        try:
            self._patience.reschedule(asyncio.get_running_loop().time() + seconds)
        except RuntimeError:
            return  # no read is under way
