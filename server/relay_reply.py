"""The upstream's reply → the client, as it comes.

In: one request and where it goes. Out: the upstream's status, headers and bytes. A stream that breaks
off after its first byte ends in an error event and `[DONE]`; any other body that does is cut off, which
the client's HTTP library reports.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from aiohttp import web

from server.accel_redirect import redirect_of
from server.bare_response import BareResponse, has_body
from server.chat_wire import DONE, error_event
from server.direct_stream import DirectStream
from server.drain import refuse_when_draining
from server.errors import error_object, unexpected
from server.keys import (
    OUTCOME,
    RELAYS,
    REQUEST_COUNTS,
    REQUEST_ID,
    SETTINGS,
    SUPERVISOR,
    UPSTREAMS,
)
from server.metered_reply import metered
from server.settings import Settings
from streaming.event_stages import DirectEvents
from streaming.failures import Draining, SmolgateError
from streaming.pulse import Pulse
from streaming.relay import Relayed, ScrubOptions, relay
from streaming.upstream_group import Data, UpstreamGroup

Fault = Callable[[Mapping[str, Any]], bytes]


def send_relayed(
    request: web.Request,
    path: str,
    body: Data,
    *,
    upstream: UpstreamGroup,
    scrub: ScrubOptions | None,
    finishes: int = 0,
    stream: bool = False,
) -> Awaitable[web.StreamResponse]:
    """Relay one request; `stream`: it asks for one, so that heartbeats may come before the upstream does.

    Raises SmolgateError leaves before the first byte.
    """
    if query := request.rel_url.raw_query_string:
        path = f"{path}?{query}"
    app = request.app
    if scrub is None and app[SETTINGS].accel_redirect:
        refuse_when_draining(app)
        if (redirect := redirect_of(request, path, body, upstream)) is not None:
            return _at_once(redirect)
    ask = partial(
        relay,
        upstream,
        request.method,
        path,
        request.headers,
        request[REQUEST_ID],
        body,
        scrub=scrub,
        finishes=finishes,
    )
    return send_reply(request, ask, stream=stream)


async def _at_once(response: web.StreamResponse) -> web.StreamResponse:
    return response


def chat_fault(error: Mapping[str, Any]) -> bytes:
    """How a stream of a chat completion ends that went wrong."""
    return error_event(error) + DONE


async def send_reply(
    request: web.Request,
    ask: Callable[[], Awaitable[Relayed]],
    *,
    stream: bool,
    fault: Fault = chat_fault,
) -> web.StreamResponse:
    """Send what `ask` gets; `fault` ends a stream that went wrong before there was a reply. Raises as above."""
    app = request.app
    refuse_when_draining(app)
    pulse, relays = app[UPSTREAMS].pulse, app[RELAYS]
    task = asyncio.current_task(pulse.loop)
    assert task is not None
    relays.add(task)
    events: DirectStream | None = None
    relayed: Relayed | None = None
    began = time.monotonic()
    try:
        if stream:
            events = await _open_stream(request, app[SETTINGS], pulse)
        relayed = await ask()
        fault = relayed.fault or fault
        app[REQUEST_COUNTS].first_byte_seconds.observe(time.monotonic() - began)
        metered(request, relayed)
        if relayed.events is not None:
            events = events or await _open_stream(request, app[SETTINGS], pulse)
            await _carry(relayed, relayed.events, events)
            return events
        if events is not None and events.prepared:
            if not relayed.is_events or relayed.whole is None:
                raise relayed.no_stream()
            events.end_with(relayed.whole)
            return events
        if relayed.whole is not None:
            return _whole(request, relayed, relayed.whole)
        return await _send_body(request, relayed)
    except BaseException as error:
        if events is None or not events.prepared:
            raise
        events.end_with(_last_words(request, error, fault))
        return events
    finally:
        relays.discard(task)
        if events is not None:
            events.release()
        if relayed is not None:
            relayed.reply.close()


async def _open_stream(request: web.Request, settings: Settings, pulse: Pulse) -> DirectStream:
    stream = DirectStream(
        request,
        (("x-request-id", request[REQUEST_ID]),),
        pulse=pulse,
        heartbeat_seconds=settings.heartbeat_seconds,
        stall_seconds=settings.stall_seconds,
    )
    await stream.tell_application(request)
    return stream


def _carry(relayed: Relayed, events: DirectEvents, stream: DirectStream) -> Awaitable[None]:
    """The stream on the short way where it goes that, else by pieces."""
    if not stream.prepared:
        stream.set_head(relayed.status, relayed.headers)
    taken = relayed.reply.take() if stream.takes_frames else None
    if taken is not None:
        return stream.carry(taken, events, relayed.last)
    return stream.carry_pieces(relayed.event_pieces(), relayed.last)


def _whole(request: web.Request, relayed: Relayed, body: bytes) -> web.StreamResponse:
    status = relayed.status
    if has_body(request, status):
        return BareResponse(status, relayed.headers, body)
    return web.Response(status=status, headers=relayed.headers, body=body)


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


def _last_words(request: web.Request, error: BaseException, fault: Fault) -> bytes:
    """How a stream ends that failed. Raises the error where nobody is there to be told."""
    if isinstance(error, asyncio.CancelledError) and request.app[SUPERVISOR].draining:
        error = Draining("The server is stopping.")
    elif isinstance(error, ConnectionError) or not isinstance(error, Exception):
        raise error
    elif not isinstance(error, SmolgateError):
        error = unexpected(request, error)
    request[OUTCOME] = error.code or "upstream"
    return fault(error_object(error))
