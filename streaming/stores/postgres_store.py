"""The store in PostgreSQL, for front ends on many machines.

In: a `postgresql://` URL. Out: the same tables and statements as SQLite's, over two connections, each in a thread of its
own with group commit. A commit is durable as the server's `synchronous_commit` has it (by default on its disk). Time is
the server's.
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psycopg

from streaming.store import BadStore, StoreFailed
from streaming.stores.sql_schema import SqlConnection, migrate
from streaming.stores.sql_store import SqlStore
from streaming.stores.sql_thread import Procedure, SqlThread

Result = TypeVar("Result")

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 8
# Front ends that start at once make the tables one after another.
_MIGRATION_LOCK = 0x736D6F6C
# Raised where two front ends touched the same rows at once; asking again is enough.
_COLLISIONS = (psycopg.errors.SerializationFailure, psycopg.errors.DeadlockDetected)


class PostgresStore(SqlStore):
    """Connects with the first question, and again after a connection was lost."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._writer: SqlThread | None = None
        self._reader: SqlThread | None = None

    @property
    def name(self) -> str:
        parts = urlsplit(self._url)
        return f"postgresql://{parts.hostname or ''}{parts.path}"

    async def open(self) -> None:
        self._writer = SqlThread(PostgresConnection(self._url, migrates=True), "store-writer")
        self._reader = SqlThread(PostgresConnection(self._url), "store-reader")
        await self._write(lambda _: None)

    async def close(self) -> None:
        await super().close()
        for thread in (self._reader, self._writer):
            if thread is not None:
                await thread.close()

    async def _ask(self, procedure: Procedure[Result], *, writes: bool) -> Result:
        thread = self._writer if writes else self._reader
        if thread is None:
            raise StoreFailed("The store is not open.")
        return await thread.ask(procedure)


class PostgresConnection:
    """One connection of one thread."""

    def __init__(self, url: str, *, migrates: bool = False) -> None:
        self._url = url
        self._migrates = migrates
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    @contextmanager
    def transaction(self) -> Iterator[SqlConnection]:
        try:
            connection = self._connection or self._open()
            with connection.transaction():
                yield _Postgres(connection)
        except psycopg.Error as error:
            if self._connection is not None and self._connection.broken:
                self.close()
            raise _failed(error) from error

    def close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(psycopg.Error):
                self._connection.close()
            self._connection = None

    def _open(self) -> psycopg.Connection[tuple[Any, ...]]:
        connection = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            options=f"-c statement_timeout={STATEMENT_SECONDS * 1000}",
            application_name="smolgate",
        )
        try:
            if self._migrates:
                with connection.transaction():
                    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
                    migrate(_Postgres(connection))
                self._migrates = False
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection


class _Postgres:
    def __init__(self, connection: psycopg.Connection[tuple[Any, ...]]) -> None:
        self._connection = connection

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._execute(statement, values).fetchall()

    def run(self, statement: str, *values: Any) -> int:
        return self._execute(statement, values).rowcount

    def now(self) -> float:
        return float(self.rows("SELECT extract(epoch FROM clock_timestamp())")[0][0])

    def _execute(self, statement: str, values: tuple[Any, ...]) -> psycopg.Cursor[tuple[Any, ...]]:
        text = statement.replace("BLOB", "BYTEA").replace("?", "%s")
        return self._connection.execute(text.encode(), values)  # its own, with place holders only


def _failed(error: psycopg.Error) -> StoreFailed | BadStore:
    if isinstance(error, _COLLISIONS):
        return StoreFailed("The store is busy.", retry_after=1.0)
    if isinstance(error, psycopg.errors.InvalidPassword | psycopg.errors.InvalidCatalogName):
        return StoreFailed("The store does not take this server.", retry_after=5.0)
    if isinstance(error, psycopg.errors.DiskFull):
        return StoreFailed("The store's disk is full.", retry_after=5.0)
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return StoreFailed("The store cannot be written to.", retry_after=5.0)
    return StoreFailed("The store cannot be reached.", retry_after=5.0)
