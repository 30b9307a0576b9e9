"""smolagents' objects → events.

In: what `agent.run(stream=True)` yields. Out: `Step`, `ToolCall`, `Plan`, `Note` and the final answer
as text. The oddities of smolagents 1.26 end here: the last step yielded twice at max_steps, an
`ActionOutput` that only looks final, a step without content before a model error.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from PIL import Image as PillowImage
from smolagents.agents import ActionOutput, ToolOutput
from smolagents.memory import ActionStep, FinalAnswerStep, PlanningStep
from smolagents.memory import ToolCall as AgentToolCall
from smolagents.models import ChatMessageStreamDelta

from streaming.events import Event, Note, Plan, Step, ToolCall, ToolGave

NO_SERVERS: Mapping[str, str] = MappingProxyType({})
CODE_TOOL = "python_interpreter"
LOGS_MARK = "Execution logs:\n"
OUTPUT_MARK = "Last output from code snippet:\n"


class StepReader:
    """Turns one run's items into events; `answer` is set once the run has concluded.

    `writes_code`: the agent is a CodeAgent, whose code its steps carry. `calls` are the names of the tools
    that the present step calls by name, all of them before the first is called. `servers` are those of MCP
    tools, by the tools' names.
    """

    def __init__(self, *, writes_code: bool, servers: Mapping[str, str] = NO_SERVERS) -> None:
        self._writes_code = writes_code
        self._servers = servers
        self._last_step: ActionStep | None = None
        self.calls: list[str] = []
        self.answer: str | None = None

    @property
    def ran_out_of_steps(self) -> bool:
        """The answer is the model's own summary, for want of steps."""
        return self._last_step is not None and not self._last_step.is_final_answer

    def events(self, item: Any, *, printed_live: bool) -> Iterator[Event]:
        """The events of one item. `printed_live`: the step's prints have been sent already."""
        match item:
            case ActionStep():
                self.calls.clear()
                if item is not self._last_step and _has_content(item):
                    self._last_step = item
                    yield _step(item, printed_live=printed_live)
            case PlanningStep():
                yield Plan(item.plan)
            case FinalAnswerStep():
                self.answer = answer_text(item.output)
            case AgentToolCall():
                if not (self._writes_code and item.name == CODE_TOOL):
                    self.calls.append(item.name)
                    arguments = answer_text(item.arguments) or ""
                    server = self._servers.get(item.name, "")
                    yield ToolCall(item.id, item.name, arguments, server)
            case ToolOutput():
                yield ToolGave(item.id, item.observation or "")
            case ActionOutput() | ChatMessageStreamDelta():
                pass  # contained in the step that follows, or streamed by the model itself
            case _:
                yield Note(str(item))


def _has_content(step: ActionStep) -> bool:
    """False for the step that smolagents yields before it raises a model's error."""
    return bool(step.model_output or step.tool_calls or step.error or step.observations)


def _step(step: ActionStep, *, printed_live: bool) -> Step:
    return Step(
        number=step.step_number,
        code=step.code_action,
        observation=None if step.is_final_answer else _observation(step, printed_live=printed_live),
        error=str(step.error) if step.error is not None else None,
        seconds=step.timing.duration or 0.0,
    )


def _observation(step: ActionStep, *, printed_live: bool) -> str | None:
    observed = step.observations
    if not observed or step.code_action is None:
        return observed or None
    logs, _, output = (
        observed.rpartition(OUTPUT_MARK) if OUTPUT_MARK in observed else (observed, "", "")
    )
    parts = [] if printed_live else [logs.removeprefix(LOGS_MARK).rstrip("\n")]
    if output != "None":
        parts.append(output)
    return "\n".join(part for part in parts if part) or None


def answer_text(value: Any) -> str | None:
    """A final answer as text: objects as JSON, pictures as Markdown with a data URL, None as None."""
    if value is None:
        return None
    if isinstance(value, str):
        return str(value)
    if isinstance(value, PillowImage.Image):
        return f"![image](data:image/png;base64,{_png_base64(value)})"
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        try:
            return json.dumps(value, ensure_ascii=False, default=_json_default)
        except (TypeError, ValueError, RecursionError):
            pass  # keys that JSON has not, or a circle
    return str(value)


def _json_default(value: Any) -> Any:
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if hasattr(value, "tolist"):  # numpy
        return value.tolist()
    return str(value)


def _png_base64(picture: PillowImage.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
