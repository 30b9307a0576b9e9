"""The store in a SQLite file, or in memory.

In: a path. Out: a store that any process of this machine may open at the same time. The file is made when the first
thing is stored, readable by its owner alone.

WAL with `synchronous=NORMAL`: a commit is in the kernel's hands when it returns, so the end of the process, however it
comes, loses nothing that was acknowledged. The machine's power failing may cost the last moments, but breaks nothing;
`FULL` waits for the disk at every commit.
"""

import asyncio
import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from streaming.store import BadStore, StoreFailed
from streaming.stores.sql_schema import SqlConnection, migrate
from streaming.stores.sql_store import SqlStore
from streaming.stores.sql_thread import Procedure, SqlThread

Result = TypeVar("Result")

MEMORY = ":memory:"
# Another process of this machine holds the lock for as long as a transaction of its takes.
BUSY_SECONDS = 5.0
FILE_MODE = 0o600
FOLDER_MODE = 0o700
# A file up to this is read as a whole at start-up, to find out whether it is sound.
CHECKED_BYTES = 64 << 20


class SqliteStore(SqlStore):
    """`full`: every commit waits for the disk."""

    def __init__(self, path: str, *, full: bool = False) -> None:
        super().__init__()
        self._path = path
        self._full = full
        self._writer: SqlThread | None = None
        self._reader: SqlThread | None = None
        self._starting = asyncio.Lock()
        self._started = False

    @property
    def name(self) -> str:
        return "memory" if self._path == MEMORY else f"sqlite:{self._path}"

    @property
    def exists(self) -> bool:
        return self._path != MEMORY and os.path.exists(self._path)

    async def open(self) -> None:
        if self.exists:
            await self._start(check=True)

    async def close(self) -> None:
        await super().close()
        for thread in (self._reader, self._writer):
            if thread is not None:
                await thread.close()

    async def _ask(self, procedure: Procedure[Result], *, writes: bool) -> Result:
        await self._start()
        thread = self._writer if writes or self._reader is None else self._reader
        assert thread is not None
        return await thread.ask(procedure)

    async def _start(self, *, check: bool = False) -> None:
        """The threads, once; the tables, where they are not there yet."""
        if self._started:
            return
        async with self._starting:
            if self._writer is None:
                writer = SqliteFile(self._path, full=self._full, check=check)
                self._writer = SqlThread(writer, "store-writer")
                if self._path != MEMORY:
                    self._reader = SqlThread(SqliteFile(self._path, reads=True), "store-reader")
            await self._writer.ask(lambda _: None)
            self._started = True


class SqliteFile:
    """One connection, opened with the first transaction, and again after one that failed."""

    def __init__(
        self, path: str, *, full: bool = False, reads: bool = False, check: bool = False
    ) -> None:
        self._path = path
        self._full = full
        self._reads = reads
        self._check = check
        self._connection: sqlite3.Connection | None = None

    @contextmanager
    def transaction(self) -> Iterator[SqlConnection]:
        try:
            connection = self._connection or self._open()
            connection.execute("BEGIN" if self._reads else "BEGIN IMMEDIATE")
        except sqlite3.DatabaseError as error:
            self.close()
            raise _failed(error) from error
        except OSError as error:
            said = os.strerror(error.errno or 0)
            raise StoreFailed(f"The store cannot be opened: {said}.", retry_after=5.0) from error
        try:
            yield _Sqlite(connection)
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(connection)
            raise _failed(error) from error
        except BaseException:
            self._roll_back(connection)
            raise

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def _roll_back(self, connection: sqlite3.Connection) -> None:
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        if self._path != MEMORY:
            self.close()

    def _open(self) -> sqlite3.Connection:
        if self._path != MEMORY:
            _make_file(Path(self._path))
        connection = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            if self._check and os.path.getsize(self._path) <= CHECKED_BYTES:
                self._refuse_broken(connection)
            self._check = False
            if not self._reads:
                connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
                connection.execute("PRAGMA journal_mode=WAL")
                connection.execute(f"PRAGMA synchronous={'FULL' if self._full else 'NORMAL'}")
                connection.execute("BEGIN IMMEDIATE")
                migrate(_Sqlite(connection))
                connection.execute("COMMIT")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _refuse_broken(self, connection: sqlite3.Connection) -> None:
        try:
            said = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.OperationalError:
            raise  # locked, or not to be opened: that may pass
        except sqlite3.DatabaseError as error:
            said = str(error)
        if said != "ok":
            raise BadStore(f"it is damaged ({said.splitlines()[0]})")


class _Sqlite:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, values).fetchall()

    def run(self, statement: str, *values: Any) -> int:
        return self._connection.execute(statement, values).rowcount

    def now(self) -> float:
        return time.time()


def _make_file(path: Path) -> None:
    """Its -wal and -shm files take the mode from it."""
    path.parent.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, FILE_MODE))


def open_to_others(path: str) -> bool:
    """Whether others than the file's owner may read it."""
    with contextlib.suppress(OSError):
        return bool(stat.S_IMODE(os.stat(path).st_mode) & 0o077)
    return False


def _failed(error: sqlite3.Error) -> StoreFailed:
    """What the caller is told; the log has the rest."""
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    told = _TOLD.get(name.removeprefix("SQLITE_").partition("_")[0], "The store failed.")
    return StoreFailed(told, retry_after=5.0)


_TOLD = {
    "FULL": "The store's disk is full.",
    "READONLY": "The store cannot be written to.",
    "CANTOPEN": "The store cannot be opened.",
    "IOERR": "The store's disk fails.",
    "BUSY": "The store is busy.",
    "CORRUPT": "The store is damaged.",
    "NOTADB": "The store is damaged.",
}
