"""One thread that a database is asked in, with group commit.

In: procedures, from the event loop. Out: their results, on the loop. All that came while one transaction was
written goes into the next one, so that a burst costs one commit; a procedure that the database refuses is tried
again in a transaction of its own, and does not take the others with it. Never the loop's default executor.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from streaming.store import AlreadyStored, OverLimit, RecordGone, StoreFailed
from streaming.stores.sql_schema import SqlConnection

Result = TypeVar("Result")
Procedure = Callable[[SqlConnection], Result]

# Raised by a procedure before it writes.
REFUSALS = (AlreadyStored, OverLimit, RecordGone)
# Of one transaction: what waits longer is served by the next.
MAX_BATCH = 256


class Database(Protocol):
    """One connection. All of it is called in the thread alone."""

    def transaction(self) -> AbstractContextManager[SqlConnection]:
        """Commits at the end, durably, or rolls back. Raises StoreFailed where the database fails."""

    def close(self) -> None: ...


class _Job:
    def __init__(self, procedure: Procedure[Any], answer: "asyncio.Future[Any]") -> None:
        self.procedure = procedure
        self.answer = answer
        self.result: Any = None
        self.error: BaseException | None = None

    def settle(self) -> None:
        if self.answer.done():  # whoever asked is gone; it is written all the same
            return
        if self.error is not None:
            self.answer.set_exception(self.error)
        else:
            self.answer.set_result(self.result)


class SqlThread:
    """Made on the event loop. `close` waits until all that was asked is done."""

    def __init__(self, database: Database, name: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._database = database
        self._jobs: deque[_Job] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._ended = asyncio.Event()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def ask(self, procedure: Procedure[Result]) -> Result:
        """Its result, once committed. Raises what it raises, and StoreFailed."""
        answer: asyncio.Future[Result] = self._loop.create_future()
        with self._wake:
            if self._closing:
                raise StoreFailed("The store is closed.")
            self._jobs.append(_Job(procedure, answer))
            self._wake.notify()
        return await answer

    async def close(self) -> None:
        with self._wake:
            self._closing = True
            self._wake.notify()
        await self._ended.wait()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._jobs and not self._closing:
                    self._wake.wait()
                jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), MAX_BATCH))]
            if not jobs:
                break
            if not self._all(jobs):
                for job in jobs:
                    self._alone(job)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(_settle, jobs)
        self._database.close()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._ended.set)

    def _all(self, jobs: list[_Job]) -> bool:
        """All in one transaction. False where the database would not: then nothing is written."""
        if len(jobs) == 1:
            return False
        try:
            with self._database.transaction() as connection:
                for job in jobs:
                    _try(job, connection)
        except Exception:  # noqa: BLE001 - each is asked alone now, and says why
            return False
        return True

    def _alone(self, job: _Job) -> None:
        job.result = job.error = None
        try:
            with self._database.transaction() as connection:
                _try(job, connection)
        except Exception as error:  # noqa: BLE001 - it is the asker's
            job.error = error


def _try(job: _Job, connection: SqlConnection) -> None:
    """What a procedure itself raises is its answer: it does so before it writes."""
    try:
        job.result = job.procedure(connection)
    except REFUSALS as error:
        job.error = error


def _settle(jobs: list[_Job]) -> None:
    for job in jobs:
        job.settle()
