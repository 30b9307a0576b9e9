"""How late the event loop is: a timer that looks how late it was called.

In: an application. Out: a histogram of lateness, one value every half second.
"""

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from server.keys import LOOP_LAG
from streaming.histogram import Histogram

EVERY_SECONDS = 0.5
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class LoopLag:
    """Measures while it is open. Of the event loop alone."""

    def __init__(self) -> None:
        self.seconds = Histogram(BOUNDS)
        self._loop = asyncio.get_running_loop()
        self._timer = self._armed()

    def close(self) -> None:
        self._timer.cancel()

    def _armed(self) -> asyncio.TimerHandle:
        self._due = self._loop.time() + EVERY_SECONDS
        return self._loop.call_at(self._due, self._measure)

    def _measure(self) -> None:
        self.seconds.observe(max(0.0, self._loop.time() - self._due))
        self._timer = self._armed()


async def loop_lag(app: web.Application) -> AsyncIterator[None]:
    """Measures as long as the application runs."""
    app[LOOP_LAG] = LoopLag()
    yield
    app[LOOP_LAG].close()
