"""Runs in threads of this process: the default, since a run's thread only waits.

In: a run's spec, channel and stop signal. Out: the events that `agent_run.drive` sends. A thread that
ignores its stop signal can be asked once more by force, and not more than that.
"""

import asyncio
import contextvars
import ctypes
import threading

from streaming.agent_run import RunMeans, drive
from streaming.cancellation import RunCancelled, StopSignal
from streaming.channel import Channel
from streaming.run_spec import RunSpec
from streaming.runners.daemon_pool import DaemonThreadPool


class ThreadWork:
    """A run under way. `done` resolves when its thread has really finished with it."""

    def __init__(
        self,
        pool: DaemonThreadPool,
        spec: RunSpec,
        means: RunMeans,
        channel: Channel,
        stop: StopSignal,
    ) -> None:
        self._thread_id: int | None = None
        self._lock = threading.Lock()
        context = contextvars.copy_context()  # run_in_executor does not copy it
        self.done: asyncio.Future[None] = asyncio.get_running_loop().run_in_executor(
            pool, lambda: context.run(self._drive, spec, means, channel, stop)
        )

    def _drive(self, spec: RunSpec, means: RunMeans, channel: Channel, stop: StopSignal) -> None:
        try:
            with self._lock:
                self._thread_id = threading.get_ident()
            drive(spec, means, channel, stop)
        except RunCancelled:
            pass  # thrown in by kill() when the run was over but for this line
        finally:
            # One that is still on its way is felt in here, and must not hit the pool. It cannot be taken back: CPython
            # 3.11 would look for it at every call in every thread, and a tracer or profiler never get on.
            while self._thread_id is not None:
                try:
                    with self._lock:
                        self._thread_id = None
                except RunCancelled:
                    pass

    def kill(self) -> None:
        """Raise RunCancelled in the thread. It is felt at the next Python instruction, not in C."""
        with self._lock:
            if self._thread_id is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self._thread_id), ctypes.py_object(RunCancelled)
                )


class ThreadRunner:
    """Starts runs on an own pool of at most `max_threads` threads; the supervisor bounds them."""

    def __init__(self, means: RunMeans, *, max_threads: int) -> None:
        self._means = means
        self._pool = DaemonThreadPool(max_threads)

    def start(self, spec: RunSpec, channel: Channel, stop: StopSignal) -> ThreadWork:
        return ThreadWork(self._pool, spec, self._means, channel, stop)

    @property
    def numbers(self) -> dict[str, float]:
        """For metrics: threads that live."""
        return {"alive": self._pool.threads}

    def why_not_ready(self) -> str | None:
        return None

    def close(self) -> None:
        """Take no more runs. Does not wait: a stuck thread is a daemon and ends with the process."""
        self._pool.shutdown(wait=False)
