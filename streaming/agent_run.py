"""What runs in the worker: a fresh agent, its events, exactly one terminal event.

In: a `RunSpec` and the means to carry it out. Out: events on the channel; whatever happens, the last
one is `Final` or `Failure`. It never raises but for what would end the thread anyway.
"""

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from smolagents import AgentGenerationError, CodeAgent, MultiStepAgent, Tool

from streaming.agent_context import (
    AgentContext,
    AgentFactory,
    MakeInterpreter,
    call_factory,
    family_of,
    fit_agent,
)
from streaming.agent_memory import AgentMemory, BadMemory, kept_memory, memory_of, recall
from streaming.answer_check import AnswerCheck, AnswerRefused
from streaming.cancellation import RunCancelled, StopSignal
from streaming.channel import Channel
from streaming.client_tools import offer_tools, python_name
from streaming.effort import set_effort
from streaming.events import Event, Failure, Final, Print, Remembered, Started, Stdout
from streaming.failures import (
    AgentFailed,
    InvalidRequest,
    SmolgateError,
    Unavailable,
    UpstreamRefused,
)
from streaming.history import remember
from streaming.loop_model import LoopModel, ThinkOptions
from streaming.pictures import pictures
from streaming.run_spec import CalledTool, RunSpec
from streaming.stdout import captured
from streaming.steps import StepReader
from streaming.upstream import NOT_NOW

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunMeans:
    """What every run of a worker shares: the factories and how to make models and interpreters.

    `tools_of` makes the tools that an agent's settings give it, for one run. `ask_client(run_id, call, together=…,
    stop=…)` waits in the run's thread for what a client's tool gives; without it no run has such tools.
    """

    agents: dict[str, AgentFactory]
    make_model: Callable[..., LoopModel]
    make_interpreter: MakeInterpreter
    think: ThinkOptions
    embedded: bool
    tools_of: Callable[[str, StopSignal], Sequence[Tool]] = lambda agent, stop: ()
    ask_client: Callable[..., str] | None = None


def drive(spec: RunSpec, means: RunMeans, channel: Channel, stop: StopSignal) -> None:
    """Carry out one run, in the calling thread."""
    try:
        with captured(lambda text: channel.send(Stdout(text))):
            channel.finish(_Drive(spec, means, channel, stop).run())
    except RunCancelled:
        channel.finish(Failure("The run was stopped.", code="run_stopped"))
    except AnswerRefused as refused:
        channel.finish(failure_of(AgentFailed(str(refused), code="answer_refused")))
    except SmolgateError as error:
        channel.finish(failure_of(error))
    except BaseException as error:
        log.exception("run %s failed", spec.run_id)
        channel.finish(Failure(f"The agent failed: {type(error).__name__}."))
        if not isinstance(error, Exception):
            raise


class _Drive:
    def __init__(self, spec: RunSpec, means: RunMeans, channel: Channel, stop: StopSignal) -> None:
        self._spec = spec
        self._means = means
        self._channel = channel
        self._stop = stop
        self._printed_live = False
        self._reader = StepReader(writes_code=False)
        self._called: set[str] = set()

    def run(self) -> Event:
        context = AgentContext(
            run_id=self._spec.run_id,
            make_model=self._make_model,
            embedded=self._means.embedded,
            tools=self._means.tools_of(self._spec.agent, self._stop),
            user=self._spec.user,
            metadata=self._spec.metadata,
        )
        with captured(_log_building):  # what libraries say while an agent is built is no reasoning
            agent = call_factory(self._means.agents[self._spec.agent], context)
        servers = {tool.name: tool.server for tool in context.tools if hasattr(tool, "server")}
        self._reader = StepReader(writes_code=isinstance(agent, CodeAgent), servers=servers)
        try:
            self._fit(agent)
            return self._iterate(agent)
        finally:
            for member in family_of(agent):
                getattr(member, "cleanup", lambda: None)()

    def _fit(self, agent: MultiStepAgent) -> None:
        fit_agent(
            agent,
            channel=self._channel,
            stop=self._stop,
            think=self._means.think,
            make_interpreter=self._means.make_interpreter,
            on_print=self._on_print,
        )
        if self._spec.effort is not None:
            set_effort(agent, self._spec.effort, can_plan=not self._means.embedded)
        if self._spec.tools:
            self._offer_tools(agent)
        self._channel.send(Started(self._spec.agent, getattr(agent, "code_block_tags", None)))

    def _offer_tools(self, agent: MultiStepAgent) -> None:
        ask_client = self._means.ask_client
        if ask_client is None:
            raise InvalidRequest("'tools' cannot be used with this RUNNER.", param="tools")
        names = {python_name(tool.name) for tool in self._spec.tools}

        def ask(call: CalledTool) -> str:
            self._called.add(python_name(call.name))
            # Code makes one call after the other; an agent that calls by name makes a step's at once.
            at_once = sum(name in names for name in self._reader.calls)
            together = at_once if at_once and self._spec.parallel_tool_calls else 1
            return ask_client(self._spec.run_id, call, together=together, stop=self._stop)

        offer_tools(agent, self._spec.tools, ask, self._stop)

    def _make_model(self, **options: Any) -> LoopModel:
        return self._means.make_model(
            channel=self._channel, stop=self._stop, **(options | self._spec.model_options)
        )

    def _on_print(self, text: str) -> None:
        self._printed_live = True
        self._channel.send(Print(text))

    def _iterate(self, agent: MultiStepAgent) -> Event:
        spec = self._spec
        reader = self._reader
        must_call = [python_name(name) for name in spec.must_call]
        check = AnswerCheck(spec.answer_format, must_call, self._called, self._stop)
        check.install(agent)
        try:
            images = pictures(spec.images) or None
            before = memory_of(spec.memory) if spec.memory else AgentMemory()
            recall(agent, before)
            remember(agent, spec.history)
        except ValueError as error:
            raise InvalidRequest(f"In 'messages', {error}.", param="messages") from None
        except BadMemory:
            raise AgentFailed("The agent's memory of this conversation is broken.") from None
        task = "\n\n".join(part for part in (spec.task, check.instructions()) if part)
        items = agent.run(task, stream=True, reset=False, images=images, max_steps=spec.max_steps)
        try:
            for item in items:
                for event in reader.events(item, printed_live=self._printed_live):
                    self._printed_live = False
                    self._channel.send(event)
        except AgentGenerationError as error:
            raise _model_failure(error.__cause__ or error) from error
        except RunCancelled as cancelled:
            _abandon(items, cancelled)
            raise
        # At max_steps smolagents turns a model's error into the answer's text.
        if agent.model.failure is not None:
            raise _model_failure(agent.model.failure)
        try:
            answer = check.passed(reader.answer, agent, task)
        except Exception as error:
            raise _model_failure(error) from error
        cut = reader.ran_out_of_steps and agent.model.finish_reason == "length"
        answer = _until_stop(answer, spec.stop)
        if spec.keeps_memory:
            self._channel.send(Remembered(kept_memory(agent, before, spec.images, answer)))
        return Final(answer, cut, reader.ran_out_of_steps)


def _until_stop(answer: str | None, stops: Sequence[str]) -> str | None:
    """The answer before the first of the texts that are to end it."""
    if answer is None:
        return None
    for stop in stops:
        answer = answer.partition(stop)[0]
    return answer


def _log_building(text: str) -> None:
    if text.strip():
        log.debug("while an agent was built: %s", text.strip())


def _abandon(items: Generator[Any], cancelled: RunCancelled) -> None:
    """Leave smolagents' generator in good order: it yields once more on its way out, even then."""
    with suppress(RunCancelled, StopIteration):
        items.throw(cancelled)
        next(items)


def _model_failure(error: BaseException) -> AgentFailed:
    """An agent's model call failed: 503 where the model was unavailable, else 500."""
    if not isinstance(error, SmolgateError):
        log.warning("a model call failed", exc_info=error)
        return AgentFailed(f"The agent's model call failed: {type(error).__name__}.")
    failed = AgentFailed(error.message, code=error.code)
    if isinstance(error, Unavailable) or (
        isinstance(error, UpstreamRefused) and error.upstream_status in NOT_NOW
    ):
        failed.status = 503
    return failed


def failure_of(error: SmolgateError) -> Failure:
    """An error as the event that ends a run."""
    return Failure(
        error.message,
        code=error.code,
        type=error.type,
        status=error.status,
        param=error.param,
        retry_after=error.retry_after,
    )
