"""The pool: a zygote kept alive on one side, jails for agents' threads on the other.

Lives on the event loop, where it keeps a few jails forked and confined ahead of demand, and one for
every run that has yet to need its jail, up to a bound. `take`, `expect` and `forgo` are for agents' threads.

    JailUnavailable     no jail can be had: the platform, a required layer, the zygote or the time
"""

import asyncio
import logging
import os
import socket
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from streaming.failures import Unavailable
from streaming.interpreters.confinement import LAYERS
from streaming.interpreters.jail_process import JailProcess, describe_end
from streaming.interpreters.jail_wire import FrameBuffer, Ready, WireBroken, decode_from_jail
from streaming.interpreters.workspaces import wipe
from streaming.interpreters.zygote_link import ZygoteLink
from streaming.interpreters.zygote_wire import (
    Exited,
    FromZygote,
    Spawned,
    ZygoteReady,
    ZygoteSettings,
)

_logger = logging.getLogger(__name__)

# Why a jail ended under code that was running in it: its time, by itself, what it sent, too many calls.
WHY_LOST = ("time", "end", "breach", "calls")
# Without these, nothing stands between model-written code and the server's files and processes.
_FILE_LAYERS = {"root", "landlock"}
_CALL_LAYERS = {"seccomp"}
_FAILED_START_SECONDS = 0.2
_MOST_FAILED_BOOTS = 3
_GREETING_BYTES = 4096
# Forks at once: one at a time is fast, and a burst would hold up the kills of others.
_MOST_STARTING = 4
# Ready at once for runs whose models are awaited. Each takes memory: a thousand that wait must not have as many.
_MOST_EXPECTED = 64
# What nobody needs any more goes after this, for the next runs may be here by then.
_SURPLUS_SECONDS = 2.0


class JailUnavailable(Unavailable):
    """No jail can be had; the message says why."""

    code = "jail_unavailable"


@dataclass(frozen=True)
class JailPoolStats:
    """Jails now alive, of those waiting in the pool; spawned and killed since the start.

    `lost`: those that ended under code that was running in them, by why.
    """

    alive: int
    warm: int
    spawned: int
    killed: int
    zygote_restarts: int
    lost: Mapping[str, int]


class JailPool:
    """Use it as `async with JailPool(...) as pool`; it opens at once and boots in the background.

    `required`: refuse to work without a layer for files and one for system calls. `warm` jails are
    kept ready, and more where more are expected; with 0 none is made before it is needed.
    `preload` names modules that the zygote imports once, for agents that authorise them; `readable`
    are further paths that jails may read. `disk_bytes` bounds one jail's files.
    `without` switches layers off, to try what a stricter machine would give.
    """

    def __init__(
        self,
        *,
        required: bool = False,
        warm: int = 2,
        preload: Sequence[str] = (),
        readable: Sequence[str] = (),
        disk_bytes: int = 64 << 20,
        without: Sequence[str] = (),
    ) -> None:
        self._required = required
        self._warm_wanted = warm
        settings = ZygoteSettings(
            layers=tuple(layer for layer in LAYERS if layer not in without),
            preload=tuple(preload),
            readable=tuple(readable),
            disk_bytes=disk_bytes,
        )
        # Guards what agents' threads see: the warm jails, the waiting and the state.
        self._changed = threading.Condition()
        self._warm: deque[JailProcess] = deque()
        self._waiting = 0
        self._expected = 0
        self._broken: str | None = None
        self._is_refused = False  # broken for good: the machine does not allow what is required
        self._closed = False
        # Of the event loop alone.
        self._loop: asyncio.AbstractEventLoop | None = None
        self._zygote = ZygoteLink(
            "streaming.interpreters.jail_zygote",
            settings,
            purpose="jails",
            environment={},
            on_message=self._on_message,
            on_gone=self._on_gone,
        )
        self._ready: asyncio.Future[None] | None = None
        self._report: ZygoteReady | None = None
        self._next_job = 0
        self._links: dict[int, socket.socket] = {}
        self._starting: dict[int, JailProcess] = {}
        self._alive: dict[int, JailProcess] = {}
        self._spawned = self._killed = 0
        self._lost: Counter[str] = Counter()
        self._spawn_again_at = 0.0
        self._shrinking: asyncio.TimerHandle | None = None

    async def __aenter__(self) -> Self:
        """Raises JailUnavailable where no jail can ever be had."""
        if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
            raise JailUnavailable(f"jails need Linux 5.4 or newer, and this is {sys.platform}")
        self._loop = asyncio.get_running_loop()
        self._ready = self._loop.create_future()
        self._zygote.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def ready(self) -> None:
        """Wait until jails can be had. Raises JailUnavailable if they cannot be as required."""
        assert self._ready is not None
        await asyncio.shield(self._ready)

    @property
    def layers(self) -> str:
        """One line for the start-up log: which layers confine jails, and why others do not."""
        if self._report is None:
            return "jail: starting"
        active = ", ".join(self._report.layers) or "none"
        missing = "; ".join(f"no {layer}: {why}" for layer, why in self._report.refused.items())
        return f"jail: {active}, resource limits" + (f" ({missing})" if missing else "")

    @property
    def report(self) -> ZygoteReady | None:
        """Which layers there are and why others are not, once it is known."""
        return self._report

    @property
    def stats(self) -> JailPoolStats:
        return JailPoolStats(
            alive=len(self._alive),
            warm=len(self._warm),
            spawned=self._spawned,
            killed=self._killed,
            zygote_restarts=self._zygote.restarts,
            lost=dict(self._lost),
        )

    def take(
        self, timeout_seconds: float, stopped: Callable[[], bool] = lambda: False
    ) -> JailProcess:
        """A jail for the calling thread, which must close it; waits for one if none is warm.

        Not for the event loop's thread. Raises JailUnavailable after `timeout_seconds`, when the
        pool is closed or broken, or when `stopped` turns true and `wake` is called.
        """
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            self._waiting += 1
            try:
                if not self._warm:
                    self._ask_for_more()
                while not self._warm:
                    left = deadline - time.monotonic()
                    if self._closed or stopped() or left <= 0:
                        raise JailUnavailable(self._why_none(timeout_seconds))
                    if self._is_refused:
                        raise JailUnavailable(self._why_none(timeout_seconds))
                    self._changed.wait(left)
                return self._warm.popleft()
            finally:
                self._waiting -= 1
                self._ask_for_more()

    def expect(self) -> None:
        """A run has begun that will `take`: make its jail while it waits for its model. Any thread."""
        with self._changed:
            self._expected += 1
            if len(self._warm) < self._ahead:
                self._ask_for_more()

    def forgo(self) -> None:
        """One that was expected takes its jail now, or never. Any thread, once for each `expect`."""
        with self._changed:
            self._expected -= 1
            if len(self._warm) > self._ahead:
                self._ask_for_more()

    def wake(self) -> None:
        """Have every waiting `take` look at its `stopped` again."""
        with self._changed:
            self._changed.notify_all()

    def count_lost(self, why: str) -> None:
        """A jail ended under the code that ran in it: one of `WHY_LOST`. Any thread."""
        with self._changed:
            self._lost[why] += 1

    async def close(self) -> None:
        """Kill every jail and the zygote and wait until they are gone. Idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        if self._shrinking is not None:
            self._shrinking.cancel()
        self._fail_ready("the pool is closed")
        self._lose_jails("the server is stopping")
        await self._zygote.close()
        self._remove_folder()

    def _why_none(self, timeout_seconds: float) -> str:
        if self._closed:
            return "no jail: the pool is closed"
        return self._broken or f"no jail became ready within {timeout_seconds:g} s"

    @property
    def _ahead(self) -> int:
        """So many jails shall be ready while none is waited for."""
        return (
            max(self._warm_wanted, min(self._expected, _MOST_EXPECTED)) if self._warm_wanted else 0
        )

    def _ask_for_more(self) -> None:
        if self._loop is None or self._closed:
            return
        try:
            self._loop.call_soon_threadsafe(self._refill)
        except RuntimeError:
            self._closed = True  # the loop ended without closing the pool

    def _on_message(self, message: FromZygote, fds: list[int]) -> None:
        if isinstance(message, ZygoteReady):
            self._on_ready(message)
        elif isinstance(message, Spawned):
            self._on_spawned(message, fds[0])
        else:
            self._on_exited(message)

    def _on_ready(self, report: ZygoteReady) -> None:
        assert self._ready is not None
        self._report = report
        active = set(report.layers)
        if self._required and not (active & _FILE_LAYERS and active & _CALL_LAYERS):
            self._broken = (
                f"jails are required, and this machine does not allow them: {self.layers}"
            )
            self._is_refused = True
            self._fail_ready(self._broken)
            self.wake()
            return
        self._broken = None
        if not self._ready.done():
            self._ready.set_result(None)
        self._refill()

    def _refill(self) -> None:
        """Spawn until those warm and those starting cover the wish and the waiting; of too many, end some later."""
        assert self._loop is not None
        if self._closed or self._broken or self._report is None:
            return
        if self._loop.time() < self._spawn_again_at:
            return
        wanted = self._ahead + self._waiting - len(self._warm)
        if wanted < 0 and self._shrinking is None:
            self._shrinking = self._loop.call_later(_SURPLUS_SECONDS, self._shrink)
        while len(self._links) < min(wanted, _MOST_STARTING):
            if not self._spawn():
                return

    def _shrink(self) -> None:
        self._shrinking = None
        with self._changed:
            surplus = max(0, len(self._warm) - self._ahead - self._waiting)
            unused = [self._warm.pop() for _ in range(surplus)]
        for jail in unused:
            jail.close()

    def _spawn(self) -> bool:
        ours, theirs = socket.socketpair()
        with theirs:
            if not self._zygote.spawn(self._next_job, "jail", theirs):
                ours.close()
                return False
        self._links[self._next_job] = ours
        self._next_job += 1
        return True

    def _on_spawned(self, message: Spawned, pidfd: int) -> None:
        assert self._loop is not None
        link = self._links[message.job]
        jail = JailProcess(message.job, message.pid, pidfd, link)
        self._alive[jail.job] = jail
        self._starting[jail.job] = jail
        self._spawned += 1
        link.setblocking(False)
        self._loop.add_reader(link.fileno(), self._on_greeting, jail)

    def _on_greeting(self, jail: JailProcess) -> None:
        """A jail's first bytes: Ready, or the end of one that could not be confined."""
        frames = FrameBuffer(_GREETING_BYTES)
        try:
            frames.feed(jail.link.recv(_GREETING_BYTES))
            frame = frames.next_frame()
            is_ready = frame is not None and isinstance(decode_from_jail(frame), Ready)
        except (OSError, WireBroken):
            is_ready = False
        self._stop_starting(jail)
        if not is_ready:
            self._on_failed_start(jail)
            return
        jail.link.setblocking(True)
        with self._changed:
            self._warm.append(jail)
            self._changed.notify()
        self._refill()

    def _on_failed_start(self, jail: JailProcess) -> None:
        """Try again, but not as fast as it can fail."""
        assert self._loop is not None
        _logger.error("a jail ended before it was ready")
        jail.close()
        self._spawn_again_at = self._loop.time() + _FAILED_START_SECONDS
        self._loop.call_at(self._spawn_again_at, self._refill)

    def _stop_starting(self, jail: JailProcess) -> bool:
        assert self._loop is not None
        self._links.pop(jail.job, None)
        if self._starting.pop(jail.job, None) is None:
            return False
        self._loop.remove_reader(jail.link.fileno())
        return True

    def _on_exited(self, message: Exited) -> None:
        jail = self._alive.pop(message.job)
        if self._stop_starting(jail):
            self._on_failed_start(jail)
        self._killed += 1
        jail.mark_ended(
            describe_end(
                message.status, over_disk=message.over_disk, cpu_seconds=message.cpu_seconds
            )
        )
        with self._changed:
            if jail in self._warm:
                self._warm.remove(jail)
                jail.close()
        self._refill()

    def _lose_jails(self, reason: str) -> None:
        """Forget the zygote and all that it forked; what still lives is killed."""
        with self._changed:
            unused = [*self._warm]
            self._warm.clear()
        for jail in [*self._starting.values()]:
            self._stop_starting(jail)
            unused.append(jail)
        for link in self._links.values():
            link.close()
        self._links.clear()
        for jail in self._alive.values():
            jail.kill()
            jail.mark_ended(reason)
            self._killed += 1
        self._alive.clear()
        for jail in unused:
            jail.close()

    def _on_gone(self, reason: str) -> None:
        self._broken = reason
        self._lose_jails(reason)
        self._remove_folder()
        if self._zygote.restarts >= _MOST_FAILED_BOOTS:
            self._fail_ready(f"{reason}; it has not come up in {_MOST_FAILED_BOOTS} tries")

    def _fail_ready(self, reason: str) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(JailUnavailable(reason))
            self._ready.exception()  # seen: who does not wait for it learns from take()

    def _remove_folder(self) -> None:
        """What a killed zygote could not remove itself."""
        report, self._report = self._report, None
        if report is not None and report.folder is not None and os.path.isdir(report.folder):
            wipe(report.folder)
