"""One relayed request: the upstream's reply, as it is or scrubbed.

In: the client's method, headers and body. Out: a `Relayed` with the status and headers that the client
gets, and its body as bytes. Verbatim, the bytes are the upstream's own. Event streams go on event by
event, never half of one, so that whoever writes them may put a heartbeat or an error in between; a
stream that ends without being complete ends in `UpstreamFailed`.
"""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
from multidict import CIMultiDict

from sanitize.deltas import DeltaScrubber
from sanitize.payload import scrub_reply
from sanitize.think import Mode
from streaming.failures import UpstreamFailed
from streaming.sse_parser import MAX_EVENT_BYTES, EventTooLarge, SseEvent, SseParser
from streaming.upstream import Upstream, body_of, pieces_of

# RFC 9110 7.6.1, and what belongs to one hop or to the client alone.
NOT_RELAYED_UP = frozenset(
    "host content-length content-encoding connection keep-alive proxy-authenticate "
    "proxy-authorization te trailer transfer-encoding upgrade expect cookie "
    "x-on-disconnect idempotency-key".split()
)
NOT_RELAYED_DOWN = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization te trailer transfer-encoding "
    "upgrade set-cookie server date alt-svc".split()
)
# Bodies up to this size are read whole: a reply that breaks off is then an error, not half a reply.
MAX_WHOLE_BYTES = 1 << 20
TAIL_BYTES = 4096
_FINISHED = re.compile(rb"\[DONE\]|\"finish_reason\"\s*:\s*\"[^\"]|\"error\"\s*:")


@dataclass(frozen=True)
class ScrubOptions:
    """How a reply is scrubbed: see `sanitize.think`."""

    mode: Mode
    tag_names: tuple[str, ...]
    starts_open: bool

    def for_stream(self) -> DeltaScrubber:
        return DeltaScrubber(mode=self.mode, tag_names=self.tag_names, starts_open=self.starts_open)


@dataclass(frozen=True)
class Relayed:
    """What the client gets. `whole` is the body where it is not a stream; else `pieces` yields it."""

    status: int
    headers: CIMultiDict[str]
    is_event_stream: bool
    whole: bytes | None
    pieces: AsyncIterator[bytes]


@asynccontextmanager
async def relay(
    upstream: Upstream,
    method: str,
    path: str,
    headers: Mapping[str, str],
    body: Any,
    *,
    scrub: ScrubOptions | None = None,
) -> AsyncIterator[Relayed]:
    """Send a request up and hold its reply open. Raises UpstreamUnavailable, UpstreamFailed."""
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
        if whole is not None and scrub is not None and response.content_type == "application/json":
            whole = _scrubbed_json(whole, scrub)
        if whole is not None or is_event_stream or scrub is not None:
            received.popall("Content-Length", None)
        pieces = (
            pieces_of(response)
            if not is_event_stream
            else _whole_events(response)
            if scrub is None
            else _scrubbed_events(response, scrub.for_stream())
        )
        yield Relayed(response.status, received, is_event_stream, whole, pieces)


def relayed_headers(headers: Mapping[str, str], dropped: frozenset[str]) -> CIMultiDict[str]:
    """Headers for the other side: without the dropped ones and those that `Connection` names."""
    named = {name.strip().lower() for name in headers.get("Connection", "").split(",")}
    return CIMultiDict(
        (name, value)
        for name, value in headers.items()
        if name.lower() not in dropped and name.lower() not in named
    )


def _is_small(response: aiohttp.ClientResponse) -> bool:
    length = response.content_length
    return (
        response.content_type == "application/json" if length is None else length <= MAX_WHOLE_BYTES
    )


def _scrubbed_json(body: bytes, scrub: ScrubOptions) -> bytes:
    try:
        reply = msgspec.json.decode(body)
    except msgspec.DecodeError:
        raise UpstreamFailed("The upstream sent something that is no JSON.") from None
    return msgspec.json.encode(
        scrub_reply(
            reply, mode=scrub.mode, tag_names=scrub.tag_names, starts_open=scrub.starts_open
        )
    )


async def _whole_events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The upstream's bytes, cut only between events. Raises UpstreamFailed where the end is missing."""
    held = b""
    tail = b""
    async for data in pieces_of(response):
        tail = data[-TAIL_BYTES:] if len(data) >= TAIL_BYTES else (tail + data)[-TAIL_BYTES:]
        if held:
            data = held + data
        end = _last_boundary(data)
        held = data[end:]
        if len(held) > MAX_EVENT_BYTES:
            raise UpstreamFailed("The upstream sent an event that is too large.")
        if end:
            yield data[:end]
    if not _FINISHED.search(tail):
        raise UpstreamFailed("The upstream ended its reply before it was complete.")
    if held:
        yield held


def _last_boundary(data: bytes) -> int:
    """Where the last complete event ends, 0 where none does."""
    if data.endswith((b"\n\n", b"\r\n\r\n")):
        return len(data)
    line_feeds, both = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(line_feeds + 2 if line_feeds != -1 else 0, both + 4 if both != -1 else 0)


async def _scrubbed_events(
    response: aiohttp.ClientResponse, scrubber: DeltaScrubber
) -> AsyncIterator[bytes]:
    """The upstream's events; those that a tag may touch are written anew, the others are as they came."""
    parser = SseParser()
    finished = False
    try:
        async for data in pieces_of(response):
            if out := b"".join(_scrubbed_event(event, scrubber) for event in parser.feed(data)):
                finished = finished or _FINISHED.search(out) is not None
                yield out
    except EventTooLarge:
        raise UpstreamFailed("The upstream sent an event that is too large.") from None
    last = b"".join(_scrubbed_event(event, scrubber) for event in parser.flush())
    if not finished and not _FINISHED.search(last):
        raise UpstreamFailed("The upstream ended its reply before it was complete.")
    yield last + b"".join(map(_event_of, scrubber.flush()))


def _scrubbed_event(event: SseEvent, scrubber: DeltaScrubber) -> bytes:
    if event.data is None or (event.data != b"[DONE]" and scrubber.passes(event.data)):
        return event.raw
    if event.data == b"[DONE]":
        return b"".join(map(_event_of, scrubber.flush())) + event.raw
    try:
        chunk = msgspec.json.decode(event.data)
    except msgspec.DecodeError:
        raise UpstreamFailed("The upstream sent something that is no JSON.") from None
    if not isinstance(chunk, dict):
        return event.raw
    return b"".join(map(_event_of, scrubber.feed(chunk)))


def _event_of(chunk: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(chunk) + b"\n\n"
