"""The default agent: a small CodeAgent whose only tool is Python.

In: the context of one run. Out: a fresh agent. On the embedded model it is given what a 135M model
needs instead of the long prompt (see embedded_prompt.py).
"""

import importlib.resources
from functools import cache
from typing import Any

import yaml
from smolagents import CodeAgent, Model

from streaming.agent_context import AgentContext

MAX_STEPS = 6
# What a small model cannot mend in three tries it does not mend.
EMBEDDED_MAX_STEPS = 3

INSTRUCTIONS = """\
You are a small assistant, and Python is the only tool you have.
Prefer an answer that is short and right over one that is long.
Where a question needs no computing, do not compute: give your answer at once with final_answer("...").
Where it does, write the least code that settles it, and print results only: no progress, no decoration.
"""


def create_agent(context: AgentContext) -> CodeAgent:
    """A fresh agent for one run."""
    if context.embedded:
        from server.embedded_prompt import CODE_BLOCK_TAGS, make_prompt_templates, shape_request

        return CodeAgent(
            tools=[],
            model=context.make_model(shape=shape_request),
            prompt_templates=make_prompt_templates(),
            code_block_tags=CODE_BLOCK_TAGS,
            max_steps=EMBEDDED_MAX_STEPS,
        )
    return _DefaultAgent(
        tools=[],
        model=context.model,
        prompt_templates=code_agent_templates(),
        instructions=INSTRUCTIONS,
        max_steps=MAX_STEPS,
    )


def prepare() -> None:
    """Do once, before many runs or many forks, what every run needs."""
    _system_prompt()


class _DefaultAgent(CodeAgent):  # type: ignore[misc]  # smolagents is untyped
    """Its system prompt is the same in every run, and is rendered once.

    Parsing smolagents' prompts (YAML) and compiling this one (Jinja, twice a run) is most of what a run
    costs: 15 of 17 ms.
    """

    def initialize_system_prompt(self) -> str:
        return _system_prompt()


@cache
def code_agent_templates() -> Any:
    """smolagents' own prompts of a CodeAgent, parsed once."""
    source = importlib.resources.files("smolagents.prompts") / "code_agent.yaml"
    return yaml.safe_load(source.read_text())


@cache
def _system_prompt() -> str:
    """smolagents' own, with our instructions."""
    agent = CodeAgent(
        tools=[],
        model=Model(),
        prompt_templates=code_agent_templates(),
        instructions=INSTRUCTIONS,
    )
    prompt: str = agent.memory.system_prompt.system_prompt
    return prompt
