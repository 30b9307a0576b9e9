"""A request for an agent that its upstream's model answers alone, under the agent's name.

In: the request's body. Out: the model's reply without its thoughts, streamed or whole, as an agent's would
be. It takes no slot of the runs'. A failure before the first byte is a status, later one an error event.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing

from aiohttp import web

from sanitize.think import Segment
from server.chat_request import json_object
from server.chat_schema import ChatRequest
from server.chat_wire import DONE, ChatWire, Tokens, completion, error_event
from server.drain import refuse_when_draining
from server.errors import error_object, unexpected
from server.keys import (
    API_KEY,
    IDENTITY,
    KEY_RING,
    OUTCOME,
    RELAYS,
    REQUEST_ID,
    SETTINGS,
    SUPERVISOR,
    UPSTREAM,
    UPSTREAMS,
)
from server.sse_writer import SseWriter
from streaming.failures import Draining, SmolgateError
from streaming.json_codec import encode_json
from streaming.loop_model import ThinkOptions
from streaming.model_chunks import Usage

# What is asked of this server and not of the model.
OURS = ("stream", "stream_options", "reasoning_format", "reasoning_effort")
FINISH_REASONS = frozenset({"stop", "length", "content_filter"})


async def answer_plainly(
    request: web.Request, body: bytes, asked: ChatRequest, model: str
) -> web.StreamResponse:
    """The reply. Raises SmolgateError leaves before the first byte."""
    refuse_when_draining(request.app)
    fields = json_object(body)
    for name in OURS:
        fields.pop(name, None)
    reply = _PlainReply(request, fields | {"model": request.app[UPSTREAM].model})
    task, relays = asyncio.current_task(), request.app[RELAYS]
    assert task is not None
    relays.add(task)
    try:
        async with aclosing(reply.texts()) as texts:
            if asked.stream:
                include_usage = bool(asked.stream_options and asked.stream_options.include_usage)
                return await _stream(request, reply, texts, model, include_usage=include_usage)
            answer = "".join([text async for text in texts])
    finally:
        relays.discard(task)
        tokens = reply.tokens()
        request.app[KEY_RING].add_tokens(
            request.get(API_KEY, ""), tokens.prompt + tokens.completion
        )
    whole = completion(
        run_id=request.app[IDENTITY].new_id(),
        created=int(request.app[IDENTITY].now()),
        model=model,
        reasoning="",
        answer=answer,
        finish_reason=reply.finish_reason,
        reasoning_format="none",
        tokens=tokens,
    )
    return web.Response(body=encode_json(whole), content_type="application/json")


class _PlainReply:
    """One model call; its usage and its end are known once its texts were read."""

    def __init__(self, request: web.Request, fields: dict[str, object]) -> None:
        route = request.app[UPSTREAMS].default
        starts_open = route.options[route.group.members[0].name].starts_open
        self._scrubber = ThinkOptions(request.app[SETTINGS].think_tags, starts_open).scrubber()
        self._chunks = request.app[UPSTREAM].chat(fields)
        self._usage = Usage()
        self._begun = False
        self.finish_reason = "stop"

    def tokens(self) -> Tokens:
        details = self._usage.completion_tokens_details
        return Tokens(
            self._usage.prompt_tokens or 0,
            self._usage.completion_tokens or 0,
            (details and details.reasoning_tokens) or 0,
        )

    async def texts(self) -> AsyncGenerator[str]:
        """What is meant for the reader, as it comes."""
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                self._usage = chunk.usage or self._usage
                if chunk.finish_reason in FINISH_REASONS:
                    self.finish_reason = str(chunk.finish_reason)
                if text := self._visible(self._scrubber.feed_segments(chunk.text)):
                    yield text
        if text := self._visible(self._scrubber.flush_segments()):
            yield text

    def _visible(self, segments: Iterable[Segment]) -> str:
        text = "".join(segment.text for segment in segments if not segment.is_reasoning)
        if not self._begun:  # the blank lines after a think block
            text = text.lstrip()
            self._begun = bool(text)
        return text


async def _stream(
    request: web.Request,
    reply: _PlainReply,
    texts: AsyncIterator[str],
    model: str,
    *,
    include_usage: bool,
) -> web.StreamResponse:
    settings = request.app[SETTINGS]
    wire = ChatWire(
        run_id=request.app[IDENTITY].new_id(),
        created=int(request.app[IDENTITY].now()),
        model=model,
        include_usage=include_usage,
    )
    first = asyncio.ensure_future(anext(texts, ""))
    try:
        await asyncio.wait([first], timeout=settings.heartbeat_seconds)
        if first.done():
            first.result()  # a failure is a status still
        writer = SseWriter(
            heartbeat_seconds=settings.heartbeat_seconds,
            stall_seconds=settings.stall_seconds,
            headers={"x-request-id": request[REQUEST_ID]},
        )
        await writer.prepare(request)
        async with writer:
            await writer.send_events(wire.role())
            end = await _carry(request, writer, wire, first, texts)
            await writer.send_events(end or _end_of(reply, wire))
            await writer.write_eof()
        return writer
    finally:
        first.cancel()
        await asyncio.wait([first])  # a generator that still runs cannot be closed


async def _carry(
    request: web.Request,
    writer: SseWriter,
    wire: ChatWire,
    first: asyncio.Future[str],
    texts: AsyncIterator[str],
) -> bytes:
    """Send the texts. What is left to say where they broke off, else nothing."""
    try:
        await writer.send_events(b"".join(wire.content(await first)))
        async for text in texts:
            await writer.send_events(b"".join(wire.content(text)))
    except ConnectionError:
        raise
    except asyncio.CancelledError:
        if not request.app[SUPERVISOR].draining:
            raise
        return _failure(request, wire, Draining("The server is stopping."))
    except SmolgateError as error:
        return _failure(request, wire, error)
    except Exception as error:  # noqa: BLE001 - logged there
        return _failure(request, wire, unexpected(request, error))
    return b""


def _end_of(reply: _PlainReply, wire: ChatWire) -> bytes:
    return wire.finish(reply.finish_reason) + wire.usage(reply.tokens()) + DONE


def _failure(request: web.Request, wire: ChatWire, error: SmolgateError) -> bytes:
    request[OUTCOME] = error.code or "upstream"
    return wire.finish("error") + error_event(error_object(error)) + DONE
