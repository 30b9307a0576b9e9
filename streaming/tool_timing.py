"""How long code and tools take: what is run leaves a `Began`, and a `CodeRan` or `ToolRan`.

In: an agent, fitted to its run. Out: the same, its code timed, and its tools, wherever it calls them: from code, by
way of the interpreter's `send_tools`, or by name.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

from smolagents import MultiStepAgent, ToolCallingAgent
from smolagents.local_python_executor import CodeOutput, PythonExecutor

from streaming.events import Began, CodeRan, Event, ToolRan

# Every run calls it, and it does nothing.
NOT_TIMED = "final_answer"

Send = Callable[[Event], None]


class TimedInterpreter(PythonExecutor):  # type: ignore[misc]  # smolagents is untyped
    """An interpreter whose every run of code is told of; for the rest, the one within."""

    def __init__(self, interpreter: Any, send: Send) -> None:
        self._interpreter = interpreter
        self._send = send

    def __getattr__(self, name: str) -> Any:
        return getattr(self._interpreter, name)

    def send_tools(self, tools: dict[str, Any]) -> None:
        self._interpreter.send_tools(tools)

    def send_variables(self, variables: dict[str, Any]) -> None:
        self._interpreter.send_variables(variables)

    def __call__(self, code_action: str) -> CodeOutput:
        self._send(Began("code"))
        began = time.monotonic()
        failed = True
        try:
            output = self._interpreter(code_action)
            failed = False
            return output
        finally:
            self._send(CodeRan(time.monotonic() - began, failed))


def time_code_tools(interpreter: Any, send: Send) -> None:
    """Time what code calls; managed agents count as tools."""
    send_tools = interpreter.send_tools

    def send_timed(tools: Mapping[str, Callable[..., Any]]) -> None:
        timed = {
            name: tool if name == NOT_TIMED else _timed(name, tool, send)
            for name, tool in tools.items()
        }
        send_tools(timed)

    interpreter.send_tools = send_timed


def time_named_tools(agent: MultiStepAgent, send: Send) -> None:
    """Time what a ToolCallingAgent calls."""
    if not isinstance(agent, ToolCallingAgent):
        return
    execute = agent.execute_tool_call

    def execute_timed(tool_name: str, arguments: Any) -> Any:
        # A name that is no tool's is the model's invention.
        known = tool_name in agent.tools or tool_name in agent.managed_agents
        if not known or tool_name == NOT_TIMED:
            return execute(tool_name, arguments)
        return _timed(tool_name, execute, send)(tool_name, arguments)

    agent.execute_tool_call = execute_timed


def _timed(name: str, call: Callable[..., Any], send: Send) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        send(Began("tool", name))
        began = time.monotonic()
        failed = True
        try:
            result = call(*args, **kwargs)
            failed = False
            return result
        finally:
            send(ToolRan(name, time.monotonic() - began, failed))

    return timed
