"""A run as JSON, and those that have ended, for a while.

In: runs. Out: their state, step, tokens, times and outcome; of ended ones only that is kept, and what they did when,
not their events: for `KEPT_SECONDS`, at most `MAX_KEPT` of them, and timelines of `MAX_TIMELINE_BYTES` in all.
"""

import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from streaming.run import Run
from streaming.timeline import Doing, Span

KEPT_SECONDS = 600.0
MAX_KEPT = 1000
MAX_TIMELINE_BYTES = 8 << 20
# What only an operator is told.
FOR_OPERATORS = ("key", "worker")


@dataclass
class _Ended:
    since: float
    key: str
    object: dict[str, Any]
    timeline: bytes | None


class FinishedRuns:
    """The latest runs that have ended, by id. Of the event loop alone. `runner` is where runs live."""

    def __init__(self, runner: str = "thread") -> None:
        self._runner = runner
        self._runs: OrderedDict[str, _Ended] = OrderedDict()
        self._timeline_bytes = 0

    def keep(self, run: Run) -> None:
        timeline = msgspec.json.encode(run.timeline.spans())
        self._timeline_bytes += len(timeline)
        entry = _Ended(time.monotonic(), run.key, run_object(run, self._runner), timeline)
        self._runs[run.id] = entry
        self._forget_old()

    def find(self, run_id: str, key: str | None) -> dict[str, Any] | None:
        """What became of a run of this key, of anybody's where it is None; with its timeline, or None."""
        self._forget_old()
        found = self._runs.get(run_id)
        if found is None or key not in (found.key, None):
            return None
        timeline = found.timeline
        spans = None if timeline is None else msgspec.json.decode(timeline, type=list[Span])
        return found.object | {"timeline": spans}

    def latest(self, most: int, seconds: float = KEPT_SECONDS) -> Iterator[dict[str, Any]]:
        """Everybody's that ended within so many seconds, the last one first."""
        self._forget_old()
        oldest = time.monotonic() - seconds
        for entry, _ in zip(reversed(self._runs.values()), range(most), strict=False):
            if entry.since < oldest:
                return
            yield entry.object

    def _forget_old(self) -> None:
        oldest = time.monotonic() - KEPT_SECONDS
        while self._runs:
            run_id, entry = next(iter(self._runs.items()))
            if len(self._runs) <= MAX_KEPT and entry.since > oldest:
                break
            self._drop_timeline(entry)
            del self._runs[run_id]
        for entry in self._runs.values():
            if self._timeline_bytes <= MAX_TIMELINE_BYTES:
                return
            self._drop_timeline(entry)

    def _drop_timeline(self, entry: _Ended) -> None:
        self._timeline_bytes -= len(entry.timeline or b"")
        entry.timeline = None


def run_object(run: Run, runner: str) -> dict[str, Any]:
    """Times in seconds since the epoch; `seconds` since it was started, until it ended.

    `outcome` is "ok", or the code of what ended it. `key` is the name of the API key, `worker` the server's process.
    """
    until = run.ended or time.time()
    first = run.first_token_seconds
    return {
        "id": run.id,
        "object": "run",
        "agent": run.spec.agent,
        "status": run.state,
        "created": int(run.created),
        "started": int(run.started) if run.started else None,
        "ended": int(run.ended) if run.ended else None,
        "queue_seconds": round((run.started or until) - run.created, 3),
        "seconds": round(until - run.started, 3) if run.started else 0.0,
        "first_token_seconds": round(first, 3) if first is not None else None,
        "step": run.steps,
        "doing": run.timeline.doing,
        "usage": {
            "prompt_tokens": run.prompt_tokens,
            "completion_tokens": run.completion_tokens,
            "total_tokens": run.prompt_tokens + run.completion_tokens,
        },
        "outcome": run.ending,
        "metadata": run.spec.metadata,
        "runner": runner,
        "key": run.key or None,
        "worker": os.getpid(),
    }


def for_its_caller(entry: dict[str, Any]) -> dict[str, Any]:
    """The same without what is an operator's to know; a model that a key may not use does not exist for it."""
    told = {name: value for name, value in entry.items() if name not in FOR_OPERATORS}
    told["doing"] = _unnamed(told.get("doing"))
    if told.get("timeline") is not None:
        told["timeline"] = [_unnamed(span) for span in told["timeline"]]
    return told


def _unnamed(part: Any) -> Any:
    """A span, or what a run is at, as it is here or as another server has told it."""
    if isinstance(part, Span | Doing):
        return msgspec.structs.replace(part, name="") if part.kind == "model" else part
    if isinstance(part, dict) and part["kind"] == "model":
        return part | {"name": ""}
    return part
