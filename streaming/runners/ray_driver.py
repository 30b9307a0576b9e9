"""The server's Ray driver, a process of its own: runs to be started in, their events and ends out.

`python -m streaming.runners.ray_driver FD SETTINGS`. Ray ends a driver that has lost its cluster, listens,
and takes signals over: none of that may happen to a server. So the server holds a socket to this process,
and starts another when it ends. Workers call here, and what they call with is handed on to the server.
"""

import asyncio
import logging
import os
import socket
import sys
import time
from concurrent.futures import Future
from threading import Thread
from typing import Any

import msgspec
import ray
from ray import exceptions

from streaming.runners.frame_socket import FrameSocket
from streaming.runners.ray_wire import (
    MOST_FRAME_BYTES,
    Batch,
    Called,
    ClusterState,
    DriverSettings,
    FromDriver,
    Over,
    Submit,
    Taken,
    encode,
    to_driver,
)
from streaming.runners.ray_worker import keep_alive, run_agent
from streaming.runners.run_wire import WIRE_VERSION, Hello, decode_from_worker

log = logging.getLogger("ray_driver")

# Batches that may be on their way from one worker.
_WINDOW = 32
_WATCH_SECONDS = 1.0
# A cluster that has not answered for so long is in trouble.
_SILENT_SECONDS = 3.0
_HELLO_SECONDS = 10.0
_MOST_HELLO_BYTES = 1024
_BACKLOG = 1024
# What a run gets where its agent's options do not say: most of its life it waits for a model.
_DEFAULT_OPTIONS: dict[str, object] = {"num_cpus": 0.25, "scheduling_strategy": "SPREAD"}


class _Job:
    def __init__(self, number: int, generator: Any) -> None:
        self.number = number
        self.generator = generator
        self.room = asyncio.Event()


class Driver:
    """Serves one server over one socket."""

    def __init__(self, server: FrameSocket, settings: DriverSettings) -> None:
        self._server = server
        self._settings = settings
        self._jobs: dict[int, _Job] = {}
        self.tokens: dict[str, int] = {}  # of runs that no worker has called for yet
        self._tasks: set[asyncio.Task[None]] = set()
        self._run_agent = ray.remote(run_agent)
        self._host = ""
        self._port = 0

    async def serve(self) -> None:
        """Until the server closes the socket or the cluster is lost."""
        self._host = self._settings.listen_host or ray.util.get_node_ip_address()
        listener = socket.create_server(
            (self._host, self._settings.listen_port), backlog=_BACKLOG, reuse_port=False
        )
        listener.setblocking(False)
        self._port = listener.getsockname()[1]
        self._spawn(self.welcome(listener))
        self._spawn(self._watch())
        while (frame := await self._server.receive()) is not None:
            message = to_driver.decode(frame)
            if isinstance(message, Submit):
                self._submit(message)
            elif (job := self._jobs.get(message.job)) is None:
                continue
            elif isinstance(message, Taken):
                job.room.set()
            else:
                self._end(job)

    def _submit(self, message: Submit) -> None:
        """Start a run."""
        try:
            generator = self._start(message.agent, message.token)
        except Exception as error:  # noqa: BLE001  options that Ray refuses
            self._spawn(self._send(Over(message.job, _reason_of(error))))
            return
        job = self._jobs[message.job] = _Job(message.job, generator)
        self.tokens[message.token] = job.number
        self._spawn(self._follow(job, message.token))

    async def _follow(self, job: _Job, token: str) -> None:
        """Pass on a run's batches, each when there is room for it."""
        reason: str | None = None
        try:
            async for reference in job.generator:
                await self._send(Batch(job.number, await reference))
                await job.room.wait()
                job.room.clear()
        except exceptions.TaskCancelledError:
            reason = "it was cancelled"
        except Exception as error:  # noqa: BLE001  Ray's own, or what the task raised
            reason = _reason_of(error)
        finally:
            self.tokens.pop(token, None)
            del self._jobs[job.number]
        await self._send(Over(job.number, reason))

    def _start(self, agent: str, token: str) -> Any:
        shared, own = (self._settings.options.get(name, {}) for name in ("*", agent))
        options = {**_DEFAULT_OPTIONS, **shared, **own}
        return self._run_agent.options(
            **options,
            name=f"smolgate {agent}",
            max_retries=0,
            num_returns="streaming",
            _generator_backpressure_num_objects=_WINDOW,
        ).remote(self._host, self._port, token, self._settings.loader, self._settings.agents)

    def _end(self, job: _Job) -> None:
        for token, number in list(self.tokens.items()):
            if number == job.number:
                del self.tokens[token]
        ray.cancel(job.generator, force=True)
        job.room.set()

    async def welcome(self, listener: socket.socket) -> None:
        """Let workers call."""
        loop = asyncio.get_running_loop()
        while True:
            link, _ = await loop.sock_accept(listener)
            self._spawn(self._hand_on(link))

    async def _hand_on(self, link: socket.socket) -> None:
        """Give a worker's connection to the server, if its token is good. The worker says no more than
        Hello until it is answered, so none of what it says is lost here."""
        try:
            keep_alive(link)
            caller = FrameSocket(link, _MOST_HELLO_BYTES)
            async with asyncio.timeout(_HELLO_SECONDS):
                frame = await caller.receive()
            hello = decode_from_worker(frame) if frame is not None else None
            if not isinstance(hello, Hello):
                return
            if hello.version != WIRE_VERSION:
                log.error("a worker runs another release of smolgate: give all the same one")
                return
            number = self.tokens.pop(hello.token, None)
            if number is None:
                log.warning("a worker came for a run that is over, or that another one has")
                return
            host = link.getpeername()[0]
            await self._server.send(encode(Called(number, host)), [link.fileno()])
        except (OSError, TimeoutError, ValueError, msgspec.MsgspecError) as error:
            log.warning("a caller was turned away: %s", type(error).__name__)
        finally:
            link.close()

    async def _watch(self) -> None:
        """Tell the server how the cluster is; give up one that is lost."""
        asked = _ask_for_state()
        answered = time.monotonic()
        while True:
            await asyncio.wait([asyncio.wrap_future(asked)], timeout=_WATCH_SECONDS)
            if asked.done() and (state := _state_of(asked)) is not None:
                answered = time.monotonic()
                await self._send(state)
            silent = time.monotonic() - answered
            if silent > self._settings.lost_seconds:
                log.error("the cluster has not answered for %.0f s", silent)
                os._exit(1)
            if silent > _SILENT_SECONDS:
                await self._send(ClusterState("the Ray cluster does not answer"))
            if asked.done():
                await asyncio.sleep(_WATCH_SECONDS)
                asked = _ask_for_state()

    async def _send(self, message: FromDriver) -> None:
        await self._server.send(encode(message))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if isinstance(error, OSError):  # most likely the server is gone; else it starts another
                log.warning("the driver ends: %s", error)
                os._exit(1)
            log.error("a task of the driver failed", exc_info=error)


def _ask_for_state() -> Future[ClusterState]:
    """In a thread that is nobody's: without its cluster, Ray does not answer at all."""
    future: Future[ClusterState] = Future()

    def ask() -> None:
        try:
            alive = sum(node["Alive"] for node in ray.nodes())
            there, free = ray.cluster_resources(), ray.available_resources()
        except BaseException as error:  # noqa: BLE001  the future tells
            future.set_exception(error)
            return
        future.set_result(
            ClusterState(
                trouble=None if alive else "the Ray cluster has no nodes",
                nodes=alive,
                cpus=there.get("CPU", 0.0),
                cpus_free=free.get("CPU", 0.0),
                gpus=there.get("GPU", 0.0),
                gpus_free=free.get("GPU", 0.0),
            )
        )

    Thread(target=ask, name="cluster-state", daemon=True).start()
    return future


def _state_of(asked: Future[ClusterState]) -> ClusterState | None:
    error = asked.exception()
    if error is not None:
        log.warning("the cluster's state cannot be had: %s", type(error).__name__)
        return None
    return asked.result()


def _reason_of(error: Exception) -> str:
    """Why a run's task ended, as a clause without addresses or paths."""
    known: tuple[tuple[type[BaseException], str], ...] = (
        (exceptions.NodeDiedError, "the machine that it ran on is gone"),
        (exceptions.WorkerCrashedError, "its worker process ended"),
        (exceptions.OutOfMemoryError, "the machine that it ran on was out of memory"),
        (exceptions.RuntimeEnvSetupError, "its runtime environment could not be set up"),
        (exceptions.ObjectLostError, "its events were lost with a machine"),
        (exceptions.TaskUnschedulableError, "no machine of the cluster has what it needs"),
    )
    log.warning("a run's task ended: %s: %.2000s", type(error).__name__, error)
    for kind, reason in known:
        if isinstance(error, kind):
            return reason
    cause = getattr(error, "cause", None) or error
    return f"its worker failed with {type(cause).__name__}"


def attach(address: str) -> None:
    """Join the cluster. Raises what Ray does where it cannot be reached or the token is wrong."""
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5.0):
        pass  # Ray itself would try for twenty seconds
    ray.init(
        address=address,
        namespace="smolgate",
        log_to_driver=False,
        logging_level=logging.WARNING,
        configure_logging=False,
    )


async def _serve(link: socket.socket, settings: DriverSettings) -> None:
    server = FrameSocket(link, MOST_FRAME_BYTES)
    try:
        attach(settings.address)
    except Exception as error:  # noqa: BLE001  of many kinds; the server says so and tries again
        log.error("the Ray cluster cannot be joined: %s", error)
        # The cause is in the text alone.
        is_refused = "AuthenticationError" in f"{error} {error.__cause__}"
        why = "it does not take RAY_AUTH_TOKEN" if is_refused else type(error).__name__
        trouble = f"the Ray cluster cannot be joined: {why}"
        await server.send(encode(ClusterState(trouble, joined=False)))
        return
    await Driver(server, settings).serve()


def main(arguments: list[str]) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s ray: %(message)s")
    link = socket.socket(fileno=int(arguments[0]))
    settings = msgspec.json.decode(arguments[1], type=DriverSettings)
    status = 0
    try:
        asyncio.run(_serve(link, settings))
    except OSError:
        status = 1  # the server is gone
    os._exit(status)  # its tasks end with a driver, and Ray's farewell takes seconds


if __name__ == "__main__":
    main(sys.argv[1:])
