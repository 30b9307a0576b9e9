"""One jail as the server holds it: its socket, its pidfd, and how it ended.

Taken from the pool by an agent's thread, which alone reads and writes; `kill` may come from any
thread and wakes that one at once.
"""

import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

_SIGNALS = {
    signal.SIGXCPU: "it had used up its CPU time",
    signal.SIGSYS: "it made a forbidden system call",
    signal.SIGSEGV: "it crashed in native code",
    signal.SIGBUS: "it crashed in native code",
    signal.SIGABRT: "it crashed in native code",
    signal.SIGKILL: "the machine ran out of memory, or it was killed from outside",
}


class JailProcess:
    """A confined child, ready for its Setup message."""

    def __init__(self, job: int, pid: int, pidfd: int, link: socket.socket) -> None:
        self.job = job
        self.pid = pid
        self.link = link
        self.pidfd = pidfd  # -1 once closed
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._end: str | None = None

    @property
    def is_alive(self) -> bool:
        """False once the zygote has reaped it, or is gone itself."""
        return not self._ended.is_set()

    def kill(self) -> None:
        """SIGKILL it and wake the thread that waits for it. Idempotent; safe from any thread."""
        with self._lock:
            if self.pidfd < 0:
                return
            with suppress(ProcessLookupError):  # it is gone already
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            # The process may take long to give back its memory: its end must not be waited for.
            with suppress(OSError):  # its end is closed already
                self.link.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Kill it and give back its descriptors. Idempotent."""
        self.kill()
        with self._lock:
            if self.pidfd >= 0:
                os.close(self.pidfd)
                self.pidfd = -1
                self.link.close()

    def mark_ended(self, end: str) -> None:
        """Called by the pool, once, with a clause that says why."""
        self._end = end
        self._ended.set()

    def wait_for_end(self, timeout_seconds: float) -> str | None:
        """Why it ended, as a clause; None if that is not known within the time."""
        self._ended.wait(timeout_seconds)
        return self._end


class JailSource(Protocol):
    """Where jails come from: a pool of this process, or the server's."""

    def take(
        self, timeout_seconds: float, stopped: Callable[[], bool] = lambda: False
    ) -> JailProcess:
        """A jail for the calling thread, which must close it. Raises JailUnavailable."""

    def expect(self) -> None:
        """One who will take a jail has begun."""

    def forgo(self) -> None:
        """Of those expected one takes its jail now, or never."""

    def wake(self) -> None:
        """Have every waiting `take` look at its `stopped` again."""

    def count_lost(self, why: str) -> None:
        """A jail ended under the code that ran in it, by why."""


def describe_end(status: int, *, over_disk: bool, cpu_seconds: float) -> str:
    """A wait status as a clause with the signal's name, for the model and the log."""
    if over_disk:
        return "its files took more room than it has"
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return f"it ended by itself with status {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    reason = _SIGNALS.get(signal.Signals(-code)) if -code in set(signal.Signals) else None
    clause = f"{name} after {cpu_seconds:.1f} s of CPU time"
    return f"{reason} ({clause})" if reason else clause
