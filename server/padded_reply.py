"""A reply that is no stream, kept alive while its run goes on: blanks before the JSON.

In: a run. Out: its events, and on the wire, once the run takes long, a 200 whose body begins
with a blank every so often, which JSON allows and every client's parser skips. Measured with nginx 1.22
(60 s of silence end a request), the OpenAI SDKs for Python and Node, and curl:

- Interim responses (102, 103) reset a proxy's clock, too, but that nginx takes the first for the reply
  itself and passes on the rest unread: the connection then hangs for the next request. Node fails on an
  unasked 100.
- A blank costs the status: it is 200 from then on. So it comes late (`PADDING_SECONDS`), and a failure
  after it breaks the connection off, since an error body under 200 is taken for success. An SDK that
  repeats the request then gets the failure with its status, and the run is not started again
  (`idempotency`); any other client sees a reply that is cut short.
- Behind a proxy that speaks HTTP/1.0, which is nginx's default, a body ends with the connection: only a
  reset tells a cut from an end, so that one is sent; a unix socket has none, and such a reply no blanks.
"""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

from aiohttp import HttpVersion11, web

from server.errors import error_response, unexpected
from server.keys import OUTCOME, REQUEST_ID, SETTINGS
from streaming.events import Event, Failure
from streaming.run import Run, RunReader

BLANK = b" "


class PaddedReply:
    """One reply. `begun` once a blank was sent: from then on use `finish` or `cut`."""

    def __init__(
        self,
        request: web.Request,
        run: Run,
        reader: RunReader,
        *,
        first_seconds: float,
        every_seconds: float,
    ) -> None:
        self._request = request
        self._run = run
        self._reader = reader
        self._every_seconds = every_seconds
        self._response: web.StreamResponse | None = None
        pads = first_seconds > 0 and _tells_a_cut(request)
        self._next = _now() + first_seconds if pads else None

    @property
    def begun(self) -> bool:
        return self._response is not None

    async def read(self) -> list[Event]:
        """The run's next events, none after its end. Raises ConnectionError when the client is gone."""
        while True:
            if self._next is not None and _now() >= self._next:
                await self._pad()
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._next):
                    return await self._reader.read()

    async def finish(self, body: bytes) -> web.StreamResponse:
        """The JSON, as a whole response or as the end of the one that was begun."""
        if self._response is None:
            return web.Response(body=body, content_type="application/json")
        await self._response.write(body)
        await self._response.write_eof()
        self._run.end_untold = False
        return self._response

    def cut(self) -> web.StreamResponse:
        """Break the begun response off, so that no client and no proxy takes it for whole."""
        assert self._response is not None
        transport = self._request.transport
        if transport is not None:
            if _is_tcp(transport):
                linger = struct.pack("ii", 1, 0)  # on, for no time: closing resets
                sock = transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
        return self._response

    async def _pad(self) -> None:
        if self._response is None:
            headers = {
                "Content-Type": "application/json",
                "Cache-Control": "no-cache, no-transform",
                "X-Accel-Buffering": "no",
                "x-request-id": self._request[REQUEST_ID],
            }
            self._run.end_untold = True
            self._response = web.StreamResponse(headers=headers)
            await self._response.prepare(self._request)
        await self._response.write(BLANK)
        self._next = _now() + self._every_seconds


# The JSON, or why there is none.
Answer = Callable[[PaddedReply], Awaitable[bytes | Failure]]


async def reply_whole(
    request: web.Request, run: Run, reader: RunReader, answer: Answer
) -> web.StreamResponse:
    """What `answer` makes of the run's events, or an error that is not to be retried.

    Raises ConnectionError when the client is gone, and what `answer` raises before a blank was sent.
    """
    settings = request.app[SETTINGS]
    padded = PaddedReply(
        request,
        run,
        reader,
        first_seconds=settings.padding_seconds,
        every_seconds=settings.heartbeat_seconds,
    )
    try:
        told = await answer(padded)
    except ConnectionError:
        raise
    except Exception as error:
        if not padded.begun:
            raise
        request[OUTCOME] = unexpected(request, error).code or "failed"
        return padded.cut()
    if isinstance(told, bytes):
        return await padded.finish(told)
    request[OUTCOME] = run.outcome or "agent_failed"
    if padded.begun:
        return padded.cut()
    return error_response(told, work_begun=run.started is not None)


def _tells_a_cut(request: web.Request) -> bool:
    """Chunked bodies show a missing end; others only where the connection can be reset."""
    if request.version >= HttpVersion11:
        return True
    return request.transport is not None and _is_tcp(request.transport)


def _is_tcp(transport: asyncio.Transport) -> bool:
    sock = transport.get_extra_info("socket")
    return sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}


def _now() -> float:
    return asyncio.get_running_loop().time()
