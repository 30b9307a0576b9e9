"""Records and their events as SQL, each function within one transaction.

In: a connection and plain values. Out: rows read and written. What is refused (RecordGone, AlreadyStored, OverLimit)
is so before anything is written. Events lie as they were appended, several in one row.
"""

from collections.abc import Sequence
from typing import Any

import msgspec

from streaming.store import AlreadyStored, Head, OverLimit, Page, Record, RecordGone, StoreNumbers
from streaming.stores.sql_schema import SqlConnection

_COLUMNS = (
    "id, owner, kind, run, front_end, status, created, ended, next_sequence, cancel_asked, previous, "
    "conversation, body"
)
_WHOLE = "records LEFT JOIN contents ON record = id"
_HEAD = "created, run, status, next_sequence, cancel_asked, ended"
# What a row takes besides its contents, roughly.
ROW_BYTES = 256

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[bytes]).decode


def create(db: SqlConnection, record: Record, *, replace: bool, most: int) -> None:
    if most:
        db.lock(f"{record.kind} {record.owner}")
    db.lock(record.id)
    there = db.rows("SELECT 1 FROM records WHERE id = ?", record.id)
    if there and not replace:
        raise AlreadyStored("It is stored already.")
    if most:
        active = "SELECT count(*) FROM records WHERE owner = ? AND kind = ? AND ended IS NULL AND id <> ?"
        if db.rows(active, record.owner, record.kind, record.id)[0][0] >= most:
            raise OverLimit
    if there:
        drop(db, [record.id])
    size = len(record.body) + len(record.input) + len(record.memory) + ROW_BYTES
    db.run(
        f"INSERT INTO records ({_COLUMNS}, bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        *(record.id, record.owner, record.kind, record.run, record.front_end, record.status),
        *(record.created or db.now(), record.ended, 0, 0, record.previous, record.conversation),
        *(record.body, size),
    )
    if record.input or record.memory:
        _put_contents(db, record.id, record.input, record.memory)


def append(
    db: SqlConnection, record_id: str, run: str, first: int, events: Sequence[bytes]
) -> None:
    if not events:
        return
    data, after = _encode(events), first + len(events)
    if not db.run(
        "UPDATE records SET next_sequence = ?, bytes = bytes + ? "
        "WHERE id = ? AND run = ? AND next_sequence = ? AND ended IS NULL",
        *(after, len(data) + ROW_BYTES, record_id, run, first),
    ):
        raise gone()
    db.run(
        "INSERT INTO events (record, last, first, data) VALUES (?, ?, ?, ?)",
        *(record_id, after - 1, first, data),
    )


def finish(
    db: SqlConnection,
    record_id: str,
    run: str,
    *,
    status: str,
    first: int,
    events: Sequence[bytes],
    body: bytes | None,
    memory: bytes | None,
) -> None:
    append(db, record_id, run, first, events)
    update(db, record_id, run, status=status, body=body, memory=memory, ended=db.now())


def update(
    db: SqlConnection,
    record_id: str,
    run: str,
    *,
    status: str | None,
    body: bytes | None,
    memory: bytes | None = None,
    ended: float | None = None,
) -> None:
    changed: dict[str, Any] = {"status": status, "body": body, "ended": ended}
    changed = {name: value for name, value in changed.items() if value is not None}
    sets = [f"{name} = ?" for name in changed]
    if body is not None:
        sets.append("bytes = bytes + ? - length(body)")
        changed["size"] = len(body)
    if not sets:
        return
    if not db.run(
        f"UPDATE records SET {', '.join(sets)} WHERE id = ? AND run = ? AND ended IS NULL",
        *(*changed.values(), record_id, run),
    ):
        raise gone()
    if memory is not None:
        _remember(db, record_id, memory)


def _remember(db: SqlConnection, record_id: str, memory: bytes) -> None:
    there = db.rows("SELECT length(memory) FROM contents WHERE record = ?", record_id)
    if there:
        db.run("UPDATE contents SET memory = ? WHERE record = ?", memory, record_id)
    else:
        _put_contents(db, record_id, b"", memory)
    more = len(memory) - (int(there[0][0]) if there else 0)
    db.run("UPDATE records SET bytes = bytes + ? WHERE id = ?", more, record_id)


def _put_contents(db: SqlConnection, record_id: str, given: bytes, memory: bytes) -> None:
    db.run(
        "INSERT INTO contents (record, input, memory) VALUES (?, ?, ?)", record_id, given, memory
    )


def get(db: SqlConnection, record_id: str, owner: str) -> Record | None:
    found = db.rows(
        f"SELECT {_COLUMNS}, input, memory FROM {_WHOLE} WHERE id = ? AND owner = ?",
        record_id,
        owner,
    )
    return _record(found[0]) if found else None


def heads(db: SqlConnection, record_ids: Sequence[str]) -> dict[str, Head]:
    heads: dict[str, Head] = {}
    for begin in range(0, len(record_ids), 500):
        some = record_ids[begin : begin + 500]
        places = ", ".join("?" * len(some))
        found = db.rows(f"SELECT id, {_HEAD} FROM records WHERE id IN ({places})", *some)
        heads |= {row[0]: _head(row[1:]) for row in found}
    return heads


def events(db: SqlConnection, record_id: str, owner: str, start: int, limit_bytes: int) -> Page:
    head = db.rows(f"SELECT {_HEAD} FROM records WHERE id = ? AND owner = ?", record_id, owner)
    if not head:
        return Page(None, [])
    page = Page(_head(head[0]), [])
    while limit_bytes > 0:
        rows = db.rows(
            "SELECT first, last, data FROM events WHERE record = ? AND last >= ? ORDER BY last LIMIT 64",
            *(record_id, start),
        )
        for first, last, data in rows:
            for number, event in enumerate(_decode(data), first):
                if number >= start:
                    page.events.append((number, event))
                    limit_bytes -= len(event)
                    if limit_bytes <= 0:
                        return page
            start = last + 1
        if len(rows) < 64:
            break
    return page


def delete(db: SqlConnection, record_id: str, owner: str) -> bool:
    if not db.rows("SELECT 1 FROM records WHERE id = ? AND owner = ?", record_id, owner):
        return False
    drop(db, [record_id])
    return True


def listed(
    db: SqlConnection, owner: str, kind: str, status: str | None, limit: int
) -> list[Record]:
    where, values = "owner = ? AND kind = ?", [owner, kind]
    if status is not None:
        where, values = where + " AND status = ?", [*values, status]
    return _latest(db, where, values, limit)


def runs(db: SqlConnection, ended_seconds: float, limit: int) -> list[Record]:
    where = "kind = 'run' AND (ended IS NULL OR ended > ?)"
    return _latest(db, where, [db.now() - ended_seconds], limit)


def _latest(db: SqlConnection, where: str, values: Sequence[object], limit: int) -> list[Record]:
    found = db.rows(
        f"SELECT {_COLUMNS} FROM records WHERE {where} ORDER BY created DESC, id DESC LIMIT ?",
        *(*values, limit),
    )
    return [_record(row) for row in found]


def ask_cancel(db: SqlConnection, record_id: str, owner: str) -> Record | None:
    db.run(
        "UPDATE records SET cancel_asked = 1 WHERE id = ? AND owner = ? AND ended IS NULL",
        *(record_id, owner),
    )
    return get(db, record_id, owner)


def adopt_lost(db: SqlConnection, front_end: str, run: str, limit: int) -> list[Record]:
    rows = db.rows(
        f"SELECT {_COLUMNS}, input, memory FROM {_WHOLE} WHERE ended IS NULL AND (front_end NOT IN "
        "(SELECT id FROM front_ends WHERE until > ?) OR (front_end = ? AND run = ?)) ORDER BY created LIMIT ?",
        *(db.now(), front_end, run, limit),
    )
    adopted = []
    for record in map(_record, rows):
        if db.run(
            "UPDATE records SET front_end = ?, run = ? WHERE id = ? AND run = ? AND ended IS NULL",
            *(front_end, run, record.id, record.run),
        ):
            record.front_end, record.run = front_end, run
            adopted.append(record)
    return adopted


def drop(db: SqlConnection, record_ids: Sequence[str]) -> None:
    for record_id in record_ids:
        db.run("DELETE FROM events WHERE record = ?", record_id)
        db.run("DELETE FROM contents WHERE record = ?", record_id)
        db.run("DELETE FROM records WHERE id = ?", record_id)


def total_bytes(db: SqlConnection) -> int:
    statement = "SELECT (SELECT coalesce(sum(bytes), 0) FROM records) + (SELECT coalesce(sum(bytes), 0) FROM conversations)"
    return int(db.rows(statement)[0][0])


def numbers(db: SqlConnection) -> StoreNumbers:
    counts = "SELECT count(*), count(*) - count(ended) FROM records"
    records, active = db.rows(counts)[0]
    return StoreNumbers(int(records), int(active), total_bytes(db))


def gone() -> RecordGone:
    return RecordGone("It was deleted, replaced, or has ended.")


def _head(row: tuple[Any, ...]) -> Head:
    created, run, status, next_sequence, cancel_asked, ended = row
    return Head(created, run, status, next_sequence, bool(cancel_asked), ended)


def _record(row: tuple[Any, ...]) -> Record:
    names = [name.strip() for name in _COLUMNS.split(",")] + ["input", "memory"]
    values = dict(zip(names, row, strict=False))
    values["cancel_asked"] = bool(values["cancel_asked"])
    for name in ("body", "input", "memory"):
        values[name] = bytes(values.get(name) or b"")
    return Record(**values)
