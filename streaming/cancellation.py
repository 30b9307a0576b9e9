"""How a run is told to stop: one signal, set on the event loop, felt by whatever its thread waits for.

In: `set(reason)`, once. Out: every watcher is called (a model call is cancelled, a jail is killed),
and `check()` raises `RunCancelled` in the thread.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class RunCancelled(BaseException):
    """The run was stopped. A BaseException: agent code and smolagents swallow every Exception."""


class StopSignal:
    """A thread-safe flag with watchers. Setting it again changes nothing."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watchers: dict[int, Callable[[], object]] = {}
        self._next_watcher = 0
        self.reason: str | None = None

    @property
    def is_set(self) -> bool:
        return self.reason is not None

    def set(self, reason: str) -> None:
        """Stop the run; calls every watcher, in the caller's thread."""
        with self._lock:
            if self.reason is not None:
                return
            self.reason = reason
            watchers = list(self._watchers.values())
        for watcher in watchers:
            watcher()

    def check(self) -> None:
        """Raises RunCancelled once the signal is set."""
        if self.reason is not None:
            raise RunCancelled(self.reason)

    def tell(self, watcher: Callable[[], object]) -> None:
        """Call `watcher` when the signal is set, at once if it is already; for as long as it lives."""
        self._add(watcher)

    @contextmanager
    def watched_by(self, watcher: Callable[[], object]) -> Iterator[None]:
        """While inside, `watcher` is called when the signal is set (at once if it is already)."""
        key = self._add(watcher)
        try:
            yield
        finally:
            with self._lock:
                del self._watchers[key]

    def _add(self, watcher: Callable[[], object]) -> int:
        with self._lock:
            already = self.reason is not None
            key = self._next_watcher
            self._next_watcher += 1
            self._watchers[key] = watcher
        if already:
            watcher()
        return key
