"""One relayed request: the upstream's reply, as it is or scrubbed.

In: the client's method, headers and body. Out: a `Relayed` with the status and headers that the client
gets, and its body as bytes. Verbatim, the bytes are the upstream's own. Event streams go on event by
event, never half of one, so that whoever writes them may put a heartbeat or an error in between; a
stream that ends without being complete ends in `UpstreamFailed`.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from multidict import CIMultiDictProxy

from sanitize.deltas import DeltaScrubber
from sanitize.payload import scrub_reply
from sanitize.think import Mode
from streaming.event_stages import DirectEvents, VerbatimEvents
from streaming.failures import UpstreamFailed, UpstreamRefused
from streaming.http_head import NO_BODY
from streaming.json_codec import decode_json, encode_json
from streaming.scrubbed_events import NoJson, ScrubbedEvents
from streaming.upstream_errors import error_text
from streaming.upstream_group import Data, UpstreamGroup
from streaming.upstream_reply import UpstreamReply

# Names of headers are remembered as they were spelled, so many, and none that is longer.
MAX_NAMES = 512
MAX_NAME_CHARACTERS = 64


class HeaderFilter(dict[str, bool]):
    """Whether a header goes on to the other side, by its name; most names come with every request."""

    def __init__(self, dropped: Iterable[str]) -> None:
        super().__init__()
        self.dropped = frozenset(dropped)

    def without(self, names: Iterable[str]) -> "HeaderFilter":
        """One that drops these, too."""
        return HeaderFilter(self.dropped.union(names))

    def __missing__(self, name: str) -> bool:
        goes_on = name.lower() not in self.dropped
        if len(name) <= MAX_NAME_CHARACTERS:
            if len(self) >= MAX_NAMES:
                self.clear()
            self[name] = goes_on
        return goes_on


# RFC 9110 7.6.1, and what belongs to one hop or to the client alone.
NOT_RELAYED_UP = HeaderFilter(
    "host content-length content-encoding connection keep-alive proxy-connection "
    "proxy-authenticate proxy-authorization te trailer transfer-encoding upgrade expect cookie "
    "x-api-key api-key forwarded x-forwarded-for x-forwarded-host x-forwarded-proto x-real-ip "
    "x-on-disconnect x-model x-request-id idempotency-key authorization accept-encoding "
    "x-smolgate-accel".split()
)
NOT_RELAYED_DOWN = HeaderFilter(
    "connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer "
    "transfer-encoding upgrade set-cookie server alt-svc x-request-id "
    # With these a server tells nginx what to do, and that is this server's to say.
    "x-accel-redirect x-accel-expires x-accel-limit-rate x-accel-buffering x-accel-charset "
    "x-smolgate-uri x-smolgate-authorization "
    # Which web pages may read a reply is for this server to say.
    "access-control-allow-origin access-control-allow-credentials access-control-expose-headers "
    "access-control-allow-methods access-control-allow-headers access-control-max-age".split()
)
_HAS_NO_LENGTH = NOT_RELAYED_DOWN.without(["content-length"])
DECODED_NOT_RELAYED_DOWN = _HAS_NO_LENGTH.without(["content-encoding"])
# Bodies up to this size are read whole: a reply that breaks off is then an error, not half a reply.
MAX_WHOLE_BYTES = 1 << 20
# How events begin, for replies that do not say what they are.
_EVENT_BEGIN = (b"data:", b"event:", b":", b"id:", b"retry:")


def is_event_stream(content_type: str, body: bytes) -> bool:
    """Whether a whole body is an event stream; some are one that do not say so."""
    if content_type in ("application/json", "text/event-stream"):
        return content_type != "application/json"
    return body.lstrip().startswith(_EVENT_BEGIN)


@dataclass(frozen=True)
class ScrubOptions:
    """How a reply is scrubbed: see `sanitize.think`."""

    mode: Mode
    tag_names: tuple[str, ...]
    starts_open: bool

    def for_stream(self) -> DeltaScrubber:
        return DeltaScrubber(mode=self.mode, tag_names=self.tag_names, starts_open=self.starts_open)


@dataclass(slots=True)
class Relayed:
    """What the client gets: `events`, or a body that is `whole`, or else the reply's `pieces`.

    Events are to be had in two ways: `event_pieces`, or else `reply.take` gives the socket's bytes, of
    which `events` makes what a chunked connection carries. Close the reply.

    `is_events`: what is whole are events, of a reply that came otherwise. `last` gives the events
    behind those of the upstream's, where there are any. `fault` makes the end of a stream that went wrong of OpenAI's error object, where it is not as in chat.
    """

    reply: UpstreamReply
    headers: list[tuple[str, str]]
    whole: bytes | None
    events: DirectEvents | None
    fault: Callable[[Mapping[str, Any]], bytes] | None = None
    is_events: bool = False
    last: Callable[[], Awaitable[bytes]] | None = None

    @property
    def status(self) -> int:
        return self.reply.status

    def no_stream(self) -> UpstreamFailed:
        """The error for who was promised a stream, and has begun to read it."""
        said = ""
        if self.status >= 400 and self.whole is not None:
            with suppress(ValueError):
                said = f": {error_text(decode_json(self.whole))}"
        return UpstreamRefused(
            f"The upstream answered with status {self.status} and no stream{said}",
            upstream_status=self.status,
        )

    async def event_pieces(self) -> AsyncIterator[bytes]:
        """Whole events, some at a time. Raises UpstreamFailed."""
        assert self.events is not None
        stage = self.events.stage
        async for data in self.reply.pieces():
            try:
                out = stage.feed(data)
            except NoJson as error:
                if error.before:
                    yield error.before
                raise
            if out:
                yield out
        if out := stage.flush():
            yield out


async def relay(
    upstream: UpstreamGroup,
    method: str,
    path: str,
    headers: CIMultiDictProxy[str],
    request_id: str,
    body: Data,
    *,
    scrub: ScrubOptions | None = None,
    finishes: int = 0,
) -> Relayed:
    """Send a request up and hold its reply open. Raises UpstreamUnavailable, UpstreamFailed.

    `finishes`: how many choices a stream must finish before it may end without `[DONE]`; 0 does not
    ask, for endpoints whose streams know neither.
    """
    accepted = headers.get("Accept-Encoding", "identity") if scrub is None else "identity"
    sent = relayed_headers(headers, NOT_RELAYED_UP)
    sent += (("Accept-Encoding", accepted), ("X-Request-Id", request_id))
    reply = await upstream.send(method, path, headers=sent, data=body, raw=scrub is None)
    try:
        return await relayed_reply(
            reply, request_id, scrub=scrub, finishes=finishes, decoded=scrub is not None
        )
    except BaseException:
        reply.close()
        raise


async def relayed_reply(
    reply: UpstreamReply,
    request_id: str,
    *,
    scrub: ScrubOptions | None = None,
    finishes: int = 0,
    decoded: bool,
) -> Relayed:
    """What the client gets of a reply whose head is read. Raises UpstreamFailed."""
    status, headers = reply.status, reply.headers
    if 300 <= status < 400:
        raise UpstreamFailed("The upstream answered with a redirect, which is not followed.")
    if status >= 300:
        scrub = None
    content_type = reply.content_type
    whole: bytes | None = None
    events: DirectEvents | None = None
    if status in NO_BODY:  # what came all the same would be taken for another reply
        whole = b""
    # Compressed events cannot be told apart: they go on as any other body does.
    elif content_type == "text/event-stream" and (decoded or "Content-Encoding" not in headers):
        events = DirectEvents(
            VerbatimEvents(finishes)
            if scrub is None
            else ScrubbedEvents(scrub.for_stream(), finishes)
        )
    elif scrub is not None:
        whole = _scrubbed_body(await reply.body(), scrub, content_type)
    elif _is_small(reply, content_type):
        whole = await reply.body()
    if decoded:
        passing = DECODED_NOT_RELAYED_DOWN
    else:
        passing = NOT_RELAYED_DOWN if whole is None and events is None else _HAS_NO_LENGTH
    received = relayed_headers(headers, passing)
    received.append(("x-request-id", request_id))
    return Relayed(reply, received, whole, events)


def relayed_headers(headers: CIMultiDictProxy[str], passing: HeaderFilter) -> list[tuple[str, str]]:
    """Headers for the other side: without the dropped ones and those that `Connection` names."""
    if "Connection" in headers:
        named = ",".join(headers.getall("Connection")).lower()
        if named != "keep-alive":
            passing = passing.without(name.strip() for name in named.split(","))
    return [pair for pair in headers.items() if passing[pair[0]]]


def _is_small(reply: UpstreamReply, content_type: str) -> bool:
    length = reply.content_length
    return (length or 0) <= MAX_WHOLE_BYTES and (
        length is not None or content_type == "application/json"
    )


def _scrubbed_body(body: bytes, scrub: ScrubOptions, content_type: str) -> bytes:
    """A reply that is no event stream by its type, scrubbed; some are one all the same."""
    if is_event_stream(content_type, body):
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
