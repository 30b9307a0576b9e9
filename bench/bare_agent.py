"""smolagents' own agent, with nothing around it: what a run costs before anybody serves it."""

import time
from typing import Any

from smolagents import ChatMessage, CodeAgent, LogLevel, MessageRole, Model


class Scripted(Model):  # type: ignore[misc]
    """Writes rows, and then answers."""

    def __init__(self, rows: int) -> None:
        super().__init__(model_id="scripted")
        self._rows = rows

    def generate(self, messages: list[Any], **kwargs: Any) -> ChatMessage:
        has_acted = any(message.role == MessageRole.ASSISTANT for message in messages)
        source = f"for number in range({self._rows}):\n    print('row', number)"
        if has_acted:
            source = "final_answer('survived')"
        return ChatMessage(role=MessageRole.ASSISTANT, content=f"<code>\n{source}\n</code>")


def bare_run(rows: int) -> tuple[float, float, float]:
    """Seconds to the first thing that the agent yields, to its end, and of CPU."""
    began, cpu = time.perf_counter(), time.process_time()
    agent = CodeAgent(tools=[], model=Scripted(rows), verbosity_level=LogLevel.OFF)
    first = 0.0
    for _ in agent.run("go", stream=True):
        first = first or time.perf_counter() - began
    return first, time.perf_counter() - began, time.process_time() - cpu
