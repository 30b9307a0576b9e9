"""One run as the event loop sees it: its state, its counters, and its events for any number of readers.

In: the run's channel. Out: `reader()`s, every event from the first on, for whoever asks and whenever;
the reader that is furthest along is the one that takes from the channel, so that a single slow reader
holds the run back and a second one costs nothing. What has been read is kept for later readers up to
`MAX_LOG_BYTES`; past that, nobody can join, and a reader that far behind another gets a `Failure`.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Literal

from streaming.cancellation import StopSignal
from streaming.channel import Channel
from streaming.events import (
    Event,
    Failure,
    Final,
    ModelCalled,
    Started,
    Step,
    event_bytes,
)
from streaming.run_spec import RunSpec

MAX_LOG_BYTES = 8 << 20

State = Literal["queued", "running", "stopping", "done"]


class Run:
    """Create it on the event loop. `outcome` is "ok", or the code of what ended it.

    `readers` counts the clients that want its events; the supervisor keeps it. `end_untold`: should
    it fail, its client can be told so by a broken connection only.
    """

    def __init__(self, spec: RunSpec, *, key: str, created: float | None = None) -> None:
        self.spec = spec
        self.key = key
        self.state: State = "queued"
        self.created = time.time() if created is None else created
        self.started: float | None = None
        self.ended: float | None = None
        self.outcome: str | None = None
        self.steps = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.readers = 0
        self.end_untold = False
        self.stop_signal = StopSignal()
        self.channel = Channel()
        self._log: list[Event] = []
        self._log_bytes = 0
        self._log_begin = 0  # how many events were dropped from the front of the log
        self._complete = False
        self._reading = asyncio.Lock()

    @property
    def id(self) -> str:
        return self.spec.run_id

    @property
    def joinable(self) -> bool:
        """Every event from the first on is still there for another reader."""
        return self._log_begin == 0

    @property
    def concluded(self) -> bool:
        """The terminal event has been read."""
        return self._complete

    def reader(self) -> "RunReader":
        """A reader of every event from the first on.

        Raises RuntimeError where the first events are no longer kept.
        """
        if not self.joinable:
            raise RuntimeError(f"the first events of run {self.id} are gone")
        return RunReader(self, 0)

    def reader_of_the_rest(self) -> "RunReader":
        """A reader of what nobody has read yet, for a run that has to go on unattended."""
        return RunReader(self, self._log_begin + len(self._log))

    async def _events_from(self, position: int) -> list[Event]:
        """The events from `position` on, as soon as there are any; none after the terminal one."""
        while position == self._log_begin + len(self._log):
            if self._complete:
                return []
            await self._read_on(position)
        if position < self._log_begin:
            return [Failure("This reader fell too far behind.", code="reader_too_slow")]
        return self._log[position - self._log_begin :]

    async def _read_on(self, position: int) -> None:
        async with self._reading:
            if self._complete or position < self._log_begin + len(self._log):
                return  # another reader was faster
            events = await self.channel.receive_many()
        for event in events:
            self._note(event)
        self._keep(events)

    def _keep(self, events: list[Event]) -> None:
        self._log += events
        self._log_bytes += sum(map(event_bytes, events))
        if self._log_bytes > MAX_LOG_BYTES:
            self._log_begin += len(self._log) - len(events)
            self._log = events
            self._log_bytes = 0

    def _note(self, event: Event) -> None:
        match event:
            case Started():
                self.state = "running" if self.state == "queued" else self.state
            case Step(number=number):
                self.steps = max(self.steps, number)
            case ModelCalled():
                self.prompt_tokens += event.prompt_tokens
                self.completion_tokens += event.completion_tokens
            case Final():
                self.outcome = "ok"
                self._complete = True
            case Failure(code=code):
                self.outcome = code or "refused"
                self._complete = True


class RunReader:
    """Reads one run's events: as many at once as there are, the terminal one last."""

    def __init__(self, run: Run, position: int) -> None:
        self._run = run
        self._position = position
        self._ended = False

    async def read(self) -> list[Event]:
        """The next events, at least one; empty after the terminal one. Cancelling it loses none."""
        if self._ended:
            return []
        events = await self._run._events_from(self._position)
        self._position += len(events)
        self._ended = not events or isinstance(events[-1], Final | Failure)
        return events

    async def __aiter__(self) -> AsyncIterator[list[Event]]:
        while events := await self.read():
            yield events
