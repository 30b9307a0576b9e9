"""One run, asked for in plain values: what flows from the server to a worker, wherever that lives."""

from typing import Any, Literal

import msgspec

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh"]


class Image(msgspec.Struct, frozen=True):
    """An encoded picture: its media type (`image/png`) and its bytes."""

    media_type: str
    data: bytes


class CalledTool(msgspec.Struct, frozen=True):
    """A call of a tool that the client executes; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


class Turn(msgspec.Struct, frozen=True):
    """An earlier turn of the conversation, reasoning already stripped.

    `tool_calls` are an assistant's; a tool's result has `tool_call_id`.
    """

    role: Literal["user", "assistant", "tool"]
    text: str
    images: tuple[Image, ...] = ()
    tool_calls: tuple[CalledTool, ...] = ()
    tool_call_id: str = ""


class ClientToolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A tool of the run that the client executes; `parameters` is the JSON schema of its arguments."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = msgspec.field(default_factory=dict)
    strict: bool = False


class AnswerFormat(msgspec.Struct, frozen=True, kw_only=True):
    """The answer is to be a JSON object, one that fits `schema` where there is one."""

    schema: dict[str, Any] | None = None
    name: str = ""
    description: str = ""


class RunSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What one run is to do. `model_options` go into the body of every model call.

    `must_call` are names of `tools` of which one must have been called before there is an answer. `memory` is what an
    earlier run left behind; with `keeps_memory` this one does so, too, by a `Remembered` event.
    """

    run_id: str
    agent: str
    task: str
    images: tuple[Image, ...] = ()
    history: tuple[Turn, ...] = ()
    memory: bytes = b""
    keeps_memory: bool = False
    max_steps: int | None = None
    effort: Effort | None = None
    stop: tuple[str, ...] = ()
    answer_format: AnswerFormat | None = None
    tools: tuple[ClientToolSpec, ...] = ()
    must_call: tuple[str, ...] = ()
    parallel_tool_calls: bool = True
    user: str | None = None
    metadata: dict[str, str] = msgspec.field(default_factory=dict)
    model_options: dict[str, object] = msgspec.field(default_factory=dict)
