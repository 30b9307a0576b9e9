"""The JSON of chat completions, as pure functions: the order and the shapes of WIRE's chat stream.

In: pieces of text, a finish reason, counts, errors. Out: ready server-sent events, one ASCII `data:`
line each, or a whole completion.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii as quote  # as json.dumps does, at once
from typing import Any

from streaming.run_spec import CalledTool

DONE = b"data: [DONE]\n\n"
# A long answer is split so that no event nears the 64 KiB at which line-based readers fail: at most
# twelve bytes a character (a surrogate pair, escaped).
MAX_CHARACTERS = 4096
MAX_THINK_CHARACTERS = 24_000
TRUNCATED = "…\n[truncated]"

REASONING_FORMATS = ("deepseek-legacy", "deepseek", "think_tags", "none")


@dataclass(frozen=True)
class Tokens:
    """Counts of a whole run."""

    prompt: int
    completion: int
    reasoning: int

    def as_json(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


class ChatWire:
    """Makes the events of one stream; `created` is in whole seconds since the epoch."""

    def __init__(self, *, run_id: str, created: int, model: str, include_usage: bool) -> None:
        head = {"id": run_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._head = _compact(head)[:-1]
        self._begin = f'data: {self._head},"choices":[{{"index":0,"delta":'
        self._end = ('}],"usage":null}' if include_usage else "}]}") + "\n\n"
        self._include_usage = include_usage

    def role(self) -> bytes:
        return self._chunk('{"role":"assistant","content":""}')

    def reasoning(self, text: str) -> Iterator[bytes]:
        """The same text under both names that clients read."""
        for piece in _pieces(text, MAX_CHARACTERS // 2):
            quoted = quote(piece)
            yield self._chunk(f'{{"reasoning_content":{quoted},"reasoning":{quoted}}}')

    def content(self, text: str) -> Iterator[bytes]:
        for piece in _pieces(text, MAX_CHARACTERS):
            yield self._chunk(f'{{"content":{quote(piece)}}}')

    def tool_calls(self, calls: Sequence[CalledTool]) -> Iterator[bytes]:
        """As OpenAI streams them: a call's head with its first delta, then its arguments."""
        for index, call in enumerate(calls):
            head = call_object(call) | {"function": {"name": call.name, "arguments": ""}}
            yield self._chunk(_compact({"tool_calls": [{"index": index} | head]}))
            for piece in _pieces(call.arguments, MAX_CHARACTERS):
                delta = {"index": index, "function": {"arguments": piece}}
                yield self._chunk(_compact({"tool_calls": [delta]}))

    def finish(self, reason: str) -> bytes:
        return self._chunk("{}", json.dumps(reason))

    def usage(self, tokens: Tokens) -> bytes:
        """The usage chunk, or nothing where it was not asked for."""
        if not self._include_usage:
            return b""
        usage = _compact(tokens.as_json())
        return f'data: {self._head},"choices":[],"usage":{usage}}}\n\n'.encode("ascii")

    def _chunk(self, delta: str, finish: str = "null") -> bytes:
        return f'{self._begin}{delta},"finish_reason":{finish}{self._end}'.encode("ascii")


def error_event(error: Mapping[str, Any]) -> bytes:
    """An error in a stream; `[DONE]` follows it."""
    return f"data: {_compact({'error': error})}\n\n".encode("ascii")


def completion(
    *,
    run_id: str,
    created: int,
    model: str,
    reasoning: str,
    answer: str,
    tool_calls: Sequence[CalledTool] = (),
    finish_reason: str = "stop",
    reasoning_format: str,
    tokens: Tokens,
) -> dict[str, Any]:
    """A whole chat completion; `reasoning_format` says where the reasoning stands."""
    message: dict[str, Any] = {"role": "assistant", "content": answer}
    in_content = {"deepseek-legacy", "think_tags"}
    if tool_calls:
        message["content"] = None
        message["tool_calls"] = [call_object(call) for call in tool_calls]
        in_content = {"think_tags"}
    reasoning = reasoning.strip("\n")
    if reasoning and reasoning_format in in_content:
        message["content"] = f"<think>\n{truncated(reasoning)}\n</think>\n\n{answer}"
    if reasoning and reasoning_format in {"deepseek-legacy", "deepseek"}:
        message["reasoning_content"] = message["reasoning"] = reasoning
    return {
        "id": run_id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {"index": 0, "message": message, "finish_reason": finish_reason, "logprobs": None}
        ],
        "usage": tokens.as_json(),
    }


def call_object(call: CalledTool) -> dict[str, Any]:
    """A tool call as OpenAI writes it."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def truncated(reasoning: str) -> str:
    """At most MAX_THINK_CHARACTERS of it, said so where some is missing."""
    if len(reasoning) <= MAX_THINK_CHARACTERS:
        return reasoning
    return reasoning[:MAX_THINK_CHARACTERS] + TRUNCATED


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _pieces(text: str, characters: int) -> list[str]:
    if 0 < len(text) <= characters:
        return [text]
    return [text[begin : begin + characters] for begin in range(0, len(text), characters)]
