"""What makes a run's id, and its time: both stand in every chunk."""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass


def new_id() -> str:
    """Unique, and hard to guess: who knows it may look at the run."""
    return f"chatcmpl-{secrets.token_hex(14)}"


@dataclass(frozen=True)
class Identity:
    """`now` is in seconds since the epoch."""

    new_id: Callable[[], str] = new_id
    now: Callable[[], float] = time.time
