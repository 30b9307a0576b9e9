"""The store in Redis, for front ends on many machines.

In: a `redis://`, `rediss://` or `unix://` URL of one server (no cluster). Out: one script call for each question, so
that each is done as a whole or not at all. What is written is as durable as the server's append-only file makes it. Time is the
server's.
"""

import secrets
import time
from collections.abc import Awaitable, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from streaming.store import (
    EVENTS_LIMIT_BYTES,
    AlreadyStored,
    BadStore,
    Conversation,
    FrontEnd,
    Head,
    KeyUse,
    OverLimit,
    Page,
    Record,
    RecordGone,
    Store,
    StoreFailed,
    StoreNumbers,
)
from streaming.stores.redis_script import SCRIPT

PREFIX = "smolgate:"
SCHEMA = "1"
CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 10.0
MAX_CONNECTIONS = 64
READS = frozenset({"heads", "events", "owner_of", "items", "get_item"})
DAY_SECONDS = 86_400.0
SWEPT_AT_A_TIME = 200


class RedisStore(Store):
    """Connects with the first question, and again after a connection was lost."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=ANSWER_SECONDS,
            socket_connect_timeout=CONNECT_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            health_check_interval=30,
            retry=Retry(NoBackoff(), 0),
        )
        self._redis: Any = redis.asyncio.Redis.from_pool(pool)
        self._script = self._redis.register_script(SCRIPT)

    @property
    def name(self) -> str:
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"

    async def open(self) -> None:
        try:
            await self._redis.set(f"{PREFIX}schema", SCHEMA, nx=True)
            found = await self._redis.get(f"{PREFIX}schema")
        except (RedisError, OSError, TimeoutError) as error:
            raise self._failed(error) from error
        if found.decode() != SCHEMA:
            raise BadStore(f"it was written by another smolgate (schema {found.decode()})")

    async def close(self) -> None:
        await super().close()
        await self._redis.aclose()

    async def _do(self, step: str, *values: Any) -> Any:
        began = time.perf_counter()
        try:
            answer = await self._script(keys=[PREFIX], args=[step, *values])
        except (RedisError, OSError, TimeoutError) as error:
            raise self._failed(error) from error
        finally:
            if step not in READS:
                self.write_seconds.observe(time.perf_counter() - began)
        if answer == b"GONE":
            raise RecordGone("It was deleted, replaced, or has ended.")
        return answer

    async def create(self, record: Record, *, replace: bool = False, most: int = 0) -> None:
        fields: list[Any] = []
        for name in ("run", "front_end", "status", "body", "input", "memory"):
            fields += (name, getattr(record, name))
        for name in ("previous", "conversation"):
            if (value := getattr(record, name)) is not None:
                fields += (name, value)
        ended = "" if record.ended is None else f"{record.ended:.6f}"
        answer = await self._do(
            "create",
            *(record.id, record.owner, record.kind, int(replace), most),
            *(f"{record.created:.6f}", ended, *fields),
        )
        if answer == b"EXISTS":
            raise AlreadyStored("It is stored already.")
        if answer == b"LIMIT":
            raise OverLimit
        self.watches.tell(record.id)

    async def append(self, record_id: str, run: str, first: int, events: Sequence[bytes]) -> None:
        if events:
            await self._do("append", record_id, run, first, *events)
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
        fields = _fields(body=body, memory=memory)
        await self._do("finish", record_id, run, first, status, len(fields) // 2, *fields, *events)
        self.watches.tell(record_id)

    async def update(
        self, record_id: str, run: str, *, status: str | None = None, body: bytes | None = None
    ) -> None:
        fields = _fields(status=None if status is None else status.encode(), body=body)
        await self._do("update", record_id, run, *fields)
        self.watches.tell(record_id)

    async def get(self, record_id: str, owner: str) -> Record | None:
        found = (await self._hashes([record_id]))[0]
        return _record(found) if found and found[b"owner"].decode() == owner else None

    async def heads(self, record_ids: Sequence[str]) -> dict[str, Head]:
        if not record_ids:
            return {}
        found = await self._do("heads", *record_ids)
        heads = zip(record_ids, found, strict=True)
        return {record_id: _head(head) for record_id, head in heads if head[0] is not None}

    async def events(
        self, record_id: str, owner: str, start: int, limit_bytes: int = EVENTS_LIMIT_BYTES
    ) -> Page:
        found = await self._do("events", record_id, owner, start, limit_bytes)
        if found is None:
            return Page(None, [])
        return Page(_head(found[0]), list(enumerate(found[1], start)))

    async def delete(self, record_id: str, owner: str) -> bool:
        deleted = bool(await self._do("delete", record_id, owner))
        self.watches.tell(record_id)
        return deleted

    async def records(
        self, owner: str, kind: str, *, status: str | None = None, limit: int = 100
    ) -> list[Record]:
        wanted: list[Record] = []
        begin, key = 0, f"{PREFIX}o:{owner} {kind}"
        while len(wanted) < limit:
            ids = await self._ids(self._redis.zrevrange(key, begin, begin + limit - 1))
            if not ids:
                break
            begin += len(ids)
            found = await self._light(ids)
            wanted += [each for each in found if status in {None, each.status}]
        return wanted[:limit]

    async def runs(self, *, ended_seconds: float, limit: int) -> list[Record]:
        going_on = await self._ids(self._redis.zrevrange(f"{PREFIX}active", 0, limit - 1))
        oldest = (await self._time()) - ended_seconds
        ended = await self._ids(
            self._redis.zrevrangebyscore(f"{PREFIX}ended:run", "+inf", oldest, 0, limit)
        )
        found = await self._light(list(dict.fromkeys(going_on + ended)))
        return [each for each in found if each.kind == "run"][:limit]

    async def _ids(self, asking: Awaitable[Sequence[bytes]]) -> list[str]:
        try:
            return [each.decode() for each in await asking]
        except (RedisError, OSError, TimeoutError) as error:
            raise self._failed(error) from error

    async def _time(self) -> float:
        try:
            seconds, micros = await self._redis.time()
        except (RedisError, OSError, TimeoutError) as error:
            raise self._failed(error) from error
        return float(seconds) + float(micros) / 1e6

    async def _light(self, record_ids: Sequence[str]) -> list[Record]:
        """Those that are there, without input and memory."""
        found = list(map(_record, filter(None, await self._hashes(record_ids))))
        for record in found:
            record.input = record.memory = b""
        return found

    async def ask_cancel(self, record_id: str, owner: str) -> Record | None:
        await self._do("ask_cancel", record_id, owner)
        return await self.get(record_id, owner)

    async def create_conversation(self, conversation: Conversation) -> None:
        await self._do(
            "create_conversation",
            *(conversation.id, conversation.owner, conversation.body),
            f"{conversation.created:.6f}",
        )

    async def get_conversation(self, conversation_id: str, owner: str) -> Conversation | None:
        try:
            found = await self._redis.hgetall(f"{PREFIX}v:{conversation_id}")
        except (RedisError, OSError, TimeoutError) as error:
            raise self._failed(error) from error
        if not found or found[b"owner"].decode() != owner:
            return None
        return Conversation(
            id=conversation_id, owner=owner, created=float(found[b"created"]), body=found[b"body"]
        )

    async def update_conversation(self, conversation_id: str, owner: str, body: bytes) -> bool:
        return bool(await self._do("update_conversation", conversation_id, owner, body))

    async def delete_conversation(self, conversation_id: str, owner: str) -> bool:
        return bool(await self._do("delete_conversation", conversation_id, owner))

    async def add_items(
        self, conversation_id: str, owner: str, items: Sequence[tuple[str, bytes]]
    ) -> bool:
        flat = [part for item in items for part in item]
        return bool(await self._do("add_items", conversation_id, owner, *flat))

    async def items(
        self,
        conversation_id: str,
        owner: str,
        *,
        after: str | None = None,
        newest_first: bool = False,
        limit: int = 100,
    ) -> list[tuple[str, bytes]]:
        found = await self._do(
            "items", conversation_id, owner, after or "", int(newest_first), limit
        )
        return [(item_id.decode(), data) for item_id, data in found or ()]

    async def get_item(self, conversation_id: str, owner: str, item_id: str) -> bytes | None:
        found: bytes | None = await self._do("get_item", conversation_id, owner, item_id)
        return found

    async def delete_item(self, conversation_id: str, owner: str, item_id: str) -> bool:
        return bool(await self._do("delete_item", conversation_id, owner, item_id))

    async def heartbeat(self, front_end: FrontEnd, seconds: float) -> None:
        key, milliseconds = f"{PREFIX}f:{front_end.id}", int(seconds * 1000)
        try:
            if milliseconds > 0:
                await self._redis.set(key, msgspec.msgpack.encode(front_end), px=milliseconds)
            else:
                await self._redis.delete(key)
        except (RedisError, OSError, TimeoutError) as error:
            raise self._failed(error) from error

    async def leave(self, front_end_id: str) -> None:
        await self.heartbeat(FrontEnd(id=front_end_id), 0)

    async def front_end(self, front_end_id: str) -> FrontEnd | None:
        try:
            found = await self._redis.get(f"{PREFIX}f:{front_end_id}")
        except (RedisError, OSError, TimeoutError) as error:
            raise self._failed(error) from error
        return msgspec.msgpack.decode(found, type=FrontEnd) if found else None

    async def secret(self) -> str:
        key = f"{PREFIX}secret"
        try:
            await self._redis.set(key, secrets.token_urlsafe(32), nx=True)
            found = await self._redis.get(key)
        except (RedisError, OSError, TimeoutError) as error:
            raise self._failed(error) from error
        return str(found.decode())

    async def adopt_lost(self, front_end_id: str, run: str, limit: int = 100) -> Sequence[Record]:
        ids = await self._do("adopt", front_end_id, run, limit)
        return [
            _record(found)
            for found in await self._hashes([each.decode() for each in ids])
            if found and found[b"run"].decode() == run
        ]

    async def claim(
        self,
        thing: bytes,
        front_end_id: str,
        *,
        seconds: float,
        instead_of: str | None = None,
        by_force: bool = False,
    ) -> str | None:
        milliseconds = int(seconds * 1000)
        owner = await self._do(
            "claim", thing.hex(), front_end_id, milliseconds, instead_of or "", int(by_force)
        )
        return owner.decode() if owner else None

    async def owner_of(self, thing: bytes) -> str | None:
        owner = await self._do("owner_of", thing.hex())
        return owner.decode() if owner else None

    async def use_key(self, key: str, *, requests: int, tokens: int, per_minute: int) -> KeyUse:
        ahead, used = await self._do("use_key", key, requests, tokens, per_minute)
        return KeyUse(float(ahead), int(used))

    async def sweep(self, *, days: float, max_bytes: int, run_seconds: float = 600.0) -> int:
        swept = 0
        while some := await self._do(
            "sweep", days * DAY_SECONDS, run_seconds, max_bytes, SWEPT_AT_A_TIME
        ):
            swept += int(some)
        return swept

    async def numbers(self) -> StoreNumbers:
        try:
            active = await self._redis.zcard(f"{PREFIX}active")
            ended = await self._redis.zcard(f"{PREFIX}ended")
            size = await self._redis.get(f"{PREFIX}bytes")
        except (RedisError, OSError, TimeoutError) as error:
            raise self._failed(error) from error
        return StoreNumbers(active + ended, active, int(size or 0))

    def _failed(self, error: Exception) -> StoreFailed:
        self.failures += 1
        return _failed(error)

    async def _hashes(self, record_ids: Sequence[str]) -> list[dict[bytes, bytes]]:
        if not record_ids:
            return []
        try:
            async with self._redis.pipeline(transaction=False) as pipeline:
                for record_id in record_ids:
                    pipeline.hgetall(f"{PREFIX}r:{record_id}")
                found: list[dict[bytes, bytes]] = await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise self._failed(error) from error
        return found


def _fields(**values: bytes | None) -> list[Any]:
    return [part for name, value in values.items() if value is not None for part in (name, value)]


def _head(found: Sequence[bytes]) -> Head:
    created, run, status, next_sequence, cancel_asked, ended = found
    return Head(
        float(created),
        run.decode(),
        status.decode(),
        int(next_sequence),
        cancel_asked == b"1",
        float(ended) if ended else None,
    )


def _record(found: dict[bytes, bytes]) -> Record:
    texts = {
        name: found[name.encode()].decode()
        for name in ("id", "owner", "kind", "run", "front_end", "status")
    }
    optional = {
        name: found[name.encode()].decode()
        for name in ("previous", "conversation")
        if name.encode() in found
    }
    return Record(
        **texts,
        **optional,
        created=float(found[b"created"]),
        ended=float(found[b"ended"]) if found[b"ended"] else None,
        next_sequence=int(found[b"next_sequence"]),
        cancel_asked=found[b"cancel_asked"] == b"1",
        body=found[b"body"],
        input=found[b"input"],
        memory=found[b"memory"],
    )


def _failed(error: Exception) -> StoreFailed:
    said = str(error)
    if said.startswith("OOM"):
        return StoreFailed("The store is full.", retry_after=5.0)
    if said.startswith(("MISCONF", "READONLY")):
        return StoreFailed("The store cannot be written to.", retry_after=5.0)
    return StoreFailed("The store cannot be reached.", retry_after=5.0)
