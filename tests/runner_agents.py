"""Agents that a worker can load by name, as `AGENTS` has them: what the suite over every runner runs.

What a tool is told comes in the agent's code, and what it tells comes out through files, since it may
run in another process than the test.
"""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from smolagents import ChatMessage, CodeAgent, MessageRole, Model, ToolCallingAgent, tool

from server.registry import factories_of
from streaming.agent_context import AgentContext


@tool
def shout(secret: str) -> str:
    """Prints from inside a tool.

    Args:
        secret: what to print
    """
    print("tool says", secret)
    return secret


@tool
def wait_for_file(path: str) -> str:
    """Waits until there is a file.

    Args:
        path: its path
    """
    while not os.path.exists(path):
        time.sleep(0.005)
    return "released"


@tool
def tell_pid(path: str) -> int:
    """Writes the process's id into a file.

    Args:
        path: its path
    """
    Path(path).with_suffix(".part").write_text(str(os.getpid()))
    Path(path).with_suffix(".part").rename(path)
    return os.getpid()


@tool
def hang(path: str) -> str:
    """Takes no notice of anything.

    Args:
        path: gets its process's id when it has begun
    """
    tell_pid(path)
    while True:
        try:
            time.sleep(600)
        except BaseException:  # noqa: BLE001, S112  it takes no notice
            continue


@tool
def leave_processes(path: str) -> str:
    """Starts a process in the background that leaves its session, and one more.

    Args:
        path: of the folder that gets a file per process, its id the name
    """
    code = f"import os, time; open(os.path.join({path!r}, str(os.getpid())), 'w'); time.sleep(600)"
    double = (
        "import os, subprocess, sys\n"
        f"subprocess.Popen([sys.executable, '-c', {code!r}], start_new_session=True)"
    )
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    subprocess.run([sys.executable, "-c", double], check=True)
    while len(os.listdir(path)) < 2:
        time.sleep(0.005)
    return "left"


@tool
def crash(how: str) -> str:
    """Ends the process.

    Args:
        how: segfault, exit or kill
    """
    if how == "segfault":
        ctypes.string_at(0)
    if how == "exit":
        os._exit(7)
    os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


@tool
def eat_memory(megabytes: int) -> int:
    """Takes memory and gives it back.

    Args:
        megabytes: how much
    """
    return len(bytearray(megabytes << 20)) >> 20


@tool
def compute() -> int:
    """Computes for ever, in C."""
    return sum(range(10**12))


@tool
def write_below_python() -> str:
    """Writes to the standard streams from C and from a process."""
    os.write(1, b"from C\n")
    subprocess.run(["/bin/sh", "-c", "echo from a process; echo and an error >&2"], check=True)
    return "written"


@tool
def look_for(secret: str) -> bool:
    """Whether a text is in the process's environment.

    Args:
        secret: the text, its parts apart by a plus
    """
    return any(secret.replace("+", "") in value for value in os.environ.values())


@tool
def double(number: int) -> int:
    """Twice a number.

    Args:
        number: any
    """
    if number > 100:
        raise ValueError("too large")
    return 2 * number


TOOLS = [
    *(shout, wait_for_file, tell_pid, hang, leave_processes, crash, eat_memory, compute),
    *(write_below_python, look_for),
]


def able(context: AgentContext) -> CodeAgent:
    """Has all of the tools above."""
    return CodeAgent(tools=TOOLS, model=context.model)


def doubler(context: AgentContext) -> CodeAgent:
    return CodeAgent(tools=[double], model=context.model)


def calling(context: AgentContext) -> ToolCallingAgent:
    """Calls tools by name, those of one step at once."""
    return ToolCallingAgent(tools=[], model=context.model)


def short(context: AgentContext) -> CodeAgent:
    return CodeAgent(tools=[], model=context.model, max_steps=2)


def planner(context: AgentContext) -> CodeAgent:
    return CodeAgent(tools=[], model=context.model, planning_interval=1, max_steps=4)


def broken(context: AgentContext) -> CodeAgent:
    """Works when it is checked, and not when it is needed."""
    if context.run_id != "check":
        raise RuntimeError("/etc/secret path")
    return CodeAgent(tools=[], model=context.model)


def family(context: AgentContext) -> CodeAgent:
    """One agent that manages another."""
    helper = CodeAgent(tools=[], model=context.model, name="helper", description="helps")
    return CodeAgent(tools=[shout], model=context.model, managed_agents=[helper])


class FailingModel(Model):  # type: ignore[misc]
    """An author's own model: it writes code twice and then fails, saying too much."""

    calls = 0

    def generate(self, messages: Any, **kwargs: Any) -> ChatMessage:
        self.calls += 1
        if self.calls > 2:
            raise RuntimeError("key sk-secret refused by https://models.internal")
        return ChatMessage(role=MessageRole.ASSISTANT, content="<code>\nprint('row')\n</code>")


def own_model() -> CodeAgent:
    return CodeAgent(tools=[], model=FailingModel(model_id="own"), max_steps=2)


def with_a_broken_one(agents: dict[str, str]) -> dict[str, Any]:
    """A loader for whose workers the module of an agent is missing."""
    return factories_of(dict.fromkeys(agents, "no_such_module:make"))
