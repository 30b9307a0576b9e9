"""Every run admitted, timed, stopped and counted.

In: a `RunSpec`. Out: a `Run` whose events end with exactly one terminal event, whatever becomes of the
worker. A run waits for a slot in the order of arrival, within limits; a slot is free again only when
the work has really stopped.

The ladder, entered by a client that left, a deadline, a drain, or somebody's wish:
  at once   the stop signal is set (the model call is cancelled, the jail is killed) and the run's
            readers get their terminal event;
  after the grace   the runner is told to use force;
  after that        the run is stuck: it is counted, and its slot stays taken.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from streaming.agent_run import failure_of
from streaming.cancellation import StopSignal
from streaming.channel import Channel
from streaming.deadline import Deadline
from streaming.failures import (
    AgentFailed,
    Busy,
    DeadlineExceeded,
    Draining,
    RunStopped,
    SmolgateError,
)
from streaming.run import Run, RunReader
from streaming.run_counts import RunCounts
from streaming.run_spec import RunSpec

log = logging.getLogger(__name__)

# How long a stopped run may take to notice before force is used.
GRACE_SECONDS = 2.0
RETRY_AFTER_SECONDS = 5.0

FINISH = float("inf")


class Work(Protocol):
    """A run under way in some runner. `done` resolves when it has really stopped; kill() is force."""

    done: asyncio.Future[None]

    def kill(self) -> None: ...


class Runner(Protocol):
    """`numbers` are for metrics; `why_not_ready` says in a few words why no run can be started."""

    @property
    def numbers(self) -> dict[str, float]: ...

    def why_not_ready(self) -> str | None: ...

    def start(self, spec: RunSpec, channel: Channel, stop: StopSignal) -> Work: ...


@dataclass(frozen=True)
class Limits:
    """Admission and deadlines. `max_stuck`: how many stuck runs make the server unready."""

    max_running: int = 32
    max_queued: int = 128
    max_per_key: int = 0  # 0: no limit
    queue_seconds: float = 30.0
    run_seconds: float = 600.0
    max_paused: int = 128
    max_stuck: int = 4


class Supervisor:
    """One per server, on its event loop. `on_end` is called with every run that has ended."""

    def __init__(
        self,
        runner: Runner,
        limits: Limits,
        *,
        counts: RunCounts | None = None,
        on_end: Callable[[Run], None] = lambda run: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._runner = runner
        self._now = now
        self.limits = limits
        self.counts = counts or RunCounts()
        self._on_end = on_end
        self.runs: dict[str, Run] = {}
        self.stuck = 0
        self.draining = False
        self._running = 0
        self._waiting: deque[tuple[Run, asyncio.Future[None]]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """Runs that hold a slot, those being stopped included."""
        return self._running

    @property
    def queued(self) -> int:
        return len(self._waiting)

    def why_not_ready(self) -> str | None:
        """Why no work can be taken, in a few words, or None."""
        if self.draining:
            return "draining"
        if self.stuck >= min(self.limits.max_stuck, self.limits.max_running):
            return f"{self.stuck} runs do not stop"
        if self.queued >= self.limits.max_queued and self._running >= self.limits.max_running:
            return "the queue is full"
        return None

    @asynccontextmanager
    async def reading(
        self, run: Run, *, begin: int = 0, leave_seconds: float = 0.0
    ) -> AsyncIterator[RunReader]:
        """Be one of a run's readers, of the leg that begins there. If the last one leaves early, the run is
        stopped in time; one that has told its client of a pause does not leave early.
        """
        reader = run.reader(begin)
        run.readers += 1
        has_left = True
        try:
            yield reader
            has_left = not reader.paused
        finally:
            run.readers -= 1
            if has_left and run.readers == 0 and not run.concluded:
                self._leave(run, leave_seconds)

    def pause(self, run: Run) -> bool:
        """The run waits for its client: it gives back its slot and its time stands still.

        False where too many do already.
        """
        if sum(other.state == "paused" for other in self.runs.values()) >= self.limits.max_paused:
            return False
        if run.state == "running":
            run.state = "paused"
        if run.deadline is not None:
            run.deadline.pause()
        self._give_back_slot(run)
        return True

    async def resume(self, run: Run) -> None:
        """Wait for a slot, before those that have not begun."""
        if run.state == "paused":
            run.state = "running"
        if run.deadline is not None:
            run.deadline.resume()
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = run, slot
        self._waiting.appendleft(entry)
        self._fill_slots()
        try:
            await slot
        finally:
            if entry in self._waiting:
                self._waiting.remove(entry)

    def submit(self, spec: RunSpec, *, key: str = "", max_of_key: int | None = None) -> Run:
        """Admit a run, which then goes on by itself. Raises Busy, Draining.

        `max_of_key`: how many runs its key may have, in place of the limit for all.
        """
        try:
            self._refuse_if_full(key, self.limits.max_per_key if max_of_key is None else max_of_key)
        except SmolgateError as error:
            self.counts.refused[error.code or ""] += 1
            raise
        run = Run(spec, key=key, counts=self.counts, created=self._now())
        self.runs[run.id] = run
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((run, slot))
        self._fill_slots()
        self._spawn(self._conduct(run, slot))
        return run

    def stop(self, run: Run, error: SmolgateError) -> None:
        """Enter the ladder; the first reason counts. Readers get `error` as their terminal event."""
        if run.stop_signal.is_set or run.state == "done":
            return
        log.info("run %s is stopped: %s", run.id, error.code)
        self.counts.stopped[error.code or ""] += 1
        run.state = "stopping"
        if run.channel.finish(failure_of(error)):  # else it has just ended by itself
            run.outcome = error.code
        run.stop_signal.set(error.code or "stopped")

    async def drain(self, seconds: float) -> None:
        """Admit nothing more, let runs finish for a while, then stop them, and wait for that."""
        self.draining = True
        for run in [run for run, _ in self._waiting if run.started is None]:
            self.stop(run, Draining("The server is stopping.", retry_after=RETRY_AFTER_SECONDS))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for run in list(self.runs.values()):
            self.stop(run, RunStopped("The server is stopping.", code="draining"))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE_SECONDS + 1)

    def _refuse_if_full(self, key: str, most: int) -> None:
        if self.draining:
            raise Draining("The server is stopping.", retry_after=RETRY_AFTER_SECONDS)
        if self._running >= self.limits.max_running and self.queued >= self.limits.max_queued:
            raise Busy(
                "Too many runs are waiting already: try again later.",
                retry_after=RETRY_AFTER_SECONDS,
            )
        if most and sum(run.key == key for run in self.runs.values()) >= most:
            raise Busy(
                "Too many runs of this API key: try again when one has ended.",
                code="key_limit",
                retry_after=RETRY_AFTER_SECONDS,
            )

    async def _conduct(self, run: Run, slot: asyncio.Future[None]) -> None:
        """One run from the queue to its end."""
        try:
            if await self._has_slot(run, slot):
                try:
                    await self._work(run)
                finally:
                    self._give_back_slot(run)
        except Exception:
            log.exception("run %s failed", run.id)
        finally:
            run.channel.finish(failure_of(AgentFailed("The agent's worker was lost.")))
            run.state = "done"
            run.ended = time.time()
            self.counts.ended[run.spec.agent, run.ending or "lost"] += 1
            if run.started is not None:
                self.counts.run_seconds.observe(run.ended - run.started)
            del self.runs[run.id]
            self._on_end(run)

    async def _has_slot(self, run: Run, slot: asyncio.Future[None]) -> bool:
        """Wait for a slot. False where the run was refused or stopped while it waited."""
        with run.stop_signal.watched_by(slot.cancel):
            await asyncio.wait([slot], timeout=self.limits.queue_seconds)
        if slot.done() and not slot.cancelled():
            return True
        slot.cancel()
        self._waiting = deque(entry for entry in self._waiting if entry[0] is not run)
        run.channel.finish(
            failure_of(
                Busy(
                    "No run could be started in time: try again later.",
                    code="queue_timeout",
                    retry_after=RETRY_AFTER_SECONDS,
                )
            )
        )
        return False

    async def _work(self, run: Run) -> None:
        run.started = time.time()
        self.counts.queue_seconds.observe(run.started - run.created)
        run.state = "running"
        work = self._runner.start(run.spec, run.channel, run.stop_signal)
        stopped = asyncio.Event()
        run.deadline = Deadline(self.limits.run_seconds, lambda: self._overran(run))
        try:
            with run.stop_signal.watched_by(stopped.set):
                await _first_of(work.done, stopped)
            if not work.done.done():
                await self._end(run, work)
            work.done.exception()
        finally:
            run.deadline.cancel()

    def _overran(self, run: Run) -> None:
        self.stop(
            run,
            DeadlineExceeded(f"The run took longer than {self.limits.run_seconds:g} seconds."),
        )

    async def _end(self, run: Run, work: Work) -> None:
        """The ladder's lower rungs, for a run whose stop signal is set."""
        await asyncio.wait([work.done], timeout=GRACE_SECONDS)
        if work.done.done():
            return
        log.warning("run %s does not stop by itself: using force", run.id)
        work.kill()
        await asyncio.wait([work.done], timeout=GRACE_SECONDS)
        if work.done.done():
            return
        log.error("run %s does not stop: its slot stays taken", run.id)
        self.stuck += 1
        try:
            await asyncio.wait([work.done])
        finally:
            self.stuck -= 1

    def _leave(self, run: Run, seconds: float) -> None:
        if seconds <= 0:
            self.stop(run, RunStopped("The client left.", code="client_gone"))
        else:
            self._spawn(self._read_unattended(run, seconds))

    async def _read_unattended(self, run: Run, seconds: float) -> None:
        """Nobody reads a run that may go on: read it in their place, then stop it."""
        try:
            async with asyncio.timeout(None if seconds == FINISH else seconds):
                async for _ in run.reader_of_the_rest():
                    pass
        except TimeoutError:
            if run.readers == 0:
                self._leave(run, 0)

    def _fill_slots(self) -> None:
        while self._waiting and self._running < self.limits.max_running:
            run, slot = self._waiting.popleft()
            if not slot.done() and not run.stop_signal.is_set:
                slot.set_result(None)
                run.has_slot = True
                self._running += 1

    def _give_back_slot(self, run: Run) -> None:
        if run.has_slot:
            run.has_slot = False
            self._running -= 1
            self._fill_slots()

    def _spawn(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def _first_of(done: asyncio.Future[None], stopped: asyncio.Event) -> None:
    waiting = asyncio.ensure_future(stopped.wait())
    both: list[asyncio.Future[Any]] = [done, waiting]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
