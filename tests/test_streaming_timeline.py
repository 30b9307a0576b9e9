"""What a run did when, from its events: bounded, and right whatever overlaps."""

import itertools

import msgspec
import pytest

from streaming.events import Began, CodeRan, ModelCalled, Plan, Started, Step, ToolRan
from streaming.timeline import MOST_NAME_CHARACTERS, MOST_OF_KIND, MOST_OPEN, Span, Timeline


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def timeline(clock: Clock) -> Timeline:
    return Timeline(clock)


def told(timeline: Timeline) -> list[tuple[str, str, float, float | None]]:
    return [(span.kind, span.name, span.start, span.end) for span in timeline.spans()]


def test_one_step_of_each_kind_stands_where_it_was(clock: Clock, timeline: Timeline) -> None:
    clock.now += 1
    timeline.end("queue")
    timeline.begin("setup")
    clock.now += 1
    timeline.note(Started("a"))
    timeline.note(Began("model", "m"))
    clock.now += 1
    timeline.token()
    timeline.token()
    clock.now += 1
    timeline.note(ModelCalled(10, 5, seconds=2.0))
    timeline.note(Began("code"))
    clock.now += 1
    timeline.note(Began("tool", "search"))
    clock.now += 2
    timeline.note(ToolRan("search", 2.0, failed=True))
    clock.now += 1
    timeline.note(CodeRan(4.0))
    timeline.note(Step(1, seconds=6.0))
    timeline.note(Plan("a plan", 0.5))
    timeline.close()
    assert told(timeline) == [
        ("queue", "", 0, 1),
        ("setup", "", 1, 2),
        ("model", "m", 2, 4),
        ("step", "1", 2, 8),
        ("code", "", 4, 8),
        ("tool", "search", 5, 7),
        ("plan", "", 7.5, 8),
    ]
    model = timeline.spans()[2]
    assert (model.first_token, model.prompt_tokens, model.completion_tokens) == (1, 10, 5)
    assert [span.failed for span in timeline.spans()] == [0, 0, 0, 0, 0, 1, 0]
    assert timeline.doing is None


def test_what_goes_on_has_no_end_until_the_run_has(clock: Clock, timeline: Timeline) -> None:
    assert timeline.doing is not None
    assert timeline.doing.kind == "queue"
    timeline.end("queue")
    assert timeline.doing is None
    timeline.note(Began("code"))
    clock.now += 1
    timeline.note(Began("tool", "slow"))
    doing = timeline.doing
    assert doing is not None
    assert (doing.kind, doing.name, doing.since) == ("tool", "slow", 1.0)
    assert told(timeline)[1:] == [("code", "", 0, None), ("tool", "slow", 1, None)]
    clock.now += 1
    timeline.close()
    assert told(timeline)[1:] == [("code", "", 0, 2), ("tool", "slow", 1, 2)]
    assert [span.cut for span in timeline.spans()] == [False, True, True]


def test_calls_made_at_once_each_get_their_own_end(clock: Clock, timeline: Timeline) -> None:
    timeline.end("queue")
    for _ in range(3):
        timeline.note(Began("tool", "t"))
        clock.now += 1
    timeline.note(ToolRan("t", 3.0))
    clock.now += 1
    timeline.note(ToolRan("t", 2.0))
    timeline.note(ToolRan("t", 3.0))
    assert told(timeline)[1:] == [("tool", "t", 0, 3), ("tool", "t", 1, 4), ("tool", "t", 2, 4)]


def test_an_end_without_a_beginning_is_placed_by_its_length(
    clock: Clock, timeline: Timeline
) -> None:
    timeline.end("queue")
    clock.now += 5
    timeline.note(ToolRan("t", 2.0))
    timeline.note(ModelCalled(1, 1, seconds=60.0))
    assert told(timeline)[1:] == [("model", "", 0, 5), ("tool", "t", 3, 5)]


def test_a_long_run_keeps_few_spans_and_all_of_the_sums(clock: Clock, timeline: Timeline) -> None:
    for number in range(10_000):
        timeline.note(Began("tool", "ab"[number % 2]))
        clock.now += 0.5
        timeline.note(ToolRan("ab"[number % 2], 0.5, failed=number == 7))
        timeline.note(Step(number, seconds=0.5))
        timeline.note(Began("model", "m"))
        timeline.note(ModelCalled(2, 1))
    for kind in ("tool", "step", "model"):
        spans = [span for span in timeline.spans() if span.kind == kind]
        assert MOST_OF_KIND / 2 <= len(spans) <= MOST_OF_KIND
        assert sum(span.calls for span in spans) == 10_000
        if kind != "model":  # which take no time here
            assert all(a.end == b.start for a, b in itertools.pairwise(spans))
    spans = timeline.spans()
    assert sum(span.failed for span in spans) == 1
    assert sum(span.prompt_tokens for span in spans) == 20_000
    assert sum(span.seconds for span in spans if span.kind == "tool") == pytest.approx(5000)
    assert {span.name for span in spans if span.kind == "tool" and span.calls > 1} == {""}
    steps = [span for span in spans if span.kind == "step"]
    assert steps[0].name == f"0-{steps[0].calls - 1}"
    assert steps[-1].name.endswith("9999")


def test_what_never_ends_and_long_names_are_bounded(timeline: Timeline) -> None:
    for _ in range(10 * MOST_OPEN):
        timeline.note(Began("tool", "x" * 10_000))
    timeline.note(ToolRan("x" * 10_000, 0.0))
    assert len(timeline.spans()) <= MOST_OPEN
    assert {len(span.name) for span in timeline.spans()} == {0, MOST_NAME_CHARACTERS}
    timeline.close()
    assert len(timeline.spans()) <= MOST_OF_KIND + 1


def test_a_span_s_defaults_are_the_ones_that_are_left_out() -> None:
    plain = Span("code", "", 0.0, None)
    assert msgspec.to_builtins(plain) == {"kind": "code", "name": "", "start": 0.0, "end": None}
