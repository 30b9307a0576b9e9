"""Exchanges on aiohttp's own connections, without what a request and a response of its session cost.

In: a request's head and body as bytes. Out: an `UpstreamReply`. Connections, with their pool, names, TLS and
time-outs, are the session's; so is the parser that reads a reply's head. The request is written in one
piece, an event stream's chunked bytes are handed on in the very callback that they come in, a short body is
collected; any other body goes through aiohttp's parser as ever.

This is the one file that leans on aiohttp's private side: `TCPConnector._factory`, the parameters of
`TCPConnector.connect`, `ClientRequest` and `ResponseHandler.set_response_params`, and that `ResponseHandler`
gives a head to `feed_data`. `open_connections` checks what it can and returns None where this aiohttp is not
as expected: then everything goes through the session. tests/test_streaming_direct_exchange.py pins the rest.
"""

import asyncio
import functools
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import Enum
from functools import lru_cache
from typing import Any

import aiohttp
from aiohttp import EMPTY_PAYLOAD
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from streaming.failures import UpstreamFailed
from streaming.http_head import Pairs, head_of
from streaming.upstream_errors import unreachable
from streaming.upstream_reply import (
    OnData,
    OnLost,
    Taken,
    UpstreamReply,
    broken_off,
    is_held,
    read_through,
)

# Heads are small; aiohttp has limits of its own for what is in them.
MAX_HEAD_BYTES = 64 * 1024
# What may come before anybody takes a stream; more waits in the kernel.
MAX_WAITING_BYTES = 256 * 1024
# Bodies up to this size are collected, if they say how long they are.
MAX_COLLECTED_BYTES = 1 << 20

# A connection kept from before that ends this soon after a request, without a byte, had been closed by the
# upstream before the request came: llama.cpp does so after each stream, others after some seconds of rest.
STALE_SECONDS = 1.0
# So often such a request is sent once more; each time on a connection that rested for less time.
MAX_STALE = 3

# What ends a head; aiohttp also takes lines that end in a line feed alone.
_BLANK_LINE = re.compile(rb"\n\r?\n")

Connect = Callable[[], Awaitable[aiohttp.connector.Connection]]


class _State(Enum):
    PUBLIC = "aiohttp reads; also between exchanges of its session"
    HEAD = "the head is being read"
    WAITING = "an event stream waits to be taken"
    TAKEN = "its bytes go to whoever took it"
    COLLECTING = "a body of known length is being read"
    DONE = "the reply has been read to its end; no byte may follow"


class DirectHandler(ResponseHandler):
    """aiohttp's client protocol, which a `DirectReply` may have for an exchange of its own."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.reply: DirectReply | None = None
        self.tap: OnData | None = None  # where the bytes of a taken body go
        self.reads = 0
        self.exchanges = 0

    def set_response_params(self, **params: object) -> None:
        """Called at the beginning of every exchange, the session's own among them."""
        self.reply = self.tap = None
        self.exchanges += 1
        super().set_response_params(**params)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        if (tap := self.tap) is not None:
            self.reads += 1
            tap(data)
        elif self.reply is None:
            super().data_received(data)
        else:
            self.reply.data_received(data)

    def feed_data(self, data: Any, size: int = 0) -> None:
        """A parsed head, with the reader of its body."""
        if self.reply is None:
            super().feed_data(data, size)
        else:
            self.reply.head_received(*data)

    def set_exception(self, exc: Any, *cause: Any) -> None:
        super().set_exception(exc, *cause)
        if self.reply is not None:
            self.reply.broke(exc if isinstance(exc, Exception) else None)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.reply is not None:
            self.reply.go_public()
        super().connection_lost(exc)
        if self.reply is not None:
            self.reply.broke(exc if isinstance(exc, Exception) else None)

    def parse(self, data: bytes) -> None:
        """Let aiohttp read this."""
        super().data_received(data)


class DirectReply(UpstreamReply):
    """One exchange: `send` its request first."""

    _connection: aiohttp.connector.Connection
    _handler: DirectHandler

    def __init__(
        self, connect: Connect, request: bytes, loop: asyncio.AbstractEventLoop, *, raw: bool
    ) -> None:
        super().__init__()
        self._loop = loop
        self._connect = connect
        self._request = request
        self._raw = raw
        self._state = _State.HEAD
        self._waiter: asyncio.Future[None] | None = None  # of the head, or of a collected body
        self._error: Exception | None = None
        self._has_heard = False
        self._is_stale = False  # nothing came of it, and nothing was begun
        self._sent_at = 0.0
        self._bytes = b""
        self._parts: list[bytes] = []
        self._missing = 0  # bytes of a collected body
        self._reader: aiohttp.StreamReader | None = None
        self._on_lost: OnLost | None = None
        self._is_promised = False  # somebody will take the stream
        self._is_held = False  # we paused the transport
        self._reads = 0  # of the body, until it was taken

    async def send(self) -> None:
        """Write the request on a connection. Raises UpstreamUnavailable where none could be had."""
        try:
            connection = await self._connect()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise unreachable(error) from None
        handler = connection.protocol
        assert isinstance(handler, DirectHandler)
        handler.set_response_params(auto_decompress=not self._raw, read_until_eof=True)
        self._connection, self._handler = connection, handler
        self._sent_at = self._loop.time()
        handler.reply = self
        handler.reads = 0
        if handler.transport is not None:
            handler.transport.write(self._request)
        else:
            self.broke(None)

    @property
    def progress(self) -> int:
        return self._reads + self._handler.reads

    @property
    def is_paused(self) -> bool:
        return is_held(self._handler.transport)

    async def head(self) -> None:
        for _ in range(MAX_STALE):
            try:
                await self._while(_State.HEAD)
                break
            except UpstreamFailed:
                if not self._is_stale:
                    raise
            self._connection.close()
            self._error, self._is_stale = None, False
            await self.send()
        else:
            await self._while(_State.HEAD)
        self._request = b""

    async def body(self) -> bytes:
        if self._state is _State.COLLECTING:
            await self._while(_State.COLLECTING)
        if self._parts:
            return b"".join(self._parts)
        return await super().body()

    async def pieces(self) -> AsyncIterator[bytes]:
        if self._state is _State.COLLECTING or self._parts:
            yield await self.body()
            return
        self.go_public()
        if self._error is not None:
            raise self._error
        if self._reader is not None:
            async for data in read_through(self._reader):
                yield data

    def take(self) -> Taken | None:
        if self._state is not _State.WAITING:
            return None
        self._is_promised = True
        return Taken(self._start, self._pause, self._resume, self._finish)

    def fail(self, error: Exception) -> None:
        if self._is_read:
            return
        self._error = self._error or error
        if self._state is _State.TAKEN and self._on_lost is not None:
            self._on_lost(error)
        elif self._state is _State.PUBLIC and self._reader is not None:
            self._reader.set_exception(error)
        self._wake()

    def close(self) -> None:
        super().close()
        handler = self._handler
        if handler.reply is not self:
            return
        transport = handler.transport
        if transport is not None and transport.get_write_buffer_size():
            transport.abort()  # what it has not taken of a request it would be sent for ever
        self._on_lost = None
        if self._is_read:
            self._reader = None
            self._parts = []
            self._state = _State.DONE
            self._resume()
            self._connection.release()
        else:
            handler.reply = handler.tap = None
            self._connection.close()

    @property
    def _is_read(self) -> bool:
        """Nothing of it is left in the connection."""
        if self._state is _State.PUBLIC:
            return self._reader is not None and self._reader.is_eof()
        return self._state is _State.DONE

    # What the connection tells.

    def data_received(self, data: bytes) -> None:
        state = self._state
        if state is _State.PUBLIC:
            self._reads += 1
            self._handler.parse(data)
        elif state is _State.HEAD:
            self._read_head(data)
        elif state is _State.COLLECTING:
            self._collect(data)
        elif state is _State.WAITING:
            self._reads += 1
            self._bytes += data
            if len(self._bytes) > MAX_WAITING_BYTES:
                self._pause()
        elif self._handler.transport is not None:
            self._handler.transport.close()  # it speaks without having been asked

    def head_received(self, message: Any, reader: aiohttp.StreamReader) -> None:
        """Called from within `DirectHandler.parse`."""
        if self._state is not _State.HEAD:  # another reply, behind the one that was asked for
            self._handler.force_close()
            return
        if message.code == 101:
            self.broke(aiohttp.ClientPayloadError("it switches protocols without being asked"))
        if message.code < 200:
            return
        self.status = message.code
        self.headers = message.headers
        self._reader = reader
        self._state = self._state_for(message)

    def _state_for(self, message: Any) -> _State:
        """How this reply's body is read."""
        if "Content-Encoding" in message.headers or self._reader is EMPTY_PAYLOAD:
            return _State.PUBLIC
        if message.chunked:
            is_events = message.code == 200 and self.content_type == "text/event-stream"
            return _State.WAITING if is_events else _State.PUBLIC
        length = self.content_length
        if length is None or length > MAX_COLLECTED_BYTES:
            return _State.PUBLIC
        self._missing = length
        return _State.COLLECTING

    def broke(self, error: Exception | None) -> None:
        """The connection is lost, or what came of it cannot be read."""
        if self._state is _State.DONE or self._error is not None:
            return
        if self._state is _State.PUBLIC:
            reader = self._reader
            if reader is not None and not reader.is_eof() and reader.exception() is None:
                reader.set_exception(aiohttp.ClientPayloadError(str(error or "it was closed")))
            return
        silent_seconds = self._loop.time() - self._sent_at
        self._is_stale = (
            self._state is _State.HEAD
            and self._handler.exchanges > 1
            and not self._has_heard
            and silent_seconds < STALE_SECONDS
        )
        if self._is_stale:
            self._error = UpstreamFailed("The upstream had closed its connection.")
        else:
            self._error = broken_off(error or aiohttp.ServerDisconnectedError())
        if self._state is _State.TAKEN and self._on_lost is not None:
            self._on_lost(self._error)
        self._wake()

    def _read_head(self, data: bytes) -> None:
        self._has_heard = True
        data = self._bytes + data if self._bytes else data
        self._bytes = b""
        while self._state is _State.HEAD:  # interim replies come before it
            blank_line = _BLANK_LINE.search(data)
            if blank_line is None:
                self._bytes = data
                if len(data) > MAX_HEAD_BYTES:
                    self.broke(aiohttp.ClientPayloadError("its head is too long"))
                return
            self._handler.parse(data[: blank_line.end()])
            if self._error is not None:
                return
            data = data[blank_line.end() :]
        if self._state is _State.COLLECTING:
            self._collect(data)
        elif data:
            self.data_received(data)
        self._wake()

    def _collect(self, data: bytes) -> None:
        if data:
            self._reads += 1
            self._parts.append(data)
            self._missing -= len(data)
        if self._missing > 0:
            return
        if self._missing < 0:  # more than it said
            self._parts[-1] = data[: self._missing]
            self._handler.force_close()
        self._end()
        self._wake()

    def _start(self, on_data: OnData, on_lost: OnLost) -> bytes:
        data, self._bytes = self._bytes, b""
        self._state = _State.TAKEN
        self._handler.tap, self._on_lost = on_data, on_lost
        self._resume()
        if self._error is not None:  # after what has come
            self._loop.call_soon(on_lost, self._error)
        return data

    def _finish(self) -> None:
        if self._state is _State.TAKEN:
            self._end()

    def _pause(self) -> None:
        transport = self._handler.transport
        if not self._is_held and transport is not None and not transport.is_closing():
            self._is_held = True
            transport.pause_reading()

    def _resume(self) -> None:
        if self._is_held:
            self._is_held = False
            transport = self._handler.transport
            if transport is not None and not transport.is_closing():
                transport.resume_reading()

    def _end(self) -> None:
        self._state = _State.DONE
        self._handler.tap = None
        if self._reader is not None:
            self._reader.feed_eof()

    def go_public(self) -> None:
        """Let aiohttp read a stream that nobody took: it has the rest, or the end, to make sense of."""
        if self._state is _State.WAITING and not self._is_promised:
            self._state = _State.PUBLIC
            data, self._bytes = self._bytes, b""
            if data:
                self._handler.parse(data)
            self._resume()

    async def _while(self, state: _State) -> None:
        while self._state is state and self._error is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class _Address(aiohttp.ClientRequest):
    """What a connection is known by, found out once."""

    @functools.cached_property
    def connection_key(self) -> Any:
        return super().connection_key


class DirectConnections:
    """A session's connections, for exchanges that its `request` is not needed for."""

    def __init__(self, session: aiohttp.ClientSession, connector: aiohttp.TCPConnector) -> None:
        self._session = session
        self._connector = connector
        self._loop = asyncio.get_running_loop()
        self._timeout = session.timeout
        self._address_of = lru_cache(64)(self._address)

    async def post(
        self, base_url: str, path: str, headers: Pairs, body: bytes, *, raw: bool
    ) -> UpstreamReply:
        """Send a request; the reply's head is yet to be awaited. `raw` leaves a body compressed.

        Raises UpstreamUnavailable where no connection could be had, InvalidRequest for headers that HTTP
        does not know.
        """
        request, host = self._address_of(base_url)
        line = f"POST {target_of(base_url, path)} HTTP/1.1\r\nHost: {host}\r\n"
        head = head_of(line, headers, f"Content-Length: {len(body)}\r\n\r\n")
        connect = functools.partial(self._connector.connect, request, [], self._timeout)
        reply = DirectReply(connect, head + body, self._loop, raw=raw)
        await reply.send()
        return reply

    def _address(self, base_url: str) -> tuple[aiohttp.ClientRequest, str]:
        """What a connection is known by, and the `Host` header."""
        request = _Address("POST", URL(base_url), loop=self._loop, session=self._session)
        return request, request.headers["Host"]


@lru_cache(256)
def target_of(base_url: str, path: str) -> str:
    """What stands in a request line for this path."""
    return URL(base_url + path).raw_path_qs


def open_connections(
    session: aiohttp.ClientSession, connector: aiohttp.TCPConnector
) -> DirectConnections | None:
    """Make a connector's connections direct ones; None where this aiohttp is not as expected."""
    factory = getattr(connector, "_factory", None)
    if not isinstance(factory, functools.partial) or factory.func is not ResponseHandler:
        return None
    direct: functools.partial[Any] = functools.partial(
        DirectHandler, *factory.args, **factory.keywords
    )
    connector._factory = direct
    return DirectConnections(session, connector)
