"""A conversation → the memory of the agent that goes on with it.

In: earlier turns in plain values. Out: one memory step a turn, which the agent's model sees as the
messages that they were, in order. `bench/conversations.py` measures this against other ways.

smolagents takes whatever is in an agent's memory for attempts at the present task: a first plan would be an
update of one that never was, and earlier questions would be tasks. So plans are made of the task alone,
the conversation being told before it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image as PillowImage
from smolagents import ChatMessage, MessageRole, MultiStepAgent
from smolagents.memory import MemoryStep

from streaming.pictures import pictures
from streaming.run_spec import Turn

ROLES = {"user": MessageRole.USER, "assistant": MessageRole.ASSISTANT}


@dataclass
class EarlierTurn(MemoryStep):  # type: ignore[misc]  # smolagents is untyped
    """What somebody said before the task. A plan is told it by other means: see `remember`.

    `passing`: it is true of this run alone, and no later one is to be told it.
    """

    role: str
    text: str
    images: list[PillowImage.Image]
    passing: bool = False

    def dict(self) -> dict[str, Any]:
        return {"role": self.role, "text": self.text, "images": len(self.images)}

    def to_messages(self, summary_mode: bool = False) -> list[ChatMessage]:
        if summary_mode:
            return []
        content: list[dict[str, Any]] = [{"type": "text", "text": self.text}] if self.text else []
        content += [{"type": "image", "image": image} for image in self.images]
        return [ChatMessage(role=ROLES[self.role], content=content)]


def remember(agent: MultiStepAgent, history: Sequence[Turn]) -> None:
    """Tell an agent the conversation before its task, behind what it may have recalled. Raises ValueError for a
    broken image.
    """
    names = {call.id: call.name for turn in history for call in turn.tool_calls}
    turns = [
        EarlierTurn(
            role="assistant" if turn.role == "assistant" else "user",
            text=_text(turn, names),
            images=pictures(turn.images),
        )
        for turn in history
    ]
    agent.memory.steps = [*agent.memory.steps, *turns]
    if history:
        plan_afresh(agent, turns)


def plan_afresh(agent: MultiStepAgent, turns: Sequence[EarlierTurn]) -> None:
    """From now on plans are made of the task, these turns being told before it."""
    make_plan = agent._generate_planning_step
    told = "\n".join(f"{turn.role.capitalize()}: {turn.text}" for turn in turns)

    def plan(task: str, is_first_step: bool, step: int) -> Any:
        del is_first_step  # smolagents goes by how much is in the memory
        task = f"What was said before the task:\n{told}\n\nThe task:\n{task}"
        return make_plan(task, is_first_step=step == 1, step=step)

    agent._generate_planning_step = plan


def _text(turn: Turn, names: Mapping[str, str]) -> str:
    """A turn as the model is to read it; `names` are those of all calls by their ids. Calls and results are
    told in words: an agent that saw its own form of them would take them for its own tools.
    """
    if turn.role == "tool":
        return f"[result of {names.get(turn.tool_call_id, 'a tool')}]\n{turn.text}"
    calls = [f"[called {call.name} with {_shown(call.arguments)}]" for call in turn.tool_calls]
    return "\n".join(part for part in (turn.text, *calls) if part)


def _shown(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), ensure_ascii=False)
    except (ValueError, RecursionError):
        return arguments
