"""Admission, deadlines and the ladder, on a runner whose work does what a test says.

A real thread cannot be made to ignore its stop signal in a bounded test; the runner here can.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest

from streaming import supervisor as supervisor_module
from streaming.cancellation import StopSignal
from streaming.channel import Channel
from streaming.events import Event, Failure, Final, ModelDelta, Note, Started
from streaming.failures import Busy, Draining, RunStopped
from streaming.run import MAX_LOG_BYTES, Run
from streaming.run_spec import RunSpec
from streaming.supervisor import FINISH, Limits, Supervisor


class FakeWork:
    """One run's work: it has begun, and ends when the test says so."""

    def __init__(self, spec: RunSpec, channel: Channel, stop: StopSignal) -> None:
        self.spec, self.channel, self.stop = spec, channel, stop
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.killed = False
        self.dies_when_killed = True

    def end(self, event: Event | None = None) -> None:
        if event is not None:
            self.channel.finish(event)
        if not self.done.done():
            self.done.set_result(None)

    def kill(self) -> None:
        self.killed = True
        if self.dies_when_killed:
            self.end()


class FakeRunner:
    numbers: ClassVar[dict[str, float]] = {}

    def __init__(self, *, obeys: bool = True) -> None:
        self.works: list[FakeWork] = []
        self.obeys = obeys

    def why_not_ready(self) -> None:
        return None

    def start(self, spec: RunSpec, channel: Channel, stop: StopSignal) -> FakeWork:
        work = FakeWork(spec, channel, stop)
        self.works.append(work)
        if self.obeys:
            stop.tell(work.end)
        return work


def spec(number: int) -> RunSpec:
    return RunSpec(run_id=f"run-{number}", agent="a", task="t")


def make(**limits: Any) -> tuple[Supervisor, FakeRunner]:
    runner = FakeRunner()
    return Supervisor(runner, Limits(**limits)), runner


async def terminal(run: Run) -> Event:
    return [event async for events in run.reader() for event in events][-1]


async def settle(condition: Callable[[], object] = lambda: True) -> None:
    async with asyncio.timeout(5):
        await asyncio.sleep(0)
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_runs_wait_in_order_and_are_refused_when_the_queue_is_full() -> None:
    supervisor, runner = make(max_running=1, max_queued=2)
    for number in range(3):
        supervisor.submit(spec(number))
    await settle(lambda: runner.works)
    assert (supervisor.running, supervisor.queued) == (1, 2)
    assert supervisor.why_not_ready() == "the queue is full"
    with pytest.raises(Busy) as raised:
        supervisor.submit(spec(3))
    assert raised.value.retry_after == 5
    for number in range(3):
        await settle(lambda: len(runner.works) == number + 1)  # noqa: B023
        assert [work.spec.run_id for work in runner.works][number] == f"run-{number}"
        runner.works[number].end(Final("x"))
    await settle(lambda: not supervisor.runs)
    assert (supervisor.running, supervisor.queued) == (0, 0)
    assert supervisor.why_not_ready() is None


async def test_a_run_that_waits_too_long_is_told_so_and_was_never_started() -> None:
    supervisor, runner = make(max_running=1, queue_seconds=0.01)
    supervisor.submit(spec(0))
    waiting = supervisor.submit(spec(1))
    failure = await terminal(waiting)
    assert isinstance(failure, Failure)
    assert (failure.status, failure.code, failure.type) == (
        429,
        "queue_timeout",
        "rate_limit_error",
    )
    assert len(runner.works) == 1
    runner.works[0].end(Final("x"))
    await settle(lambda: not supervisor.runs)
    assert len(runner.works) == 1


async def test_one_key_cannot_take_every_place() -> None:
    supervisor, _ = make(max_running=8, max_per_key=2)
    supervisor.submit(spec(0), key="mine")
    supervisor.submit(spec(1), key="mine")
    with pytest.raises(Busy) as raised:
        supervisor.submit(spec(2), key="mine")
    assert raised.value.code == "key_limit"
    supervisor.submit(spec(3), key="yours")


async def test_a_run_past_its_deadline_is_stopped_and_its_reader_told_at_once() -> None:
    supervisor, runner = make(run_seconds=0.01)
    run = supervisor.submit(spec(0))
    failure = await terminal(run)
    assert isinstance(failure, Failure)
    assert (failure.status, failure.code) == (504, "deadline_exceeded")
    await settle(lambda: not supervisor.runs)
    assert not runner.works[0].killed


async def test_the_ladder_uses_force_after_the_grace_and_then_counts_the_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor_module, "GRACE_SECONDS", 0.01)
    runner = FakeRunner(obeys=False)
    supervisor = Supervisor(runner, Limits(max_running=1, max_stuck=1))
    run = supervisor.submit(spec(0))
    waiting = supervisor.submit(spec(1))
    await settle(lambda: runner.works)
    work = runner.works[0]
    work.dies_when_killed = False
    supervisor.stop(run, RunStopped("stop", code="cancelled"))
    assert await terminal(run) == Failure("stop", code="cancelled")
    await settle(lambda: supervisor.stuck)
    assert work.killed
    assert supervisor.running == 1  # its slot stays taken
    assert waiting.state == "queued"
    assert supervisor.why_not_ready() == "1 runs do not stop"
    work.end()
    await settle(lambda: len(runner.works) == 2)
    assert supervisor.stuck == 0
    assert supervisor.why_not_ready() is None


async def test_a_worker_that_ends_without_a_word_is_a_failure() -> None:
    supervisor, runner = make()
    run = supervisor.submit(spec(0))
    await settle(lambda: runner.works)
    runner.works[0].end()
    assert await terminal(run) == Failure("The agent's worker was lost.")


async def test_a_stopped_run_that_still_waits_is_never_started() -> None:
    supervisor, runner = make(max_running=1)
    supervisor.submit(spec(0))
    waiting = supervisor.submit(spec(1))
    await settle(lambda: runner.works)
    supervisor.stop(waiting, RunStopped("stop", code="cancelled"))
    assert await terminal(waiting) == Failure("stop", code="cancelled")
    await settle(lambda: supervisor.queued == 0)
    assert waiting.outcome == "cancelled"
    runner.works[0].end(Final("x"))
    await settle(lambda: not supervisor.runs)
    assert len(runner.works) == 1


@asynccontextmanager
async def left_early(seconds: float) -> AsyncIterator[tuple[Supervisor, Run, FakeWork]]:
    """A run whose reader has left while it was working."""
    supervisor, runner = make()
    run = supervisor.submit(spec(0))
    async with supervisor.reading(run, leave_seconds=seconds):
        await settle(lambda: runner.works)
    yield supervisor, run, runner.works[0]
    runner.works[0].end(Final("late"))
    await settle(lambda: not supervisor.runs)


async def test_a_client_that_leaves_ends_the_run_or_not_by_policy() -> None:
    async with left_early(0) as (_, run, work):
        assert work.stop.reason == "client_gone"
        assert run.outcome == "client_gone"
    async with left_early(FINISH) as (_, run, work):
        await work.channel.send_on_loop(Note("still going"))
        assert not work.stop.is_set
    assert run.outcome == "ok"
    async with left_early(0.01) as (_, run, work):
        assert not work.stop.is_set
        await settle(lambda: work.stop.is_set)
    assert run.outcome == "client_gone"


async def test_an_end_that_was_reached_before_the_client_left_is_kept() -> None:
    supervisor, runner = make()
    run = supervisor.submit(spec(0))
    async with supervisor.reading(run):
        await settle(lambda: runner.works)
        runner.works[0].channel.finish(Final("in time"))
    assert run.outcome is None  # not "client_gone": whoever asks again gets the answer
    assert await terminal(run) == Final("in time")
    assert run.outcome == "ok"


async def test_a_run_with_another_reader_goes_on_when_one_leaves() -> None:
    supervisor, runner = make()
    run = supervisor.submit(spec(0))
    async with supervisor.reading(run):
        async with supervisor.reading(run):
            await settle(lambda: runner.works)
        assert not run.stop_signal.is_set
    assert run.stop_signal.is_set


async def test_every_reader_gets_every_event_from_the_first_on() -> None:
    supervisor, runner = make()
    run = supervisor.submit(spec(0))
    await settle(lambda: runner.works)
    first = asyncio.ensure_future(terminal(run))
    channel = runner.works[0].channel
    for number in range(100):
        await channel.send_on_loop(Note(str(number)))
        await asyncio.sleep(0)
    runner.works[0].end(Final("x"))
    assert await first == Final("x")
    late = [event async for events in run.reader() for event in events]
    assert late == [*(Note(str(number)) for number in range(100)), Final("x")]


async def test_what_a_run_keeps_for_later_readers_is_bounded() -> None:
    run = Run(spec(0), key="")
    slow, fast = run.reader(), run.reader()
    await run.channel.send_on_loop(Started("a"))
    assert await slow.read() == await fast.read()
    text = "x" * (MAX_LOG_BYTES // 8)
    for _ in range(10):
        await run.channel.send_on_loop(ModelDelta(text))
        await fast.read()
    assert not run.joinable()
    with pytest.raises(RuntimeError):
        run.reader()
    run.channel.finish(Final("x"))
    assert await fast.read() == [Final("x")]
    assert isinstance((await slow.read())[-1], Failure)
    assert await slow.read() == []


async def test_a_drain_refuses_waits_and_then_stops() -> None:
    supervisor, runner = make(max_running=2)
    quick, slow, waiting = (supervisor.submit(spec(number)) for number in range(3))
    await settle(lambda: len(runner.works) == 2)
    draining = asyncio.ensure_future(supervisor.drain(0.05))
    await asyncio.sleep(0)
    assert supervisor.why_not_ready() == "draining"
    with pytest.raises(Draining):
        supervisor.submit(spec(9))
    runner.works[0].end(Final("in time"))
    await draining
    assert await terminal(quick) == Final("in time")
    stopped, refused = await terminal(slow), await terminal(waiting)
    assert isinstance(stopped, Failure)
    assert stopped.code == "draining"
    assert isinstance(refused, Failure)
    assert refused.status == 503
    assert not supervisor.runs
