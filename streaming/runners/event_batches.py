"""A run's events in batches: for ways that cost per message, as a cluster's do.

In: events, from the run's threads; `put` blocks while too much waits. Out: `batches`, encoded, each with
what came within 20 ms or until it held 4 KB, and at once what is followed by a question or is the last.
"""

import threading
import time
from collections.abc import Iterator

from streaming.cancellation import RunCancelled, StopSignal
from streaming.events import Event, Failure, Final, event_bytes
from streaming.runners.run_wire import encode_events

BATCH_SECONDS = 0.02
BATCH_BYTES = 4096
MAX_WAITING_BYTES = 1 << 20
MAX_WAITING_EVENTS = 1024


class EventBatches:
    """The run's threads put, one thread takes the batches."""

    def __init__(self, stop: StopSignal) -> None:
        self._stop = stop
        self._changed = threading.Condition()
        self._waiting: list[Event] = []
        self._bytes = 0
        self._put = 0
        self._since = 0.0  # when the first that waits was put
        self._urgent = False
        self._closed = False
        stop.tell(self._wake)

    def put(self, event: Event) -> None:
        """Raises RunCancelled where a stopped run would have to wait. Nothing follows the terminal event."""
        is_last = isinstance(event, Final | Failure)
        with self._changed:
            if self._closed:
                return
            while self._is_full() and not is_last:
                if self._stop.is_set:
                    raise RunCancelled(self._stop.reason)
                self._changed.wait()
            if not self._waiting:
                self._since = time.monotonic()
            self._waiting.append(event)
            self._bytes += event_bytes(event)
            self._put += 1
            self._closed |= is_last
            self._changed.notify_all()

    def flush(self) -> int:
        """Let what waits go at once; returns how many events were put so far."""
        with self._changed:
            self._urgent = bool(self._waiting)
            self._changed.notify_all()
            return self._put

    def batches(self) -> Iterator[bytes]:
        """Until the terminal event."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting)
                left = self._since + BATCH_SECONDS - time.monotonic()
                self._changed.wait_for(self._is_due, max(0.0, left))
                events, self._waiting = self._waiting, []
                self._bytes = 0
                self._urgent = False
                self._changed.notify_all()
            yield encode_events(events)
            if isinstance(events[-1], Final | Failure):
                return

    def _is_due(self) -> bool:
        return self._urgent or self._closed or self._bytes >= BATCH_BYTES

    def _is_full(self) -> bool:
        return self._bytes >= MAX_WAITING_BYTES or len(self._waiting) >= MAX_WAITING_EVENTS

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
