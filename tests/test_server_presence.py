"""A process over its store: what others have left behind is ended, whatever it holds and however the store answers."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from server.presence import Presence
from streaming.failures import SmolgateError
from streaming.store import Record, StoreFailed
from streaming.stores.sqlite_store import SqliteStore


class DeafOnce(SqliteStore):
    """A store whose first word of what was adopted does not arrive."""

    deaf = True

    async def adopt_lost(self, front_end_id: str, run: str, limit: int = 100) -> Sequence[Record]:
        found = await super().adopt_lost(front_end_id, run, limit)
        if found and self.deaf:
            self.deaf = False
            raise StoreFailed("The store does not answer.")
        return found


async def ended(store: SqliteStore, *record_ids: str) -> None:
    for record_id in record_ids:
        async with store.watch(record_id) as watch, asyncio.timeout(20):
            while (await store.heads([record_id]))[record_id].ended is None:
                await watch.changed()


async def leave_behind(store: SqliteStore, *record_ids: str) -> None:
    await store.open()
    for record_id in record_ids:
        lost = Record(id=record_id, owner="", kind="response", run=record_id, front_end="gone")
        await store.create(lost)


def presence_over(store: SqliteStore) -> Presence:
    return Presence(store, lease_seconds=0.4, days=1, max_bytes=1 << 30)


async def test_a_lost_record_that_cannot_be_told_does_not_keep_others_from_their_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore(str(tmp_path / "store.sqlite3"))
    await leave_behind(store, "broken", "whole")
    presence = presence_over(store)

    async def end(record: Record, error: SmolgateError) -> None:
        if record.id == "broken":
            raise ValueError("no JSON")
        await store.finish(record.id, record.run, status="failed", events=[b"told"])

    presence.ends_lost["response"] = end
    await presence.arrive()
    await ended(store, "broken", "whole")
    assert [event for _, event in (await store.events("whole", "", 0)).events] == [b"told"]
    assert "response broken cannot be told as lost" in caplog.text
    await presence.leave()
    await store.close()


async def test_what_was_adopted_unheard_is_ended_all_the_same(tmp_path: Path) -> None:
    store = DeafOnce(str(tmp_path / "store.sqlite3"))
    await leave_behind(store, "lost")
    presence = presence_over(store)
    await presence.arrive()
    await ended(store, "lost")
    assert not store.deaf
    await presence.leave()
    await store.close()
