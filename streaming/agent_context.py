"""What an agent factory gets, and how its agent is fitted to a run.

In: a factory and the means of one run. Out: a fresh agent whose model calls are live and stoppable,
whose code runs in the run's interpreter and whose console is quiet. A factory is called with an
`AgentContext`; one without parameters works too.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from smolagents import CodeAgent, LocalPythonExecutor, LogLevel, MultiStepAgent, Tool

from streaming.cancellation import StopSignal
from streaming.channel import Channel
from streaming.loop_model import LoopModel, TappedModel, ThinkOptions
from streaming.tool_timing import TimedInterpreter, time_code_tools, time_named_tools

AgentFactory = Callable[..., MultiStepAgent]


class MakeInterpreter(Protocol):
    """Makes the smolagents executor in which one agent's code runs."""

    def __call__(
        self,
        authorized_imports: Sequence[str],
        *,
        on_print: Callable[[str], None],
        stop: StopSignal,
        max_print_outputs_length: int | None,
        additional_functions: Mapping[str, Callable[..., Any]],
    ) -> Any: ...


@dataclass(frozen=True)
class AgentContext:
    """Passed to every factory. `make_model(shape=…, **options)` makes a model with call options.

    `user` and `metadata` are the request's; `tools` are those of the MCP servers in the agent's settings.
    """

    run_id: str
    make_model: Callable[..., LoopModel]
    embedded: bool
    user: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    tools: Sequence[Tool] = ()

    @property
    def model(self) -> LoopModel:
        """The upstream model, ready to be given to an agent."""
        return self.make_model()


def call_factory(factory: AgentFactory, context: AgentContext) -> MultiStepAgent:
    """A fresh agent. Raises TypeError where the factory yields something else."""
    agent = factory(context) if _takes_context(factory) else factory()
    if not isinstance(agent, MultiStepAgent):
        raise TypeError(
            f"the agent factory returned {type(agent).__name__}, not a smolagents agent"
        )
    return agent


def _takes_context(factory: AgentFactory) -> bool:
    return bool(inspect.signature(factory).parameters)


def fit_agent(
    agent: MultiStepAgent,
    *,
    channel: Channel,
    stop: StopSignal,
    think: ThinkOptions,
    make_interpreter: MakeInterpreter,
    on_print: Callable[[str], None],
) -> None:
    """Fits an agent, and those it manages, to a run."""
    for member in family_of(agent):
        member.logger.level = LogLevel.OFF
        member.stream_outputs = False  # quadratic in smolagents; our models stream underneath
        if not isinstance(member.model, LoopModel):
            member.model = TappedModel(member.model, channel, stop, think=think)
        if isinstance(member, CodeAgent) and type(member.python_executor) is LocalPythonExecutor:
            member.python_executor = make_interpreter(
                member.additional_authorized_imports,
                on_print=on_print,
                stop=stop,
                max_print_outputs_length=member.python_executor.max_print_outputs_length,
                additional_functions=member.python_executor.additional_functions,
            )
            time_code_tools(member.python_executor, channel.send)
        if isinstance(member, CodeAgent) and not isinstance(
            member.python_executor, TimedInterpreter
        ):
            member.python_executor = TimedInterpreter(member.python_executor, channel.send)
        time_named_tools(member, channel.send)


def family_of(agent: MultiStepAgent) -> Iterator[MultiStepAgent]:
    """The agent and all that it manages, at any depth."""
    yield agent
    for managed in agent.managed_agents.values():
        yield from family_of(managed)
