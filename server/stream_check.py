"""`GET /v1/stream-check`: a short stream for whoever wants to see whether a proxy passes events on as they come.

In: a request. Out: four events, a fifth of a second apart; the first says how the request arrived here: the caller's address as
the log has it, by which version of HTTP, and what a proxy told of its own client.
"""

import asyncio
from typing import Any

import msgspec
from aiohttp import web

import server
from server.arrival import EVENTS, GAP_SECONDS, Arrival
from server.client_address import client_address, is_trusted_peer
from server.keys import REQUEST_ID, SETTINGS
from server.sse_writer import SseWriter


async def stream_check(request: web.Request) -> web.StreamResponse:
    """The stream; `[DONE]` ends it."""
    settings = request.app[SETTINGS]
    writer = SseWriter(
        heartbeat_seconds=settings.heartbeat_seconds,
        stall_seconds=settings.stall_seconds,
        headers={"x-request-id": request[REQUEST_ID]},
    )
    await writer.prepare(request)
    async with writer:
        await writer.send_events(_event(0, msgspec.to_builtins(_arrival(request))))
        for number in range(1, EVENTS):
            await asyncio.sleep(GAP_SECONDS)
            await writer.send_events(_event(number, {}))
        await writer.send_events(b"data: [DONE]\n\n")
        writer.stop_streaming()
    return writer


def _event(number: int, told: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode({"event": number} | told) + b"\n\n"


def _arrival(request: web.Request) -> Arrival:
    return Arrival(
        version=server.__version__,
        http=f"{request.version.major}.{request.version.minor}",
        is_kept=request.keep_alive,
        address=client_address(request),
        is_forwarded="X-Forwarded-For" in request.headers,
        is_believed=is_trusted_peer(request),
    )
