"""An agent's own settings: a JSON or TOML file, named in `AGENTS` as `id=path/to/agent.json`.

In: the file, and the environment for what it leaves to it (`"${NAME}"` in an MCP server's env and headers).
Out: `AgentSettings`, and the factory that makes the agent. What cannot work raises ValueError.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
from smolagents import CodeAgent, MultiStepAgent

from server.code_writing_agent import INSTRUCTIONS, MAX_STEPS, code_agent_templates
from streaming.agent_context import AgentContext, AgentFactory, call_factory
from streaming.mcp_server import McpServer

SUFFIXES = (".json", ".toml")

_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")

# The default agent's say that Python is the only tool.
INSTRUCTIONS_WITH_TOOLS = """\
You are a small assistant: you have Python, and the tools named here, which you call from it.
Prefer an answer that is short and right over one that is long.
Where a question needs neither, give your answer at once with final_answer("...").
"""


class AgentSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`agent`: who makes it, as in `AGENTS`; by default a CodeAgent like the default one."""

    agent: str | None = None
    instructions: str | None = None
    max_steps: int | None = None
    imports: tuple[str, ...] = ()
    mcp_servers: dict[str, McpServer] = {}


def read_agent_settings(path: Path, environment: Mapping[str, str]) -> AgentSettings:
    """Raises ValueError (msgspec's, and for a variable that is not set), OSError."""
    decode = msgspec.json.decode if path.suffix == ".json" else msgspec.toml.decode
    settings = decode(path.read_bytes(), type=AgentSettings)
    servers = {
        name: msgspec.structs.replace(
            server,
            env=_expanded(server.env, environment),
            headers=_expanded(server.headers, environment),
        )
        for name, server in settings.mcp_servers.items()
    }
    return msgspec.structs.replace(settings, mcp_servers=servers)


def _expanded(values: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    def value_of(found: re.Match[str]) -> str:
        if found[1] not in environment:
            raise ValueError(f"the environment has no {found[1]}")
        return environment[found[1]]

    return {name: _VARIABLE.sub(value_of, value) for name, value in values.items()}


def factory_with(
    settings: AgentSettings, factory_of: Callable[[str], AgentFactory]
) -> AgentFactory:
    """A factory of agents with these settings. `factory_of` finds that of `agent`."""
    own = factory_of(settings.agent) if settings.agent is not None else None

    def make(context: AgentContext) -> MultiStepAgent:
        agent = _code_agent(context) if own is None else call_factory(own, context)
        for tool in context.tools:
            agent.tools.setdefault(tool.name, tool)
        if settings.instructions is not None:
            agent.instructions = "\n".join(
                filter(None, (agent.instructions, settings.instructions))
            )
        if settings.max_steps is not None:
            agent.max_steps = settings.max_steps
        return agent

    def _code_agent(context: AgentContext) -> CodeAgent:
        return CodeAgent(
            tools=list(context.tools),
            model=context.model,
            prompt_templates=code_agent_templates(),
            instructions=INSTRUCTIONS_WITH_TOOLS if context.tools else INSTRUCTIONS,
            max_steps=MAX_STEPS,
            additional_authorized_imports=list(settings.imports),
        )

    if own is not None and settings.imports:
        raise ValueError("'imports' is for the agent that is made here, not for one of 'agent'")
    return make
