"""The post of one of many workers: its parent's sockets, and the line to it.

In: sockets that listen already, and the line. Out: requests are served until the worker is told to stop, its
parent is gone, or another has taken its place and nothing of its own is left.
"""

import asyncio
import socket
from collections.abc import Sequence

from aiohttp import web

from server.keys import SETTINGS, WORKER_LINK
from server.listening_sockets import BACKLOG
from server.retirement import Retirement
from server.runs import runs_found
from server.worker_link import WorkerLink


class WorkerPost:
    """Listens on its parent's sockets until it is told to stop, or its place is taken."""

    def __init__(self, sockets: Sequence[socket.socket], line: socket.socket) -> None:
        self._sockets = sockets
        self._line = line
        self._sites: list[web.BaseSite] = []

    async def open(self, app: web.Application) -> None:
        self._link = app[WORKER_LINK] = await WorkerLink.open(self._line)
        self._link.find = lambda inquiry: runs_found(app, inquiry)
        self._retirement = Retirement(app)

    async def listen(self, runner: web.AppRunner) -> None:
        for listening in self._sockets:
            site = web.SockSite(runner, listening, backlog=BACKLOG)
            await site.start()
            self._sites.append(site)
        await web.UnixSite(runner, self._link.welcome.join_path).start()
        self._link.serving()

    async def stay(self, runner: web.AppRunner, told: asyncio.Event) -> None:
        stop = asyncio.create_task(_any(told, self._link.parent_gone))
        retired = asyncio.create_task(self._link.retired.wait())
        await asyncio.wait([stop, retired], return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            seconds = runner.app[SETTINGS].reload_seconds
            finished = asyncio.create_task(self._retirement.finish(runner, self._sites, seconds))
            await asyncio.wait([stop, finished], return_when=asyncio.FIRST_COMPLETED)
            finished.cancel()
        stop.cancel()
        retired.cancel()

    async def close(self) -> None:
        await self._link.close()


async def _any(*events: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
