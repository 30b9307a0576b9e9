"""One relayed request: the upstream's reply, as it is or scrubbed.

In: the client's method, headers and body. Out: a `Relayed` with the status and headers that the client
gets, and its body as bytes. Verbatim, the bytes are the upstream's own. Event streams go on event by
event, never half of one, so that whoever writes them may put a heartbeat or an error in between; a
stream that ends without being complete ends in `UpstreamFailed`.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from multidict import CIMultiDict

from sanitize.deltas import DeltaScrubber
from sanitize.payload import scrub_reply
from sanitize.think import Mode
from streaming.direct_body import DirectHandler, direct_handler
from streaming.event_stages import (
    DirectEvents,
    ScrubbedEvents,
    VerbatimEvents,
)
from streaming.failures import UpstreamFailed
from streaming.json_codec import decode_json, encode_json
from streaming.upstream import body_of, pieces_of
from streaming.upstream_group import Data, UpstreamGroup

# RFC 9110 7.6.1, and what belongs to one hop or to the client alone.
NOT_RELAYED_UP = frozenset(
    "host content-length content-encoding connection keep-alive proxy-connection "
    "proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade expect cookie "
    "x-api-key api-key forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip "
    "x-on-disconnect x-model idempotency-key".split()
)
NOT_RELAYED_DOWN = frozenset(
    "connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer "
    "transfer-encoding upgrade set-cookie server date alt-svc "
    # Which web pages may read a reply is for this server to say.
    "access-control-allow-origin access-control-allow-credentials access-control-expose-headers "
    "access-control-allow-methods access-control-allow-headers access-control-max-age".split()
)
# Bodies up to this size are read whole: a reply that breaks off is then an error, not half a reply.
MAX_WHOLE_BYTES = 1 << 20
# How events begin, for replies that do not say what they are.
_EVENT_BEGIN = (b"data:", b"event:", b":", b"id:", b"retry:")


@dataclass(frozen=True)
class ScrubOptions:
    """How a reply is scrubbed: see `sanitize.think`."""

    mode: Mode
    tag_names: tuple[str, ...]
    starts_open: bool

    def for_stream(self) -> DeltaScrubber:
        return DeltaScrubber(mode=self.mode, tag_names=self.tag_names, starts_open=self.starts_open)


@dataclass(frozen=True)
class RelayedEvents:
    """An event stream, to be had in two ways: `pieces` are whole events, some at a time; or else
    `handler.take` gives the socket's bytes, of which `stage` makes what a chunked connection carries.
    """

    pieces: AsyncIterator[bytes]
    handler: DirectHandler | None
    stage: DirectEvents


@dataclass(frozen=True)
class Relayed:
    """What the client gets: events, or a body that is `whole`, or one that `pieces` yields."""

    status: int
    headers: CIMultiDict[str]
    whole: bytes | None
    pieces: AsyncIterator[bytes]
    events: RelayedEvents | None


@asynccontextmanager
async def relay(
    upstream: UpstreamGroup,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: Data,
    *,
    scrub: ScrubOptions | None = None,
    finishes: int = 0,
) -> AsyncIterator[Relayed]:
    """Send a request up and hold its reply open. Raises UpstreamUnavailable, UpstreamFailed.

    `finishes`: how many choices a stream must finish before it may end without `[DONE]`; 0 does not
    ask, for endpoints whose streams know neither.
    """
    sent = relayed_headers(headers, NOT_RELAYED_UP)
    if scrub is not None or "Accept-Encoding" not in sent:
        sent["Accept-Encoding"] = "identity"
    async with upstream.request(
        method, path, headers=sent, data=body, raw=scrub is None
    ) as response:
        if 300 <= response.status < 400:
            raise UpstreamFailed("The upstream answered with a redirect, which is not followed.")
        scrub = scrub if response.status < 300 else None
        received = relayed_headers(response.headers, NOT_RELAYED_DOWN)
        if scrub is not None:
            received.popall("Content-Encoding", None)
        # Compressed events cannot be told apart: they go on as any other body does.
        is_event_stream = (
            response.content_type == "text/event-stream" and "Content-Encoding" not in received
        )
        whole = None
        if not is_event_stream and (scrub is not None or _is_small(response)):
            whole = await body_of(response)
        if whole is not None and scrub is not None:
            whole = _scrubbed_body(whole, scrub, response.content_type)
        if whole is not None or is_event_stream or scrub is not None:
            received.popall("Content-Length", None)
        events = _events_of(response, scrub, finishes) if is_event_stream else None
        yield Relayed(response.status, received, whole, pieces_of(response), events)


def _events_of(
    response: aiohttp.ClientResponse, scrub: ScrubOptions | None, finishes: int
) -> RelayedEvents:
    stage: VerbatimEvents | ScrubbedEvents = VerbatimEvents(finishes)
    if scrub is not None:
        stage = ScrubbedEvents(scrub.for_stream(), finishes)
    pieces = _read_events(response, stage)
    return RelayedEvents(pieces, direct_handler(response), DirectEvents(stage))


def relayed_headers(headers: Mapping[str, str], dropped: frozenset[str]) -> CIMultiDict[str]:
    """Headers for the other side: without the dropped ones and those that `Connection` names."""
    pairs = list(headers.items())
    connection = [value for name, value in pairs if name.lower() == "connection"]
    if connection and connection != ["keep-alive"]:
        dropped = dropped | {name.strip().lower() for name in ",".join(connection).split(",")}
    return CIMultiDict([pair for pair in pairs if pair[0].lower() not in dropped])


def _is_small(response: aiohttp.ClientResponse) -> bool:
    return (response.content_length or 0) <= MAX_WHOLE_BYTES and (
        response.content_length is not None or response.content_type == "application/json"
    )


def _scrubbed_body(body: bytes, scrub: ScrubOptions, content_type: str) -> bytes:
    """A reply that is no event stream by its type, scrubbed; some are one all the same."""
    if content_type != "application/json" and body.lstrip().startswith(_EVENT_BEGIN):
        events = ScrubbedEvents(scrub.for_stream(), finishes=0)
        return events.feed(body) + events.flush()
    try:
        reply = decode_json(body)
    except ValueError:
        if content_type == "application/json":
            raise UpstreamFailed("The upstream sent something that is no JSON.") from None
        return body
    return encode_json(
        scrub_reply(
            reply, mode=scrub.mode, tag_names=scrub.tag_names, starts_open=scrub.starts_open
        )
    )


async def _read_events(
    response: aiohttp.ClientResponse, stage: VerbatimEvents | ScrubbedEvents
) -> AsyncIterator[bytes]:
    async for data in pieces_of(response):
        if out := stage.feed(data):
            yield out
    if out := stage.flush():
        yield out
