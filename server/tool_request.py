"""The `tools` of an agent's request → tools that its run may call and its client executes.

In: a `ChatRequest` whose last message is no tool's result: its tools and what must become of them. In: one
whose last messages are: the results by their `tool_call_id`, for the run that waits for them. Raises
`InvalidRequest` for what cannot be, by its name.
"""

import re
from collections.abc import Sequence

from server.chat_limits import refusal
from server.chat_schema import ChatRequest, Message, ToolChoice, ToolDefinition
from server.conversation import read_content
from streaming.failures import InvalidRequest
from streaming.run_spec import ClientToolSpec
from streaming.tool_desk import ToolResult

MAX_TOOLS = 128
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MODES = ("none", "auto", "required")


def tools_of(request: ChatRequest) -> tuple[tuple[ClientToolSpec, ...], tuple[str, ...]]:
    """The tools that the run may call, and of which it must call one."""
    defined = request.tools or []
    if len(defined) > MAX_TOOLS:
        raise refusal("tools", f"must hold at most {MAX_TOOLS} tools")
    tools: dict[str, ClientToolSpec] = {}
    for index, tool in enumerate(defined):
        spec = _tool(tool, f"tools.{index}")
        if spec.name in tools:
            raise refusal(f"tools.{index}.function.name", f"names {spec.name!r} a second time")
        tools[spec.name] = spec
    return _chosen(request.tool_choice, tools)


def _tool(tool: ToolDefinition, where: str) -> ClientToolSpec:
    if tool.type != "function" or tool.function is None:
        raise refusal(f"{where}.type", "must be function, with the function's definition beside it")
    function = tool.function
    if not _NAME.fullmatch(function.name):
        raise refusal(
            f"{where}.function.name",
            "must be 1 to 64 letters, digits, underscores and dashes",
        )
    parameters = function.parameters or {}
    if parameters.get("type", "object") != "object":
        raise refusal(f"{where}.function.parameters.type", "must be object")
    if not isinstance(parameters.get("properties", {}), dict):
        raise refusal(f"{where}.function.parameters.properties", "must be an object")
    return ClientToolSpec(
        name=function.name,
        description=function.description or "",
        parameters=parameters,
        strict=bool(function.strict),
    )


def _chosen(
    choice: str | ToolChoice | None, tools: dict[str, ClientToolSpec]
) -> tuple[tuple[ClientToolSpec, ...], tuple[str, ...]]:
    """What `tool_choice` leaves of the tools, and which of them it demands."""
    mode, names = _mode_and_names(choice, tools)
    for name in names:
        if name not in tools:
            raise refusal("tool_choice", f"names {name!r}, which is none of 'tools'")
    if mode == "required" and not names:
        raise refusal("tool_choice", "can be required only where there are 'tools'")
    if mode == "none":
        return (), ()
    offered = tuple(tools[name] for name in names)
    return offered, tuple(names) if mode == "required" else ()


def _mode_and_names(
    choice: str | ToolChoice | None, tools: dict[str, ClientToolSpec]
) -> tuple[str, Sequence[str]]:
    if choice is None:
        return "auto", list(tools)
    if isinstance(choice, str):
        if choice not in _MODES:
            raise refusal("tool_choice", f"must be one of {', '.join(_MODES)}, or an object")
        return choice, list(tools)
    if choice.type == "function" and choice.function is not None:
        return "required", [choice.function.name]
    if choice.type == "allowed_tools" and choice.allowed_tools is not None:
        allowed = choice.allowed_tools
        if allowed.mode not in {"auto", "required"}:
            raise refusal("tool_choice.allowed_tools.mode", "must be auto or required")
        return allowed.mode, [tool.function.name if tool.function else "" for tool in allowed.tools]
    raise refusal(
        "tool_choice.type", "must be function or allowed_tools, with the object of that name"
    )


def tool_results_of(messages: Sequence[Message]) -> list[ToolResult]:
    """The results that a request ends with; none where it ends otherwise."""
    results: list[ToolResult] = []
    for index in range(len(messages) - 1, -1, -1):
        message = messages[index]
        if message.role != "tool":
            break
        if not message.tool_call_id:
            raise refusal(
                f"messages.{index}.tool_call_id", "must be the id of the call that was executed"
            )
        text, images = read_content(message.content, index)
        if images:
            raise refusal(
                f"messages.{index}.content", "must be text: a tool's result has no images"
            )
        results.append(ToolResult(message.tool_call_id, text, f"messages.{index}.tool_call_id"))
    results.reverse()
    seen: set[str] = set()
    for result in results:
        if result.tool_call_id in seen:
            raise InvalidRequest(
                f"'{result.param}' is the id of a result that was given already.",
                param=result.param,
            )
        seen.add(result.tool_call_id)
    return results
