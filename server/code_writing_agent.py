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
    return CodeAgent(
        tools=[], model=context.model, prompt_templates=_prompt_templates(), max_steps=MAX_STEPS
    )


def prepare() -> None:
    """Do once, before many runs or many forks, what every run needs."""
    _prompt_templates()


@cache
def code_agent_templates() -> Any:
    """smolagents' own prompts of a CodeAgent, parsed once."""
    source = importlib.resources.files("smolagents.prompts") / "code_agent.yaml"
    return yaml.safe_load(source.read_text())


@cache
def _prompt_templates() -> Any:
    """smolagents' own prompts with our instructions, the system prompt rendered once and for all.

    It is the same in every run, and parsing it (YAML) and compiling it (Jinja, twice a run) is most of
    what a run costs: 15 of 17 ms.
    """
    templates = code_agent_templates()
    agent = CodeAgent(
        tools=[], model=Model(), prompt_templates=templates, instructions=INSTRUCTIONS
    )
    rendered = agent.memory.system_prompt.system_prompt
    return templates | {"system_prompt": f"{{% raw %}}{rendered}{{% endraw %}}"}
