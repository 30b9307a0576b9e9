"""Who may run now: places for runs, given in the order of arrival and within limits.

In: a run's id and its caller's key. Out: a `Place`, granted at once or later; Busy where there is none to
wait for. `PlaceLedger` is the whole of the reckoning and knows neither loops nor sockets, so that one
process can keep it for itself (`OwnAdmission`) or for several.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Protocol

from streaming.failures import Busy

RETRY_AFTER_SECONDS = 5.0


class Place(Protocol):
    """One run's place. `granted` resolves when the run may start, or raises Busy where it may not."""

    @property
    def granted(self) -> asyncio.Future[None]: ...

    def give_back(self) -> None:
        """The run is over, or wants no place any more. Idempotent."""


class Admission(Protocol):
    """Gives places. `running` and `queued` count all runs that it knows of."""

    @property
    def running(self) -> int: ...

    @property
    def queued(self) -> int: ...

    def ask(self, run_id: str, key: str) -> Place:
        """A place in the order of arrival. Raises Busy where that is known at once."""


class PlaceLedger:
    """At most `max_running` tickets hold a place, at most `max_queued` wait for one."""

    def __init__(self, max_running: int, max_queued: int, max_per_key: int) -> None:
        self._max_running = max_running
        self._max_queued = max_queued
        self._max_per_key = max_per_key
        self._keys: dict[Hashable, str] = {}  # of every ticket, in the order of arrival
        self._waiting: dict[Hashable, Callable[[], None]] = {}
        self._of_key: Counter[str] = Counter()

    @property
    def running(self) -> int:
        return len(self._keys) - len(self._waiting)

    @property
    def queued(self) -> int:
        return len(self._waiting)

    def ask(self, ticket: Hashable, key: str, grant: Callable[[], None]) -> None:
        """Call `grant` once, now or later, unless the ticket is given back. Raises Busy."""
        if self.running >= self._max_running and self.queued >= self._max_queued:
            raise busy("queue_full")
        if self._max_per_key and self._of_key[key] >= self._max_per_key:
            raise busy("key_limit")
        self._keys[ticket] = key
        self._of_key[key] += 1
        self._waiting[ticket] = grant
        self._grant_what_is_free()

    def give_back(self, ticket: Hashable) -> None:
        """The ticket's place, or its wait for one, is over. Idempotent."""
        key = self._keys.pop(ticket, None)
        if key is None:
            return
        self._waiting.pop(ticket, None)
        self._of_key[key] -= 1
        if not self._of_key[key]:
            del self._of_key[key]
        self._grant_what_is_free()

    def _grant_what_is_free(self) -> None:
        while self._waiting and self.running < self._max_running:
            self._waiting.pop(next(iter(self._waiting)))()


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

    def ask(self, run_id: str, key: str) -> "OwnPlace":
        place = OwnPlace(self._ledger, run_id, asyncio.get_running_loop().create_future())
        self._ledger.ask(run_id, key, place.grant)
        return place


@dataclass(frozen=True)
class OwnPlace:
    """A ticket of the ledger in this process."""

    ledger: PlaceLedger
    run_id: str
    granted: asyncio.Future[None]

    def grant(self) -> None:
        if not self.granted.done():  # else it was just cancelled, and is about to be given back
            self.granted.set_result(None)

    def give_back(self) -> None:
        self.ledger.give_back(self.run_id)


def busy(code: str) -> Busy:
    """Why there is no place: `queue_full` or `key_limit`."""
    return Busy(REASONS[code], code=code, retry_after=RETRY_AFTER_SECONDS)


REASONS = {
    "queue_full": "Too many runs are waiting already: try again later.",
    "key_limit": "Too many runs of this API key: try again when one has ended.",
}
