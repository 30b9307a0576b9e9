"""What is true of all front ends, and conversations, as SQL; each function within one transaction.

In: a connection and plain values. Out: rows read and written. Time is the store's (`db.now()`), so that the clocks of
the front ends do not matter.
"""

import secrets
from collections.abc import Sequence

from streaming.store import Conversation, FrontEnd, KeyUse
from streaming.stores.sql_records import ROW_BYTES
from streaming.stores.sql_schema import SqlConnection

MINUTE_SECONDS = 60.0
DAY_SECONDS = 86_400.0


def heartbeat(db: SqlConnection, front_end: FrontEnd, seconds: float) -> None:
    db.run(
        "INSERT INTO front_ends (id, until, machine, socket, url) VALUES (?, ?, ?, ?, ?) "
        "ON CONFLICT (id) DO UPDATE SET until = excluded.until, socket = excluded.socket, "
        "url = excluded.url",
        *(front_end.id, db.now() + seconds, front_end.machine, front_end.socket, front_end.url),
    )


def secret(db: SqlConnection) -> str:
    db.run(
        "INSERT INTO secrets (name, value) VALUES ('front ends', ?) ON CONFLICT (name) DO NOTHING",
        secrets.token_urlsafe(32),
    )
    return str(db.rows("SELECT value FROM secrets WHERE name = 'front ends'")[0][0])


def leave(db: SqlConnection, front_end_id: str) -> None:
    db.run("DELETE FROM front_ends WHERE id = ?", front_end_id)
    db.run("DELETE FROM claims WHERE front_end = ?", front_end_id)


def front_end(db: SqlConnection, front_end_id: str) -> FrontEnd | None:
    found = db.rows(
        "SELECT id, machine, socket, url FROM front_ends WHERE id = ? AND until > ?",
        *(front_end_id, db.now()),
    )
    return (
        FrontEnd(**dict(zip(FrontEnd.__struct_fields__, found[0], strict=True))) if found else None
    )


def claim(
    db: SqlConnection,
    thing: bytes,
    front_end_id: str,
    *,
    seconds: float,
    instead_of: str | None,
    by_force: bool,
) -> str | None:
    db.lock(thing.hex())
    if not by_force:
        owner = owner_of(db, thing)
        if owner not in {None, front_end_id, instead_of}:
            return owner
    db.run(
        "INSERT INTO claims (thing, front_end, until) VALUES (?, ?, ?) ON CONFLICT (thing) "
        "DO UPDATE SET front_end = excluded.front_end, until = excluded.until",
        *(thing, front_end_id, db.now() + seconds),
    )
    return None


def owner_of(db: SqlConnection, thing: bytes) -> str | None:
    found = db.rows(
        "SELECT front_end FROM claims WHERE thing = ? AND until > ? "
        "AND front_end IN (SELECT id FROM front_ends WHERE until > ?)",
        *(thing, db.now(), db.now()),
    )
    return found[0][0] if found else None


def use_key(db: SqlConnection, key: str, *, requests: int, tokens: int, per_minute: int) -> KeyUse:
    now = db.now()
    today = int(now // DAY_SECONDS)
    db.run(
        "INSERT INTO key_use (key, paid_until, day, tokens) VALUES (?, 0, 0, 0) ON CONFLICT (key) "
        "DO UPDATE SET key = excluded.key",  # takes the row's lock
        key,
    )
    paid_until, day, used = db.rows(
        "SELECT paid_until, day, tokens FROM key_use WHERE key = ?", key
    )[0]
    used = (used if day == today else 0) + tokens
    ahead = max(now, paid_until) - now
    if per_minute and requests:
        ahead += requests * MINUTE_SECONDS / per_minute
    if ahead <= MINUTE_SECONDS + 1e-6:
        paid_until = now + ahead
    db.run(
        "UPDATE key_use SET paid_until = ?, day = ?, tokens = ? WHERE key = ?",
        *(paid_until, today, used, key),
    )
    return KeyUse(ahead, int(used))


def forget(db: SqlConnection) -> None:
    """What has no meaning any more: leases and claims that are over, and keys unused for days."""
    now = db.now()
    db.run("DELETE FROM claims WHERE until < ?", now)
    db.run("DELETE FROM front_ends WHERE until < ?", now - 60)
    db.run("DELETE FROM key_use WHERE day < ?", int(now // DAY_SECONDS) - 1)


def create_conversation(db: SqlConnection, conversation: Conversation) -> None:
    now = conversation.created or db.now()
    db.run(
        "INSERT INTO conversations (id, owner, created, used, body, next_position, bytes) "
        "VALUES (?, ?, ?, ?, ?, 0, ?)",
        *(conversation.id, conversation.owner, now, now, conversation.body),
        len(conversation.body) + ROW_BYTES,
    )


def get_conversation(db: SqlConnection, conversation_id: str, owner: str) -> Conversation | None:
    found = db.rows(
        "SELECT id, owner, created, body FROM conversations WHERE id = ? AND owner = ?",
        *(conversation_id, owner),
    )
    if not found:
        return None
    return Conversation(
        id=found[0][0], owner=found[0][1], created=found[0][2], body=bytes(found[0][3])
    )


def update_conversation(db: SqlConnection, conversation_id: str, owner: str, body: bytes) -> bool:
    return bool(
        db.run(
            "UPDATE conversations SET body = ?, used = ?, bytes = bytes + ? - length(body) "
            "WHERE id = ? AND owner = ?",
            *(body, db.now(), len(body), conversation_id, owner),
        )
    )


def delete_conversation(db: SqlConnection, conversation_id: str, owner: str) -> bool:
    if get_conversation(db, conversation_id, owner) is None:
        return False
    drop_conversation(db, conversation_id)
    return True


def drop_conversation(db: SqlConnection, conversation_id: str) -> None:
    db.run("DELETE FROM conversations WHERE id = ?", conversation_id)
    db.run("DELETE FROM items WHERE conversation = ?", conversation_id)


def add_items(
    db: SqlConnection, conversation_id: str, owner: str, items: Sequence[tuple[str, bytes]]
) -> bool:
    latest: dict[str, bytes] = {}
    for item_id, data in items:
        latest.pop(item_id, None)
        latest[item_id] = data
    size = sum(len(data) + ROW_BYTES for data in latest.values())
    if not db.run(
        "UPDATE conversations SET used = ?, next_position = next_position + ?, bytes = bytes + ? "
        "WHERE id = ? AND owner = ?",
        *(db.now(), len(latest), size, conversation_id, owner),
    ):
        return False
    for item_id in latest:
        delete_item(db, conversation_id, owner, item_id)
    (after,) = db.rows("SELECT next_position FROM conversations WHERE id = ?", conversation_id)[0]
    for position, (item_id, data) in enumerate(latest.items(), after - len(latest)):
        db.run(
            "INSERT INTO items (conversation, position, id, data) VALUES (?, ?, ?, ?)",
            *(conversation_id, position, item_id, data),
        )
    return True


def items(
    db: SqlConnection,
    conversation_id: str,
    owner: str,
    *,
    after: str | None,
    newest_first: bool,
    limit: int,
) -> list[tuple[str, bytes]]:
    order, beyond = ("DESC", "<") if newest_first else ("ASC", ">")
    where, values = "conversation = ?", [conversation_id]
    if after is not None:
        where += (
            f" AND position {beyond} (SELECT position FROM items WHERE conversation = ? AND id = ?)"
        )
        values += [conversation_id, after]
    found = db.rows(
        f"SELECT id, data FROM items WHERE {where} "
        "AND EXISTS (SELECT 1 FROM conversations WHERE id = ? AND owner = ?) "
        f"ORDER BY position {order} LIMIT ?",
        *(*values, conversation_id, owner, limit),
    )
    return [(row[0], bytes(row[1])) for row in found]


def get_item(db: SqlConnection, conversation_id: str, owner: str, item_id: str) -> bytes | None:
    found = db.rows(
        "SELECT data FROM items WHERE conversation = ? AND id = ? "
        "AND EXISTS (SELECT 1 FROM conversations WHERE id = ? AND owner = ?)",
        *(conversation_id, item_id, conversation_id, owner),
    )
    return bytes(found[0][0]) if found else None


def delete_item(db: SqlConnection, conversation_id: str, owner: str, item_id: str) -> bool:
    data = get_item(db, conversation_id, owner, item_id)
    if data is None:
        return False
    db.run("DELETE FROM items WHERE conversation = ? AND id = ?", conversation_id, item_id)
    db.run(
        "UPDATE conversations SET bytes = bytes - ? WHERE id = ?",
        *(len(data) + ROW_BYTES, conversation_id),
    )
    return True
