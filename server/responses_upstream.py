"""`POST /v1/responses` for an upstream's model: relayed where the upstream has it, else translated.

In: the request, and where its model leads. Out: the upstream's reply, or what is made of its chat completion. A
request that is relayed is not read beyond its model; one that is translated only once it is known to be.
"""

from functools import cached_property, partial
from typing import Any

from aiohttp import web

from server.begun_response import begun_response
from server.chat_request import RoutedRequest, json_object
from server.drain import refuse_when_draining
from server.keys import IDENTITY, REQUEST_ID
from server.nothink import nothink_request
from server.relay_reply import send_reply
from server.relayed_body import other_data
from server.response_history import ResponseHistory
from server.response_schema import ResponseRequest
from server.response_to_chat import chat_fields, input_items, response_request_of
from server.upstreams import UpstreamRoute
from streaming.json_codec import encode_json
from streaming.relay import Relayed
from streaming.response_relay import Keep, ResponseAsk, relay_response
from streaming.stream_end import ResponseEnd
from streaming.upstream_group import GroupMember


async def send_response(
    request: web.Request, body: bytes, asked: RoutedRequest, route: UpstreamRoute
) -> web.StreamResponse:
    """Answer one request. Raises SmolgateError leaves before the first byte."""
    refuse_when_draining(request.app)
    query = request.rel_url.raw_query_string
    history = ResponseHistory(request)
    continues = await history.read(body)
    translation = _Translation(request, body, asked, route, history, continues=continues)
    ask = ResponseAsk(
        own=translation.own,
        chat=translation.chat,
        begun=translation.begun,
        now=request.app[IDENTITY].now,
        routes=route.responses,
        stream=bool(asked.stream),
        scrub=route.scrub,
        translates=route.nothink or continues,
        query=f"?{query}" if query else "",
    )

    async def relayed() -> Relayed:
        return await relay_response(route.group, request.headers, request[REQUEST_ID], ask)

    return await send_reply(request, relayed, stream=ask.stream, fault=ResponseEnd().fault)


class _Translation:
    """One request in both forms, each made where it is needed."""

    def __init__(
        self,
        request: web.Request,
        body: bytes,
        asked: RoutedRequest,
        route: UpstreamRoute,
        history: ResponseHistory,
        *,
        continues: bool,
    ) -> None:
        self._history = history
        self._continues = continues
        self._request = request
        self._body = body
        self._asked = asked
        self._route = route
        self._own = other_data(body, asked, route)

    def own(self, member: GroupMember) -> bytes:
        return self._own if isinstance(self._own, bytes) else self._own(member)

    def chat(self, member: GroupMember) -> bytes:
        """Raises InvalidRequest for what a chat completion cannot say."""
        route = self._route
        if not route.nothink:
            return encode_json({"model": member.model, **self._chat})
        options = route.options[member.name]
        return nothink_request(
            self._chat, member.model, options.nothink_directive, options.nothink_body
        )

    def begun(self) -> tuple[dict[str, Any], Keep | None]:
        identity = self._request.app[IDENTITY]
        begun = begun_response(
            self._typed,
            id_=f"resp_{identity.new_id().partition('-')[2]}",
            created=int(identity.now()),
            model=self._asked.model_id or self._route.model,
        )
        return begun, partial(self._history.keep, items=self._items) if begun["store"] else None

    @cached_property
    def _typed(self) -> ResponseRequest:
        return response_request_of(self._body)

    @cached_property
    def _chat(self) -> dict[str, Any]:
        self._history.check_found(found=self._continues)
        return chat_fields(self._typed, json_object(self._body), self._history.earlier)

    @cached_property
    def _items(self) -> list[dict[str, Any]]:
        return input_items(self._typed)
