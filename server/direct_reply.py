"""An upstream's event stream → the client's socket, in the very callback that its bytes come in.

In: a taken body and the response that is to carry it. Out: its frames on the client's transport, without a
task woken per read. The handler's task only waits, and sees to what is rare: a client that reads slowly
(the upstream's socket is paused, so memory stays bounded), an end, a fault.
"""

import asyncio

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from server.sse_writer import ClientStalled
from streaming.direct_body import DirectHandler
from streaming.event_stages import DirectEvents
from streaming.failures import UpstreamFailed


class DirectReply:
    """Carries one stream. `writer` is what the response's `prepare` returned."""

    def __init__(
        self,
        request: web.Request,
        writer: AbstractStreamWriter,
        handler: DirectHandler,
        stage: DirectEvents,
        *,
        stall_seconds: float,
    ) -> None:
        self._protocol = request.protocol
        self._transport = request.transport
        self._writer = writer
        self._handler = handler
        self._stage = stage
        self._stall_seconds = stall_seconds
        self._wake = asyncio.Event()
        self._error: Exception | None = None
        self._ended = False

    async def carry(self) -> bool:
        """The whole stream; False, at once, where it could not be taken.

        Raises UpstreamFailed where it breaks off or is not complete, ClientStalled, ConnectionError.
        """
        first = self._handler.take(self._on_data, self._on_lost)
        if first is None:
            return False
        self._writer.send_headers()
        self._on_data(first)
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._error is not None:
                raise self._error
            if self._protocol.writing_paused:
                await self._drain()
            if self._ended:
                break
            self._handler.resume()
        self._write(self._stage.flush())
        return True

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(self._stall_seconds):
                await self._writer.drain()
        except TimeoutError:
            if self._transport is not None:
                self._transport.abort()
            raise ClientStalled("the client reads nothing") from None

    def _on_data(self, data: bytes) -> None:
        if self._error is not None or not data:
            return
        try:
            self._write(self._stage.feed(data))
            if self._stage.ended:
                self._ended = True
                self._handler.finish()
                self._wake.set()
        except Exception as error:  # noqa: BLE001 - raised in carry()
            self._fail(error)

    def _on_lost(self, error: Exception | None) -> None:
        if not self._ended:
            broke_off = UpstreamFailed("The upstream model server broke off its reply.")
            self._fail(error or broke_off)

    def _write(self, data: bytes) -> None:
        if not data or self._transport is None or self._transport.is_closing():
            return
        self._transport.write(data)
        if self._protocol.writing_paused:
            self._handler.pause()
            self._wake.set()

    def _fail(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
            self._wake.set()
