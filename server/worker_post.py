"""The post of one of many workers: its parent's sockets, and the line to it.

In: sockets that listen already, and the line. Out: requests are served until the worker is told to stop, its
parent is gone, or another has taken its place and nothing of its own is left.
"""

import asyncio
import socket
from collections.abc import Sequence
from functools import partial

from aiohttp import web

from server.keys import KEY_RING, SETTINGS, TOOL_DESK, WORKER_LINK
from server.listening_sockets import BACKLOG
from server.metrics import rendered
from server.retirement import Retirement
from server.runs import runs_found
from server.worker_link import WorkerLink
from server.worker_wire import Counts, Inquiry, KeyUse

# A worker that is killed takes with it what it counted since.
TELL_COUNTS_EVERY_SECONDS = 2.0


class WorkerPost:
    """Listens on its parent's sockets until it is told to stop, or its place is taken."""

    def __init__(self, sockets: Sequence[socket.socket], line: socket.socket) -> None:
        self._sockets = sockets
        self._line = line
        self._sites: list[web.BaseSite] = []

    async def open(self, app: web.Application) -> None:
        self._link = app[WORKER_LINK] = await WorkerLink.open(self._line)
        self._link.find = partial(_found, app)
        self._link.key_ring = ring = app[KEY_RING]
        ring.tell = lambda *use: self._link.send(KeyUse(*use))
        self._retirement = Retirement(app)
        self._telling = asyncio.create_task(self._tell_counts(app))

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
        self._telling.cancel()
        await asyncio.wait([self._telling])
        await self._link.close()

    async def _tell_counts(self, app: web.Application) -> None:
        try:
            while True:
                await asyncio.sleep(TELL_COUNTS_EVERY_SECONDS)
                self._link.send(Counts(rendered(app)))
        finally:
            self._link.send(Counts(rendered(app)))


def _found(app: web.Application, inquiry: Inquiry) -> list[bytes]:
    """What another worker asks for."""
    if inquiry.wish == "metrics":
        return [rendered(app)]
    if inquiry.wish == "tool_call":
        knows = app[TOOL_DESK].knows(inquiry.key, inquiry.id)
        return [app[WORKER_LINK].welcome.join_path.encode()] if knows else []
    return runs_found(app, inquiry)


async def _any(*events: asyncio.Event) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in waiting:
            each.cancel()
