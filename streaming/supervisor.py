"""Every run admitted, timed, stopped and counted.

In: a `RunSpec`. Out: a `Run` whose events end with exactly one terminal event, whatever becomes of the
worker. A run waits for a place (admission.py); it is free again only when the work has really stopped.

The ladder, entered by a client that left, a deadline, a drain, or somebody's wish:
  at once   the stop signal is set (the model call is cancelled, the jail is killed) and the run's
            readers get their terminal event;
  after the grace   the runner is told to use force;
  after that        the run is stuck: it is counted, and its place stays taken.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from streaming.admission import (
    REASONS,
    RETRY_AFTER_SECONDS,
    Admission,
    OwnAdmission,
    Place,
    PlaceLedger,
)
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
    """One per process, on its event loop. `on_end` is called with every run that has ended.

    `admission`: by default the limits are this process's own.
    """

    def __init__(
        self,
        runner: Runner,
        limits: Limits,
        *,
        admission: Admission | None = None,
        counts: RunCounts | None = None,
        on_end: Callable[[Run], None] = lambda run: None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._runner = runner
        self._now = now
        self.limits = limits
        self._admission = admission or OwnAdmission(
            PlaceLedger(limits.max_running, limits.max_queued)
        )
        self.counts = counts or RunCounts()
        self._on_end = on_end
        self.runs: dict[str, Run] = {}
        self._places: dict[str, Place] = {}
        self.stuck = 0
        self.draining = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> int:
        """Runs that hold a place, those being stopped included."""
        return self._admission.running

    @property
    def queued(self) -> int:
        return self._admission.queued

    def why_not_ready(self) -> str | None:
        """Why no work can be taken, in a few words, or None."""
        if self.draining:
            return "draining"
        if self.stuck >= min(self.limits.max_stuck, self.limits.max_running):
            return f"{self.stuck} runs do not stop"
        if self.queued >= self.limits.max_queued and self.running >= self.limits.max_running:
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
        """The run waits for its client: others may have its place and its time stands still.

        False where too many do already.
        """
        if self._admission.paused >= self.limits.max_paused:
            return False
        if run.state == "running":
            run.state = "paused"
        if run.deadline is not None:
            run.deadline.pause()
        run.timeline.begin("paused")
        self._places[run.id].pause()
        return True

    async def resume(self, run: Run) -> None:
        """Wait for a place, before those that have not begun."""
        if run.state == "paused":
            run.state = "running"
        if run.deadline is not None:
            run.deadline.resume()
        place = self._places[run.id]
        place.resume()
        run.timeline.end("paused")
        run.timeline.begin("queue")
        try:
            await place.granted
            run.timeline.end("queue")
        finally:
            if place.granted.cancelled():  # the run is being stopped, and wants it no more
                place.pause()

    def submit(self, spec: RunSpec, *, key: str = "", max_of_key: int | None = None) -> Run:
        """Admit a run, which then goes on by itself. Raises Busy, Draining.

        `max_of_key`: how many runs its key may have, in place of the limit for all.
        """
        most = self.limits.max_per_key if max_of_key is None else max_of_key
        try:
            if self.draining:
                raise Draining("The server is stopping.", retry_after=RETRY_AFTER_SECONDS)
            place = self._admission.ask(spec.run_id, key, most)
        except SmolgateError as error:
            self.counts.refused[error.code or ""] += 1
            raise
        run = Run(spec, key=key, counts=self.counts, created=self._now())
        self._places[run.id] = place
        self.runs[run.id] = run
        self._spawn(self._conduct(run, place))
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
        for run in [run for run in self.runs.values() if run.state == "queued"]:
            self.stop(run, Draining("The server is stopping.", retry_after=RETRY_AFTER_SECONDS))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        for run in list(self.runs.values()):
            self.stop(run, RunStopped("The server is stopping.", code="draining"))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=GRACE_SECONDS + 1)

    async def _conduct(self, run: Run, place: Place) -> None:
        """One run from the queue to its end."""
        try:
            if await self._has_place(run, place.granted):
                await self._work(run)
        except Exception:
            log.exception("run %s failed", run.id)
        finally:
            place.give_back()
            run.channel.finish(failure_of(AgentFailed("The agent's worker was lost.")))
            run.state = "done"
            run.ended = time.time()
            run.timeline.close()
            if run.ending in REASONS:  # not by `submit` at once, but later by a parent
                self.counts.refused[run.ending] += 1
            else:
                self.counts.ended[run.spec.agent, run.ending or "lost"] += 1
            if run.started is not None:
                self.counts.run_seconds.observe(run.ended - run.started)
            del self.runs[run.id], self._places[run.id]
            self._on_end(run)

    async def _has_place(self, run: Run, granted: asyncio.Future[None]) -> bool:
        """Wait for a place. False where the run was refused or stopped while it waited."""
        refusal = Busy(
            "No run could be started in time: try again later.",
            code="queue_timeout",
            retry_after=RETRY_AFTER_SECONDS,
        )
        try:
            with run.stop_signal.watched_by(granted.cancel):
                await asyncio.wait([granted], timeout=self.limits.queue_seconds)
            if granted.done() and not granted.cancelled():
                granted.result()
                return True
        except Busy as error:
            refusal = error
        granted.cancel()
        run.channel.finish(failure_of(refusal))
        return False

    async def _work(self, run: Run) -> None:
        run.started = time.time()
        self.counts.queue_seconds.observe(run.started - run.created)
        run.timeline.end("queue")
        run.timeline.begin("setup")
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
        log.error("run %s does not stop: its place stays taken", run.id)
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
