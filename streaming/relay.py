"""One relayed request: the upstream's reply, as it is or scrubbed.

In: the client's method, headers and body. Out: a `Relayed` with the status and headers that the client
gets, and its body as bytes. Verbatim, the bytes are the upstream's own. Event streams go on event by
event, never half of one, so that whoever writes them may put a heartbeat or an error in between; a
stream that ends without being complete ends in `UpstreamFailed`.
"""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
from multidict import CIMultiDict

from sanitize.deltas import DeltaScrubber
from sanitize.payload import scrub_reply
from sanitize.think import Mode
from streaming.failures import UpstreamFailed
from streaming.json_codec import decode_json, encode_json
from streaming.sse_parser import MAX_EVENT_BYTES, EventTooLarge, SseEvent, SseParser
from streaming.upstream import Upstream, body_of, pieces_of

# RFC 9110 7.6.1, and what belongs to one hop or to the client alone.
NOT_RELAYED_UP = frozenset(
    "host content-length content-encoding connection keep-alive proxy-connection "
    "proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade expect cookie "
    "x-api-key api-key forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip "
    "x-on-disconnect idempotency-key".split()
)
NOT_RELAYED_DOWN = frozenset(
    "connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer "
    "transfer-encoding upgrade set-cookie server date alt-svc".split()
)
# Bodies up to this size are read whole: a reply that breaks off is then an error, not half a reply.
MAX_WHOLE_BYTES = 1 << 20
# Inside JSON strings quotes are escaped, so that what a model writes never looks like these.
_DONE = re.compile(rb"^data: ?\[DONE\]|^data: ?\{\"error\"\s*:\s*[{\"]", re.MULTILINE)
_FINISHED = re.compile(rb"\"finish_reason\"\s*:\s*\"[^\"]")
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
        pieces = (
            pieces_of(response)
            if not is_event_stream
            else _whole_events(response, _StreamEnd(finishes))
            if scrub is None
            else _scrubbed_events(response, scrub.for_stream(), _StreamEnd(finishes))
        )
        yield Relayed(response.status, received, is_event_stream, whole, pieces)


def relayed_headers(headers: Mapping[str, str], dropped: frozenset[str]) -> CIMultiDict[str]:
    """Headers for the other side: without the dropped ones and those that `Connection` names."""
    pairs = list(headers.items())
    named = {
        name.strip().lower()
        for header, value in pairs
        if header.lower() == "connection"
        for name in value.split(",")
    }
    return CIMultiDict(
        (name, value)
        for name, value in pairs
        if name.lower() not in dropped and name.lower() not in named
    )


class _StreamEnd:
    """Whether a stream that ends here is complete."""

    def __init__(self, finishes: int) -> None:
        self._missing = finishes
        self._finished: set[Any] = set()  # indexes of choices

    def see(self, events: bytes) -> None:
        """Look at whole events."""
        if self._missing <= 0:
            return
        if _DONE.search(events):
            self._missing = 0
        elif _FINISHED.search(events):
            finished = _finished_choices(events) - self._finished
            self._finished |= finished
            self._missing -= len(finished)

    def check(self) -> None:
        """Raises UpstreamFailed where something is missing."""
        if self._missing > 0:
            raise UpstreamFailed("The upstream ended its reply before it was complete.")


def _finished_choices(events: bytes) -> set[Any]:
    """The indexes of the choices that finish in these events; some finish one twice."""
    parser = SseParser()
    finished = set()
    for event in parser.feed(events) + parser.flush():
        if event.data is None or not _FINISHED.search(event.data):
            continue
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            for choice in decode_json(event.data)["choices"]:
                if choice.get("finish_reason"):
                    finished.add(choice.get("index"))
    return finished


def _is_small(response: aiohttp.ClientResponse) -> bool:
    return (response.content_length or 0) <= MAX_WHOLE_BYTES and (
        response.content_length is not None or response.content_type == "application/json"
    )


def _scrubbed_body(body: bytes, scrub: ScrubOptions, content_type: str) -> bytes:
    """A reply that is no event stream by its type, scrubbed; some are one all the same."""
    if content_type != "application/json" and body.lstrip().startswith(_EVENT_BEGIN):
        scrubber, parser = scrub.for_stream(), SseParser()
        events = parser.feed(body) + parser.flush()
        scrubbed = [_scrubbed_event(event, scrubber) for event in events]
        return b"".join((*scrubbed, *map(_event_of, scrubber.flush())))
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


async def _whole_events(
    response: aiohttp.ClientResponse, stream_end: _StreamEnd
) -> AsyncIterator[bytes]:
    """The upstream's bytes, cut only between events. Raises UpstreamFailed where the end is missing."""
    held = b""
    async for data in pieces_of(response):
        if held:
            data = held + data
        end = _last_boundary(data)
        held = data[end:]
        if len(held) > MAX_EVENT_BYTES:
            raise UpstreamFailed("The upstream sent an event that is too large.")
        if end:
            whole = data[:end] if held else data
            stream_end.see(whole)
            yield whole
    stream_end.see(held)
    stream_end.check()
    if held:
        yield held


def _last_boundary(data: bytes) -> int:
    """Where the last complete event ends, 0 where none does."""
    if data.endswith((b"\n\n", b"\r\n\r\n")):
        return len(data)
    line_feeds, both = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(line_feeds + 2 if line_feeds != -1 else 0, both + 4 if both != -1 else 0)


async def _scrubbed_events(
    response: aiohttp.ClientResponse, scrubber: DeltaScrubber, stream_end: _StreamEnd
) -> AsyncIterator[bytes]:
    """The upstream's events; those that a tag may touch are written anew, the others are as they came."""
    parser = SseParser()
    try:
        async for data in pieces_of(response):
            events = parser.feed(data)
            for event in events:
                stream_end.see(event.raw)
            if out := b"".join([_scrubbed_event(event, scrubber) for event in events]):
                yield out
    except EventTooLarge:
        raise UpstreamFailed("The upstream sent an event that is too large.") from None
    last = parser.flush()
    for event in last:
        stream_end.see(event.raw)
    stream_end.check()
    scrubbed = [_scrubbed_event(event, scrubber) for event in last]
    yield b"".join((*scrubbed, *map(_event_of, scrubber.flush())))


def _scrubbed_event(event: SseEvent, scrubber: DeltaScrubber) -> bytes:
    if event.data is None or (event.data != b"[DONE]" and scrubber.passes(event.data)):
        return event.raw
    if event.data == b"[DONE]":
        return b"".join(map(_event_of, scrubber.flush())) + event.raw
    try:
        chunk = decode_json(event.data)
    except ValueError:
        raise UpstreamFailed("The upstream sent something that is no JSON.") from None
    if not isinstance(chunk, dict):
        return event.raw
    return b"".join(map(_event_of, scrubber.feed(chunk)))


def _event_of(chunk: dict[str, Any]) -> bytes:
    return b"data: " + encode_json(chunk) + b"\n\n"
