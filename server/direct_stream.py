"""An upstream's event stream → the client's socket, in the very callback that its bytes come in.

In: a taken reply and the request that it answers. Out: its frames on the client's transport, without a task
woken per read. The handler's task only waits, and sees to what is rare: a client that reads slowly (the
upstream's socket is paused, so memory stays bounded), an end, a fault. The pulse sees to heartbeats.
"""

import asyncio
from collections.abc import Iterable

from aiohttp import web

from server.bare_response import BareResponse
from server.sse_writer import PING, SSE_HEADERS, ClientStalled
from streaming.chunk_framing import LAST_FRAME, frame_of
from streaming.event_stages import DirectEvents
from streaming.pulse import Pulse
from streaming.upstream_reply import Taken


class DirectStream(BareResponse):
    """Carries one stream: `carry` it, and `end_with` something where that raises."""

    def __init__(
        self,
        request: web.Request,
        status: int,
        headers: Iterable[tuple[str, str]],
        taken: Taken,
        stage: DirectEvents,
        *,
        pulse: Pulse,
        heartbeat_seconds: float,
        stall_seconds: float,
    ) -> None:
        super().__init__(status, headers)
        self.headers.update(SSE_HEADERS)
        self.headers["Transfer-Encoding"] = "chunked"
        self._request = request
        self._protocol = request.protocol
        self._transport = request.transport
        self._taken = taken
        self._stage = stage
        self._pulse = pulse
        self._heartbeat_seconds = heartbeat_seconds
        self._stall_seconds = stall_seconds
        self._writes = self._seen_writes = 0
        self._silent_since = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._ended = False

    async def carry(self) -> None:
        """The whole stream.

        Raises UpstreamFailed where it breaks off or is not complete, ClientStalled, ConnectionError.
        """
        await self.tell_application(self._request)
        first = self._taken.start(self._on_data, self._fail)
        self._on_data(first, self.bare_head(self._request))
        if not self._ended or self._protocol.writing_paused:
            loop = asyncio.get_running_loop()
            self._silent_since = loop.time()
            self._pulse.add(self._look)
            try:
                await self._until_ended(loop)
            finally:
                self._pulse.discard(self._look)
        if self._error is not None:
            raise self._error

    def end_with(self, events: bytes) -> None:
        """End a stream that failed with these events. Raises ConnectionResetError."""
        if not self._ended:
            self._ended = True
            self.write_bare(self._request, frame_of(events) + LAST_FRAME)

    async def _until_ended(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._error is None:
            if self._protocol.writing_paused:
                await self._drain()
            if self._ended:
                return
            self._taken.resume()
            self._waiter = loop.create_future()
            await self._waiter

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self._request.writer.drain()
        except TimeoutError:
            if self._transport is not None:
                self._transport.abort()
            raise ClientStalled("the client reads nothing") from None

    def _on_data(self, data: bytes, head: bytes = b"") -> None:
        if self._error is not None or self._ended:
            return
        stage = self._stage
        frames = b""
        try:
            if data:
                frames = stage.feed(data)
            if stage.ended:
                self._taken.finish()
                frames += stage.flush() + LAST_FRAME
                self._ended = True
                self._wake()
        except Exception as error:  # noqa: BLE001 - raised in carry()
            self._fail(error)
        if head:
            frames = head + frames
        if frames:
            self._write(frames)

    def _write(self, data: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._writes += 1
        transport.write(data)
        if self._protocol.writing_paused:
            self._taken.pause()
            self._wake()

    def _look(self, now: float) -> None:
        """Called by the pulse: a heartbeat is due if none would be in time after the next look."""
        if self._writes != self._seen_writes or self._protocol.writing_paused:
            self._seen_writes = self._writes
            self._silent_since = now
        elif now - self._silent_since + self._pulse.every_seconds > self._heartbeat_seconds:
            self._silent_since = now
            self._write(frame_of(PING))
            self._seen_writes = self._writes

    def _fail(self, error: Exception) -> None:
        if self._error is None and not self._ended:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
