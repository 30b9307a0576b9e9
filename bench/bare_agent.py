"""smolagents' own agent, with nothing around it, and the default agent on the same scripted model."""

import time
from dataclasses import replace
from typing import Any, NamedTuple

from smolagents import ChatMessage, CodeAgent, LogLevel, MessageRole, Model

from server import code_writing_agent
from streaming.agent_context import AgentContext

ROWS = 20


class Scripted(Model):  # type: ignore[misc]
    """Writes code that prints rows, a pause of seconds behind each, and then answers, at once."""

    def __init__(self, rows: int, pause: float = 0.0) -> None:
        super().__init__(model_id="scripted")
        self._source = f"for number in range({rows}):\n    print('row', number)"
        if pause:
            self._source = f"import time\n{self._source}\n    time.sleep({pause})"

    def generate(self, messages: list[Any], **kwargs: Any) -> ChatMessage:
        has_acted = any(message.role == MessageRole.ASSISTANT for message in messages)
        source = "final_answer('survived')" if has_acted else self._source
        return ChatMessage(role=MessageRole.ASSISTANT, content=f"<code>\n{source}\n</code>")


class BareRun(NamedTuple):
    """Seconds: of building the agent, to its first event and to its end from then on, and of CPU in all."""

    build: float
    first: float
    whole: float
    cpu: float


def bare_run(rows: int) -> BareRun:
    """One run of a fresh agent in this thread."""
    began, cpu = time.perf_counter(), time.thread_time()
    agent = CodeAgent(tools=[], model=Scripted(rows), verbosity_level=LogLevel.OFF)
    built = time.perf_counter()
    first = 0.0
    for _ in agent.run("go", stream=True):
        first = first or time.perf_counter() - built
    return BareRun(built - began, first, time.perf_counter() - built, time.thread_time() - cpu)


def create_agent(context: AgentContext) -> CodeAgent:
    """The default agent on a model that costs nothing; the run's metadata may say how many rows, and how far apart."""
    rows = int(context.metadata.get("rows", ROWS))
    pause = float(context.metadata.get("pause", 0))
    model = Scripted(rows, pause)
    return code_writing_agent.create_agent(replace(context, make_model=lambda **_: model))
