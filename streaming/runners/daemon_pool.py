"""Threads for runs: an Executor of daemon threads, made on demand and used again.

The standard ThreadPoolExecutor joins its threads when the interpreter exits, so that one stuck tool
would keep the server from stopping; and the loop's default executor also resolves host names.
"""

import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

IDLE_SECONDS = 30.0


class DaemonThreadPool(Executor):
    """At most `max_threads` threads. It queues without bound: whoever admits work bounds it."""

    def __init__(self, max_threads: int, *, name: str = "run") -> None:
        self._max_threads = max_threads
        self._name = name
        self._condition = threading.Condition()
        self._work: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._idle = 0
        self._named = 0
        self._closed = False

    @property
    def threads(self) -> int:
        """How many threads live now."""
        return self._threads

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn` in a thread. Raises RuntimeError after shutdown."""
        future: Future[Any] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:  # noqa: BLE001 - the future tells
                    future.set_exception(error)

        with self._condition:
            if self._closed:
                raise RuntimeError("the thread pool is shut down")
            self._work.append(work)
            if len(self._work) > self._idle and self._threads < self._max_threads:
                self._threads += 1
                self._named += 1
                name = f"{self._name}-{self._named}"
                threading.Thread(target=self._serve, name=name, daemon=True).start()
            else:
                self._condition.notify()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more work; idle threads end. Busy ones are waited for only with `wait`."""
        with self._condition:
            self._closed = True
            if cancel_futures:
                self._work.clear()
            self._condition.notify_all()
            while wait and self._threads:
                self._condition.wait()

    def _serve(self) -> None:
        while (work := self._next_work()) is not None:
            with contextlib.suppress(BaseException):  # it is in the future already
                work()
            del work  # an idle thread keeps nothing of its last run alive

    def _next_work(self) -> Callable[[], None] | None:
        with self._condition:
            self._idle += 1
            self._condition.wait_for(lambda: self._work or self._closed, IDLE_SECONDS)
            self._idle -= 1
            if self._work:
                return self._work.popleft()
            self._threads -= 1
            self._condition.notify_all()
            return None
