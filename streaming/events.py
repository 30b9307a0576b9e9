"""What flows from a run to its reader: plain values that cross a thread, a pipe or a cluster.

A run yields any number of events and then exactly one terminal event, `Final` or `Failure`.
No smolagents object is among them. Encoded, an event is a msgpack array that begins with its tag.
"""

from typing import Literal

import msgspec

from streaming.run_spec import CalledTool


class Event(msgspec.Struct, frozen=True, tag=True, tag_field="event", array_like=True):
    """Base of all events."""


class Started(Event, frozen=True):
    """The agent is built. `code_tags` are the marks it puts around code, opening and closing."""

    agent: str
    code_tags: tuple[str, str] | None = None


class ModelDelta(Event, frozen=True):
    """A piece of what a model writes; `thinking` when it came in the upstream's reasoning field."""

    text: str
    thinking: bool = False


class Began(Event, frozen=True):
    """A model call, code, or a call of a tool has begun: what tells of its end follows, unless the run ends."""

    kind: Literal["model", "code", "tool"]
    name: str = ""


class ModelCalled(Event, frozen=True):
    """One model call has ended; counts are the upstream's own, 0 where it gave none."""

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0
    seconds: float = 0.0
    failed: bool = False


class CodeRan(Event, frozen=True):
    """The code of one step has ended; `seconds` include the tools that it called."""

    seconds: float
    failed: bool = False


class Print(Event, frozen=True):
    """What the agent's code printed, line breaks included."""

    text: str


class Stdout(Event, frozen=True):
    """What tools and libraries wrote to stdout or stderr during the run."""

    text: str


class ToolCall(Event, frozen=True):
    """A tool was called by name (agents that write code call tools inside it instead). `server` is the MCP
    server's name, empty for a tool of the agent's own.
    """

    id: str
    name: str
    arguments: str
    server: str = ""


class ToolGave(Event, frozen=True):
    """What a tool that was called by name returned, as the model sees it."""

    id: str
    text: str
    failed: bool = False


class ToolRan(Event, frozen=True):
    """A call of a tool has ended, whoever called it."""

    name: str
    seconds: float
    failed: bool = False


class Step(Event, frozen=True):
    """One step has ended. `observation` leaves out what was already printed live."""

    number: int
    code: str | None = None
    observation: str | None = None
    error: str | None = None
    seconds: float = 0.0


class Plan(Event, frozen=True):
    """A planning step has ended; `text` is the plan."""

    text: str
    seconds: float = 0.0


class Note(Event, frozen=True):
    """Anything else that the agent yielded, as text."""

    text: str


class Paused(Event, frozen=True):
    """The run waits for the client to execute these calls; what follows is for its next request."""

    calls: tuple[CalledTool, ...]


class Remembered(Event, frozen=True):
    """What the agent will need to go on another time: see agent_memory.py. Nothing for a reader."""

    memory: bytes


class Final(Event, frozen=True):
    """The run's answer, `None` where it gave none; `cut` where the limit of tokens cut it, `out_of_steps` where
    it is the best that could be said when there were no more steps. Terminal.
    """

    answer: str | None
    cut: bool = False
    out_of_steps: bool = False


class Failure(Event, frozen=True):
    """The run failed. The fields are those of `failures.SmolgateError`. Terminal."""

    message: str
    code: str | None = "agent_failed"
    type: str = "agent_error"
    status: int = 500
    param: str | None = None
    retry_after: float | None = None


def event_bytes(event: Event) -> int:
    """Roughly what an event holds in memory, in bytes: its longest texts count."""
    # By far the most, so without a `match`, which asks one class after the other, and slowly.
    if type(event) is Print or type(event) is ModelDelta or type(event) is Stdout:
        return 64 + len(event.text)
    match event:
        case Note(text=text):
            return 64 + len(text)
        case Step(code=code, observation=observation, error=error):
            return 128 + len(code or "") + len(observation or "") + len(error or "")
        case Plan(text=text):
            return 64 + len(text)
        case ToolCall(arguments=arguments):
            return 64 + len(arguments)
        case ToolGave(text=text):
            return 64 + len(text)
        case Remembered(memory=memory):
            return 64 + len(memory)
        case Paused(calls=calls):
            return 64 + sum(128 + len(call.arguments) for call in calls)
        case _:
            return 64


def merged(first: Event, second: Event) -> Event | None:
    """Two adjacent events as one that says the same, or None where that cannot be."""
    if type(first) is Print and type(second) is Print:
        return Print(first.text + second.text)
    if type(first) is ModelDelta and type(second) is ModelDelta:
        if first.thinking == second.thinking:
            return ModelDelta(first.text + second.text, first.thinking)
    elif type(first) is Stdout and type(second) is Stdout:
        return Stdout(first.text + second.text)
    return None
