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
from streaming.cancellation import RunCancelled, StopSignal
from streaming.channel import Channel
from streaming.events import Event, Failure, Final, Print, Started, Stdout
from streaming.failures import (
    AgentFailed,
    InvalidRequest,
    SmolgateError,
    Unavailable,
    UpstreamRefused,
)
from streaming.loop_model import LoopModel, ThinkOptions
from streaming.run_spec import RunSpec
from streaming.stdout import captured
from streaming.steps import StepReader, memory_of, pictures
from streaming.upstream import NOT_NOW

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunMeans:
    """What every run of a worker shares: the factories and how to make models and interpreters.

    `tools_of` makes the tools that an agent's settings give it, for one run.
    """

    agents: dict[str, AgentFactory]
    make_model: Callable[..., LoopModel]
    make_interpreter: MakeInterpreter
    think: ThinkOptions
    embedded: bool
    tools_of: Callable[[str, StopSignal], Sequence[Tool]] = lambda agent, stop: ()


def drive(spec: RunSpec, means: RunMeans, channel: Channel, stop: StopSignal) -> None:
    """Carry out one run, in the calling thread."""
    try:
        with captured(lambda text: channel.send(Stdout(text))):
            channel.finish(_Drive(spec, means, channel, stop).run())
    except RunCancelled:
        channel.finish(Failure("The run was stopped.", code="run_stopped"))
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

    def run(self) -> Event:
        context = AgentContext(
            run_id=self._spec.run_id,
            make_model=self._make_model,
            embedded=self._means.embedded,
            tools=self._means.tools_of(self._spec.agent, self._stop),
        )
        with captured(_log_building):  # what libraries say while an agent is built is no reasoning
            agent = call_factory(self._means.agents[self._spec.agent], context)
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
        self._channel.send(Started(self._spec.agent, getattr(agent, "code_block_tags", None)))

    def _make_model(self, **options: Any) -> LoopModel:
        return self._means.make_model(
            channel=self._channel, stop=self._stop, **(options | self._spec.model_options)
        )

    def _on_print(self, text: str) -> None:
        self._printed_live = True
        self._channel.send(Print(text))

    def _iterate(self, agent: MultiStepAgent) -> Event:
        reader = StepReader(writes_code=isinstance(agent, CodeAgent))
        try:
            images = pictures(self._spec.images) or None
            agent.memory.steps = memory_of(self._spec.history)
        except ValueError as error:
            raise InvalidRequest(f"In 'messages', {error}.", param="messages") from None
        items = agent.run(
            self._spec.task,
            stream=True,
            reset=False,
            images=images,
            max_steps=self._spec.max_steps,
        )
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
        return Final(reader.answer)


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
