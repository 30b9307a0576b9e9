"""Runs in processes of their own, forked from a zygote: for factories and tools that hang, leak or crash.

In: a run's spec, channel and stop signal. Out: the events that its process sends; where that ends
without a terminal one, a `Failure` that says how. Model calls are made here and jails lent from here, so that
credentials stay. Force is SIGKILL, to the process and to all that it started.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from streaming.agent_run import RunMeans, failure_of
from streaming.cancellation import StopSignal
from streaming.channel import Channel
from streaming.failures import Unavailable, WorkerLost
from streaming.interpreters.jail_pool import JailPool
from streaming.interpreters.jail_process import describe_end
from streaming.interpreters.zygote_link import ZygoteLink
from streaming.interpreters.zygote_wire import Exited, FromZygote, Spawned, ZygoteReady
from streaming.run_spec import RunSpec
from streaming.runners.answers import JailLender, model_answerer
from streaming.runners.run_line import Answerer, RunLine
from streaming.runners.run_wire import RunSetup
from streaming.runners.run_zygote import RunZygoteSettings

log = logging.getLogger(__name__)

_SPAWN_SECONDS = 15.0
_SPAWN_AGAIN_SECONDS = 0.05
# How long what a process had sent before its end may take to be read: its reader may be slow.
_LAST_WORDS_SECONDS = 5.0


class ProcessWork:
    """A run under way. `done` resolves when its process is reaped and its last words are read."""

    def __init__(
        self,
        runner: "ProcessRunner",
        job: int,
        spec: RunSpec,
        channel: Channel,
        stop: StopSignal,
    ) -> None:
        self._runner = runner
        self._job = job
        self._spec, self._channel, self._stop = spec, channel, stop
        self._killed = False
        self.pidfd = -1
        # How its process ended, as a clause.
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.done: asyncio.Future[None] = asyncio.ensure_future(self._carry_out())

    def kill(self) -> None:
        """SIGKILL the process and all that it started."""
        self._killed = True
        self._runner.kill(self._job)
        if self.pidfd >= 0:  # at once, should the zygote be slow
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    async def _carry_out(self) -> None:
        ours, theirs = socket.socketpair()
        lender = JailLender(self._runner.jails)
        answerers = {**self._runner.answerers, **lender.answerers}
        line = RunLine(ours, self._spec, self._channel, self._stop, answerers)
        reading = asyncio.ensure_future(line.serve(self._runner.setup))
        try:
            with theirs:
                await self._spawn(theirs)
            end = await self.ended
            await asyncio.wait([reading], timeout=_LAST_WORDS_SECONDS)
            if not line.concluded and not self._stop.is_set:
                self._runner.crashed += 1
                log.error("run %s: its process ended: %s", self._spec.run_id, end)
                lost = WorkerLost(f"The agent's process is gone: {end}.")
                self._channel.finish(failure_of(lost))
        except Unavailable as error:
            self._channel.finish(failure_of(error))
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            lender.close()
            self._runner.forget(self._job)
            if self.pidfd >= 0:
                os.close(self.pidfd)
                self.pidfd = -1

    async def _spawn(self, link: socket.socket) -> None:
        """Raises Unavailable where no process can be had in time."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _SPAWN_SECONDS
        while not self._runner.spawn(self._job, link):
            if loop.time() > deadline or self._stop.is_set:
                raise Unavailable("No process for the run could be started.")
            await asyncio.sleep(_SPAWN_AGAIN_SECONDS)


class ProcessRunner:
    """Use it as `async with`; it opens at once, and its zygote boots in the background.

    `environment` is what runs see of the server's; `jails` lends them jails, if there are any.
    """

    def __init__(
        self,
        means: RunMeans,
        setup: RunSetup,
        settings: RunZygoteSettings,
        *,
        environment: Mapping[str, str],
        jails: JailPool | None,
        answerers: Mapping[str, Answerer] | None = None,
    ) -> None:
        self.setup = setup
        self.jails = jails
        self.answerers = {"model": model_answerer(means.make_model), **(answerers or {})}
        self.crashed = 0
        self._spawned = 0
        self._ready = False
        self._works: dict[int, ProcessWork] = {}
        self._zygote = ZygoteLink(
            "streaming.runners.run_zygote",
            settings,
            purpose="runs",
            environment=environment,
            folder=os.getcwd(),
            on_message=self._on_message,
            on_gone=self._on_gone,
        )

    async def __aenter__(self) -> Self:
        self._zygote.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End every process and wait for it."""
        await self._zygote.close()
        self._lose("the server is stopping")
        if works := [work.done for work in self._works.values()]:
            await asyncio.wait(works)

    @property
    def numbers(self) -> dict[str, float]:
        """For metrics: processes that live, were started and ended badly, zygotes started again."""
        return {
            "alive": len(self._works),
            "spawned": self._spawned,
            "crashed": self.crashed,
            "zygote_restarts": self._zygote.restarts,
        }

    def why_not_ready(self) -> str | None:
        return None if self._ready else "the process that starts runs is not up"

    def start(self, spec: RunSpec, channel: Channel, stop: StopSignal) -> ProcessWork:
        self._spawned += 1
        work = self._works[self._spawned] = ProcessWork(self, self._spawned, spec, channel, stop)
        return work

    def spawn(self, job: int, link: socket.socket) -> bool:
        return self._zygote.spawn(job, "run", link)

    def kill(self, job: int) -> None:
        self._zygote.kill(job)

    def forget(self, job: int) -> None:
        del self._works[job]

    def _on_message(self, message: FromZygote, fds: list[int]) -> None:
        if isinstance(message, ZygoteReady):
            self._ready = True
        elif isinstance(message, Spawned):
            if (work := self._works.get(message.job)) is None:
                os.close(fds[0])
            else:
                work.pidfd = fds[0]
        elif (work := self._works.get(message.job)) is not None and not work.ended.done():
            work.ended.set_result(_end_of(message))

    def _on_gone(self, reason: str) -> None:
        self._ready = False
        self._lose(reason)

    def _lose(self, reason: str) -> None:
        """All processes have ended with their zygote, or are about to."""
        for work in self._works.values():
            if work.pidfd >= 0:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(work.pidfd, signal.SIGKILL)
            if not work.ended.done():
                work.ended.set_result(reason)


def _end_of(message: Exited) -> str:
    return describe_end(message.status, over_disk=False, cpu_seconds=message.cpu_seconds)
