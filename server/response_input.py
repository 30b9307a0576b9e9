"""The input of a Responses request → the messages that it means.

In: a text or items, and the items of the conversation before them. Out: a `ChatRequest`, which the rest of the server
reads as it reads chat completions; and the request's own items as they are kept, each with an id. Raises
`InvalidRequest`, whose `param` names the item.
"""

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from server.chat_limits import refusal
from server.chat_schema import (
    AllowedTool,
    AllowedTools,
    ChatRequest,
    FunctionCall,
    FunctionDefinition,
    JsonSchema,
    Message,
    MessageToolCall,
    NamedFunction,
    ResponseFormat,
    ToolChoice,
    ToolDefinition,
)
from server.response_limits import CODE_TOOL
from server.response_schema import (
    ITEM_TYPES,
    FunctionCallItem,
    FunctionCallOutputItem,
    MessageItem,
    ResponseRequest,
)
from streaming.events import Failure
from streaming.failures import InvalidRequest

Json = dict[str, Any]

ROLES = ("user", "assistant", "system", "developer")
MAX_ITEMS = 10_000
MAX_ID_CHARACTERS = 128
_DATA_URL = re.compile(r"data:([^;,]*)((?:;[^;,]*)*?);base64,(.*)", re.DOTALL)
_PLACE = re.compile(r"\bmessages\.(\d+)(?:\.tool_call_id)?")
_FIELD = re.compile(r" - at `\$\.?([^`]*)`$")
_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
    "code_interpreter_call": "ci",
    "mcp_call": "mcp",
}


@dataclass(frozen=True)
class ReadInput:
    """`places` says of each message which item it came of."""

    chat: ChatRequest
    places: tuple[str, ...]


def items_of(
    given: str | list[Json] | None, *, stem: str, known: Mapping[str, Json], where: str = "input"
) -> list[Json]:
    """Items as they are kept: checked, references replaced by what `known` has, each with an id."""
    if isinstance(given, str):
        content = [{"type": "input_text", "text": given}]
        given = [{"type": "message", "role": "user", "content": content}]
    if given is None:
        return []
    if len(given) > MAX_ITEMS:
        raise refusal(where, f"must hold at most {MAX_ITEMS} items")
    items: list[Json] = []
    for index, item in enumerate(given):
        place = f"{where}.{index}"
        kind = item.get("type") or ("message" if "role" in item else "item_reference")
        if not isinstance(kind, str) or kind not in ITEM_TYPES:
            raise refusal(
                f"{place}.type", f"must be one of {', '.join(ITEM_TYPES)}, not {str(kind)[:64]}"
            )
        _checked(item, ITEM_TYPES[kind], place)
        if kind == "item_reference":
            if item["id"] not in known:
                raise refusal(f"{place}.id", "is the id of no item that is known here")
            items.append(known[item["id"]])
            continue
        kept: Json = {"type": kind} | item
        kept["id"] = _id_of(item, place) or f"{_PREFIXES[kind]}_{stem}_in{index}"
        kept.setdefault("status", "completed")
        if kind == "message":
            kept["content"] = _content(item, place)
        items.append(kept)
    return items


def chat_of(request: ResponseRequest, earlier: Sequence[Json], items: list[Json]) -> ReadInput:
    """The request as chat would have it. `earlier` are items that the agent does not remember."""
    messages: list[Message] = []
    places: list[str] = []
    if request.instructions:
        messages.append(Message(role="developer", content=request.instructions))
        places.append("instructions")
    for item in earlier:
        _add(messages, places, item, "previous_response_id")
    for index, item in enumerate(items):
        _add(messages, places, item, f"input.{index}")
    text = request.text
    reasoning = request.reasoning
    chat = ChatRequest(
        messages=messages,
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        response_format=_format(request),
        reasoning_effort=reasoning.effort if reasoning is not None else None,
        verbosity=text.verbosity if text is not None else None,
        tools=_tools(request),
        tool_choice=_choice(request),
        parallel_tool_calls=request.parallel_tool_calls,
        user=request.user or request.safety_identifier,
        metadata=request.metadata,
    )
    return ReadInput(chat, tuple(places))


def renamed(error: InvalidRequest, read: ReadInput) -> InvalidRequest:
    """An error about a message as one about the item that it came of."""

    def place(found: re.Match[str]) -> str:
        index = int(found[1])
        return read.places[index] if index < len(read.places) else "input"

    message = _own_names(_PLACE.sub(place, error.message))
    param = _own_names(_PLACE.sub(place, error.param or "")) or None
    return InvalidRequest(message, param=param, code=error.code)


def renamed_failure(failure: Failure) -> Failure:
    """A run's failure for what its request held, by the names of this API."""
    if failure.param is None:
        return failure
    return msgspec.structs.replace(
        failure, message=_own_names(failure.message), param=_own_names(failure.param)
    )


def _own_names(text: str) -> str:
    for pattern, name in _NAMES:
        text = pattern.sub(name, text)
    return text


# What chat calls them, and what they are called here.
_NAMES = (
    (re.compile(r"\bresponse_format\.json_schema\.schema\b"), "text.format.schema"),
    (re.compile(r"\btools\.(\d+)\.function\b"), r"tools.\1"),
    (re.compile(r"\btool_choice\.allowed_tools\b"), "tool_choice"),
    (re.compile(r"(?<=')messages(?=')|^messages\b"), "input"),
)


def _checked(item: Json, kind: type[msgspec.Struct], place: str) -> None:
    try:
        msgspec.convert(item, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _FIELD.search(message)
        inner = found[1].replace("[...]", "").replace("[", ".").replace("]", "") if found else ""
        if missing := re.search(r"missing required field `(\w+)`", message):
            inner = f"{inner}.{missing[1]}" if inner else missing[1]
        where = f"{place}.{inner}" if inner else place
        said = f"'{where}': {_FIELD.sub('', message)}."
        raise InvalidRequest(said, param=where) from None


def _id_of(item: Json, place: str) -> str | None:
    given: str | None = item.get("id")
    if given is not None and not 0 < len(given) <= MAX_ID_CHARACTERS:
        raise refusal(f"{place}.id", f"must have 1 to {MAX_ID_CHARACTERS} characters")
    return given


def _content(item: Json, place: str) -> list[Json]:
    if item["role"] not in ROLES:
        raise refusal(f"{place}.role", f"must be one of {', '.join(ROLES)}")
    content = item["content"]
    if not isinstance(content, str):
        for number, part in enumerate(content):
            _check_part(part, f"{place}.content.{number}")
        return list(content)
    if item["role"] == "assistant":
        return [{"type": "output_text", "text": content, "annotations": []}]
    return [{"type": "input_text", "text": content}]


def _check_part(part: Json, place: str) -> None:
    _read_part(part, place)


def _add(messages: list[Message], places: list[str], item: Json, place: str) -> None:
    match item["type"]:
        case "message":
            read = msgspec.convert(item, MessageItem)
            content = _parts(read.content, f"{place}.content")
            messages.append(Message(role=read.role, content=content))
        case "function_call":
            call = msgspec.convert(item, FunctionCallItem)
            made = MessageToolCall(
                call.call_id, FunctionCall(name=call.name, arguments=call.arguments)
            )
            last = messages[-1] if messages else None
            if last is not None and last.role == "assistant" and last.tool_calls:
                last.tool_calls.append(made)
                return
            messages.append(Message(role="assistant", tool_calls=[made]))
        case "function_call_output":
            output = msgspec.convert(item, FunctionCallOutputItem)
            content = _parts(output.output, f"{place}.output")
            messages.append(Message(role="tool", content=content, tool_call_id=output.call_id))
        case "code_interpreter_call":
            logs = "".join(str(each.get("logs", "")) for each in item.get("outputs") or ())
            said = f"[ran code]\n{item.get('code') or ''}\n[which printed]\n{logs}"
            messages.append(Message(role="assistant", content=said))
        case "mcp_call":
            said = f"[called {item['name']} with {item.get('arguments')}]\n{item.get('output')}"
            messages.append(Message(role="assistant", content=said))
        case _:
            return  # thoughts: models that see them imitate them
    places.append(place)


def _parts(content: str | list[Json], place: str) -> str | list[Json]:
    if isinstance(content, str):
        return content
    return [_read_part(part, f"{place}.{number}") for number, part in enumerate(content)]


def _read_part(part: Json, place: str) -> Json:
    """A part as chat has it. Raises InvalidRequest for one that an agent cannot take."""
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(said)}:
            return {"type": "text", "text": said}
        case {"type": "refusal", "refusal": str(said)}:
            return {"type": "text", "text": said}
        case {"type": "input_image", "image_url": str(url)}:
            return {"type": "image_url", "image_url": {"url": url}}
        case {"type": "input_image"}:
            raise refusal(
                f"{place}.image_url", "must be a data URL: there are no stored files here"
            )
        case {"type": "input_file"}:
            return {"type": "text", "text": _file_text(part, place)}
        case {"type": "summary_text" | "reasoning_text"}:
            return {"type": "reasoning"}
    raise refusal(
        f"{place}.type", "must be input_text, input_image, input_file, output_text or refusal"
    )


def _file_text(part: Json, place: str) -> str:
    """A text file, named and fenced. What is no text is refused."""
    for name in ("file_id", "file_url"):
        if part.get(name) is not None:
            raise refusal(f"{place}.{name}", "must be absent: give the file by 'file_data'")
    data = part.get("file_data")
    if not isinstance(data, str):
        raise refusal(f"{place}.file_data", "must be the file: base64, or a data URL of it")
    found = _DATA_URL.fullmatch(data)
    try:
        text = base64.b64decode(found[3] if found else data, validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        raise refusal(
            f"{place}.file_data", "must be a text file in base64 and UTF-8: agents read no other"
        ) from None
    if "\0" in text:
        raise refusal(f"{place}.file_data", "must be a text file: agents read no other")
    named = part.get("filename")
    return f"File {named!r}:\n{text}" if isinstance(named, str) else f"File:\n{text}"


def _format(request: ResponseRequest) -> ResponseFormat | None:
    wanted = request.text.format if request.text is not None else None
    if wanted is None:
        return None
    schema = None
    if wanted.type == "json_schema":
        schema = JsonSchema(
            name=wanted.name or "",
            schema=wanted.schema,
            description=wanted.description,
            strict=wanted.strict,
        )
    return ResponseFormat(type=wanted.type, json_schema=schema)


def _tools(request: ResponseRequest) -> list[ToolDefinition] | None:
    return [
        ToolDefinition(
            "function",
            FunctionDefinition(
                name=tool.name or "",
                description=tool.description,
                parameters=tool.parameters,
                strict=tool.strict,
            ),
        )
        for tool in request.tools or ()
        if tool.type == "function"
    ]


def _choice(request: ResponseRequest) -> str | ToolChoice | None:
    choice = request.tool_choice
    if choice is None or isinstance(choice, str):
        kinds = {tool.type for tool in request.tools or ()}
        # A code-writing agent uses its interpreter whatever it is told.
        return "auto" if choice == "required" and kinds == {CODE_TOOL} else choice
    if choice.type == CODE_TOOL:
        return "auto"  # a code-writing agent does nothing else
    if choice.type == "allowed_tools":
        tools = [
            AllowedTool(tool.type, NamedFunction(tool.name or ""))
            for tool in choice.tools or ()
            if tool.type == "function"
        ]
        return ToolChoice(
            "allowed_tools", allowed_tools=AllowedTools(mode=choice.mode or "", tools=tools)
        )
    if choice.type == "function" and choice.name:
        return ToolChoice("function", function=NamedFunction(choice.name))
    raise refusal("tool_choice.type", "must be function, allowed_tools or code_interpreter")
