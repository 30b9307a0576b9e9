"""The Responses request as agents take it, typed: every parameter of OpenAI's schema, and the items of its input.

In: JSON. Out: a `ResponseRequest` whose fields have the right types, and items, each by its `type`; what values they
may have is `response_limits.py`'s business. Fields that no schema has are ignored.
"""

from typing import Any

import msgspec


class Reasoning(msgspec.Struct):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None
    context: Any = None
    mode: Any = None


class TextFormat(msgspec.Struct):
    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct):
    format: TextFormat | None = None
    verbosity: str | None = None


class ResponseTool(msgspec.Struct):
    """A function has its definition beside its type; `container` is a code interpreter's."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    container: Any = None


class ChosenTool(msgspec.Struct):
    type: str
    name: str | None = None
    mode: str | None = None
    tools: list["ChosenTool"] | None = None


class ConversationParam(msgspec.Struct):
    id: str


class ResponseStreamOptions(msgspec.Struct):
    include_obfuscation: bool | None = None


class MessageItem(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]]
    type: str = "message"
    id: str | None = None
    status: str | None = None


class FunctionCallItem(msgspec.Struct):
    call_id: str
    name: str
    arguments: str
    type: str = "function_call"
    id: str | None = None
    status: str | None = None


class FunctionCallOutputItem(msgspec.Struct):
    call_id: str
    output: str | list[dict[str, Any]]
    type: str = "function_call_output"
    id: str | None = None
    status: str | None = None


class ReasoningItem(msgspec.Struct):
    """Sent back by clients; no model sees it."""

    type: str = "reasoning"
    id: str | None = None
    summary: list[dict[str, Any]] | None = None
    content: list[dict[str, Any]] | None = None
    encrypted_content: str | None = None
    status: str | None = None


class CodeInterpreterItem(msgspec.Struct):
    type: str = "code_interpreter_call"
    id: str | None = None
    code: str | None = None
    outputs: list[dict[str, Any]] | None = None
    container_id: str | None = None
    status: str | None = None


class McpCallItem(msgspec.Struct):
    name: str
    arguments: str = ""
    type: str = "mcp_call"
    id: str | None = None
    server_label: str | None = None
    output: str | None = None
    error: Any = None
    status: str | None = None


class ItemReference(msgspec.Struct):
    id: str
    type: str | None = "item_reference"


Item = (
    MessageItem
    | FunctionCallItem
    | FunctionCallOutputItem
    | ReasoningItem
    | CodeInterpreterItem
    | McpCallItem
    | ItemReference
)
ITEM_TYPES: dict[str, type[msgspec.Struct]] = {
    "message": MessageItem,
    "function_call": FunctionCallItem,
    "function_call_output": FunctionCallOutputItem,
    "reasoning": ReasoningItem,
    "code_interpreter_call": CodeInterpreterItem,
    "mcp_call": McpCallItem,
    "item_reference": ItemReference,
}


class ResponseRequest(msgspec.Struct):
    """`model` is read by the routing. Items are read by `response_input.py`, one by one."""

    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = None
    store: bool | None = None
    background: bool | None = None
    previous_response_id: str | None = None
    conversation: str | ConversationParam | None = None
    include: list[str] | None = None

    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    reasoning: Reasoning | None = None
    text: TextOptions | None = None

    tools: list[ResponseTool] | None = None
    tool_choice: str | ChosenTool | None = None
    parallel_tool_calls: bool | None = None

    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Any = None

    # Taken only where they ask for nothing: see response_limits.py.
    access_programs: Any = None
    background_options: Any = None
    context_management: Any = None
    image: Any = None
    max_tool_calls: int | None = None
    moderation: Any = None
    prompt: Any = None
    service_tier: str | None = None
    top_logprobs: int | None = None
    truncation: str | None = None

    @property
    def conversation_id(self) -> str | None:
        named = self.conversation
        return named.id if isinstance(named, ConversationParam) else named
