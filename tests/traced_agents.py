"""An agent with a tool, for a server process that is traced."""

from typing import Any

from smolagents import CodeAgent, tool


@tool
def lookup(secret_argument: str) -> str:
    """Looks something up.

    Args:
        secret_argument: what
    """
    return f"found {secret_argument}"


def make_agent(context: Any) -> CodeAgent:
    return CodeAgent(tools=[lookup], model=context.model)
