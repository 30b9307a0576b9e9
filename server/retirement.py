"""A worker whose place another has taken: it ends when nothing of its own is left.

In: an application, and the word to retire. Out: nobody is cut off. It accepts no more connections; a request
that comes on one that it has is served still, and told that the connection ends there; when all is done and
has been quiet for longer than a proxy keeps an idle connection, there is nothing left that could be lost.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web
from aiohttp.typedefs import Middleware

from server.keys import RUN_WATCH, SUPERVISOR

# Longer than the proxy in front keeps an idle connection (deploy/nginx/smolgate.conf: 15 s).
QUIET_SECONDS = 20.0
LOOK_EVERY_SECONDS = 0.05

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Retirement:
    """Made before the application starts, since it counts requests from the first on."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._under_way = 0
        self._retiring = False
        self._last_seconds = 0.0
        app.middlewares.insert(0, self._middleware())
        app.on_response_prepare.append(self._end_connection)

    async def finish(
        self, runner: web.AppRunner, sites: Sequence[web.BaseSite], seconds: float
    ) -> None:
        """Stop listening at `sites`, and return when nothing is left, at the latest after `seconds`."""
        self._retiring = True
        for site in sites:
            await site.stop()
        self._app[RUN_WATCH].close()  # who watches comes again, to another worker
        loop = asyncio.get_running_loop()
        self._last_seconds = loop.time()
        latest = loop.time() + seconds
        # Connections end without an event.
        while loop.time() < latest and not self._nothing_left(runner, loop.time()):  # noqa: ASYNC110
            await asyncio.sleep(LOOK_EVERY_SECONDS)

    def _nothing_left(self, runner: web.AppRunner, now: float) -> bool:
        if self._under_way or self._app[SUPERVISOR].runs:
            self._last_seconds = now
            return False
        no_connections = runner.server is not None and not runner.server.connections
        return no_connections or now - self._last_seconds > QUIET_SECONDS

    def _middleware(self) -> Middleware:
        @web.middleware
        async def count(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._under_way += 1
            try:
                return await handler(request)
            finally:
                self._under_way -= 1

        return count

    async def _end_connection(self, request: web.Request, response: web.StreamResponse) -> None:
        if self._retiring:
            response.force_close()
            response.headers["Connection"] = "close"
