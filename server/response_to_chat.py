"""A request of the Responses API → the chat completion that asks the same.

In: the request, typed as far as all requests are alike. Out: a chat completion's fields. What a chat completion
cannot say is an `InvalidRequest`, whose `param` names it; `docs/upstreams.md` says what becomes of the rest.
"""

from typing import Any

import msgspec

from server.chat_limits import refusal
from server.chat_request import ModelObject, decoded
from server.response_items import chat_messages

Json = dict[str, Any]


class TextOptions(msgspec.Struct):
    format: Json | None = None
    verbosity: str | None = None


class ReasoningOptions(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None


class ResponseRequest(msgspec.Struct):
    """A request for a model of an upstream. Fields of no schema are the upstream's to understand."""

    model: str | ModelObject | None = None
    input: str | list[Json] | None = None
    instructions: str | None = None
    stream: bool | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    top_logprobs: int | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: list[Json] | None = None
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool | None = None
    include: list[str] | None = None
    truncation: str | None = None
    background: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: str | Json | None = None
    prompt: Json | None = None
    context_management: list[Json] | None = None
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None


_decoder = msgspec.json.Decoder(ResponseRequest)
_SAME = (
    *("temperature", "top_p", "presence_penalty", "frequency_penalty", "metadata", "user"),
    *("safety_identifier", "prompt_cache_key", "service_tier"),
)
# Of no chat completion, and not the upstream's business; or what would change what comes back.
_NOT_UP = frozenset(
    {
        *ResponseRequest.__struct_fields__,
        *("stream_options", "messages", "n", "max_tokens", "max_completion_tokens", "logprobs"),
        *("response_format", "functions", "function_call", "image", "moderation"),
        *("prompt_cache_retention", "prompt_cache_options", "background_options"),
    }
)


def response_request_of(body: bytes) -> ResponseRequest:
    """Raises InvalidRequest, which names the field that is wrong."""
    return decoded(_decoder, body)


def chat_fields(asked: ResponseRequest, given: Json, earlier: list[Json]) -> Json:
    """The chat completion without its model; `given` are all fields, `earlier` the items before the input.

    Raises InvalidRequest.
    """
    _refuse(asked)
    fields: Json = {
        "messages": chat_messages(asked.instructions, earlier, _input_items(asked.input))
    }
    if asked.stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    fields |= {name: value for name in _SAME if (value := getattr(asked, name)) is not None}
    if asked.max_output_tokens is not None:
        fields["max_tokens"] = asked.max_output_tokens
    if asked.reasoning is not None and asked.reasoning.effort is not None:
        fields["reasoning_effort"] = asked.reasoning.effort
    if asked.text is not None:
        fields |= _text_fields(asked.text)
    fields |= _tool_fields(asked)
    return fields | {name: value for name, value in given.items() if name not in _NOT_UP}


def _refuse(asked: ResponseRequest) -> None:
    """Raises InvalidRequest for the first thing that this upstream cannot do."""
    because = "this upstream knows chat completions only"
    if asked.background:
        raise refusal("background", f"must be false: {because}")
    if asked.prompt is not None:
        raise refusal("prompt", f"must be absent: {because}")
    if asked.context_management:
        raise refusal("context_management", f"must be absent: {because}")
    if asked.truncation not in (None, "disabled"):
        raise refusal("truncation", f"must be disabled: {because}")
    if asked.top_logprobs:
        raise refusal("top_logprobs", f"must be 0: {because}")
    if "message.output_text.logprobs" in (asked.include or []):
        raise refusal("include", f"must not have message.output_text.logprobs: {because}")
    if asked.max_output_tokens is not None and asked.max_output_tokens < 1:
        raise refusal("max_output_tokens", "must be a whole number above 0")


def _input_items(given: str | list[Json] | None) -> list[Json]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not given:
        raise refusal("input", "must be a text, or hold at least one item")
    return given


def _text_fields(text: TextOptions) -> Json:
    fields: Json = {} if text.verbosity is None else {"verbosity": text.verbosity}
    wanted = text.format or {"type": "text"}
    kind = wanted.get("type")
    if kind == "json_object":
        fields["response_format"] = {"type": kind}
    elif kind == "json_schema":
        if not isinstance(wanted.get("schema"), dict):
            raise refusal("text.format.schema", "must be a JSON schema")
        schema = {name: value for name, value in wanted.items() if name != "type"}
        fields["response_format"] = {"type": kind, kind: _given(schema)}
    elif kind != "text":
        raise refusal("text.format.type", "must be one of text, json_object, json_schema")
    return fields


def _tool_fields(asked: ResponseRequest) -> Json:
    tools = [_chat_tool(tool, index) for index, tool in enumerate(asked.tools or [])]
    choice = asked.tool_choice
    if isinstance(choice, dict):
        kind = choice.get("type")
        if kind == "function":
            choice = {"type": kind, "function": {"name": choice.get("name")}}
        elif kind == "allowed_tools" and isinstance(choice.get("tools"), list):
            allowed = [one.get("name") for one in choice["tools"] if isinstance(one, dict)]
            tools = [tool for tool in tools if tool["function"]["name"] in allowed]
            choice = choice.get("mode") or "auto"
        else:
            raise refusal(
                "tool_choice", "must be auto, none, required, a function or allowed_tools here"
            )
    if not tools:
        if choice not in (None, "auto", "none"):
            raise refusal("tool_choice", "must not ask for a tool where there is none")
        return {}
    fields: Json = {"tools": tools}
    if choice is not None:
        fields["tool_choice"] = choice
    if asked.parallel_tool_calls is not None:
        fields["parallel_tool_calls"] = asked.parallel_tool_calls
    return fields


def _chat_tool(tool: Json, index: int) -> Json:
    if tool.get("type") != "function":
        raise refusal(
            f"tools.{index}.type",
            f"must be function, not {tool.get('type')}: this upstream knows chat completions only",
        )
    if not isinstance(tool.get("name"), str):
        raise refusal(f"tools.{index}.name", "must be a text")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": _given({name: tool.get(name) for name in names})}


def _given(fields: Json) -> Json:
    return {name: value for name, value in fields.items() if value is not None}
