"""Closes connections of clients that dawdle: no request's head in time, or a body that only drips.

In: the server's connections, looked at now and then by one sweeper; no timer per connection, nothing per
request. Out: those are closed that have not completed the head of a first request in `head_seconds`, and those
whose body has taken that long plus a second for every `MIN_BODY_RATE` bytes. Time in which this server itself
does not read (an upload whose upstream is slow) does not count. A connection that has had a request is
aiohttp's to close, when its keep-alive ends.
"""

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

log = logging.getLogger("server")

MIN_BODY_RATE = 500  # bytes a second
# What is too late is noticed at most a quarter late.
LOOKS = 4
# nginx keeps idle connections to its upstreams for 60 s: the one who closes first should be the client.
KEEPALIVE_SECONDS = 75.0


@dataclass
class _Waiting:
    """What a connection is waited for, and for how long already. `on`: the body, or None for a head."""

    on: object
    seconds: float = 0.0


class SlowClients:
    """Sweeps while it is open. Of the event loop alone."""

    def __init__(self, server: web.Server, head_seconds: float) -> None:
        self._server = server
        self._head_seconds = head_seconds
        self._every = head_seconds / LOOKS
        self._waiting: dict[RequestHandler, _Waiting] = {}
        self.closed = 0
        self._sweeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._sweeping = asyncio.create_task(self._sweep(), name="slow clients")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._sweeping is not None
        self._sweeping.cancel()
        with suppress(asyncio.CancelledError):
            await self._sweeping

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        looked = loop.time()
        while True:
            await asyncio.sleep(self._every)
            # A loop that was held up has kept its clients waiting, not they it.
            passed = min(loop.time() - looked, 2 * self._every)
            looked = loop.time()
            self._look(passed)

    def _look(self, passed: float) -> None:
        before, self._waiting = self._waiting, {}
        for handler in self._server.connections:
            awaited, received = _awaited(handler)
            if awaited is _NOTHING:
                continue
            waiting = before.get(handler)
            if waiting is None or waiting.on is not awaited:
                waiting = _Waiting(
                    awaited
                )  # since some time after the last look: begin to count now
            elif _is_read(handler):
                waiting.seconds += passed
            self._waiting[handler] = waiting
            if waiting.seconds >= self._head_seconds + received / MIN_BODY_RATE:
                self._end(handler)

    def _end(self, handler: RequestHandler) -> None:
        del self._waiting[handler]
        self.closed += 1
        log.debug("a client sent too slowly and was closed")
        if handler.transport is not None:
            handler.transport.abort()


_NOTHING = object()


def _awaited(handler: RequestHandler) -> tuple[object, int]:
    """What this connection is waited for, and how much of it has come, in bytes."""
    request = handler._current_request
    if request is not None:
        body = request.content
        return (_NOTHING, 0) if body.is_eof() else (body, body.total_bytes)
    if handler._request_count == 0 and handler.transport is not None:
        return None, 0
    return _NOTHING, 0


def _is_read(handler: RequestHandler) -> bool:
    transport = handler.transport
    return transport is not None and transport.is_reading()
