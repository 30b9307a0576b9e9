"""The end of serving: nothing new is taken, what is under way may finish for a while, then it is ended.

In: an application and seconds. Out: no run and no relayed stream is left, and each reader was told why.
"""

import asyncio

from aiohttp import web

from server.keys import RELAYS, RUN_WATCH, SUPERVISOR
from streaming.admission import RETRY_AFTER_SECONDS
from streaming.failures import Draining

# How long the last words to a client may take.
FAREWELL_SECONDS = 1.0


async def drain(app: web.Application, seconds: float) -> None:
    """Let runs and relayed requests finish for `seconds`, then end them, and those who watched it."""
    relays = app[RELAYS]
    draining = asyncio.ensure_future(app[SUPERVISOR].drain(seconds))
    if relays:
        await asyncio.wait(relays, timeout=seconds)
    for relay in relays:
        relay.cancel()
    if relays:
        await asyncio.wait(relays, timeout=FAREWELL_SECONDS)
    await draining
    await app[RUN_WATCH].finish()


def refuse_when_draining(app: web.Application) -> None:
    """Raises Draining once the server is stopping."""
    if app[SUPERVISOR].draining:
        raise Draining("The server is stopping.", retry_after=RETRY_AFTER_SECONDS)
