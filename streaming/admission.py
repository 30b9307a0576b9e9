"""Who may run now: places for runs, given in the order of arrival and within limits.

In: a run's id and its caller's key. Out: a `Place`, granted at once or later; Busy where there is none to
wait for. `PlaceLedger` is the whole of the reckoning and knows neither loops nor sockets, so that one
process can keep it for itself (`OwnAdmission`) or for several.
"""

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Protocol

from streaming.failures import Busy

RETRY_AFTER_SECONDS = 5.0


def new_grant() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


class Place(Protocol):
    """One run's place. `granted` resolves when the run may start, or raises Busy where it may not."""

    @property
    def granted(self) -> asyncio.Future[None]: ...

    def pause(self) -> None:
        """Others may have it meanwhile; the run still counts for its key."""

    def resume(self) -> None:
        """Ask again after a pause, ahead of all that have not begun: `granted` is a new one."""

    def give_back(self) -> None:
        """The run is over, or wants no place any more. Idempotent."""


class Admission(Protocol):
    """Gives places. `running`, `queued` and `paused` count all runs that it knows of."""

    @property
    def running(self) -> int: ...

    @property
    def queued(self) -> int: ...

    @property
    def paused(self) -> int: ...

    def ask(self, run_id: str, key: str, max_of_key: int) -> Place:
        """A place in the order of arrival, if the key has fewer than `max_of_key` runs (0: no limit).

        Raises Busy where that is known at once.
        """


class PlaceLedger:
    """At most `max_running` tickets hold a place, at most `max_queued` wait for one."""

    def __init__(self, max_running: int, max_queued: int) -> None:
        self._max_running = max_running
        self._max_queued = max_queued
        self._keys: dict[Hashable, str] = {}  # of every ticket
        self._waiting: OrderedDict[Hashable, Callable[[], None]] = OrderedDict()
        self._paused: set[Hashable] = set()
        self._of_key: Counter[str] = Counter()

    @property
    def running(self) -> int:
        return len(self._keys) - len(self._waiting) - len(self._paused)

    @property
    def queued(self) -> int:
        return len(self._waiting)

    @property
    def paused(self) -> int:
        return len(self._paused)

    def ask(self, ticket: Hashable, key: str, max_of_key: int, grant: Callable[[], None]) -> None:
        """Call `grant` once, now or later, unless the ticket is paused or given back. Raises Busy."""
        if self.running >= self._max_running and self.queued >= self._max_queued:
            raise busy("queue_full")
        if max_of_key and self._of_key[key] >= max_of_key:
            raise busy("key_limit")
        self._keys[ticket] = key
        self._of_key[key] += 1
        self._waiting[ticket] = grant
        self._grant_what_is_free()

    def pause(self, ticket: Hashable) -> None:
        """The ticket's place, or its wait for one, is free for others. Idempotent."""
        if ticket in self._keys:
            self._waiting.pop(ticket, None)
            self._paused.add(ticket)
            self._grant_what_is_free()

    def resume(self, ticket: Hashable, grant: Callable[[], None]) -> None:
        """Ask again for a ticket that is paused, ahead of all others."""
        if ticket in self._paused:
            self._paused.remove(ticket)
            self._waiting[ticket] = grant
            self._waiting.move_to_end(ticket, last=False)
            self._grant_what_is_free()

    def give_back(self, ticket: Hashable) -> None:
        """The ticket's place, or its wait for one, is over. Idempotent."""
        key = self._keys.pop(ticket, None)
        if key is None:
            return
        self._waiting.pop(ticket, None)
        self._paused.discard(ticket)
        self._of_key[key] -= 1
        if not self._of_key[key]:
            del self._of_key[key]
        self._grant_what_is_free()

    def _grant_what_is_free(self) -> None:
        while self._waiting and self.running < self._max_running:
            _, grant = self._waiting.popitem(last=False)
            grant()


class OwnAdmission:
    """Places of this process alone."""

    def __init__(self, ledger: PlaceLedger) -> None:
        self._ledger = ledger

    @property
    def running(self) -> int:
        return self._ledger.running

    @property
    def queued(self) -> int:
        return self._ledger.queued

    @property
    def paused(self) -> int:
        return self._ledger.paused

    def ask(self, run_id: str, key: str, max_of_key: int) -> "OwnPlace":
        place = OwnPlace(self._ledger, run_id)
        self._ledger.ask(run_id, key, max_of_key, place.grant)
        return place


@dataclass
class OwnPlace:
    """A ticket of the ledger in this process."""

    ledger: PlaceLedger
    run_id: str
    granted: asyncio.Future[None] = field(default_factory=new_grant)

    def grant(self) -> None:
        if not self.granted.done():  # else it was just cancelled, and is about to be given back
            self.granted.set_result(None)

    def pause(self) -> None:
        self.ledger.pause(self.run_id)

    def resume(self) -> None:
        self.granted = new_grant()
        self.ledger.resume(self.run_id, self.grant)

    def give_back(self) -> None:
        self.ledger.give_back(self.run_id)


def busy(code: str) -> Busy:
    """Why there is no place: `queue_full` or `key_limit`."""
    return Busy(REASONS[code], code=code, retry_after=RETRY_AFTER_SECONDS)


REASONS = {
    "queue_full": "Too many runs are waiting already: try again later.",
    "key_limit": "Too many runs of this API key: try again when one has ended.",
}
