"""The tables of a SQL store, by version. What a newer smolgate has written is left alone.

In: a connection. Out: the newest tables, or BadStore. A change appends to `MIGRATIONS` and touches no line before.
Statements are SQLite's and PostgreSQL's alike; `BLOB` is read as the other's `BYTEA`, `?` as its place holder.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from streaming.store import BadStore


class SqlConnection(Protocol):
    """A connection within a transaction. `now` is the store's clock, in seconds since the epoch."""

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]: ...

    def run(self, statement: str, *values: Any) -> int:
        """Returns how many rows it touched."""

    def now(self) -> float: ...

    def lock(self, name: str) -> None:
        """Until the transaction's end nobody else has this lock: what is read is still so when it is written."""


MIGRATIONS: Sequence[Sequence[str]] = (
    (
        """CREATE TABLE records (
            id TEXT PRIMARY KEY, owner TEXT NOT NULL, kind TEXT NOT NULL, run TEXT NOT NULL,
            front_end TEXT NOT NULL, status TEXT NOT NULL, created DOUBLE PRECISION NOT NULL,
            ended DOUBLE PRECISION, next_sequence BIGINT NOT NULL, cancel_asked INTEGER NOT NULL,
            previous TEXT, conversation TEXT, body BLOB NOT NULL, bytes BIGINT NOT NULL)""",
        # Apart, since each append writes a record's row anew.
        """CREATE TABLE contents (
            record TEXT PRIMARY KEY, input BLOB NOT NULL, memory BLOB NOT NULL)""",
        "CREATE INDEX records_owner ON records (owner, kind, created)",
        "CREATE INDEX records_active ON records (front_end) WHERE ended IS NULL",
        "CREATE INDEX records_ended ON records (ended) WHERE ended IS NOT NULL",
        """CREATE TABLE events (
            record TEXT NOT NULL, last BIGINT NOT NULL, first BIGINT NOT NULL, data BLOB NOT NULL,
            PRIMARY KEY (record, last))""",
        """CREATE TABLE conversations (
            id TEXT PRIMARY KEY, owner TEXT NOT NULL, created DOUBLE PRECISION NOT NULL,
            used DOUBLE PRECISION NOT NULL, body BLOB NOT NULL, next_position BIGINT NOT NULL,
            bytes BIGINT NOT NULL)""",
        "CREATE INDEX conversations_used ON conversations (used)",
        """CREATE TABLE items (
            conversation TEXT NOT NULL, position BIGINT NOT NULL, id TEXT NOT NULL,
            data BLOB NOT NULL, PRIMARY KEY (conversation, position))""",
        "CREATE INDEX items_id ON items (conversation, id)",
        """CREATE TABLE front_ends (
            id TEXT PRIMARY KEY, until DOUBLE PRECISION NOT NULL, machine TEXT NOT NULL,
            socket TEXT NOT NULL, url TEXT NOT NULL)""",
        "CREATE TABLE secrets (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
        """CREATE TABLE claims (
            thing BLOB PRIMARY KEY, front_end TEXT NOT NULL, until DOUBLE PRECISION NOT NULL)""",
        "CREATE INDEX claims_until ON claims (until)",
        """CREATE TABLE key_use (
            key TEXT PRIMARY KEY, paid_until DOUBLE PRECISION NOT NULL, day BIGINT NOT NULL,
            tokens BIGINT NOT NULL)""",
    ),
)


def migrate(connection: SqlConnection) -> None:
    """Bring the tables up to now. Raises BadStore for those of a newer smolgate."""
    connection.run("CREATE TABLE IF NOT EXISTS smolgate_schema (version INTEGER NOT NULL)")
    found = connection.rows("SELECT version FROM smolgate_schema")
    version = int(found[0][0]) if found else 0
    if version > len(MIGRATIONS):
        raise BadStore(
            f"it was written by a newer smolgate (schema {version}; this one knows {len(MIGRATIONS)})"
        )
    if not found:
        connection.run("INSERT INTO smolgate_schema (version) VALUES (0)")
    for statements in MIGRATIONS[version:]:
        for statement in statements:
            connection.run(statement)
    connection.run("UPDATE smolgate_schema SET version = ?", len(MIGRATIONS))
