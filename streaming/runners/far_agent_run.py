"""A run away from the server: `agent_run.drive` as it is, with means that ask the server.

In: the line to the server, and the first message on it. Out: the run carried out, its events given to
an outlet. Model calls are the server's, with its credentials, and their tokens go from there straight
to the run's channel; it asks the client, too, where that executes tools. Jails are its own or the worker's.
"""

import select
import socket
from collections.abc import Callable
from typing import Any, cast

import msgspec
from smolagents.models import (
    ChatMessage,
    ChatMessageToolCall,
    ChatMessageToolCallFunction,
    MessageRole,
    Model,
)
from smolagents.monitoring import TokenUsage

from streaming.agent_context import AgentFactory
from streaming.agent_run import RunMeans, drive
from streaming.cancellation import StopSignal
from streaming.channel import Channel
from streaming.events import Event
from streaming.interpreters.interpreter_choice import interpreter_maker
from streaming.interpreters.jail_process import JailProcess, JailSource
from streaming.loop_model import LoopModel, Shape, ThinkOptions
from streaming.run_spec import CalledTool
from streaming.runners.run_wire import Begin, ClientCall, ModelReply
from streaming.runners.server_line import ServerLine


class FarChannel:
    """The worker's end of the run's channel. `outlet` takes one event, and blocks while it is full."""

    def __init__(self, outlet: Callable[[Event], None], stop: StopSignal) -> None:
        self._outlet = outlet
        self._stop = stop
        self._finished = False

    def send(self, event: Event) -> None:
        """Raises RunCancelled once the run was stopped."""
        self._stop.check()
        self._outlet(event)

    def finish(self, event: Event) -> bool:
        """The terminal event; the first counts."""
        if self._finished:
            return False
        self._finished = True
        self._outlet(event)
        return True


class FarModel(LoopModel):
    """The model of an agent whose calls are made by the server."""

    def __init__(
        self,
        line: ServerLine,
        model: str,
        channel: Channel,
        stop: StopSignal,
        *,
        shape: Shape | None = None,
        **options: Any,
    ) -> None:
        Model.__init__(self, model_id=model, **options)
        self._line = line
        self._stop = stop
        self._shape = shape
        self.failure: Exception | None = None
        self.finish_reason: str | None = None

    def _wait_for(self, body: dict[str, Any]) -> ChatMessage:
        try:
            reply = msgspec.convert(self._line.ask("model", body), ModelReply)
            self.finish_reason = reply.finish_reason
            return message_of(reply)
        except Exception as error:
            self.failure = error
            raise


class FarJails:
    """Jails of the server's pool, lent to this process."""

    def __init__(self, line: ServerLine) -> None:
        self._line = line

    def take(
        self, timeout_seconds: float, stopped: Callable[[], bool] = lambda: False
    ) -> JailProcess:
        (job, pid), fds = self._line.ask("jail", timeout_seconds, fds=2)
        return _LentJail(self._line, job, pid, fds)

    def expect(self) -> None:
        """Nothing to do: the server is not told ahead."""

    def forgo(self) -> None:
        """Nothing to do, as nothing was expected."""

    def wake(self) -> None:
        """Nothing to do: who waits for the line is woken by the run's stop."""

    def count_lost(self, why: str) -> None:
        self._line.ask("jail lost", why)


class _LentJail(JailProcess):
    """Its end is known to the server alone, whose zygote reaps it."""

    def __init__(self, line: ServerLine, job: int, pid: int, fds: list[int]) -> None:
        link, pidfd = fds
        super().__init__(job, pid, pidfd, socket.socket(fileno=link))
        self._line = line

    @property
    def is_alive(self) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def wait_for_end(self, timeout_seconds: float) -> str | None:
        if timeout_seconds <= 0:
            return None
        end = self._line.ask("jail's end", [self.job, timeout_seconds])
        return str(end) if end is not None else None


def carry_out(
    line: ServerLine,
    begin: Begin,
    agents: dict[str, AgentFactory],
    stop: StopSignal,
    outlet: Callable[[Event], None],
    jails: JailSource | None,
) -> None:
    """Drive the run in this thread. Whatever happens, its last event is a terminal one."""
    setup = begin.setup

    def make_model(**options: Any) -> LoopModel:
        return FarModel(line, setup.model, **options)

    def ask_client(run_id: str, call: CalledTool, *, together: int, stop: StopSignal) -> str:
        del run_id, stop  # the line is this run's
        return str(line.ask("client", ClientCall(call, together)))

    means = RunMeans(
        agents=agents,
        make_model=make_model,
        make_interpreter=interpreter_maker(
            jails, step_seconds=setup.step_seconds, limits=setup.jail_limits
        ),
        think=ThinkOptions(setup.think_tags, setup.think_starts_open),
        embedded=setup.embedded,
        ask_client=ask_client,
    )
    # drive() needs a channel's send and finish alone.
    channel = cast(Channel, FarChannel(outlet, stop))
    drive(begin.spec, means, channel, stop)


def reply_of(message: ChatMessage, finish_reason: str | None) -> ModelReply:
    """A model's message as what crosses the line."""
    usage = message.token_usage
    return ModelReply(
        message.content or "",
        tuple(
            (call.id, call.function.name, str(call.function.arguments))
            for call in message.tool_calls or ()
        ),
        usage.input_tokens if usage else 0,
        usage.output_tokens if usage else 0,
        finish_reason,
    )


def message_of(reply: ModelReply) -> ChatMessage:
    calls = [
        ChatMessageToolCall(
            function=ChatMessageToolCallFunction(name=name, arguments=arguments),
            id=id,
            type="function",
        )
        for id, name, arguments in reply.tool_calls
    ]
    return ChatMessage(
        role=MessageRole.ASSISTANT,
        content=reply.content,
        tool_calls=calls or None,
        token_usage=TokenUsage(
            input_tokens=reply.prompt_tokens, output_tokens=reply.completion_tokens
        ),
    )
