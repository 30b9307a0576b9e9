"""What the client sent → what goes up to whichever upstream of an id is asked.

In: the client's bytes, or its body as it comes. Out: the same bytes where nothing must change; else what
makes a body for each upstream; or a stream that is sent once.
"""

from collections.abc import AsyncIterator
from typing import Any

import msgspec
from aiohttp import web

from server.chat_request import RoutedRequest, json_object
from server.nothink import nothink_body
from server.upstreams import UpstreamRoute
from streaming.failures import BodyTooLarge, InvalidRequest
from streaming.streamed_body import StreamedBody
from streaming.upstream_group import BodyFor, GroupMember


async def whole_body(request: web.Request) -> bytes:
    """The body; at once where it came with its head. Raises web.HTTPException, web.RequestPayloadError."""
    content, limit = request.content, request.client_max_size
    if content.is_eof() and content.exception() is None and content.total_bytes <= limit:
        return content.read_nowait()
    return await request.read()


def chat_data(body: bytes, asked: RoutedRequest, route: UpstreamRoute) -> bytes | BodyFor:
    """The body of a chat completion. Raises InvalidRequest for messages that no model takes."""
    if not route.nothink:
        return other_data(body, asked, route)

    def body_for(member: GroupMember) -> bytes:
        options = route.options[member.name]
        return nothink_body(body, member.model, options.nothink_directive, options.nothink_body)

    return body_for


def other_data(body: bytes, asked: RoutedRequest, route: UpstreamRoute) -> bytes | BodyFor:
    """Any other body that names a model: the upstream's own name for it, and all else as it came."""
    if asked.model is None or (isinstance(asked.model, str) and route.is_verbatim):
        return body

    def body_for(member: GroupMember) -> bytes:
        return with_model(body, member.model)

    return body_for


def with_model(body: bytes, model: str) -> bytes:
    """The same fields, their values byte for byte, but for the model's."""
    try:
        body.decode()  # what is only copied is not looked at
        fields: dict[str, Any] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        fields = json_object(body)
    return msgspec.json.encode(fields | {"model": model})


def streamed_body(request: web.Request) -> StreamedBody:
    """The client's body as it comes, up to the size that this server takes.

    Raises BodyTooLarge, at once where the length is known, else from the body.
    """
    limit = request.client_max_size
    is_coded = "Content-Encoding" in request.headers  # aiohttp has decoded it
    length = None if is_coded else request.content_length
    if length is not None and limit and length > limit:
        raise BodyTooLarge("The request body is too large.")
    return StreamedBody(_pieces(request, limit), length=length)


async def _pieces(request: web.Request, limit: int) -> AsyncIterator[bytes]:
    size = 0
    try:
        async for piece in request.content.iter_any():
            size += len(piece)
            if limit and size > limit:
                raise BodyTooLarge("The request body is too large.")
            yield piece
    except web.RequestPayloadError:
        raise InvalidRequest("The request body cannot be decoded.") from None
