"""Who waits for a record to change, and word that it has.

In: changes made in this process, at once; those of other processes by asking the store, one question for all
that are watched, while anybody watches. Out: waiters that wake.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any

from streaming.failures import SmolgateError

# How late a change in another process is seen.
POLL_SECONDS = 0.1

Heads = Callable[[Sequence[str]], Awaitable[dict[str, Any]]]


class Watch:
    """One waiter. Changes between two calls of `changed` are not missed."""

    def __init__(self, watches: "RecordWatches", record_id: str) -> None:
        self._watches = watches
        self.record_id = record_id
        self.event = asyncio.Event()

    async def changed(self) -> None:
        """Returns once the record has changed since the last call, or since the watch began."""
        await self.event.wait()
        self.event.clear()

    async def __aenter__(self) -> "Watch":
        self._watches.add(self)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._watches.remove(self)


class RecordWatches:
    """All waiters of one store in this process."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._watches: dict[str, set[Watch]] = {}
        self._known: dict[str, Any] = {}
        self._polling: asyncio.Task[None] | None = None

    def watch(self, record_id: str) -> Watch:
        return Watch(self, record_id)

    def add(self, watch: Watch) -> None:
        self._watches.setdefault(watch.record_id, set()).add(watch)
        if self._polling is None:
            self._polling = asyncio.get_running_loop().create_task(self._poll())

    def remove(self, watch: Watch) -> None:
        others = self._watches[watch.record_id]
        others.discard(watch)
        if not others:
            del self._watches[watch.record_id]
            self._known.pop(watch.record_id, None)
        if not self._watches and self._polling is not None:
            self._polling.cancel()
            self._polling = None

    def tell(self, record_id: str) -> None:
        """It has changed."""
        for watch in self._watches.get(record_id, ()):
            watch.event.set()

    async def close(self) -> None:
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.gather(self._polling, return_exceptions=True)
            self._polling = None

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            watched = list(self._watches)
            try:
                heads = await self._heads(watched)
            except SmolgateError:  # whoever reads next is told
                for record_id in watched:
                    self.tell(record_id)
                continue
            for record_id in watched:
                head = heads.get(record_id)
                if record_id not in self._known or self._known[record_id] != head:
                    self.tell(record_id)
                if record_id in self._watches:
                    self._known[record_id] = head
