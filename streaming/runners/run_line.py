"""The server's end of the line to a run that lives elsewhere.

In: a connected socket, the run's spec, channel and stop signal, and who answers which question. Out:
the run's events on its channel, in order and with back-pressure: while the channel is full, nothing
more is read. A stop is passed on at once, and cancels what is being answered.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from streaming.cancellation import RunCancelled, StopSignal
from streaming.channel import Channel
from streaming.events import Event, Failure, Final
from streaming.failures import AgentFailed
from streaming.interpreters.jail_wire import WireBroken
from streaming.run_spec import RunSpec
from streaming.runners.frame_socket import FrameSocket
from streaming.runners.run_wire import (
    MOST_FRAME_BYTES,
    Answered,
    Asked,
    Begin,
    FromServer,
    Happened,
    Left,
    RunSetup,
    Stop,
    decode_events,
    decode_from_worker,
    encode_frame,
    refusal,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What a run asks. An answer may bring `fds` along, which stay the answerer's to close."""

    spec: RunSpec
    channel: Channel
    stop: StopSignal
    value: Any
    fds: list[int] = field(default_factory=list)


Answerer = Callable[[Question], Awaitable[Any]]


class RunLine:
    """One run's line; `serve` reads until the other end closes."""

    def __init__(
        self,
        link: socket.socket,
        spec: RunSpec,
        channel: Channel,
        stop: StopSignal,
        answerers: Mapping[str, Answerer],
    ) -> None:
        self._link = FrameSocket(link, MOST_FRAME_BYTES)
        self._spec = spec
        self._channel = channel
        self._stop = stop
        self._answerers = answerers
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._delivered = 0
        self._moved = asyncio.Event()
        self.concluded = False  # the terminal event has come
        self.left = False  # the worker has said all; events may still be on another way

    async def serve(self, setup: RunSetup) -> None:
        """Start the run, then read on. Returns at the line's end, however it comes."""
        with self._stop.watched_by(self._on_stop):
            try:
                with suppress(OSError):  # the other end is gone: its process tells why
                    await self._send(Begin(self._spec, setup))
                    await self._read()
            except (WireBroken, msgspec.MsgspecError) as error:
                log.error("run %s spoke out of turn: %s", self._spec.run_id, error)
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
                self._link.close()

    async def deliver(self, events: list[Event]) -> None:
        """Put events on the channel as it has room. They are dropped once nobody wants them."""
        for event in events:
            if isinstance(event, Final | Failure):
                self.concluded = True
                self._channel.finish(event)
                continue
            with suppress(RunCancelled):
                await self._channel.send_on_loop(event)
        self._delivered += len(events)
        self._moved.set()

    async def _read(self) -> None:
        while (frame := await self._link.receive()) is not None:
            message = decode_from_worker(frame)
            if isinstance(message, Happened):
                await self.deliver(decode_events(message.events))
            elif isinstance(message, Asked):
                self._spawn(self._answer(message))
            elif isinstance(message, Left):
                self.left = True
            else:
                raise WireBroken("a message out of turn")

    async def _answer(self, asked: Asked) -> None:
        while self._delivered < asked.after:  # what was said before comes first
            self._moved.clear()
            await self._moved.wait()
        question = Question(self._spec, self._channel, self._stop, asked.value)
        try:
            answerer = self._answerers.get(asked.kind)
            if answerer is None:
                raise AgentFailed(f"The server does not know what {asked.kind!r} asks.")
            value = await answerer(question)
        except RunCancelled:
            return  # the run is told so by the stop
        except Exception as error:  # noqa: BLE001  whoever asked gets it
            await self._send(refusal(asked.id, error))
            return
        answer = Answered(asked.id, value, len(question.fds))
        await self._send(answer, question.fds)

    def _on_stop(self) -> None:
        self._loop.call_soon_threadsafe(self._pass_on_the_stop)

    def _pass_on_the_stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._spawn(self._send(Stop(self._stop.reason or "stopped")))

    async def _send(self, message: FromServer, fds: Sequence[int] = ()) -> None:
        await self._link.send(encode_frame(message), fds)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_ended)

    def _on_task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, OSError):  # that the reader learns too
            log.error("run %s: an answer failed", self._spec.run_id, exc_info=error)
