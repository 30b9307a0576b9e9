"""What makes a run's id, and its time: both stand in every chunk."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from server.run_ids import new_run_id


@dataclass(frozen=True)
class Identity:
    """`now` is in seconds since the epoch."""

    new_id: Callable[[], str] = new_run_id
    now: Callable[[], float] = time.time
