"""A store in a SQL database: the interface onto its statements.

In: calls on the event loop. Out: procedures for the threads that ask the database, one for what is written, with
group commit, and one for what is read, which need not wait for it.
"""

import asyncio
import time
from abc import abstractmethod
from collections.abc import Sequence
from typing import TypeVar

from streaming.store import (
    EVENTS_LIMIT_BYTES,
    Conversation,
    FrontEnd,
    Head,
    KeyUse,
    Page,
    Record,
    Store,
    StoreFailed,
    StoreNumbers,
)
from streaming.stores import sql_records, sql_sharing, sql_sweeping
from streaming.stores.sql_sharing import DAY_SECONDS
from streaming.stores.sql_thread import Procedure

Result = TypeVar("Result")

# A database that does not answer for so long is as good as gone.
ANSWER_SECONDS = 10.0
SWEPT_AT_A_TIME = 200


class SqlStore(Store):
    """What is left to do: how procedures are run."""

    @abstractmethod
    async def _ask(self, procedure: Procedure[Result], *, writes: bool) -> Result: ...

    async def _write(self, procedure: Procedure[Result]) -> Result:
        return await self._timed(procedure, writes=True)

    async def _read(self, procedure: Procedure[Result]) -> Result:
        return await self._timed(procedure, writes=False)

    async def _timed(self, procedure: Procedure[Result], *, writes: bool) -> Result:
        began = time.perf_counter()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._ask(procedure, writes=writes)
        except TimeoutError:
            self.failures += 1
            raise StoreFailed("The store does not answer.", retry_after=5.0) from None
        except StoreFailed:
            self.failures += 1
            raise
        finally:
            if writes:
                self.write_seconds.observe(time.perf_counter() - began)

    async def create(self, record: Record, *, replace: bool = False, most: int = 0) -> None:
        await self._write(lambda db: sql_records.create(db, record, replace=replace, most=most))
        self.watches.tell(record.id)

    async def append(self, record_id: str, run: str, first: int, events: Sequence[bytes]) -> None:
        await self._write(lambda db: sql_records.append(db, record_id, run, first, events))
        self.watches.tell(record_id)

    async def finish(
        self,
        record_id: str,
        run: str,
        *,
        status: str,
        first: int = 0,
        events: Sequence[bytes] = (),
        body: bytes | None = None,
        memory: bytes | None = None,
    ) -> None:
        await self._write(
            lambda db: sql_records.finish(
                db,
                record_id,
                run,
                status=status,
                first=first,
                events=events,
                body=body,
                memory=memory,
            )
        )
        self.watches.tell(record_id)

    async def update(
        self, record_id: str, run: str, *, status: str | None = None, body: bytes | None = None
    ) -> None:
        await self._write(
            lambda db: sql_records.update(db, record_id, run, status=status, body=body)
        )
        self.watches.tell(record_id)

    async def get(self, record_id: str, owner: str) -> Record | None:
        return await self._read(lambda db: sql_records.get(db, record_id, owner))

    async def heads(self, record_ids: Sequence[str]) -> dict[str, Head]:
        return await self._read(lambda db: sql_records.heads(db, record_ids))

    async def events(
        self, record_id: str, owner: str, start: int, limit_bytes: int = EVENTS_LIMIT_BYTES
    ) -> Page:
        return await self._read(
            lambda db: sql_records.events(db, record_id, owner, start, limit_bytes)
        )

    async def delete(self, record_id: str, owner: str) -> bool:
        deleted = await self._write(lambda db: sql_records.delete(db, record_id, owner))
        self.watches.tell(record_id)
        return deleted

    async def records(
        self, owner: str, kind: str, *, status: str | None = None, limit: int = 100
    ) -> list[Record]:
        return await self._read(lambda db: sql_records.listed(db, owner, kind, status, limit))

    async def runs(self, *, ended_seconds: float, limit: int) -> list[Record]:
        return await self._read(lambda db: sql_records.runs(db, ended_seconds, limit))

    async def ask_cancel(self, record_id: str, owner: str) -> Record | None:
        return await self._write(lambda db: sql_records.ask_cancel(db, record_id, owner))

    async def create_conversation(self, conversation: Conversation) -> None:
        await self._write(lambda db: sql_sharing.create_conversation(db, conversation))

    async def get_conversation(self, conversation_id: str, owner: str) -> Conversation | None:
        return await self._read(lambda db: sql_sharing.get_conversation(db, conversation_id, owner))

    async def update_conversation(self, conversation_id: str, owner: str, body: bytes) -> bool:
        return await self._write(
            lambda db: sql_sharing.update_conversation(db, conversation_id, owner, body)
        )

    async def delete_conversation(self, conversation_id: str, owner: str) -> bool:
        return await self._write(
            lambda db: sql_sharing.delete_conversation(db, conversation_id, owner)
        )

    async def add_items(
        self, conversation_id: str, owner: str, items: Sequence[tuple[str, bytes]]
    ) -> bool:
        return await self._write(
            lambda db: sql_sharing.add_items(db, conversation_id, owner, items)
        )

    async def items(
        self,
        conversation_id: str,
        owner: str,
        *,
        after: str | None = None,
        newest_first: bool = False,
        limit: int = 100,
    ) -> list[tuple[str, bytes]]:
        return await self._read(
            lambda db: sql_sharing.items(
                db, conversation_id, owner, after=after, newest_first=newest_first, limit=limit
            )
        )

    async def get_item(self, conversation_id: str, owner: str, item_id: str) -> bytes | None:
        return await self._read(
            lambda db: sql_sharing.get_item(db, conversation_id, owner, item_id)
        )

    async def delete_item(self, conversation_id: str, owner: str, item_id: str) -> bool:
        return await self._write(
            lambda db: sql_sharing.delete_item(db, conversation_id, owner, item_id)
        )

    async def heartbeat(self, front_end: FrontEnd, seconds: float) -> None:
        await self._write(lambda db: sql_sharing.heartbeat(db, front_end, seconds))

    async def leave(self, front_end_id: str) -> None:
        await self._write(lambda db: sql_sharing.leave(db, front_end_id))

    async def front_end(self, front_end_id: str) -> FrontEnd | None:
        return await self._read(lambda db: sql_sharing.front_end(db, front_end_id))

    async def secret(self) -> str:
        return await self._write(sql_sharing.secret)

    async def adopt_lost(self, front_end_id: str, run: str, limit: int = 100) -> Sequence[Record]:
        return await self._write(lambda db: sql_records.adopt_lost(db, front_end_id, run, limit))

    async def claim(
        self,
        thing: bytes,
        front_end_id: str,
        *,
        seconds: float,
        instead_of: str | None = None,
        by_force: bool = False,
    ) -> str | None:
        return await self._write(
            lambda db: sql_sharing.claim(
                db,
                thing,
                front_end_id,
                seconds=seconds,
                instead_of=instead_of,
                by_force=by_force,
            )
        )

    async def owner_of(self, thing: bytes) -> str | None:
        return await self._read(lambda db: sql_sharing.owner_of(db, thing))

    async def use_key(self, key: str, *, requests: int, tokens: int, per_minute: int) -> KeyUse:
        return await self._write(
            lambda db: sql_sharing.use_key(
                db, key, requests=requests, tokens=tokens, per_minute=per_minute
            )
        )

    async def sweep(self, *, days: float, max_bytes: int, run_seconds: float = 600.0) -> int:
        before = days * DAY_SECONDS
        swept = 0
        while True:
            some = await self._write(
                lambda db: sql_sweeping.sweep_old(
                    db,
                    before=db.now() - before,
                    runs_ended_before=db.now() - run_seconds,
                    limit=SWEPT_AT_A_TIME,
                )
            ) or await self._write(
                lambda db: sql_sweeping.sweep_large(db, max_bytes=max_bytes, limit=SWEPT_AT_A_TIME)
            )
            swept += some
            if not some:
                break
        await self._write(sql_sharing.forget)
        return swept

    async def numbers(self) -> StoreNumbers:
        return await self._read(sql_records.numbers)
