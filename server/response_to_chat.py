"""A request of the Responses API → the chat completion that asks the same.

In: the request, typed, and all its fields as they came. Out: a chat completion's fields. What a chat completion
cannot say is an `InvalidRequest`, whose `param` names it; `docs/upstreams.md` says what becomes of the rest.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from server.chat_limits import refusal
from server.chat_request import decoded
from server.response_items import chat_messages
from server.response_schema import ChosenTool, ResponseRequest, ResponseTool, TextOptions

Json = dict[str, Any]

_decoder = msgspec.json.Decoder(ResponseRequest)
BECAUSE = "this upstream knows chat completions only"
_SAME = (
    *("temperature", "top_p", "presence_penalty", "frequency_penalty", "metadata", "user"),
    *("safety_identifier", "prompt_cache_key", "service_tier"),
)
# Of what is given these do not go up as they are: they are translated, or a chat completion means another thing by
# them. Anything else of no schema is the upstream's to understand: `seed`, `top_k`, `chat_template_kwargs`.
_NOT_UP = frozenset(
    {
        *ResponseRequest.__struct_fields__,
        *("model", "messages", "n", "max_tokens", "max_completion_tokens", "logprobs"),
        *("response_format", "functions", "function_call"),
    }
)


def response_request_of(body: bytes) -> ResponseRequest:
    """Raises InvalidRequest, which names the field that is wrong."""
    return decoded(_decoder, body)


def chat_fields(asked: ResponseRequest, given: Json, earlier: Sequence[Json]) -> Json:
    """The chat completion without its model; `given` are all fields, `earlier` the items before the input.

    Raises InvalidRequest.
    """
    _refuse(asked)
    items = input_items(asked)
    fields: Json = {"messages": chat_messages(asked.instructions, earlier, items)}
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


def input_items(asked: ResponseRequest) -> list[Json]:
    """The request's own items. Raises InvalidRequest."""
    given = asked.input
    if isinstance(given, str):
        return [{"type": "message", "role": "user", "content": given}]
    if not given:
        raise refusal("input", "must be a text, or hold at least one item")
    return given


def _refuse(asked: ResponseRequest) -> None:
    """Raises InvalidRequest for the first thing that such an upstream cannot do."""
    if asked.background:
        raise refusal("background", f"must be false: {BECAUSE}")
    for name in ("prompt", "context_management", "moderation"):
        if getattr(asked, name):
            raise refusal(name, f"must be absent: {BECAUSE}")
    if asked.truncation not in (None, "disabled"):
        raise refusal("truncation", f"must be disabled: {BECAUSE}")
    if asked.top_logprobs:
        raise refusal("top_logprobs", f"must be 0: {BECAUSE}")
    if "message.output_text.logprobs" in (asked.include or []):
        raise refusal("include", f"must not have message.output_text.logprobs: {BECAUSE}")
    if asked.max_output_tokens is not None and asked.max_output_tokens < 1:
        raise refusal("max_output_tokens", "must be a whole number above 0")


def _text_fields(text: TextOptions) -> Json:
    fields: Json = {} if text.verbosity is None else {"verbosity": text.verbosity}
    wanted = text.format
    if wanted is None or wanted.type == "text":
        return fields
    if wanted.type == "json_object":
        return fields | {"response_format": {"type": wanted.type}}
    if wanted.type != "json_schema":
        raise refusal("text.format.type", "must be one of text, json_object, json_schema")
    if wanted.schema is None:
        raise refusal("text.format.schema", "must be a JSON schema")
    if wanted.name is None:
        raise refusal("text.format.name", "must be a text")
    schema = _given(wanted, "name", "description", "schema", "strict")
    return fields | {"response_format": {"type": wanted.type, wanted.type: schema}}


def _tool_fields(asked: ResponseRequest) -> Json:
    tools = [_chat_tool(tool, index) for index, tool in enumerate(asked.tools or [])]
    choice: Any = asked.tool_choice
    if isinstance(choice, ChosenTool):
        if choice.type == "function" and choice.name is not None:
            choice = {"type": choice.type, "function": {"name": choice.name}}
        elif choice.type == "allowed_tools" and choice.tools is not None:
            allowed = {tool.name for tool in choice.tools}
            tools = [tool for tool in tools if tool["function"]["name"] in allowed]
            choice = choice.mode or "auto"
        else:
            raise refusal("tool_choice", f"must be a mode, a function or allowed_tools: {BECAUSE}")
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


def _chat_tool(tool: ResponseTool, index: int) -> Json:
    if tool.type != "function":
        raise refusal(f"tools.{index}.type", f"must be function, not {tool.type}: {BECAUSE}")
    if tool.name is None:
        raise refusal(f"tools.{index}.name", "must be a text")
    return {
        "type": "function",
        "function": _given(tool, "name", "description", "parameters", "strict"),
    }


def _given(fields: msgspec.Struct, *names: str) -> Json:
    return {name: value for name in names if (value := getattr(fields, name)) is not None}
