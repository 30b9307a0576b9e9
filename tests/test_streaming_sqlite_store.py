"""What is SQLite's own: the file, its version, failing disks, and one commit for many."""

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streaming.store import BadStore, Record, RecordGone, StoreFailed
from streaming.stores.sql_schema import MIGRATIONS
from streaming.stores.sqlite_store import SqliteFile, SqliteStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    opened = SqliteStore(str(tmp_path / "new" / "store.sqlite3"))
    await opened.open()
    yield opened
    await opened.close()


def record(record_id: str = "r") -> Record:
    return Record(id=record_id, owner="me", kind="k", run="run", front_end="here")


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("store.sqlite3*"))


async def test_the_file_is_made_when_it_is_needed_and_is_its_owners_alone(
    store: SqliteStore, tmp_path: Path
) -> None:
    assert files(tmp_path) == []
    await store.create(record())
    assert len(files(tmp_path)) >= 2
    assert [path for path in files(tmp_path) if path.stat().st_mode & 0o077] == []
    assert not (tmp_path / "new").stat().st_mode & 0o077


@pytest.mark.parametrize(
    ("pragma", "said"),
    [
        ("PRAGMA max_page_count=30", "The store's disk is full."),
        ("PRAGMA query_only=1", "The store cannot be written to."),
    ],
)
async def test_a_full_disk_is_a_503_and_passes(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch, pragma: str, said: str
) -> None:
    await store.create(record())
    connect = sqlite3.connect

    def full(path: str, **values: object) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(path, **values)  # type: ignore[call-overload]
        connection.execute(pragma)
        return connection

    database = store._writer._database if store._writer is not None else None
    assert isinstance(database, SqliteFile)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", full)
        database.close()  # the next transaction opens it anew
        for _ in range(2):
            with pytest.raises(StoreFailed) as error:
                await store.append("r", "run", 0, [b"x" * 400_000])
            assert (error.value.status, error.value.message) == (503, said)
            assert error.value.retry_after
    await store.append("r", "run", 0, [b"x" * 400_000])
    assert (await store.events("r", "me", 0)).events == [(0, b"x" * 400_000)]
    assert store.failures == 2


async def test_tables_of_a_newer_smolgate_are_left_alone(
    store: SqliteStore, tmp_path: Path
) -> None:
    await store.create(record())
    await store.close()
    (path,) = (tmp_path / "new").glob("store.sqlite3")
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE smolgate_schema SET version = ?", (len(MIGRATIONS) + 1,))
    connection.close()
    again = SqliteStore(str(path))
    with pytest.raises(BadStore, match="newer smolgate"):
        await again.open()
    await again.close()


async def test_a_file_whose_pages_are_damaged_is_refused(
    store: SqliteStore, tmp_path: Path
) -> None:
    for number in range(200):
        await store.create(record(str(number)))
    await store.close()
    (path,) = (tmp_path / "new").glob("store.sqlite3")
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    again = SqliteStore(str(path))
    with pytest.raises(BadStore, match="damaged"):
        await again.open()
    await again.close()


async def test_what_comes_while_one_is_written_is_one_commit_and_a_refusal_harms_no_other(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        await store.create(record(str(number)))
    begun = 0
    transaction = SqliteFile.transaction

    def counted(database: SqliteFile) -> object:
        nonlocal begun
        begun += not database._reads
        return transaction(database)

    monkeypatch.setattr(SqliteFile, "transaction", counted)
    appends = [store.append(str(number), "run", number % 2, [b"e"]) for number in range(50)]
    results = await asyncio.gather(*appends, return_exceptions=True)
    assert [type(each) for each in results] == [type(None), RecordGone] * 25
    assert begun < 10
    heads = await store.heads([str(number) for number in range(50)])
    assert sum(head.next_sequence for head in heads.values()) == 25


async def test_a_question_that_the_database_refuses_harms_no_other(store: SqliteStore) -> None:
    await store.create(record())
    wrong = store._write(lambda db: db.rows("SELECT nonsense FROM nowhere"))
    right = store.append("r", "run", 0, [b"e"])
    results = await asyncio.gather(wrong, right, return_exceptions=True)
    assert isinstance(results[0], StoreFailed)
    assert results[1] is None
    assert (await store.events("r", "me", 0)).events == [(0, b"e")]
