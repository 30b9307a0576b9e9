"""The upstream's reply → the client, as it comes.

In: one request and where it goes. Out: the upstream's status, headers and bytes. A stream that breaks
off after its first byte ends in an error event and `[DONE]`; any other body that does is cut off, which
the client's HTTP library reports.
"""

import asyncio

from aiohttp import web

from server.bare_response import BareResponse, takes_bare_response
from server.chat_wire import DONE, error_event
from server.direct_stream import DirectStream
from server.drain import refuse_when_draining
from server.errors import error_object, unexpected
from server.keys import OUTCOME, RELAYS, REQUEST_ID, SETTINGS, SUPERVISOR, UPSTREAMS
from server.sse_writer import SseWriter
from streaming.failures import Draining, SmolgateError
from streaming.relay import Relayed, ScrubOptions, relay
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
    if request.rel_url.raw_query_string:
        path = f"{path}?{request.rel_url.raw_query_string}"
    task, relays = asyncio.current_task(), request.app[RELAYS]
    assert task is not None
    relays.add(task)
    relayed: Relayed | None = None
    try:
        relayed = await relay(
            upstream,
            request.method,
            path,
            request.headers,
            request[REQUEST_ID],
            body,
            scrub=scrub,
            finishes=finishes,
        )
        if relayed.events is not None:
            return await _send_events(request, relayed)
        if relayed.whole is not None:
            return _whole(request, relayed, relayed.whole)
        return await _send_body(request, relayed)
    finally:
        relays.discard(task)
        if relayed is not None:
            relayed.reply.close()


def _whole(request: web.Request, relayed: Relayed, body: bytes) -> web.StreamResponse:
    if takes_bare_response(request, relayed.status):
        return BareResponse(relayed.status, relayed.headers, body)
    return web.Response(status=relayed.status, headers=relayed.headers, body=body)


async def _send_body(request: web.Request, relayed: Relayed) -> web.StreamResponse:
    response = web.StreamResponse(status=relayed.status, headers=relayed.headers)
    await response.prepare(request)
    try:
        async for data in relayed.reply.pieces():
            await response.write(data)
    except SmolgateError as error:
        request[OUTCOME] = error.code or "upstream"
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response


async def _send_events(request: web.Request, relayed: Relayed) -> web.StreamResponse:
    """The stream on the short way, or else through aiohttp's writer."""
    assert relayed.events is not None
    settings = request.app[SETTINGS]
    taken = relayed.reply.take() if takes_bare_response(request, relayed.status) else None
    if taken is not None:
        stream = DirectStream(
            request,
            relayed.status,
            relayed.headers,
            taken,
            relayed.events,
            pulse=request.app[UPSTREAMS].pulse,
            heartbeat_seconds=settings.heartbeat_seconds,
            stall_seconds=settings.stall_seconds,
        )
        try:
            await stream.carry()
        except BaseException as error:
            if not stream.prepared:
                raise
            stream.end_with(_last_words(request, error))
        return stream
    writer = SseWriter(
        heartbeat_seconds=settings.heartbeat_seconds,
        stall_seconds=settings.stall_seconds,
        status=relayed.status,
        headers=dict(relayed.headers),
    )
    await writer.prepare(request)
    async with writer:
        try:
            async for data in relayed.event_pieces():
                await writer.send_events(data)
        except BaseException as error:  # noqa: BLE001 - told to the client, or raised
            await writer.send_events(_last_words(request, error))
        await writer.write_eof()
    return writer


def _last_words(request: web.Request, error: BaseException) -> bytes:
    """How a stream ends that failed. Raises the error where nobody is there to be told."""
    if isinstance(error, asyncio.CancelledError) and request.app[SUPERVISOR].draining:
        error = Draining("The server is stopping.")
    elif isinstance(error, ConnectionError) or not isinstance(error, Exception):
        raise error
    elif not isinstance(error, SmolgateError):
        error = unexpected(request, error)
    request[OUTCOME] = error.code or "upstream"
    return error_event(error_object(error)) + DONE
