"""The upstream's reply → the client, as it comes.

In: one request and where it goes. Out: the upstream's status, headers and bytes. A stream that breaks
off after its first byte ends in an error event and `[DONE]`; any other body that does is cut off, which
the client's HTTP library reports.
"""

from typing import Any

from aiohttp import web

from server.chat_wire import DONE, error_event
from server.errors import error_object
from server.keys import OUTCOME, REQUEST_ID, SETTINGS, UPSTREAM
from server.sse_writer import SseWriter
from streaming.failures import SmolgateError
from streaming.relay import Relayed, ScrubOptions, relay


async def send_relayed(
    request: web.Request, path: str, body: Any, *, scrub: ScrubOptions | None
) -> web.StreamResponse:
    """Relay one request. Raises SmolgateError leaves before the first byte."""
    headers = request.headers.copy()
    headers["X-Request-Id"] = request[REQUEST_ID]
    async with relay(
        request.app[UPSTREAM], request.method, path, headers, body, scrub=scrub
    ) as relayed:
        relayed.headers["x-request-id"] = request[REQUEST_ID]
        if relayed.is_event_stream:
            return await _send_events(request, relayed)
        if relayed.whole is not None:
            return web.Response(status=relayed.status, headers=relayed.headers, body=relayed.whole)
        return await _send_body(request, relayed)


async def _send_body(request: web.Request, relayed: Relayed) -> web.StreamResponse:
    response = web.StreamResponse(status=relayed.status, headers=relayed.headers)
    await response.prepare(request)
    try:
        async for data in relayed.pieces:
            await response.write(data)
    except SmolgateError as error:
        request[OUTCOME] = error.code or "upstream"
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response


async def _send_events(request: web.Request, relayed: Relayed) -> web.StreamResponse:
    writer = SseWriter(
        heartbeat_seconds=request.app[SETTINGS].heartbeat_seconds,
        status=relayed.status,
        headers=relayed.headers,
    )
    await writer.prepare(request)
    try:
        async for data in relayed.pieces:
            await writer.send_events(data)
    except SmolgateError as error:
        request[OUTCOME] = error.code or "upstream"
        await writer.send_events(error_event(error_object(error)) + DONE)
    await writer.finish()
    return writer
