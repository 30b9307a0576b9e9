"""The way of events from a run to its reader, across the border between threads and the event loop.

In: `send` from the run's thread (blocks while full), `send_on_loop` from the loop (waits while full),
`finish` with the terminal event. Out: `receive_many` on the loop: all that is there, in order, then
the end. Semantics are those of anyio's memory streams (streams/memory.py): two ends over one state,
back-pressure by default, buffered items still come out after the sending end closed, closing is
idempotent. It differs in that a sender whose receiver is gone, or whose run was finished by somebody
else, gets `RunCancelled`; and in that adjacent texts are merged once the reader lags, so that a slow
client costs bounded memory and loses nothing.

Why not anyio's stream: crossing threads costs it 100 µs an event (from_thread.run); here one armed
wakeup serves all events until the loop comes round.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import anyio

from streaming.cancellation import RunCancelled
from streaming.events import Event, event_bytes, merged

MAX_EVENTS = 1024
MAX_BYTES = 1 << 20
# Below this backlog events keep their own identity; above it the reader is late anyway, and one
# larger chunk is cheaper for everyone.
MERGE_ABOVE = 16
# A merged text stays well under the 64 KiB at which line-based SSE readers fail.
MAX_MERGED_BYTES = 16 * 1024


@dataclass(frozen=True)
class ChannelStatistics:
    """Snapshot for tests and metrics; sizes in events and bytes."""

    events: int
    bytes: int
    sent: int
    merged: int


class Channel:
    """One run's channel. Create it on the event loop that will receive.

    `tap` is called with every event that is put in, in the sender's thread, one at a time.
    """

    def __init__(
        self,
        *,
        max_events: int = MAX_EVENTS,
        max_bytes: int = MAX_BYTES,
        tap: Callable[[Event], None] | None = None,
    ) -> None:
        self._tap = tap
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._lock = threading.Lock()
        self._room = threading.Condition(self._lock)
        self._items: deque[Event] = deque()
        self._bytes = 0
        self._max_events = max_events
        self._max_bytes = max_bytes
        self._finished = False
        self._receiver_closed = False
        self._wakeup_armed = False
        self._blocked = 0  # threads that wait for room
        self._waiters: list[asyncio.Future[None]] = []
        self._loop_senders: list[asyncio.Future[None]] = []
        self._sent = 0
        self._merged = 0

    def send(self, event: Event) -> None:
        """Hand over one event from a thread; blocks while the channel is full.

        Raises RunCancelled once the run was finished or its receiver closed.
        """
        if threading.get_ident() == self._loop_thread:
            raise RuntimeError("send() would block the event loop: use send_on_loop()")
        with self._lock:
            while self._is_full() and not self._is_closed():
                self._blocked += 1
                self._room.wait()
                self._blocked -= 1
            self._put(event)

    async def send_on_loop(self, event: Event) -> None:
        """`send` for code on the event loop: waits instead of blocking."""
        while True:
            with self._lock:
                if not self._is_full() or self._is_closed():
                    self._put(event)
                    return
                room = self._loop.create_future()
                self._loop_senders.append(room)
            await room

    def finish(self, event: Event) -> bool:
        """Put the terminal event and close the sending end; never blocks. The first caller wins.

        Returns False where the run had been finished before: then `event` is dropped.
        """
        with self._lock:
            if self._finished:
                return False
            if not self._receiver_closed:
                self._append(event)
            self._finished = True
            self._release_senders()
            self._arm_wakeup()
            return True

    def close(self) -> None:
        """Close the receiving end: what is buffered is dropped, senders get RunCancelled."""
        with self._lock:
            self._receiver_closed = True
            self._items.clear()
            self._bytes = 0
            self._release_senders()
            self._arm_wakeup()

    async def receive_many(self) -> list[Event]:
        """All events that are there, at least one, in order.

        Raises anyio.EndOfStream after the terminal event, anyio.ClosedResourceError after close().
        """
        while not (events := self.receive_now()):
            await self.more()
        return events

    def receive_now(self) -> list[Event]:
        """`receive_many` of what is there already, which may be none."""
        with self._lock:
            if self._items:
                events = list(self._items)
                self._items.clear()
                self._bytes = 0
                if self._blocked or self._loop_senders:
                    self._release_senders()
                return events
            if self._receiver_closed:
                raise anyio.ClosedResourceError
            if self._finished:
                raise anyio.EndOfStream
            return []

    def more(self) -> asyncio.Future[None]:
        """Done once there may be something to receive; of its own for each who waits. On the loop, with nothing
        awaited since `receive_now` gave none.
        """
        if self._waiters:
            self._waiters = [waiter for waiter in self._waiters if not waiter.done()]
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        return waiter

    def statistics(self) -> ChannelStatistics:
        with self._lock:
            return ChannelStatistics(len(self._items), self._bytes, self._sent, self._merged)

    # Below here the lock is held.

    def _is_closed(self) -> bool:
        return self._finished or self._receiver_closed

    def _is_full(self) -> bool:
        return len(self._items) >= self._max_events or self._bytes >= self._max_bytes

    def _put(self, event: Event) -> None:
        if self._is_closed():
            raise RunCancelled("nobody reads this run any more")
        self._append(event)
        self._arm_wakeup()

    def _append(self, event: Event) -> None:
        self._sent += 1
        if self._tap is not None:
            self._tap(event)
        size = event_bytes(event)
        if len(self._items) > MERGE_ABOVE and size < MAX_MERGED_BYTES:
            last = self._items[-1]
            last_size = event_bytes(last)
            if last_size < MAX_MERGED_BYTES and (both := merged(last, event)) is not None:
                self._items[-1] = both
                self._bytes += event_bytes(both) - last_size
                self._merged += 1
                return
        self._items.append(event)
        self._bytes += size

    def _release_senders(self) -> None:
        if self._blocked:
            self._room.notify_all()
        if self._loop_senders:
            senders, self._loop_senders = self._loop_senders, []
            self._on_loop(partial(_resolve, senders))

    def _arm_wakeup(self) -> None:
        if not self._wakeup_armed:
            self._wakeup_armed = True
            self._on_loop(self._wake)

    def _on_loop(self, callback: Callable[[], None]) -> None:
        if threading.get_ident() == self._loop_thread:
            callback()
            return
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:  # the loop is closed: the server is gone
            self._receiver_closed = True

    def _wake(self) -> None:
        self._wakeup_armed = False
        waiters, self._waiters = self._waiters, []
        _resolve(waiters)


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)
