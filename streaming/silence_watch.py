"""Ends a reply whose upstream has been silent for too long, without a timer per read.

In: an open reply. Out: UpstreamSilent to whoever reads it. One timer per reply looks now and then whether
bytes have come since; silence that is the reader's own (the upstream's transport is paused) does not count.
"""

import asyncio
from dataclasses import dataclass

import aiohttp

from streaming.direct_body import direct_handler
from streaming.failures import UpstreamSilent

# How often it looks within the time allowed: what is too long is noticed at most a quarter late.
LOOKS = 4


@dataclass(frozen=True)
class SilenceLimits:
    """Seconds from a request to the first byte of its reply's body, and between two pieces of it."""

    first_byte_seconds: float = 600.0
    idle_seconds: float = 300.0


class SilenceWatch:
    """Watches from now on until `close`. `began` is the loop's time at which the request was sent."""

    def __init__(
        self, response: aiohttp.ClientResponse, limits: SilenceLimits, *, began: float
    ) -> None:
        self._response = response
        self._limits = limits
        self._since = began
        # A body may be taken from its connection past `response.content`.
        self._direct = direct_handler(response)
        self._reads_before = self._direct.reads if self._direct is not None else 0
        self._seen = 0
        self._loop = asyncio.get_running_loop()
        self._timer = self._armed()

    def close(self) -> None:
        self._timer.cancel()

    def _limit(self) -> float:
        return self._limits.idle_seconds if self._seen else self._limits.first_byte_seconds

    def _armed(self) -> asyncio.TimerHandle:
        every = min(self._limits.idle_seconds, self._limits.first_byte_seconds) / LOOKS
        due = self._since + self._limit() - self._loop.time()
        return self._loop.call_later(max(0.0, min(every, due)), self._look)

    def _look(self) -> None:
        if self._response.content.is_eof():
            return
        now = self._loop.time()
        seen = self._progress()
        if seen != self._seen or self._is_paused():
            self._seen, self._since = seen, now
        if now - self._since >= self._limit():
            self._fail(UpstreamSilent("The upstream model server was silent for too long."))
        else:
            self._timer = self._armed()

    def _progress(self) -> int:
        """A count that changes with every read."""
        reads = self._direct.reads - self._reads_before if self._direct is not None else 0
        return self._response.content.total_bytes + reads

    def _fail(self, error: UpstreamSilent) -> None:
        self._response.content.set_exception(error)
        if self._direct is not None:
            self._direct.fail(error)

    def _is_paused(self) -> bool:
        connection = self._response.connection
        transport = connection.transport if connection is not None else None
        return transport is not None and not transport.is_reading()
