"""Ready events → the client's socket, with heartbeats, and an end to clients that do not read.

In: the bytes of whole events. Out: an event stream as WIRE asks: headers before the body, a `: ping`
comment every so often, `[DONE]` by whoever writes it. aiohttp-sse does the heartbeats and the kernel's
time-out for dead peers; events are written here as they are, several in one write where they are there.
"""

import asyncio
from collections.abc import Mapping

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http_writer import HttpVersion11, StreamWriter
from aiohttp_sse import EventSourceResponse

SSE_HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}
PING = b": ping\n\n"
NUMBERED_PING = b": ping\n"
# A client that takes nothing for this long, its buffers full, is given up.
STALL_SECONDS = 60.0
# aiohttp's writer waits for nothing below this.
UNBLOCKED_BYTES = 64 * 1024


class ClientStalled(ConnectionResetError):
    """The client took nothing for too long; its connection is gone."""


class SseWriter(EventSourceResponse):
    """An event stream to one client. Raises ClientStalled from `send_events` when it stalls."""

    def __init__(
        self,
        *,
        heartbeat_seconds: float,
        headers: Mapping[str, str] | None = None,
        status: int = 200,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        super().__init__(
            status=status,
            sep="\n",
            allow_all_methods=True,
            send_timeout=stall_seconds,
            ping_interval=heartbeat_seconds,
        )
        self._stall_seconds = stall_seconds
        self._chunks: StreamWriter | None = None  # where the body is chunked
        self.headers.update(headers or {})
        self.headers.update(SSE_HEADERS)
        del self.headers["Connection"]  # aiohttp knows whether it is kept

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if request.version < HttpVersion11:
            self.force_close()  # there the end of a stream is the end of its connection
        writer = await super().prepare(request)
        if isinstance(writer, StreamWriter) and writer.chunked:
            self._chunks = writer
        return writer

    async def send_events(self, data: bytes) -> None:
        """Write whole events. Raises ConnectionError when the client left, or stalls."""
        if not data:
            return
        transport = self._req.transport if self._req is not None else None
        try:
            if (
                transport is not None
                and len(data) < UNBLOCKED_BYTES
                and not transport.get_write_buffer_size()
            ):
                # Does not wait: no time-out needed.
                chunks = self._chunks
                if chunks is None or not chunks.output_size or transport.is_closing():
                    await self.write(data)  # the head goes with it, or it raises
                    return
                frame = b"%x\r\n%b\r\n" % (len(data), data)
                chunks.output_size += len(frame)  # what the access log tells
                transport.write(frame)
                return
            async with asyncio.timeout(self._stall_seconds):
                await self.write(data)
        except TimeoutError:
            self.stop_streaming()
            if transport is not None:
                transport.abort()
            raise ClientStalled("the client reads nothing") from None


class NumberedSseWriter(SseWriter):
    """One whose events have numbers: a blank line after a comment would, once there was an `id:`, be an event
    that clients cannot read, so the heartbeat has none.
    """

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        await super().write(NUMBERED_PING if data == PING else data)
