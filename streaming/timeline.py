"""What a run did when: spans of waiting, thinking, code and tools, side by side in time.

In: a run's events as they are sent, in whatever thread, and what its supervisor does with it. Out: at most
`MOST_OF_KIND` spans of each kind, in seconds since the run was asked for; past that, neighbours are merged two
and two, so that the picture of a long run gets coarser and not longer. No text of the run is kept: a span has
the name of a tool, an agent or a model, and numbers.

What a run elsewhere sends is timed as it arrives: with its true length, and a batch (20 ms) late at most.
"""

import threading
import time
from collections.abc import Callable
from typing import Literal

import msgspec

from streaming.events import Began, CodeRan, Event, ModelCalled, Plan, Started, Step, ToolRan

SpanKind = Literal["queue", "setup", "step", "plan", "model", "code", "tool", "paused"]

MOST_OF_KIND = 80
# Only calls that are made at once are open at once, and those within which they are made.
MOST_OPEN = 100
MOST_NAME_CHARACTERS = 100


class Span(msgspec.Struct, omit_defaults=True):
    """`end` is None while it goes on; `seconds` is how long it was busy, which is less than from start to end
    where it is several `calls` in one. `first_token` is in seconds since its start. `cut`: the run ended first.
    """

    kind: SpanKind
    name: str
    start: float
    end: float | None
    seconds: float = 0.0
    calls: int = 1
    failed: int = 0
    cut: bool = False
    first_token: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Doing(msgspec.Struct, frozen=True):
    """What a run does at the moment, since so many seconds after it was asked for."""

    kind: SpanKind
    name: str
    since: float


class Timeline:
    """One run's, from when it is made. Any thread."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._origin = now()
        self._lock = threading.Lock()
        self._ended: dict[SpanKind, list[Span]] = {}
        self._open: list[Span] = [Span("queue", "", 0.0, None)]

    def note(self, event: Event) -> None:
        """One event of the run, as it is sent."""
        match event:
            case Began(kind=kind, name=name):
                self.begin(kind, name)
            case ModelCalled(seconds=seconds, failed=failed):
                self._end_model(event, seconds, failed=failed)
            case CodeRan(seconds=seconds, failed=failed):
                self.end("code", seconds=seconds, failed=failed)
            case ToolRan(name=name, seconds=seconds, failed=failed):
                self.end("tool", name, seconds=seconds, failed=failed)
            case Step(number=number, seconds=seconds, error=error):
                self.end("step", str(number), seconds=seconds, failed=error is not None)
            case Plan(seconds=seconds):
                self.end("plan", seconds=seconds)
            case Started():
                self.end("setup")

    def begin(self, kind: SpanKind, name: str = "") -> None:
        with self._lock:
            if len(self._open) < MOST_OPEN:
                self._open.append(Span(kind, name[:MOST_NAME_CHARACTERS], self._time(), None))

    def end(
        self, kind: SpanKind, name: str = "", *, seconds: float = 0.0, failed: bool = False
    ) -> None:
        """The open span of this kind and name that began about so long ago; where none is open, one that did."""
        with self._lock:
            self._end(kind, name, seconds, failed=failed)

    def token(self) -> None:
        """The first one of a model's reply."""
        with self._lock:
            for span in reversed(self._open):
                if span.kind == "model" and span.first_token is None:
                    span.first_token = self._time() - span.start
                    return

    def close(self) -> None:
        """The run is over, whatever it was at."""
        with self._lock:
            now = self._time()
            for span in self._open:
                span.end, span.seconds, span.cut = now, now - span.start, True
                self._keep(span)
            self._open.clear()

    @property
    def doing(self) -> Doing | None:
        """What began last and goes on."""
        with self._lock:
            if not self._open:
                return None
            span = self._open[-1]
            return Doing(span.kind, span.name, round(span.start, 3))

    def spans(self) -> list[Span]:
        """All of them by their start, times in milliseconds' precision."""
        with self._lock:
            known = [*(span for spans in self._ended.values() for span in spans), *self._open]
            return [_rounded(span) for span in sorted(known, key=lambda span: span.start)]

    # Below here the lock is held.

    def _time(self) -> float:
        return self._now() - self._origin

    def _end(self, kind: SpanKind, name: str, seconds: float, *, failed: bool) -> Span:
        now = self._time()
        name = name[:MOST_NAME_CHARACTERS]
        began = max(0.0, now - seconds)
        candidates = [span for span in self._open if span.kind == kind and span.name == name]
        span = min(candidates, key=lambda span: abs(span.start - began), default=None)
        if span is None:
            span = Span(kind, name, began, now, seconds)
        else:
            self._open = [each for each in self._open if each is not span]
            span.end = min(now, span.start + seconds) if seconds else now
            span.seconds = span.end - span.start
        span.failed = int(failed)
        self._keep(span)
        return span

    def _keep(self, span: Span) -> None:
        spans = self._ended.setdefault(span.kind, [])
        spans.append(span)
        if len(spans) > MOST_OF_KIND:
            spans[:] = [
                _merged(*spans[i : i + 2]) if i + 1 < len(spans) else spans[i]
                for i in range(0, len(spans), 2)
            ]

    def _end_model(self, call: ModelCalled, seconds: float, *, failed: bool) -> None:
        with self._lock:
            # Its name is that of the one which is open: the event tells none.
            name = next((span.name for span in reversed(self._open) if span.kind == "model"), "")
            span = self._end("model", name, seconds, failed=failed)
            span.prompt_tokens += call.prompt_tokens
            span.completion_tokens += call.completion_tokens


def _merged(first: Span, second: Span) -> Span:
    assert first.end is not None
    assert second.end is not None
    return Span(
        kind=first.kind,
        name=_name_of_both(first, second),
        start=min(first.start, second.start),
        end=max(first.end, second.end),
        seconds=first.seconds + second.seconds,
        calls=first.calls + second.calls,
        failed=first.failed + second.failed,
        cut=first.cut or second.cut,
        prompt_tokens=first.prompt_tokens + second.prompt_tokens,
        completion_tokens=first.completion_tokens + second.completion_tokens,
    )


def _name_of_both(first: Span, second: Span) -> str:
    if first.name == second.name:
        return first.name
    if first.kind == "step":
        return f"{first.name.partition('-')[0]}-{second.name.rpartition('-')[2]}"
    return ""


def _rounded(span: Span) -> Span:
    return msgspec.structs.replace(
        span,
        start=round(span.start, 3),
        end=None if span.end is None else round(span.end, 3),
        seconds=round(span.seconds, 3),
        first_token=None if span.first_token is None else round(span.first_token, 3),
    )
