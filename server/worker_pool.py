"""The parent of many workers: `--workers N`.

In: the settings and the command line. Out: N processes that serve one address, started again when they
die, replaced one by one on SIGHUP without losing a stream, and stopped in good order on SIGTERM. The
parent serves nothing itself: it owns the listening sockets, the embedded model and the desk.
"""

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from server.listening_sockets import ListeningSockets, open_listening_sockets
from server.settings import Settings
from server.worker_desk import WorkerDesk
from server.worker_process import WorkerProcess
from server.worker_wire import EmbeddedState, Welcome
from streaming.admission import PlaceLedger

if TYPE_CHECKING:  # loaded only where the embedded model is used
    from server.embedded import EmbeddedUpstream

log = logging.getLogger("server")

# How long a worker may take until it serves: imports, agents, a jail.
START_SECONDS = 120.0
# A worker that dies is started again, but not as fast as it can fail.
FIRST_RETRY_SECONDS = 0.1
LONGEST_RETRY_SECONDS = 10.0
# Beyond DRAIN_SECONDS: the ladder's graces and the last words to clients.
STOP_SECONDS = 10.0
EMBEDDED_POLL_SECONDS = 0.05


class WorkerFailed(Exception):
    """The first worker could not serve; it has said why. `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"a worker ended with {code} before it served")
        self.code = code


async def serve_by_workers(settings: Settings, arguments: Sequence[str]) -> None:
    """Serve until told to stop. Raises OSError where it cannot listen, WorkerFailed."""
    async with AsyncExitStack() as stack:
        sockets = open_listening_sockets(settings, settings.workers)
        stack.callback(sockets.close)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="smolgate-workers-"))
        pool = WorkerPool(settings, arguments, sockets, Path(folder))
        if settings.embedded:
            await stack.enter_async_context(pool.embedded_model())
        await pool.run()


class WorkerPool:
    """Keeps one worker in each slot."""

    def __init__(
        self,
        settings: Settings,
        arguments: Sequence[str],
        sockets: ListeningSockets,
        folder: Path,
    ) -> None:
        self._settings = settings
        self._arguments = arguments
        self._sockets = sockets
        self._folder = folder
        self._desk = WorkerDesk(PlaceLedger(settings.max_running, settings.max_queued))
        self._slots: list[WorkerProcess | None] = [None] * settings.workers
        self._alive: set[WorkerProcess] = set()
        self._numbers = count(1)
        self._stopping = asyncio.Event()
        self._embedded: EmbeddedUpstream | None = None
        self._embedded_state: EmbeddedState | None = None
        self._reloading: asyncio.Task[None] | None = None
        self._reload_again = False

    @asynccontextmanager
    async def embedded_model(self) -> AsyncIterator[None]:
        """One for all workers, which are told how it is."""
        from server.embedded import EmbeddedUpstream

        async with EmbeddedUpstream() as self._embedded:
            watching = asyncio.create_task(self._watch_embedded(self._embedded))
            try:
                yield
            finally:
                watching.cancel()

    async def run(self) -> None:
        """Raises WorkerFailed where the first worker cannot serve."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_reload)
        keepers: list[asyncio.Task[None]] = []
        try:
            # One first: what is wrong with a setting is said once.
            self._slots[0] = await self._start_serving(0)
            started = (self._start_serving(slot) for slot in range(1, len(self._slots)))
            self._slots[1:] = await asyncio.gather(*started)
            log.info("listening on %s with %d workers", self._sockets.address, len(self._slots))
            keepers = [asyncio.create_task(self._keep(slot)) for slot in range(len(self._slots))]
            await self._stopping.wait()
        finally:
            for keeper in (*keepers, *([self._reloading] if self._reloading else [])):
                keeper.cancel()
            await self._stop_all()

    def _on_stop(self) -> None:
        if self._stopping.is_set():
            for worker in self._alive:
                worker.kill()
            self._sockets.close()
            os._exit(1)
        log.info("stopping; a second signal stops at once")
        self._stopping.set()

    def _on_reload(self) -> None:
        if self._reloading is not None and not self._reloading.done():
            self._reload_again = True
            return
        self._reloading = asyncio.get_running_loop().create_task(self._reload())

    async def _reload(self) -> None:
        """A new worker for each slot; the old one goes once the new one serves."""
        self._reload_again = True
        while self._reload_again:
            self._reload_again = False
            for slot in range(len(self._slots)):
                try:
                    new = await self._start_serving(slot)
                except (WorkerFailed, OSError) as error:
                    log.error("not restarted: %s; the old workers go on", error)
                    return
                old, self._slots[slot] = self._slots[slot], new
                if old is not None:
                    old.retire()
            log.info("restarted: %d new workers serve", len(self._slots))

    async def _start_serving(self, slot: int) -> WorkerProcess:
        """Returns once it serves. Raises WorkerFailed where it does not come to that."""
        welcome = Welcome(
            str(self._folder / f"{next(self._numbers)}.sock"),
            self._embedded.base_url if self._embedded is not None else None,
        )
        worker = await WorkerProcess.start(
            self._arguments,
            self._sockets.of_worker[slot],
            self._desk,
            welcome,
            self._embedded_state,
        )
        self._alive.add(worker)
        worker.ended.add_done_callback(lambda _: self._alive.discard(worker))
        serving = asyncio.ensure_future(worker.serving.wait())
        try:
            await asyncio.wait(
                [serving, worker.ended],
                timeout=START_SECONDS,
                return_when=asyncio.FIRST_COMPLETED,
            )
        except asyncio.CancelledError:
            worker.kill()
            raise
        finally:
            serving.cancel()
        if worker.serving.is_set():
            return worker
        worker.kill()
        raise WorkerFailed(await worker.ended)

    async def _keep(self, slot: int) -> None:
        """Start the slot's worker again whenever it ends without having been told to."""
        delay = FIRST_RETRY_SECONDS
        while True:
            worker = self._slots[slot]
            if worker is not None:
                code = await asyncio.shield(worker.ended)
                if self._slots[slot] is not worker:
                    continue  # a restart has put another in its place
                log.error("worker %d ended with %d; starting another", worker.pid, code)
                self._slots[slot] = None
            try:
                started = await self._start_serving(slot)
            except (WorkerFailed, OSError) as error:
                log.error("%s; trying again in %.1f s", error, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, LONGEST_RETRY_SECONDS)
                continue
            delay = FIRST_RETRY_SECONDS
            if self._slots[slot] is None:
                self._slots[slot] = started
            else:
                started.retire()  # a restart was faster

    async def _stop_all(self) -> None:
        workers = list(self._alive)
        if not workers:
            return
        for worker in workers:
            worker.stop()
        ended = [worker.ended for worker in workers]
        await asyncio.wait(ended, timeout=self._settings.drain_seconds + STOP_SECONDS)
        for worker in workers:
            worker.kill()
        await asyncio.gather(*ended)

    async def _watch_embedded(self, embedded: "EmbeddedUpstream") -> None:
        """Tell the workers whenever the embedded model becomes ready, or is lost."""
        while True:
            state = EmbeddedState(embedded.why_not_ready())
            if state != self._embedded_state:
                self._embedded_state = state
                self._desk.tell_all(state)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), EMBEDDED_POLL_SECONDS)
