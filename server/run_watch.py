"""Who watches all runs, and the looking for them: done while anybody watches, and once for all of them.

In: a way to find everybody's runs. Out: watchers, woken when the board has news. Looking takes at most a twentieth
of the time. `close` ends every watch: this server is stopping, or another takes its place.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from server.run_board import MAX_ENDED, RunBoard
from streaming.failures import Busy, Draining

log = logging.getLogger("server")

EVERY_SECONDS = 0.3
IDLE_FOR_EACH_LOOK = 20.0
LONGEST_IDLE_SECONDS = 2.0
MAX_WATCHERS = 32
MAX_WATCHERS_OF_A_KEY = 16
# Runs that ended so long before a look are looked for again: one of another worker may have been told late.
OVERLAP_SECONDS = 10.0
RETRY_AFTER_SECONDS = 5.0
LAST_LOOK_SECONDS = 1.0

# `find(most, seconds)`: all that run, and so many of those that ended in the last so many seconds.
Find = Callable[[int, float], Awaitable[list[dict[str, Any]]]]


class RunWatch:
    """One per server, on its event loop."""

    def __init__(self, find: Find) -> None:
        self._find = find
        self._board = RunBoard()
        self._watchers: dict[asyncio.Event, str | None] = {}  # with whose key
        self._looking: asyncio.Task[None] | None = None
        self.closed = False

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    @asynccontextmanager
    async def watching(self, key_id: str | None = None) -> AsyncIterator["Watcher"]:
        """Raises Busy where too many do, or too many with this key, Draining once it is closed."""
        if self.closed:
            raise Draining("The server is stopping.", retry_after=RETRY_AFTER_SECONDS)
        self._check_places(key_id)
        news = asyncio.Event()
        self._watchers[news] = key_id
        if self._looking is None:
            self._board = RunBoard()
            self._looking = asyncio.get_running_loop().create_task(self._look())
        elif self._board.version:
            news.set()
        try:
            yield Watcher(self, news)
        finally:
            del self._watchers[news]
            if not self._watchers and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    def close(self) -> None:
        """Nobody may watch any more; those who do get what there is, and the end."""
        self.closed = True
        self._wake()

    async def finish(self) -> None:
        """Look once more, for how the last runs ended, and close."""
        if self._looking is not None:
            self._looking.cancel()
            try:
                async with asyncio.timeout(LAST_LOOK_SECONDS):
                    self._board.take(await self._find(MAX_ENDED, OVERLAP_SECONDS), _now())
            except TimeoutError:
                pass
            except Exception:
                log.exception("the runs could not be looked for")
        self.close()

    def news_since(self, version: int) -> tuple[int, list[bytes]]:
        return self._board.version, self._board.since(version)

    async def _look(self) -> None:
        seconds = 1e9
        while True:
            began = _now()
            try:
                self._board.take(await self._find(MAX_ENDED, seconds), _now())
            except Exception:
                log.exception("the runs could not be looked for")
            else:
                seconds = OVERLAP_SECONDS
            self._wake()
            idle = min(IDLE_FOR_EACH_LOOK * (_now() - began), LONGEST_IDLE_SECONDS)
            await asyncio.sleep(max(EVERY_SECONDS, idle))

    def _check_places(self, key_id: str | None) -> None:
        keys = list(self._watchers.values())
        if len(keys) >= MAX_WATCHERS:
            taken = f"{MAX_WATCHERS} clients watch the runs already."
        elif key_id is not None and keys.count(key_id) >= MAX_WATCHERS_OF_A_KEY:
            taken = f"{MAX_WATCHERS_OF_A_KEY} clients watch the runs with this API key already."
        else:
            return
        raise Busy(taken, code="too_many_watchers", retry_after=RETRY_AFTER_SECONDS)

    def _wake(self) -> None:
        for news in self._watchers:
            news.set()


class Watcher:
    """One client's place: it knows how far that has read."""

    def __init__(self, watch: RunWatch, news: asyncio.Event) -> None:
        self._watch = watch
        self._news = news
        self._version = -1

    async def changes(self) -> list[bytes] | None:
        """The runs that have changed, maybe none, at each look; all of them at first. None at the end."""
        await self._news.wait()
        self._version, changed = self._watch.news_since(self._version)
        if self._watch.closed:
            return changed or None
        self._news.clear()
        return changed


def _now() -> float:
    return asyncio.get_running_loop().time()
