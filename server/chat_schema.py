"""The chat completion request as agents take it, typed: every parameter of OpenAI's schema, and ours.

In: JSON. Out: a `ChatRequest` whose fields have the right types; what values they may have is
`chat_limits.py`'s business. Fields that no schema has are ignored: web UIs and gateways send their own.
"""

from typing import Any

import msgspec


class FunctionCall(msgspec.Struct):
    """`arguments` is JSON text; some clients send it parsed."""

    name: str
    arguments: str | dict[str, Any] = ""


class MessageToolCall(msgspec.Struct):
    id: str
    function: FunctionCall
    type: str = "function"


class Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    refusal: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None
    function_call: FunctionCall | None = None


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonSchema(msgspec.Struct):
    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct):
    type: str
    json_schema: JsonSchema | None = None


class FunctionDefinition(msgspec.Struct):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolDefinition(msgspec.Struct):
    type: str
    function: FunctionDefinition | None = None


class NamedFunction(msgspec.Struct):
    name: str


class AllowedTool(msgspec.Struct):
    type: str
    function: NamedFunction | None = None


class AllowedTools(msgspec.Struct):
    mode: str
    tools: list[AllowedTool]


class ToolChoice(msgspec.Struct):
    type: str
    function: NamedFunction | None = None
    allowed_tools: AllowedTools | None = None


class ChatRequest(msgspec.Struct):
    """`model` is read by the routing."""

    messages: list[Message]
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    max_tokens: int | float | None = None
    max_completion_tokens: int | float | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, int | float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None

    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    reasoning_format: str | None = None
    verbosity: str | None = None

    tools: list[ToolDefinition] | None = None
    tool_choice: str | ToolChoice | None = None
    parallel_tool_calls: bool | None = None

    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    # Taken only where they ask for nothing: see chat_limits.py.
    audio: Any = None
    function_call: Any = None
    functions: Any = None
    logprobs: bool | None = None
    modalities: list[str] | None = None
    moderation: Any = None
    prediction: Any = None
    service_tier: str | None = None
    store: bool | None = None
    top_logprobs: int | None = None
    web_search_options: Any = None
