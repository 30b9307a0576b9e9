"""What an agent takes along from one run to the next: its steps and its Python variables, as plain bytes.

In: an agent after its run. Out: msgpack, bounded, without pickle; from that, a fresh agent that goes on, in any process
and on any machine, after a restart, too. What is kept and what is made anew:

  steps        tasks with their images, what the model wrote, code, what it printed, errors, plans; as the agent had them
  variables    plain values are kept by the jail's own codec (value_writer.py)
  definitions  imports, functions and classes are run again, in order, in the fresh jail
  lost         all else: instances of own classes, open files, generators; the agent is told their names

The oldest steps go first where there are too many. What comes from a jail counts as an attacker's.
"""

import ast
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import msgspec
from smolagents import ActionStep, MultiStepAgent, TaskStep
from smolagents.memory import MemoryStep, PlanningStep, Timing
from smolagents.memory import ToolCall as AgentToolCall

from streaming.history import EarlierTurn, plan_afresh
from streaming.interpreters.kept_variables import (
    MOST_KEPT_BYTES,
    MOST_VARIABLES,
    KeptVariables,
)
from streaming.pictures import pictures
from streaming.run_spec import Image

MOST_STEP_BYTES = 2 << 20
MOST_DEFINITIONS = 500
MOST_DEFINITION_BYTES = 256 << 10
MOST_TOLD_NAMES = 50


class KeptCall(msgspec.Struct, array_like=True, frozen=True):
    id: str
    name: str
    arguments: Any


class KeptStep(msgspec.Struct, array_like=True, frozen=True):
    """`kind`: task, action, plan, or turn (with `role`), whose words are `text`."""

    kind: str
    text: str | None = None
    role: str = ""
    images: tuple[Image, ...] = ()
    number: int = 0
    code: str | None = None
    observations: str | None = None
    error: str | None = None
    calls: tuple[KeptCall, ...] = ()
    is_final: bool = False


class AgentMemory(msgspec.Struct, frozen=True):
    """`definitions` are names with the code that defines them, in order."""

    steps: tuple[KeptStep, ...] = ()
    values: dict[str, bytes] = {}
    definitions: tuple[tuple[str, str], ...] = ()
    lost: tuple[str, ...] = ()


class BadMemory(Exception):
    """Bytes that no agent left."""


class KeptError(Exception):
    """An error of an earlier step; its text is all that is left of it."""

    def dict(self) -> dict[str, str]:
        return {"type": "AgentError", "message": str(self)}


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(AgentMemory)


def memory_of(data: bytes) -> AgentMemory:
    """Raises BadMemory."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise BadMemory(str(error)) from None


def recall(agent: MultiStepAgent, memory: AgentMemory) -> None:
    """Give a fresh agent an earlier one's memory, before its history and its task. Raises ValueError for a broken image."""
    steps = [_step_of(kept) for kept in memory.steps]
    interpreter: Any = getattr(agent, "python_executor", None)
    if hasattr(interpreter, "recall"):
        interpreter.recall(memory.values, memory.definitions)
        if (told := _told(memory)) is not None:
            steps.append(told)
    agent.memory.steps = steps
    if steps:
        plan_afresh(agent, [_as_turn(step) for step in steps])


def kept_memory(
    agent: MultiStepAgent, before: AgentMemory, images: Sequence[Image], answer: str | None
) -> bytes:
    """What the agent leaves behind. `before`: what it had recalled; `images`: those of its task."""
    steps = [
        kept for step in agent.memory.steps if (kept := _kept(step, images, agent.task)) is not None
    ]
    if answer and answer not in (steps[-1].observations or "" if steps else ""):
        steps.append(KeptStep("turn", answer, role="assistant"))
    return _encoder.encode(
        msgspec.structs.replace(_kept_python(agent, before), steps=_latest(steps))
    )


def _kept_python(agent: MultiStepAgent, before: AgentMemory) -> AgentMemory:
    """What its interpreter leaves behind."""
    interpreter: Any = getattr(agent, "python_executor", None)
    ran = any(isinstance(step, ActionStep) and step.code_action for step in _of_this_run(agent))
    if not ran or not hasattr(interpreter, "keep"):
        return before
    variables = interpreter.keep()
    if variables is None:  # the jail is gone, and all that was in it
        names = [*before.values, *(name for name, _ in before.definitions)]
        return AgentMemory(lost=tuple(names[:MOST_VARIABLES]))
    found = _definitions(agent, before)
    defined, known = set(variables.defined), {name for name, _ in found}
    kept = _bounded(variables)
    lost = [*kept.lost, *(name for name in kept.defined if name not in known)]
    there = {*kept.values, *lost, *known}
    lost += [name for name in before.lost if name not in there]
    return AgentMemory(
        values=kept.values,
        definitions=tuple((name, code) for name, code in found if name in defined),
        lost=tuple(lost[:MOST_VARIABLES]),
    )


class RecalledTask(TaskStep):  # type: ignore[misc]
    kept: KeptStep


class RecalledAction(ActionStep):  # type: ignore[misc]
    kept: KeptStep


def _step_of(kept: KeptStep) -> MemoryStep:
    step: Any
    match kept.kind:
        case "task":
            step = RecalledTask(task=kept.text or "", task_images=pictures(kept.images) or None)
        case "action":
            step = RecalledAction(
                step_number=kept.number,
                timing=Timing(0.0, 0.0),
                model_output=kept.text,
                code_action=kept.code,
                observations=kept.observations,
                error=KeptError(kept.error) if kept.error is not None else None,
                tool_calls=[
                    AgentToolCall(each.name, each.arguments, each.id) for each in kept.calls
                ]
                or None,
                is_final_answer=kept.is_final,
            )
        case _:
            step = EarlierTurn(
                role=kept.role or "assistant",
                text=kept.text or "",
                images=pictures(kept.images),
            )
    step.kept = kept
    return step


def _kept(step: MemoryStep, images: Sequence[Image], task: str) -> KeptStep | None:
    recalled: KeptStep | None = getattr(step, "kept", None)
    if recalled is not None:
        return recalled
    match step:
        case TaskStep():
            return KeptStep("task", step.task, images=tuple(images) if step.task == task else ())
        case ActionStep():
            output = step.model_output
            return KeptStep(
                "action",
                output
                if isinstance(output, str) or output is None
                else json.dumps(output, default=str),
                number=step.step_number,
                code=step.code_action,
                observations=step.observations,
                error=str(step.error) if step.error is not None else None,
                calls=tuple(
                    KeptCall(str(call.id), str(call.name), _plain(call.arguments))
                    for call in step.tool_calls or ()
                ),
                is_final=bool(step.is_final_answer),
            )
        case PlanningStep():
            return KeptStep("turn", step.plan, role="assistant")
        case EarlierTurn() if step.role in {"user", "assistant"} and not step.passing:
            return KeptStep("turn", step.text, role=step.role)
        case _:
            return None


def _of_this_run(agent: MultiStepAgent) -> list[MemoryStep]:
    return [step for step in agent.memory.steps if getattr(step, "kept", None) is None]


def _plain(arguments: Any) -> Any:
    try:
        return json.loads(json.dumps(arguments, default=str))
    except (TypeError, ValueError, RecursionError):
        return str(arguments)


def _latest(steps: list[KeptStep]) -> tuple[KeptStep, ...]:
    """As many of the last ones as may be kept."""
    left = MOST_STEP_BYTES
    for index in range(len(steps) - 1, -1, -1):
        left -= len(_encoder.encode(steps[index]))
        if left < 0:
            return tuple(steps[index + 1 :])
    return tuple(steps)


def _definitions(agent: MultiStepAgent, before: AgentMemory) -> list[tuple[str, str]]:
    """Names that code defined, the last definition of each, in the order of these."""
    found: dict[str, str] = dict(before.definitions)
    for step in _of_this_run(agent):
        if isinstance(step, ActionStep) and step.code_action:
            for name, code in _defined_by(step.code_action):
                found.pop(name, None)
                found[name] = code
    left = MOST_DEFINITION_BYTES
    kept = []
    for name, code in list(found.items())[-MOST_DEFINITIONS:]:
        left -= len(code)
        if left >= 0:
            kept.append((name, code))
    return kept


def _defined_by(code: str) -> list[tuple[str, str]]:
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    found = []
    for node in body:
        match node:
            case ast.Import() | ast.ImportFrom():
                for (
                    alias
                ) in node.names:  # each alone: the code of all, once for each, grows by the square
                    name = alias.asname or alias.name.partition(".")[0]
                    found.append((name, _import_of(node, alias)))
            case ast.FunctionDef() | ast.ClassDef():
                with suppress(RecursionError):  # nested too deep to be written out: it is lost
                    found.append((node.name, ast.unparse(node)))
    return found


def _import_of(node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
    if isinstance(node, ast.Import):
        return ast.unparse(ast.Import([alias]))
    return ast.unparse(ast.ImportFrom(node.module, [alias], node.level))


def _bounded(variables: KeptVariables) -> KeptVariables:
    """A jail keeps to its limits, unless it is an attacker's."""
    left = MOST_KEPT_BYTES
    kept = KeptVariables({}, [], [])
    for name, value in list(variables.values.items())[:MOST_VARIABLES]:
        left -= len(value)
        if left >= 0 and name.isidentifier():
            kept.values[name] = value
    kept.lost.extend(filter(str.isidentifier, variables.lost[:MOST_VARIABLES]))
    kept.defined.extend(filter(str.isidentifier, variables.defined[:MOST_VARIABLES]))
    return kept


def _told(memory: AgentMemory) -> EarlierTurn | None:
    """What the agent should know of its variables."""
    said = []
    names = [*memory.values, *(name for name, _ in memory.definitions)]
    if names:
        said.append(f"Still defined in Python: {_listed(names)}.")
    if memory.lost:
        said.append(f"No longer defined, since they could not be kept: {_listed(memory.lost)}.")
    if not said:
        return None
    return EarlierTurn(role="user", text=" ".join(said), images=[], passing=True)


def _listed(names: Sequence[str]) -> str:
    told = ", ".join(names[:MOST_TOLD_NAMES])
    more = len(names) - MOST_TOLD_NAMES
    return f"{told} and {more} more" if more > 0 else told


def _as_turn(step: MemoryStep) -> EarlierTurn:
    match step:
        case EarlierTurn():
            return step
        case TaskStep():
            return EarlierTurn(role="user", text=step.task, images=[])
        case ActionStep():
            parts = (step.model_output, step.observations)
            text = "\n".join(part for part in parts if isinstance(part, str))
            return EarlierTurn(role="assistant", text=text, images=[])
    return EarlierTurn(role="assistant", text="", images=[])
