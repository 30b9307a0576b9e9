"""The upstream's reply → the client, as it comes.

In: one request and where it goes. Out: the upstream's status, headers and bytes. A stream that breaks
off after its first byte ends in an error event and `[DONE]`; any other body that does is cut off, which
the client's HTTP library reports.
"""

import asyncio
import time
from collections.abc import Mapping

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from server.chat_wire import DONE, error_event
from server.direct_reply import DirectReply
from server.drain import counted, refuse_when_draining
from server.errors import error_object, unexpected
from server.keys import OUTCOME, REQUEST_COUNTS, REQUEST_ID, SETTINGS, SUPERVISOR
from server.metered_reply import metered
from server.sse_writer import SseWriter
from streaming.failures import Draining, SmolgateError
from streaming.relay import Relayed, RelayedEvents, ScrubOptions, relay
from streaming.upstream_group import Data, UpstreamGroup


async def send_relayed(
    request: web.Request,
    path: str,
    body: Data,
    *,
    upstream: UpstreamGroup,
    scrub: ScrubOptions | None,
    finishes: int = 0,
) -> web.StreamResponse:
    """Relay one request. Raises SmolgateError leaves before the first byte."""
    refuse_when_draining(request.app)
    headers = request.headers.copy()
    headers["X-Request-Id"] = request[REQUEST_ID]
    with counted(request.app):
        return await _send(request, path, headers, body, upstream, scrub, finishes)


async def _send(
    request: web.Request,
    path: str,
    headers: Mapping[str, str],
    body: Data,
    upstream: UpstreamGroup,
    scrub: ScrubOptions | None,
    finishes: int,
) -> web.StreamResponse:
    if request.query_string:
        path = f"{path}?{request.query_string}"
    began = time.monotonic()
    async with relay(
        upstream,
        request.method,
        path,
        headers,
        body,
        scrub=scrub,
        finishes=finishes,
    ) as relayed:
        request.app[REQUEST_COUNTS].first_byte_seconds.observe(time.monotonic() - began)
        relayed = metered(request, relayed)
        relayed.headers["x-request-id"] = request[REQUEST_ID]
        if relayed.events is not None:
            return await _send_events(request, relayed, relayed.events)
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


async def _end_in_error(request: web.Request, writer: SseWriter, error: SmolgateError) -> None:
    request[OUTCOME] = error.code or "upstream"
    await writer.send_events(error_event(error_object(error)) + DONE)


async def _send_events(
    request: web.Request, relayed: Relayed, events: RelayedEvents
) -> web.StreamResponse:
    settings = request.app[SETTINGS]
    writer = SseWriter(
        heartbeat_seconds=settings.heartbeat_seconds,
        stall_seconds=settings.stall_seconds,
        status=relayed.status,
        headers=relayed.headers,
    )
    payload_writer = await writer.prepare(request)
    async with writer:
        try:
            if not await _carry(request, writer, payload_writer, events):
                async for data in events.pieces:
                    await writer.send_events(data)
        except SmolgateError as error:
            await _end_in_error(request, writer, error)
        except asyncio.CancelledError:
            if not request.app[SUPERVISOR].draining:
                raise
            await _end_in_error(request, writer, Draining("The server is stopping."))
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - logged there
            await _end_in_error(request, writer, unexpected(request, error))
        await writer.write_eof()
    return writer


async def _carry(
    request: web.Request,
    writer: SseWriter,
    payload_writer: AbstractStreamWriter | None,
    events: RelayedEvents,
) -> bool:
    """The stream on the short way; False where that cannot be gone."""
    if events.handler is None or payload_writer is None or not writer.chunked:
        return False
    stall_seconds = request.app[SETTINGS].stall_seconds
    reply = DirectReply(
        request, payload_writer, events.handler, events.stage, stall_seconds=stall_seconds
    )
    return await reply.carry()
