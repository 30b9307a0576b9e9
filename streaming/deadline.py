"""A deadline that can stand still.

In: seconds and a callback, on the event loop. Out: the callback, once so many seconds were spent, those
between `pause` and `resume` not counted.
"""

import asyncio
from collections.abc import Callable


class Deadline:
    """It runs from the start."""

    def __init__(self, seconds: float, callback: Callable[[], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._left = seconds
        self._callback = callback
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.resume()

    def pause(self) -> None:
        if self._timer is not None:
            self._left -= self._loop.time() - self._began
            self.cancel()

    def resume(self) -> None:
        if self._timer is None:
            self._began = self._loop.time()
            self._timer = self._loop.call_later(max(self._left, 0.0), self._callback)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
