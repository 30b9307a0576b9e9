"""An upstream's event stream → the client's socket, in the very callback that its bytes come in.

In: a request, and the reply that answers it once there is one. Out: its frames on the client's transport,
without a task woken per read. The handler's task only waits, and sees to what is rare: a client that reads
slowly (the upstream's socket is paused, so memory stays bounded), an end, a fault. The pulse sees to
heartbeats: a stream whose upstream says nothing yet begins with one, in time for the proxies on the way; from
then on what goes wrong is an event.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

from aiohttp import web
from aiohttp.http_writer import HttpVersion11

from server.bare_response import BareResponse
from server.sse_writer import PING, SSE_HEADERS, ClientStalled
from streaming.chunk_framing import LAST_FRAME, frame_of
from streaming.event_stages import DirectEvents
from streaming.pulse import Pulse
from streaming.upstream_reply import OnData, Taken

_CHUNKED_HEADERS = {**SSE_HEADERS, "Transfer-Encoding": "chunked"}

# The last events of a stream, where something has to be done before they may be told.
Last = Callable[[], Awaitable[bytes]]


class DirectStream(BareResponse):
    """One stream. `carry` or `carry_pieces` it, `end_with` something where that raises, and `release` it.

    It is `prepared` once its head is sent, which a heartbeat may do.
    """

    def __init__(
        self,
        request: web.Request,
        headers: Iterable[tuple[str, str]],
        *,
        pulse: Pulse,
        heartbeat_seconds: float,
        stall_seconds: float,
    ) -> None:
        super().__init__(200, headers)
        self._is_chunked = request.version >= HttpVersion11
        self._request = request
        self._protocol = request.protocol
        self._transport = request.transport
        self._taken: Taken | None = None
        self._stage: DirectEvents | None = None
        self._pulse = pulse
        self._heartbeat_seconds = heartbeat_seconds
        self._stall_seconds = stall_seconds
        self._has_written = False  # since the last look
        self._silent_since = pulse.loop.time()
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._ended = False
        self._last_frame = LAST_FRAME
        pulse.add(self._look)

    @property
    def takes_frames(self) -> bool:
        """Whether the connection is a chunked one; else `carry_pieces` has to be used."""
        return self._is_chunked

    def release(self) -> None:
        """Send no heartbeats any more."""
        self._pulse.discard(self._look)

    async def carry(self, taken: Taken, stage: DirectEvents, last: Last | None = None) -> None:
        """The whole of a taken stream, and then what `last` gives.

        Raises UpstreamFailed where it breaks off or is not complete, ClientStalled, ConnectionError.
        """
        self._taken, self._stage = taken, stage
        self._last_frame = LAST_FRAME if last is None else b""
        on_data: OnData = self._on_data
        if self._transport is not None:
            on_data = stage.tap(self._transport, self._pause, on_data)
        data = taken.start(on_data, self._lose)
        begin = (self._unsent_head(), self._frames_of(data) if data else b"")
        if any(begin):
            self._write(*filter(None, begin))
        while self._error is None:
            if self._protocol.writing_paused:
                await self._drain()
            if self._ended:
                if last is not None:
                    self._close_stage()
                    self._ended = False
                    self.end_with(await last())
                return
            taken.resume()
            self._waiter = self._pulse.loop.create_future()
            await self._waiter
        raise self._error

    async def carry_pieces(self, pieces: AsyncIterator[bytes], last: Last | None = None) -> None:
        """The whole of a stream that comes as events, some at a time. Raises as `carry` does."""
        if head := self._unsent_head():
            self._write(head)
        async for events in pieces:
            self._write(self._framed(events))
            if self._protocol.writing_paused:
                await self._drain()
        self.end_with(await last() if last is not None else b"")

    def end_with(self, events: bytes) -> None:
        """End it with these events. Raises ConnectionResetError where the client left."""
        if not self._ended:
            self._ended = True
            self._close_stage()
            end = LAST_FRAME if self._is_chunked else b""
            self.write_bare(self._request, self._unsent_head() + self._framed(events) + end)

    def bare_head(self, request: web.BaseRequest) -> bytes:
        self.headers.update(_CHUNKED_HEADERS if self._is_chunked else SSE_HEADERS)
        return super().bare_head(request)

    def _unsent_head(self) -> bytes:
        return b"" if self.prepared else self.bare_head(self._request)

    def _framed(self, events: bytes) -> bytes:
        return frame_of(events) if self._is_chunked else events

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self._request.writer.drain()
        except TimeoutError:
            if self._transport is not None:
                self._transport.abort()
            raise ClientStalled("the client reads nothing") from None

    def _on_data(self, data: bytes) -> None:
        if frames := self._frames_of(data):
            self._write(frames)

    def _frames_of(self, data: bytes) -> bytes:
        """What goes on of it."""
        stage = self._stage
        if stage is None or self._ended:
            return b""
        frames = b""
        try:
            frames = stage.feed(data)
            if stage.ended:
                self._ended = True
                frames = self._finished(stage, frames)
        except Exception as error:  # noqa: BLE001 - raised in carry()
            self._fail(error)
        return frames

    def _finished(self, stage: DirectEvents, frames: bytes) -> bytes:
        """With what is left at the end."""
        assert self._taken is not None
        if stage.ended_cleanly:
            self._taken.finish()
        rest = b""
        try:
            rest = stage.flush() + self._last_frame
        except Exception as error:  # noqa: BLE001 - raised in carry()
            self._ended = False
            self._fail(error)
        self._wake()
        if stage.has_last:
            if rest == LAST_FRAME:  # nothing is added: no copy of all that was read
                return frames
            frames = frames.removesuffix(LAST_FRAME)
        return frames + rest

    def _write(self, *parts: bytes) -> None:
        """In one system call. Only what begins a stream has parts: asyncio's `writelines` does not tell a
        protocol to pause before CPython 3.12.9 and 3.13.2 (CVE-2024-12254).
        """
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._has_written = True
        if len(parts) == 1:
            transport.write(parts[0])
        else:
            transport.writelines(parts)
        self._pause()

    def _pause(self) -> None:
        """Take nothing from the upstream where the client takes nothing."""
        if self._protocol.writing_paused and self._taken is not None:
            self._taken.pause()
            self._wake()

    def _look(self, now: float) -> None:
        """Called by the pulse: a heartbeat is due if none would be in time after the next look."""
        if self._ended and self._last_frame:
            return  # what follows would be taken for another reply
        self._pause()
        stage = self._stage
        if stage is not None and stage.has_passed:
            stage.has_passed, self._has_written = False, True
        if self._has_written or self._protocol.writing_paused:
            self._has_written = False
            self._silent_since = now
        elif now - self._silent_since + self._pulse.every_seconds > self._heartbeat_seconds:
            self._silent_since = now
            self._write(self._unsent_head() + self._framed(PING))
            self._has_written = False

    def _close_stage(self) -> None:
        """What comes from now on goes nowhere."""
        if self._stage is not None:
            self._stage.close()
            self._stage = None

    def _lose(self, error: Exception) -> None:
        """Nothing more comes, which is no fault where the stream had said that it is whole."""
        stage = self._stage
        if stage is None or self._ended or not stage.is_said:
            self._fail(error)
            return
        self._ended = True
        if frames := self._finished(stage, b""):
            self._write(frames)

    def _fail(self, error: Exception) -> None:
        if self._error is None and not self._ended:
            self._error = error
            self._close_stage()
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
