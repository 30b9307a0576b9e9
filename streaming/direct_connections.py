"""Connections of aiohttp's session, for exchanges that need no request and no response of it.

In: a request's head and body as bytes. Out: a `DirectReply`. How a connection is made (names, TLS, time-outs) is
the connector's; once made it stays here and rests between two exchanges.

This is the one file that leans on aiohttp's private side: `TCPConnector._factory`, the parameters of
`TCPConnector.connect`, `ClientRequest` and `ResponseHandler.set_response_params`, and that `ResponseHandler`
gives a head to `feed_data`. `open_connections` checks what it can and returns None where this aiohttp is not
as expected: then everything goes through the session. tests/test_streaming_direct_exchange.py pins the rest.
"""

import asyncio
import functools
from collections import deque
from functools import lru_cache
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from yarl import URL

from streaming.direct_exchange import DirectReply
from streaming.http_head import Pairs, head_of
from streaming.upstream_errors import unreachable
from streaming.upstream_reply import OnData, UpstreamReply

# So long a connection may rest. Below the five seconds after which uvicorn (vLLM, sglang) and llama.cpp
# close an idle one.
KEEPALIVE_SECONDS = 4.0


class DirectHandler(ResponseHandler):
    """aiohttp's client protocol, which a `DirectReply` may have for an exchange of its own."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.connection: aiohttp.connector.Connection | None = None  # while it stays here
        self.reply: DirectReply | None = None
        self.receive: OnData = _drop  # where what comes goes
        self.reads = 0
        self.exchanges = 0
        self._tap: Tap | None = None

    def set_response_params(self, **params: object) -> None:
        """Called at the beginning of every exchange of the session's own."""
        self.receive = self.parse
        self.exchanges += 1
        super().set_response_params(**params)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        self.reads += 1
        self.receive(data)

    def begin_parsing(self, *, raw: bool) -> None:
        super().set_response_params(auto_decompress=not raw, read_until_eof=True)

    def parse(self, data: bytes) -> None:
        """Let aiohttp read this."""
        super().data_received(data)

    def open_tap(self, on_data: OnData) -> None:
        """Let the transport call this itself with what comes, but for the next read, which is counted."""
        self._tap = Tap(self, on_data)
        self.receive = self._receive_one

    def count_next_read(self) -> None:
        if self._tap is not None and self.transport is not None:
            self.transport.set_protocol(self)

    def close_tap(self) -> None:
        self.count_next_read()
        self._tap = None

    def _receive_one(self, data: bytes) -> None:
        assert self._tap is not None
        if self.transport is not None:
            self.transport.set_protocol(self._tap)
        self._tap.on_data(data)

    def refuse(self, data: bytes) -> None:
        """It speaks without having been asked."""
        self.leave()

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
        self.leave()

    def leave(self) -> None:
        """Close it."""
        self.close_tap()
        self.receive = _drop
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.close()


class Tap(asyncio.Protocol):
    """A handler's stand-in, whose transport calls `on_data` with nothing in between."""

    def __init__(self, handler: DirectHandler, on_data: OnData) -> None:
        self.on_data = on_data
        self.data_received = on_data  # type: ignore[assignment, method-assign]
        self.eof_received = handler.eof_received  # type: ignore[method-assign]
        self.connection_lost = handler.connection_lost  # type: ignore[method-assign]
        self.pause_writing = handler.pause_writing  # type: ignore[method-assign]
        self.resume_writing = handler.resume_writing  # type: ignore[method-assign]


def _drop(data: bytes) -> None:
    """What comes after the end."""


class Address:
    """Where an upstream is, and the connections to it that rest."""

    def __init__(
        self, base_url: str, session: aiohttp.ClientSession, connector: aiohttp.TCPConnector
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._connector = connector
        self._timeout = session.timeout
        self._request = aiohttp.ClientRequest(
            "POST", URL(base_url), loop=self.loop, session=session
        )
        self.host = self._request.headers["Host"]
        self._resting: deque[tuple[float, DirectHandler]] = deque()
        self._is_swept = False

    def rested(self) -> DirectHandler | None:
        """The connection that has rested longest, if there is one."""
        while self._resting:
            since, handler = self._resting.popleft()
            if handler.is_connected() and self.loop.time() - since <= KEEPALIVE_SECONDS:
                return handler
            handler.leave()
        return None

    async def connect(self) -> DirectHandler:
        """A new connection. Raises UpstreamUnavailable where none could be had."""
        try:
            connection = await self._connector.connect(self._request, [], self._timeout)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise unreachable(error) from None
        handler = connection.protocol
        assert isinstance(handler, DirectHandler)
        handler.connection = connection
        return handler

    def rest(self, handler: DirectHandler) -> None:
        """Keep it for the next exchange, if it is good for one."""
        if handler.should_close or not handler.is_connected():
            handler.leave()
            return
        handler.receive = handler.refuse
        self._resting.append((self.loop.time(), handler))
        if not self._is_swept:
            self._is_swept = True
            self.loop.call_later(KEEPALIVE_SECONDS, self._sweep)

    def _sweep(self) -> None:
        """Close what has rested for too long."""
        oldest = self.loop.time() - KEEPALIVE_SECONDS
        while self._resting and self._resting[0][0] <= oldest:
            self._resting.popleft()[1].leave()
        self._is_swept = bool(self._resting)
        if self._is_swept:
            self.loop.call_later(KEEPALIVE_SECONDS, self._sweep)


class DirectConnections:
    """A session's connections, for exchanges that its `request` is not needed for."""

    def __init__(self, session: aiohttp.ClientSession, connector: aiohttp.TCPConnector) -> None:
        make = functools.partial(Address, session=session, connector=connector)
        self._address_of = lru_cache(64)(make)

    async def post(
        self, base_url: str, path: str, headers: Pairs, body: bytes, *, raw: bool
    ) -> UpstreamReply:
        """Send a request; the reply's head is yet to be awaited. `raw` leaves a body compressed.

        Raises UpstreamUnavailable where no connection could be had, InvalidRequest for headers that HTTP
        does not know.
        """
        address = self._address_of(base_url)
        line = f"POST {target_of(base_url, path)} HTTP/1.1\r\nHost: {address.host}\r\n"
        head = head_of(line, headers, f"Content-Length: {len(body)}\r\n\r\n")
        reply = DirectReply(address, head + body, raw=raw)
        handler = address.rested()
        reply.send(handler if handler is not None else await address.connect())
        return reply


@lru_cache(256)
def target_of(base_url: str, path: str) -> str:
    """What stands in a request line for this path."""
    return URL(base_url + path).raw_path_qs


def open_connections(
    session: aiohttp.ClientSession, connector: aiohttp.TCPConnector
) -> DirectConnections | None:
    """Make a connector's connections direct ones; None where this aiohttp is not as expected.

    It must not have a limit: what rests here counts as being used.
    """
    assert not connector.limit
    factory = getattr(connector, "_factory", None)
    if not isinstance(factory, functools.partial) or factory.func is not ResponseHandler:
        return None
    direct: functools.partial[Any] = functools.partial(
        DirectHandler, *factory.args, **factory.keywords
    )
    connector._factory = direct
    return DirectConnections(session, connector)
