"""A run's events in batches: none lost, none late, and no more of them waiting than is allowed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from streaming.cancellation import RunCancelled, StopSignal
from streaming.events import Event, Final, Note, Print
from streaming.runners.event_batches import (
    BATCH_BYTES,
    MAX_WAITING_EVENTS,
    EventBatches,
)
from streaming.runners.run_wire import decode_events

WAIT_SECONDS = 10.0


def test_all_events_come_in_order_and_few_batches() -> None:
    batches = EventBatches(StopSignal())
    sent: list[Event] = [*(Note(str(number)) for number in range(5000)), Final("x")]

    def put() -> None:
        for event in sent:
            batches.put(event)

    with ThreadPoolExecutor() as pool:
        putting = pool.submit(put)
        received = [decode_events(batch) for batch in batches.batches()]
        putting.result(WAIT_SECONDS)
    assert [event for events in received for event in events] == sent
    assert len(received) < len(sent) / 4


def test_a_question_does_not_wait_for_a_batch_to_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.runners.event_batches.BATCH_SECONDS", 600.0)
    batches = EventBatches(StopSignal())
    coming = batches.batches()
    batches.put(Note("first"))
    assert batches.flush() == 1
    assert decode_events(next(coming)) == [Note("first")]
    batches.put(Print("x" * BATCH_BYTES))
    assert len(decode_events(next(coming))) == 1
    assert batches.flush() == 2


def test_a_batch_waits_for_more_but_not_for_long() -> None:
    batches = EventBatches(StopSignal())
    batches.put(Note("alone"))
    began = time.monotonic()
    assert decode_events(next(batches.batches())) == [Note("alone")]
    assert time.monotonic() - began < WAIT_SECONDS


def test_nothing_follows_the_terminal_event() -> None:
    batches = EventBatches(StopSignal())
    batches.put(Final("x"))
    batches.put(Note("late"))
    assert [decode_events(batch) for batch in batches.batches()] == [[Final("x")]]


def test_who_puts_too_much_waits_and_a_stop_wakes_it() -> None:
    stop = StopSignal()
    batches = EventBatches(stop)
    for number in range(MAX_WAITING_EVENTS):
        batches.put(Note(str(number)))
    waiting = threading.Event()

    def put_one_more() -> None:
        waiting.set()
        batches.put(Note("too many"))

    with ThreadPoolExecutor() as pool:
        putting = pool.submit(put_one_more)
        assert waiting.wait(WAIT_SECONDS)
        assert not putting.done()
        stop.set("stopped")
        with pytest.raises(RunCancelled):
            putting.result(WAIT_SECONDS)
    batches.put(Final("the end has room"))
    assert decode_events(next(batches.batches()))[-1] == Final("the end has room")
