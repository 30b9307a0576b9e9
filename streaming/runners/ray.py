"""Runs on a Ray cluster: for when one machine is not enough.

In: a run's spec, channel and stop signal. Out: its events, in batches that Ray brings, each fetched once
the one before has found room. A worker calls back with its run's token, which is good once: so no run
is ever carried out twice, whatever Ray repeats, and the end of that connection tells of a dead worker
before Ray does. Model calls come over it too; credentials stay here. Force is SIGKILL, by way of Ray.

Nothing here imports Ray: the driver is a process of its own (`ray_driver.py`).
"""

import asyncio
import logging
import secrets
import socket
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from streaming.agent_run import RunMeans, failure_of
from streaming.cancellation import StopSignal
from streaming.channel import Channel
from streaming.failures import AgentFailed, Busy, SmolgateError, Unavailable, WorkerLost
from streaming.run_spec import RunSpec
from streaming.runners.answers import model_answerer
from streaming.runners.ray_link import RayLink
from streaming.runners.ray_wire import (
    Batch,
    Called,
    ClusterState,
    DriverSettings,
    End,
    FromDriver,
    Over,
    Submit,
    Taken,
)
from streaming.runners.run_line import Answerer, RunLine
from streaming.runners.run_wire import RunSetup, decode_events

log = logging.getLogger(__name__)

# How long Ray may take to say why a worker's connection ended, which it knows better.
_WHY_SECONDS = 1.0
# How long Ray may take to say that a run which it was told to end has ended. A machine that is
# cut off will not say so; its run has lost its token and its connection.
_OVER_SECONDS = 10.0
_RETRY_AFTER_SECONDS = 5.0

_WAITED = "The cluster had no room for the run in time: try again later."
_CLUSTER_LOST = "the cluster was lost"
_NO_CLUSTER = "The Ray cluster cannot be reached."


class RayWork:
    """A run under way. `done` resolves when Ray says that its task has ended."""

    def __init__(
        self, runner: "RayRunner", job: int, spec: RunSpec, channel: Channel, stop: StopSignal
    ) -> None:
        loop = asyncio.get_running_loop()
        self._runner = runner
        self._job = job
        self._spec, self._channel, self._stop = spec, channel, stop
        self._batches: asyncio.Queue[bytes] = asyncio.Queue()
        self._called: asyncio.Future[socket.socket] = loop.create_future()
        # Why the task ended, or None where it ended by itself.
        self._over: asyncio.Future[str | None] = loop.create_future()
        self.done: asyncio.Future[None] = asyncio.ensure_future(self._carry_out())

    @property
    def waits(self) -> bool:
        """No worker has begun with it."""
        return not self._called.done()

    def kill(self) -> None:
        """End its worker."""
        self._runner.tell(End(self._job))

    def on_called(self, link: socket.socket) -> None:
        if self._called.done():
            link.close()
        else:
            self._called.set_result(link)

    def on_batch(self, events: bytes) -> None:
        self._batches.put_nowait(events)

    def on_over(self, reason: str | None) -> None:
        if not self._over.done():
            self._over.set_result(reason)

    async def _carry_out(self) -> None:
        try:
            if not self._runner.cluster.joined:
                raise Unavailable(_NO_CLUSTER, retry_after=_RETRY_AFTER_SECONDS)
            self._runner.tell(Submit(self._job, self._spec.agent, secrets.token_urlsafe(32)))
            if (link := await self._worker()) is not None:
                await self._follow(link)
        except SmolgateError as error:
            if self._channel.finish(failure_of(error)):
                log.warning("run %s: %s", self._spec.run_id, error.message)
        finally:
            if self._called.done() and not self._called.cancelled():
                self._called.result().close()
            self._runner.forget(self._job)

    async def _worker(self) -> socket.socket | None:
        """The connection of the worker that has it; None where it was stopped before."""
        stopped = asyncio.Event()
        with self._stop.watched_by(stopped.set):
            waiting = asyncio.ensure_future(stopped.wait())
            futures: list[asyncio.Future[Any]] = [self._called, self._over, waiting]
            await asyncio.wait(
                futures,
                timeout=self._runner.queue_seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            waiting.cancel()
        if self._called.done():
            return self._called.result()
        if self._over.done():
            reason = self._over.result() or "it never began"
            if reason == _CLUSTER_LOST:
                raise Unavailable(_NO_CLUSTER, retry_after=_RETRY_AFTER_SECONDS)
            raise self._lost(reason)
        await self._end()
        if self._stop.is_set:
            return None
        raise Busy(_WAITED, code="queue_timeout", retry_after=_RETRY_AFTER_SECONDS)

    async def _follow(self, link: socket.socket) -> None:
        """Until the run's task has ended, and its last words have been read."""
        line = RunLine(link, self._spec, self._channel, self._stop, self._runner.answerers)
        serving = asyncio.ensure_future(line.serve(self._runner.setup))
        reading = asyncio.ensure_future(self._read(line))
        try:
            either: list[asyncio.Future[Any]] = [serving, self._over]
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not self._over.done() and not line.left:
                await asyncio.wait([self._over], timeout=_WHY_SECONDS)
                if not self._over.done():
                    await self._end(self._lost("the connection to its worker ended"))
                    return
            reason = await self._over
            if reason is not None or not line.concluded:
                raise self._lost(reason or "it ended without a word")
        finally:
            for task in (serving, reading):
                task.cancel()
            await asyncio.gather(serving, reading, return_exceptions=True)

    async def _read(self, line: RunLine) -> None:
        while True:
            await line.deliver(decode_events(await self._batches.get()))
            self._runner.tell(Taken(self._job))

    async def _end(self, error: AgentFailed | None = None) -> None:
        """Have the task ended by force, and wait for it; its readers are told first."""
        if error is not None:
            self._channel.finish(failure_of(error))
        self.kill()
        await asyncio.wait([self._over], timeout=_OVER_SECONDS)
        self.on_over("it was ended")

    def _lost(self, reason: str) -> WorkerLost:
        self._runner.lost += not self._stop.is_set
        return WorkerLost(f"The agent's worker on the cluster is gone: {reason}.")


class RayRunner:
    """Use it as `async with`; it opens at once, and joins the cluster in the background."""

    def __init__(
        self,
        means: RunMeans,
        setup: RunSetup,
        settings: DriverSettings,
        *,
        environment: Mapping[str, str],
        queue_seconds: float,
        answerers: Mapping[str, Answerer] | None = None,
    ) -> None:
        self.setup = setup
        self.queue_seconds = queue_seconds
        self.answerers = {"model": model_answerer(means.make_model), **(answerers or {})}
        self.lost = 0
        self.cluster = ClusterState("the Ray cluster has not been joined yet", joined=False)
        self._submitted = 0
        self._works: dict[int, RayWork] = {}
        self._link = RayLink(
            settings, environment=environment, on_message=self._on_message, on_gone=self._on_gone
        )
        self._linking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._linking = asyncio.create_task(self._link.run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the cluster, which ends this server's runs there."""
        assert self._linking is not None
        self._linking.cancel()
        await asyncio.gather(self._linking, return_exceptions=True)
        if works := [work.done for work in self._works.values()]:
            await asyncio.wait(works)

    @property
    def numbers(self) -> dict[str, float]:
        """For metrics: the cluster as it was a second ago, and this server's runs there."""
        return {
            "alive": len(self._works),
            "waiting_for_a_worker": sum(work.waits for work in self._works.values()),
            "submitted": self._submitted,
            "lost": self.lost,
            "driver_restarts": self._link.restarts,
            "cluster_usable": float(self.cluster.trouble is None),
            "nodes": self.cluster.nodes,
            "cpus": self.cluster.cpus,
            "cpus_free": self.cluster.cpus_free,
            "gpus": self.cluster.gpus,
            "gpus_free": self.cluster.gpus_free,
        }

    def why_not_ready(self) -> str | None:
        return self.cluster.trouble

    def start(self, spec: RunSpec, channel: Channel, stop: StopSignal) -> RayWork:
        self._submitted += 1
        work = self._works[self._submitted] = RayWork(self, self._submitted, spec, channel, stop)
        return work

    def tell(self, message: Submit | Taken | End) -> None:
        self._link.send(message)

    def forget(self, job: int) -> None:
        del self._works[job]

    def _on_message(self, message: FromDriver, fd: int | None) -> None:
        if isinstance(message, ClusterState):
            self.cluster = message
            return
        work = self._works.get(message.job)
        if isinstance(message, Called):
            link = socket.socket(fileno=fd)
            if work is None:
                link.close()
            else:
                work.on_called(link)
        elif work is not None and isinstance(message, Batch):
            work.on_batch(message.events)
        elif work is not None and isinstance(message, Over):
            work.on_over(message.reason)

    def _on_gone(self) -> None:
        """The driver has ended, and its runs with it."""
        if self.cluster.trouble is None:
            self.cluster = ClusterState("the Ray cluster was lost")
        self.cluster.joined = False
        for work in self._works.values():
            work.on_over(_CLUSTER_LOST)
