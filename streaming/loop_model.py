"""smolagents Models whose calls are live and can be stopped.

In: the messages that an agent gives its model, in the agent's thread. Out: `ModelDelta`s as the tokens
come, `ModelCalled` at the end of the call, and for the agent the reply without its thoughts (its code
parser would also run code that stands inside think tags).

`LoopModel` is the one smolgate gives to agents: the call is a coroutine on the event loop, and the
thread only waits. `TappedModel` wraps a model that an agent's author chose: its tokens are live too,
but its thread is in the author's code until the next token, and only there obeys the stop.
"""

import asyncio
import contextvars
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from smolagents.models import (
    ChatMessage,
    ChatMessageStreamDelta,
    ChatMessageToolCall,
    ChatMessageToolCallFunction,
    MessageRole,
    Model,
    agglomerate_stream_deltas,
    remove_content_after_stop_sequences,
)
from smolagents.monitoring import TokenUsage

from sanitize.think import Segment, ThinkScrubber
from streaming.cancellation import StopSignal
from streaming.channel import Channel
from streaming.events import Began, ModelCalled, ModelDelta
from streaming.loop_call import wait_on_loop
from streaming.model_chunks import ToolCallDelta, Usage
from streaming.upstream_group import UpstreamGroup

Shape = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class ThinkOptions:
    """How thoughts are told apart in what a model writes (PRODUCT: THINK_TAGS, THINK_STARTS_OPEN)."""

    tag_names: tuple[str, ...] = ("think", "thank")
    starts_open: bool = False

    def scrubber(self) -> ThinkScrubber:
        return ThinkScrubber(
            mode="reasoning", tag_names=self.tag_names, starts_open=self.starts_open
        )


@dataclass
class _Reply:
    """What has come of one model call so far."""

    text: list[str] = field(default_factory=list)
    tool_calls: dict[int, ChatMessageToolCallFunction] = field(default_factory=dict)
    tool_call_ids: dict[int, str] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)

    def add_tool_calls(self, deltas: Iterable[ToolCallDelta]) -> None:
        for delta in deltas:
            index = delta.index if delta.index is not None else len(self.tool_calls)
            call = self.tool_calls.setdefault(
                index, ChatMessageToolCallFunction(name="", arguments="")
            )
            if delta.id:
                self.tool_call_ids[index] = delta.id
            if delta.function is not None:
                call.name = call.name or delta.function.name or ""
                call.arguments += delta.function.arguments or ""

    def message(self) -> ChatMessage:
        return ChatMessage(
            role=MessageRole.ASSISTANT,
            content="".join(self.text),
            tool_calls=[
                ChatMessageToolCall(
                    function=call,
                    id=self.tool_call_ids.get(index, f"call_{index}"),
                    type="function",
                )
                for index, call in sorted(self.tool_calls.items())
            ]
            or None,
            token_usage=TokenUsage(
                input_tokens=self.usage.prompt_tokens or 0,
                output_tokens=self.usage.completion_tokens or 0,
            ),
        )


class LoopModel(Model):  # type: ignore[misc]
    """A model whose `generate` runs on the event loop and obeys the run's stop signal.

    `shape` may rewrite a request body before it is sent. `failure` keeps the last call's error: at
    max_steps smolagents swallows it and answers with its text. `finish_reason` is the last call's.
    """

    def __init__(
        self,
        upstream: UpstreamGroup,
        channel: Channel,
        stop: StopSignal,
        *,
        loop: asyncio.AbstractEventLoop,
        think: ThinkOptions,
        shape: Shape | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model_id=upstream.model, **options)
        self._upstream = upstream
        self._channel = channel
        self._stop = stop
        self._loop = loop
        self._think = think
        self._shape = shape
        self.failure: Exception | None = None
        self.finish_reason: str | None = None

    def generate(
        self,
        messages: list[Any],
        stop_sequences: list[str] | None = None,
        response_format: dict[str, str] | None = None,
        tools_to_call_from: list[Any] | None = None,
        **kwargs: Any,
    ) -> ChatMessage:
        """One model call; blocks the calling thread. Raises SmolgateError leaves, RunCancelled."""
        self._stop.check()
        self.failure = self.finish_reason = None
        body = self._prepare_completion_kwargs(
            messages=messages,
            stop_sequences=stop_sequences,
            response_format=response_format,
            tools_to_call_from=tools_to_call_from,
            convert_images_to_image_urls=True,
            **kwargs,
        )
        body["model"] = self.model_id
        body["messages"] = [_plain_where_possible(message) for message in body["messages"]]
        if tools_to_call_from and "tools" in body:
            body["tools"] = [
                _as_it_came(tool, schema)
                for tool, schema in zip(tools_to_call_from, body["tools"], strict=True)
            ]
        if self._shape is not None:
            body = self._shape(body)
        message = self._wait_for(body)
        if stop_sequences and not self.supports_stop_parameter:
            message.content = remove_content_after_stop_sequences(message.content, stop_sequences)
        return message

    def _wait_for(self, body: dict[str, Any]) -> ChatMessage:
        try:
            return wait_on_loop(
                self.call(body), self._loop, self._stop, context=self.call_context()
            )
        except Exception as error:
            self.failure = error
            raise

    def call_context(self) -> contextvars.Context:
        """A context of the call's own: pooled connections would keep the run's alive, and what is
        written to stderr on the loop is not the run's output."""
        return contextvars.Context()

    async def call(self, body: dict[str, Any]) -> ChatMessage:
        """One model call, on the event loop. Raises SmolgateError leaves, RunCancelled."""
        await self._channel.send_on_loop(Began("model", self.model_id or ""))
        began = time.monotonic()
        try:
            return await self._call(body, began)
        except Exception:
            failed = ModelCalled(0, 0, seconds=time.monotonic() - began, failed=True)
            await self._channel.send_on_loop(failed)
            raise

    async def _call(self, body: dict[str, Any], began: float) -> ChatMessage:
        reply = _Reply()
        scrubber = self._think.scrubber()
        async with aclosing(self._upstream.chat(body)) as chunks:
            async for chunk in chunks:
                if chunk.thinking:
                    await self._channel.send_on_loop(ModelDelta(chunk.thinking, thinking=True))
                if chunk.text:
                    await self._emit(scrubber.feed_segments(chunk.text), reply)
                reply.add_tool_calls(chunk.tool_calls)
                reply.usage = chunk.usage or reply.usage
                self.finish_reason = chunk.finish_reason or self.finish_reason
        await self._emit(scrubber.flush_segments(), reply)
        details = reply.usage.completion_tokens_details
        await self._channel.send_on_loop(
            ModelCalled(
                prompt_tokens=reply.usage.prompt_tokens or 0,
                completion_tokens=reply.usage.completion_tokens or 0,
                reasoning_tokens=(details and details.reasoning_tokens) or 0,
                seconds=time.monotonic() - began,
            )
        )
        return reply.message()

    async def _emit(self, segments: Iterable[Segment], reply: _Reply) -> None:
        for segment in segments:
            if not segment.is_reasoning:
                reply.text.append(segment.text)
            await self._channel.send_on_loop(
                ModelDelta(segment.text, thinking=segment.is_reasoning)
            )


class TappedModel(Model):  # type: ignore[misc]
    """An author's own model, its tokens made live."""

    def __init__(
        self, model: Any, channel: Channel, stop: StopSignal, *, think: ThinkOptions
    ) -> None:
        super().__init__(model_id=getattr(model, "model_id", None))
        self._model = model
        self._channel = channel
        self._stop = stop
        self._think = think
        self.failure: Exception | None = None
        self.finish_reason: str | None = None  # not to be known

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def generate(self, messages: list[Any], *args: Any, **kwargs: Any) -> ChatMessage:
        """The wrapped model's reply without its thoughts. Raises what it raises, and RunCancelled."""
        self._stop.check()
        self.failure = None
        self._channel.send(Began("model", str(self.model_id or "")))
        began = time.monotonic()
        try:
            return self._generate(messages, began, *args, **kwargs)
        except Exception as error:
            self.failure = error
            failed = ModelCalled(0, 0, seconds=time.monotonic() - began, failed=True)
            self._channel.send(failed)
            raise

    def _generate(
        self, messages: list[Any], began: float, *args: Any, **kwargs: Any
    ) -> ChatMessage:
        scrubber = self._think.scrubber()
        visible: list[str] = []
        if hasattr(self._model, "generate_stream"):
            deltas: list[ChatMessageStreamDelta] = []
            for delta in self._model.generate_stream(messages, *args, **kwargs):
                self._stop.check()
                deltas.append(delta)
                self._emit(scrubber.feed_segments(delta.content or ""), visible)
            message = agglomerate_stream_deltas(deltas)
        else:
            message = self._model.generate(messages, *args, **kwargs)
            if isinstance(message.content, str):
                self._emit(scrubber.feed_segments(message.content), visible)
        self._emit(scrubber.flush_segments(), visible)
        if isinstance(message.content, str):
            message.content = "".join(visible)
        usage = message.token_usage or TokenUsage(input_tokens=0, output_tokens=0)
        self._channel.send(
            ModelCalled(usage.input_tokens, usage.output_tokens, seconds=time.monotonic() - began)
        )
        return message

    def _emit(self, segments: Iterable[Segment], visible: list[str]) -> None:
        for segment in segments:
            if not segment.is_reasoning:
                visible.append(segment.text)
            self._channel.send(ModelDelta(segment.text, thinking=segment.is_reasoning))


def _as_it_came(tool: Any, schema: dict[str, Any]) -> dict[str, Any]:
    """A client's own schema: smolagents keeps only the first level of one."""
    function: dict[str, Any] | None = getattr(tool, "function_schema", None)
    return schema if function is None else {"type": "function", "function": function}


def _plain_where_possible(message: dict[str, Any]) -> dict[str, Any]:
    """Text parts alone become a string: not every server takes a list."""
    content = message["content"]
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        content = "\n".join(part["text"] for part in content)
    return {"role": str(message["role"].value), "content": content}
