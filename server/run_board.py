"""What there is to tell those who watch all runs: each run as it was told last, and what has changed since.

In: every so often, all runs that go on and those that ended lately. Out: for a reader who has seen the board up to
a version, the entries that are newer. Whoever reads slowly finds the latest state of each run and no backlog.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

# A run that goes on and is not found for this long was lost with its worker.
LOST_SECONDS = 5.0
MAX_ENDED = 300
# What moves all the time by itself, as long as a run goes on, is no change.
_MOVES = ("seconds", "queue_seconds")


@dataclass
class _Entry:
    version: int
    seen: float
    object: dict[str, Any]
    told: dict[str, Any]


class RunBoard:
    """Of the event loop alone. Times are the caller's, in seconds."""

    def __init__(self) -> None:
        self.version = 0
        self._entries: dict[str, _Entry] = {}

    def take(self, found: Sequence[dict[str, Any]], now: float) -> None:
        """All runs that go on, wherever, and those that have ended since the last time, the newest first."""
        for run in reversed(found):
            self._put(run, now)
        for entry in list(self._entries.values()):
            if entry.object["ended"] is None and now - entry.seen > LOST_SECONDS:
                self._put(_lost(entry.object), now)
        ended = [run_id for run_id, entry in self._entries.items() if entry.object["ended"]]
        for run_id in ended[:-MAX_ENDED]:
            del self._entries[run_id]

    def since(self, version: int) -> list[bytes]:
        """The entries that are newer, as JSON."""
        return [
            msgspec.json.encode(entry.object)
            for entry in self._entries.values()
            if entry.version > version
        ]

    def _put(self, run: dict[str, Any], now: float) -> None:
        told = {name: value for name, value in run.items() if name not in _MOVES}
        known = self._entries.get(run["id"])
        if known is not None and known.told == told:
            known.seen, known.object = now, run
            return
        self.version += 1
        self._entries.pop(run["id"], None)  # the latest come last
        self._entries[run["id"]] = _Entry(self.version, now, run, told)


def _lost(run: dict[str, Any]) -> dict[str, Any]:
    """A run whose worker is gone, as it was seen last."""
    ended = int(run["created"] + run["queue_seconds"] + run["seconds"])
    return run | {"status": "done", "outcome": "worker_lost", "ended": ended, "doing": None}
