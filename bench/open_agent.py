"""An agent whose code may import anything: nothing but the jail stands in its way."""

from smolagents import CodeAgent

from streaming.agent_context import AgentContext


def create_agent(context: AgentContext) -> CodeAgent:
    return CodeAgent(
        tools=[], model=context.model, additional_authorized_imports=["*"], max_steps=3
    )
