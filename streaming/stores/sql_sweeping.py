"""What goes from a SQL store: records and conversations that are old, and the oldest of both where all is too much.

In: a connection and limits. Out: how many went. Each function is within one transaction, and takes at most `limit`, so
that no transaction takes long. A record that has not ended stays.
"""

from collections.abc import Sequence

from streaming.stores.sql_records import drop, total_bytes
from streaming.stores.sql_schema import SqlConnection
from streaming.stores.sql_sharing import drop_conversation


def sweep_old(db: SqlConnection, *, before: float, runs_ended_before: float, limit: int) -> int:
    old = db.rows(
        "SELECT id FROM records WHERE ended < ? OR (ended < ? AND kind = 'run') ORDER BY ended LIMIT ?",
        *(before, runs_ended_before, limit),
    )
    drop(db, [row[0] for row in old])
    unused = db.rows("SELECT id FROM conversations WHERE used < ? LIMIT ?", before, limit)
    for (conversation_id,) in unused:
        drop_conversation(db, conversation_id)
    return len(old) + len(unused)


def sweep_large(db: SqlConnection, *, max_bytes: int, limit: int) -> int:
    too_many = total_bytes(db) - max_bytes
    if too_many <= 0:
        return 0
    swept = 0
    for one_id, is_record, size in _oldest(db, limit):
        if too_many <= 0:
            break
        if is_record:
            drop(db, [one_id])
        else:
            drop_conversation(db, one_id)
        too_many -= size
        swept += 1
    return swept


def _oldest(db: SqlConnection, limit: int) -> Sequence[tuple[str, int, int]]:
    rows = db.rows(
        "SELECT id, 1, bytes, ended AS last FROM records WHERE ended IS NOT NULL "
        "UNION ALL SELECT id, 0, bytes, used FROM conversations ORDER BY last LIMIT ?",
        limit,
    )
    return [(row[0], row[1], row[2]) for row in rows]
