"""One run as the event loop sees it: its state, its counters, and its events for any number of readers.

In: the run's channel. Out: `reader()`s, every event from the first on, for whoever asks and whenever;
the reader that is furthest along is the one that takes from the channel, so that a single slow reader
holds the run back and a second one costs nothing. What has been read is kept for later readers up to
`MAX_LOG_BYTES`; past that, nobody can join, and a reader that far behind another gets a `Failure`.

A run that pauses for its client's tools is read in legs, one a request: a reader ends with a `Paused`
event, and the next begins behind it.
"""

import time
from collections.abc import AsyncIterator
from typing import Literal

from streaming.cancellation import StopSignal
from streaming.channel import Channel
from streaming.deadline import Deadline
from streaming.events import (
    Began,
    CodeRan,
    Event,
    Failure,
    Final,
    ModelCalled,
    ModelDelta,
    Paused,
    Plan,
    Print,
    Started,
    Stdout,
    Step,
    ToolRan,
    event_bytes,
)
from streaming.run_counts import RunCounts
from streaming.run_spec import RunSpec
from streaming.timeline import Timeline

MAX_LOG_BYTES = 8 << 20

# What a run notes as it is read, and what a leg ends with.
_NOTED = frozenset({Started, Paused, Final, Failure})
_LAST = frozenset({Paused, Final, Failure})

State = Literal["queued", "running", "paused", "stopping", "done"]


class Run:
    """Create it on the event loop. `outcome` is "ok", or the code of what ended it, once somebody has
    read that; `ending` is the same as soon as it is so.

    `readers` counts the clients that want its events; the supervisor keeps it and `deadline`. `code_tags`
    and `leg_begin` are where the leg that is read now begins. `end_untold`: should it fail, its client can be
    told so by a broken connection only.
    """

    def __init__(
        self,
        spec: RunSpec,
        *,
        key: str,
        counts: RunCounts | None = None,
        created: float | None = None,
    ) -> None:
        self.spec = spec
        self.key = key
        self.state: State = "queued"
        self.created = time.time() if created is None else created
        self.started: float | None = None
        self.ended: float | None = None
        self.outcome: str | None = None
        self.ending: str | None = None
        self.first_token_seconds: float | None = None
        self.timeline = Timeline()
        self._awaits_token = True
        self._counts = counts or RunCounts()
        self.steps = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.readers = 0
        self.deadline: Deadline | None = None
        self.code_tags: tuple[str, str] | None = None
        self.leg_begin = 0
        self.end_untold = False
        self.stop_signal = StopSignal()
        self.channel = Channel(tap=self._count)
        self._log: list[Event] = []
        self._log_bytes = 0
        self._log_begin = 0  # how many events were dropped from the front of the log
        self._complete = False

    @property
    def id(self) -> str:
        return self.spec.run_id

    def joinable(self, begin: int = 0) -> bool:
        """Every event from there on is still there for another reader."""
        return self._log_begin <= begin

    @property
    def concluded(self) -> bool:
        """The terminal event has been read."""
        return self._complete

    def reader(self, begin: int = 0) -> "RunReader":
        """A reader of one leg: every event from its beginning on.

        Raises RuntimeError where the first of them are no longer kept.
        """
        if not self.joinable(begin):
            raise RuntimeError(f"the first events of run {self.id} are gone")
        return RunReader(self, begin)

    def reader_of_the_rest(self) -> "RunReader":
        """A reader of what nobody has read yet, for a run that has to go on unattended."""
        return RunReader(self, self._log_begin + len(self._log))

    def _events_from(self, position: int) -> list[Event]:
        """The events from `position` on that are there, taken from the channel by the reader that is furthest along;
        none where it has to wait, or the run has concluded.
        """
        if position < self._log_begin:
            return [Failure("This reader fell too far behind.", code="reader_too_slow")]
        known = self._log_begin + len(self._log)
        if position < known:
            return self._log[position - self._log_begin :]
        if self._complete or not (events := self.channel.receive_now()):
            return []
        for end, event in enumerate(events, known + 1):
            if type(event) in _NOTED:
                self._note(event, end)
            self._log_bytes += event_bytes(event)
        self._keep(events)
        return events

    def _keep(self, events: list[Event]) -> None:
        self._log += events
        if self._log_bytes > MAX_LOG_BYTES:
            self._log_begin += len(self._log) - len(events)
            self._log = events.copy()  # a reader has the other
            self._log_bytes = 0

    def _count(self, event: Event) -> None:
        """Called as an event is sent, in whatever thread sends it; the channel's lock is held."""
        if type(event) is Print or type(event) is Stdout:
            return  # most events, which count for nothing
        match event:
            case ModelDelta():
                if self._awaits_token:
                    self._note_token()
            case Began(kind=kind):
                self._awaits_token = self._awaits_token or kind == "model"
                self.timeline.note(event)
            case Step(number=number):
                self.steps = max(self.steps, number)
                self._counts.note(event)
                self.timeline.note(event)
            case ModelCalled():
                self.prompt_tokens += event.prompt_tokens
                self.completion_tokens += event.completion_tokens
                self._counts.note(event)
                self.timeline.note(event)
            case ToolRan():
                self._counts.note(event)
                self.timeline.note(event)
            case Started() | CodeRan() | Plan():
                self.timeline.note(event)
            case Final():
                self.ending = "ok"
            case Failure(code=code):
                self.ending = code or "refused"

    def _note_token(self) -> None:
        self._awaits_token = False
        self.timeline.token()
        if self.first_token_seconds is None:
            self.first_token_seconds = time.time() - self.created
            self._counts.first_token(self.first_token_seconds)

    def _note(self, event: Event, end: int) -> None:
        match event:
            case Started(code_tags=code_tags):
                self.code_tags = code_tags
                self.state = "running" if self.state == "queued" else self.state
            case Paused():
                self.leg_begin = end
            case Final():
                self.outcome = "ok"
                self._complete = True
            case Failure(code=code):
                self.outcome = code or "refused"
                self._complete = True


class RunReader:
    """Reads one leg's events: as many at once as there are, `Paused` or the terminal one last.

    `begin` is where it began; `paused` once it has ended with `Paused`.
    """

    def __init__(self, run: Run, position: int) -> None:
        self._run = run
        self._position = position
        self._ended = False
        self.begin = position
        self.paused = False

    async def read(self) -> list[Event]:
        """The next events, at least one; empty after the terminal one. Cancelling it loses none."""
        if self._ended:
            return []
        run = self._run
        while not (events := run._events_from(self._position)):
            if run.concluded:
                self._ended = True
                return []
            await run.channel.more()
        kinds = list(map(type, events))
        if Paused in kinds:
            events = events[: kinds.index(Paused) + 1]
            self.paused = True
        self._position += len(events)
        self._ended = type(events[-1]) in _LAST
        return events

    async def __aiter__(self) -> AsyncIterator[list[Event]]:
        while events := await self.read():
            yield events
