"""One request of the Responses API for an upstream: relayed where the upstream has it, else translated.

In: the request in both forms, and what is known of the upstreams. Out: a `Relayed`, as `relay` gives it. An upstream
of which nothing is known is asked for `/responses` first; where it says that it has no such route, it is asked at
once for a chat completion, and so is every later request for a time. Nothing else is ever asked twice for it.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from multidict import CIMultiDictProxy

from streaming.chat_response import ChatResponse
from streaming.event_stages import DirectEvents, VerbatimEvents
from streaming.failures import UpstreamFailed
from streaming.http_head import NO_BODY
from streaming.relay import (
    DECODED_NOT_RELAYED_DOWN,
    NOT_RELAYED_UP,
    Relayed,
    ScrubOptions,
    is_event_stream,
    relayed_headers,
    relayed_reply,
)
from streaming.response_events import ResponseEvents
from streaming.responses_route import MAX_REFUSAL_BYTES, ResponsesRoute, says_no_route
from streaming.stream_end import ResponseEnd
from streaming.translated_events import TranslatedEvents
from streaming.upstream_group import BodyFor, GroupMember, UpstreamGroup
from streaming.upstream_reply import UpstreamReply

RESPONSES = "/responses"
CHAT_COMPLETIONS = "/chat/completions"
JSON_TYPE = (("Content-Type", "application/json"),)
_NOT_TRANSLATED_DOWN = DECODED_NOT_RELAYED_DOWN.without(["content-type"])
SSE_TYPE = (("Content-Type", "text/event-stream"), ("Cache-Control", "no-cache, no-transform"))

# Keeps a response that has ended; says whether it could.
Keep = Callable[[Mapping[str, Any]], Awaitable[bool]]


@dataclass(frozen=True)
class ResponseAsk:
    """One request: how it goes up to an upstream that has the API, and how to one that has not.

    `begun` makes the response object of a translated reply as it starts, and says how it is kept, if it is; `now` is in
    seconds since the epoch. `routes` are the upstreams' by name; `scrub` is for translated replies. `translates`: all are.
    """

    own: BodyFor
    chat: BodyFor
    routes: Mapping[str, ResponsesRoute]
    begun: Callable[[], tuple[Mapping[str, Any], Keep | None]]
    now: Callable[[], float]
    stream: bool
    scrub: ScrubOptions | None
    translates: bool
    query: str = ""


async def relay_response(
    upstream: UpstreamGroup, headers: CIMultiDictProxy[str], request_id: str, ask: ResponseAsk
) -> Relayed:
    """Send the request up and hold its reply open. Raises UpstreamUnavailable, UpstreamFailed."""
    sent = relayed_headers(headers, NOT_RELAYED_UP)
    sent += (("Accept-Encoding", "identity"), ("X-Request-Id", request_id))
    form = _Form(ask)
    reply = await upstream.send(
        "POST", form.path_for, headers=sent, data=form.body_for, look=form.look
    )
    try:
        if reply in form.translated and 200 <= reply.status < 300:
            return await _translated(reply, request_id, ask)
        relayed = await relayed_reply(reply, request_id, decoded=True)
    except BaseException:
        reply.close()
        raise
    if relayed.events is not None:
        end = ResponseEnd()
        relayed.events = DirectEvents(VerbatimEvents(end=end))
        relayed.fault = end.fault
    return relayed


class _Form:
    """In which of the two forms each upstream of a group is asked: settled once for a request."""

    def __init__(self, ask: ResponseAsk) -> None:
        self._ask = ask
        self._translates: dict[str, bool] = {}
        self.translated: set[UpstreamReply] = set()

    def path_for(self, member: GroupMember) -> str:
        path = CHAT_COMPLETIONS if self._is_translated(member) else RESPONSES
        return path + self._ask.query

    def body_for(self, member: GroupMember) -> bytes:
        return self._ask.chat(member) if self._is_translated(member) else self._ask.own(member)

    async def look(self, member: GroupMember, reply: UpstreamReply) -> UpstreamReply | None:
        """The reply to be told, or None where the same upstream is to be asked in the other form."""
        if self._is_translated(member):
            self.translated.add(reply)
            return reply
        route = self._ask.routes[member.name]
        if not route.may_be_missing(reply.status):
            return reply
        begun, rest = await _begin_body(reply)
        if says_no_route(reply.status, reply.content_type, begun):
            route.note_missing()
            self._translates[member.name] = True
            return None
        return _BegunReply(reply, begun, rest)

    def _is_translated(self, member: GroupMember) -> bool:
        route = self._ask.routes[member.name]
        return self._translates.setdefault(member.name, self._ask.translates or route.translates)


async def _begin_body(reply: UpstreamReply) -> tuple[bytes, AsyncIterator[bytes]]:
    """As much of a refusal as is looked at, and what follows."""
    pieces = reply.pieces()
    begun = b""
    async for data in pieces:
        begun += data
        if len(begun) > MAX_REFUSAL_BYTES:
            break
    return begun, pieces


class _BegunReply(UpstreamReply):
    """A reply whose body was begun to be read."""

    def __init__(self, reply: UpstreamReply, begun: bytes, rest: AsyncIterator[bytes]) -> None:
        super().__init__()
        self.status, self.headers = reply.status, reply.headers
        self._reply = reply
        self._begun = begun
        self._rest = rest

    async def head(self) -> None:
        """It is there."""

    @property
    def progress(self) -> int:
        return self._reply.progress

    @property
    def is_paused(self) -> bool:
        return self._reply.is_paused

    async def pieces(self) -> AsyncIterator[bytes]:
        yield self._begun
        async for data in self._rest:
            yield data

    def fail(self, error: Exception) -> None:
        self._reply.fail(error)

    def close(self) -> None:
        super().close()
        self._reply.close()


async def _translated(reply: UpstreamReply, request_id: str, ask: ResponseAsk) -> Relayed:
    if reply.status in NO_BODY:
        raise UpstreamFailed(f"The upstream answered with status {reply.status}, and no reply.")
    headers = relayed_headers(reply.headers, _NOT_TRANSLATED_DOWN)
    headers.append(("x-request-id", request_id))
    begun, keep = ask.begun()
    events = ResponseEvents(begun, now=ask.now, holds_end=keep is not None)
    response = ChatResponse(events, ask.scrub)
    if ask.stream and reply.content_type == "text/event-stream":
        stage = TranslatedEvents(response, is_event_stream=True)
        relayed = Relayed(reply, headers, None, DirectEvents(stage), stage.fail)
        if keep is not None:
            relayed.last = partial(_told_end, stage, keep)
        return relayed
    body = await reply.body()
    stage = TranslatedEvents(response, is_event_stream=is_event_stream(reply.content_type, body))
    told = stage.feed(body) + stage.flush() + await _told_end(stage, keep)
    if ask.stream:
        return Relayed(reply, [*headers, *SSE_TYPE], told, None, is_events=True)
    return Relayed(reply, [*headers, *JSON_TYPE], stage.response, None)


async def _told_end(stage: TranslatedEvents, keep: Keep | None) -> bytes:
    """The last event, once the response is kept."""
    if keep is None or stage.held is None:
        return b""
    return stage.tell_end(store=await keep(stage.held))
