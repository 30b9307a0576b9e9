"""A run as JSON, and those that have ended, for a while.

In: runs. Out: their state, step, tokens, times and outcome; of ended ones only that is kept, not their events,
for `KEPT_SECONDS` and at most `MAX_KEPT` of them.
"""

import time
from collections import OrderedDict
from typing import Any

from streaming.run import Run

KEPT_SECONDS = 600.0
MAX_KEPT = 1000


class FinishedRuns:
    """The latest runs that have ended, by id. Of the event loop alone."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, tuple[float, str, dict[str, Any]]] = OrderedDict()

    def keep(self, run: Run) -> None:
        self._runs[run.id] = (time.monotonic(), run.key, run_object(run))
        self._forget_old()

    def find(self, run_id: str, key: str) -> dict[str, Any] | None:
        """What became of a run of this key."""
        self._forget_old()
        found = self._runs.get(run_id)
        return found[2] if found is not None and found[1] == key else None

    def _forget_old(self) -> None:
        oldest = time.monotonic() - KEPT_SECONDS
        while self._runs:
            run_id = next(iter(self._runs))
            if len(self._runs) <= MAX_KEPT and self._runs[run_id][0] > oldest:
                return
            del self._runs[run_id]


def run_object(run: Run) -> dict[str, Any]:
    """Times in seconds since the epoch; `seconds` since it was started, until it ended.

    `outcome` is "ok", or the code of what ended it.
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
        "usage": {
            "prompt_tokens": run.prompt_tokens,
            "completion_tokens": run.completion_tokens,
            "total_tokens": run.prompt_tokens + run.completion_tokens,
        },
        "outcome": run.ending,
        "metadata": run.spec.metadata,
    }
