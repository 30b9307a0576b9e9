"""One timer for all that has to be looked at now and then, instead of one timer each.

In: callbacks. Out: each is called every `every_seconds` until it is discarded. Most that could be waited
for never happens (a reply that stays silent, a client that takes nothing), so being late by a fraction of
what is allowed costs nobody anything, and a timer per read or per stream would cost every stream.
"""

import asyncio
from collections.abc import Callable

Look = Callable[[float], None]


class Pulse:
    """Beats while it has something to call. A look is given the loop's time; it must not raise."""

    def __init__(self, every_seconds: float) -> None:
        self.every_seconds = every_seconds
        # Kept for all who have it: to ask asyncio for it is a system call.
        self.loop = asyncio.get_running_loop()
        self._looks: set[Look] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """How many are looked at."""
        return len(self._looks)

    def add(self, look: Look) -> None:
        self._looks.add(look)
        if self._timer is None:
            self._timer = self.loop.call_later(self.every_seconds, self._beat)

    def discard(self, look: Look) -> None:
        self._looks.discard(look)

    def close(self) -> None:
        """Call nothing any more."""
        self._looks.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _beat(self) -> None:
        self._timer = None
        if not self._looks:
            return
        self._timer = self.loop.call_later(self.every_seconds, self._beat)
        now = self.loop.time()
        for look in tuple(self._looks):
            look(now)
