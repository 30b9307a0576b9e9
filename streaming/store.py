"""What is kept beyond a request, and what is true of all front ends: plain values and the interface.

In: records, their events, conversations, leases, claims. Out: the same, for whoever has the right to them, in any
process over the same store. `stores/` implements it; `store_watch.py` says when a record has changed.

    records         create → append* → finish; update, get, heads, events, records, delete, ask_cancel
    conversations   create_conversation, get_, update_, delete_; add_items, items, get_item, delete_item
    front ends      heartbeat, leave, front_end, secret; adopt_lost (records of those that are gone)
    claims          claim, owner_of: which front end has this wish's run, or waits for this call's result
    keys            use_key: requests and tokens, of all front ends together
    keeping         sweep, numbers

Rules that every implementation keeps:
 1. What writes is durable when it returns: only then may a client be told.
 2. A record is written by its `run` alone, and only while it has not ended: whoever was replaced, cancelled by
    deletion, or taken for lost gets `RecordGone`, and stops its run. Nothing is ever run twice.
 3. Events are numbered from 0 without holes: `append` says which number it begins with.
 4. `owner` stands in every question of a caller: another key's record is as good as none. `runs` is an operator's.
 5. Everything raises `StoreFailed` (503) where the store cannot be had; the server goes on.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from streaming.failures import SmolgateError, Unavailable
from streaming.histogram import Histogram
from streaming.store_watch import RecordWatches, Watch

# Of one `events` answer; a reader asks again.
EVENTS_LIMIT_BYTES = 1 << 20

WRITE_SECONDS = (0.0001, 0.0005, 0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0)


class StoreFailed(Unavailable):
    """The store cannot be had: its disk is full or read-only, or its server is gone."""

    code = "store_unavailable"


class BadStore(Exception):
    """At start-up: what is there cannot be used as a store; says why in one line."""


class RecordGone(SmolgateError):
    """The record is no longer this run's to write: deleted, replaced, ended, or taken for lost."""

    status = 404
    type = "invalid_request_error"
    code = "record_gone"


class AlreadyStored(SmolgateError):
    """A record of this id is there already."""

    status = 400
    type = "invalid_request_error"
    code = "already_stored"


class OverLimit(Exception):
    """The owner has as many active records of this kind as it may."""


class Record(msgspec.Struct, kw_only=True):
    """One stored response, resumable chat stream, or run under way.

    `run` is whose it is to write, `front_end` the process that this is in. `status`: queued, in_progress, completed,
    failed, cancelled or incomplete. Times are the store's, in seconds since the epoch.
    """

    id: str
    owner: str
    kind: str
    run: str
    front_end: str
    status: str = "in_progress"
    created: float = 0.0  # given by the store where it is 0
    ended: float | None = None
    next_sequence: int = 0  # the number of the next event; as many are there
    cancel_asked: bool = False
    previous: str | None = None
    conversation: str | None = None
    body: bytes = b""  # the object's JSON as last known
    input: bytes = b""  # a JSON list of input items
    memory: bytes = b""  # the agent's memory after it; opaque

    @property
    def active(self) -> bool:
        return self.ended is None


class Head(NamedTuple):
    """What changes of a record. One that was replaced has another `created`, one that was adopted another `run`."""

    created: float
    run: str
    status: str
    next_sequence: int
    cancel_asked: bool
    ended: float | None


class Page(NamedTuple):
    """Numbered events, and the record's head at the same moment; None where the owner has no such record."""

    head: Head | None
    events: list[tuple[int, bytes]]


class Conversation(msgspec.Struct, kw_only=True):
    """`body` is its object's JSON."""

    id: str
    owner: str
    created: float = 0.0
    body: bytes = b""


class FrontEnd(msgspec.Struct, kw_only=True):
    """One server process, and where others reach it."""

    id: str
    machine: str = ""
    socket: str = ""  # a unix socket of that machine
    url: str = ""


class KeyUse(NamedTuple):
    """`ahead_seconds`: how far the requests are paid in advance; more than 60 is too many."""

    ahead_seconds: float
    tokens_today: int


class StoreNumbers(NamedTuple):
    records: int
    active: int
    bytes: int


class Store(ABC):
    """Of one event loop. `watches` hears of every change that is made here; `write_seconds` and `failures` are for metrics."""

    def __init__(self) -> None:
        self.watches = RecordWatches(self.heads)
        self.write_seconds = Histogram(WRITE_SECONDS)
        self.failures = 0  # how often it could not be had

    @property
    @abstractmethod
    def name(self) -> str:
        """What it is and where, without secrets."""

    @property
    def exists(self) -> bool:
        """Somebody may have stored something there before."""
        return True

    @abstractmethod
    async def open(self) -> None:
        """Raises BadStore for what can never work, StoreFailed for what may later."""

    async def close(self) -> None:
        """Idempotent. What was awaited before is kept."""
        await self.watches.close()

    # --- records

    @abstractmethod
    async def create(self, record: Record, *, replace: bool = False, most: int = 0) -> None:
        """Raises AlreadyStored, unless it is to replace the one that is there, which then is gone.

        `most`: raises OverLimit where the owner has so many active ones of its kind.
        """

    @abstractmethod
    async def append(self, record_id: str, run: str, first: int, events: Sequence[bytes]) -> None:
        """Events `first` and following. Raises RecordGone, also where `first` is not the next number."""

    @abstractmethod
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
        """The end and the last events, in one. Raises RecordGone."""

    @abstractmethod
    async def update(
        self,
        record_id: str,
        run: str,
        *,
        status: str | None = None,
        body: bytes | None = None,
    ) -> None:
        """Raises RecordGone."""

    @abstractmethod
    async def get(self, record_id: str, owner: str) -> Record | None: ...

    @abstractmethod
    async def heads(self, record_ids: Sequence[str]) -> dict[str, Head]:
        """Of those that are there, whoever owns them."""

    @abstractmethod
    async def events(
        self, record_id: str, owner: str, start: int, limit_bytes: int = EVENTS_LIMIT_BYTES
    ) -> Page:
        """Events from number `start` on: at least one where there is one, then up to the limit."""

    @abstractmethod
    async def delete(self, record_id: str, owner: str) -> bool: ...

    @abstractmethod
    async def records(
        self, owner: str, kind: str, *, status: str | None = None, limit: int = 100
    ) -> list[Record]:
        """The latest first, without input and memory."""

    @abstractmethod
    async def runs(self, *, ended_seconds: float, limit: int) -> list[Record]:
        """Everybody's records of the kind `run` that have not ended, or did so within so many seconds, without input and
        memory: for operators.
        """

    @abstractmethod
    async def ask_cancel(self, record_id: str, owner: str) -> Record | None:
        """Note the wish, which the record's front end sees in its head; the record as it is now."""

    # --- conversations

    @abstractmethod
    async def create_conversation(self, conversation: Conversation) -> None: ...

    @abstractmethod
    async def get_conversation(self, conversation_id: str, owner: str) -> Conversation | None: ...

    @abstractmethod
    async def update_conversation(self, conversation_id: str, owner: str, body: bytes) -> bool: ...

    @abstractmethod
    async def delete_conversation(self, conversation_id: str, owner: str) -> bool:
        """Its items go with it; responses of it stay."""

    @abstractmethod
    async def add_items(
        self, conversation_id: str, owner: str, items: Sequence[tuple[str, bytes]]
    ) -> bool:
        """Ids and JSON, in order; one of an id that is there already takes its place, at the end. False where there is no
        such conversation.
        """

    @abstractmethod
    async def items(
        self,
        conversation_id: str,
        owner: str,
        *,
        after: str | None = None,
        newest_first: bool = False,
        limit: int = 100,
    ) -> list[tuple[str, bytes]]: ...

    @abstractmethod
    async def get_item(self, conversation_id: str, owner: str, item_id: str) -> bytes | None: ...

    @abstractmethod
    async def delete_item(self, conversation_id: str, owner: str, item_id: str) -> bool: ...

    # --- front ends

    @abstractmethod
    async def heartbeat(self, front_end: FrontEnd, seconds: float) -> None:
        """It lives, and is to be taken for lost once it says nothing for so long."""

    @abstractmethod
    async def leave(self, front_end_id: str) -> None:
        """It stops: what it has not ended is lost, its claims are free."""

    @abstractmethod
    async def front_end(self, front_end_id: str) -> FrontEnd | None:
        """Where it is, if it lives."""

    @abstractmethod
    async def secret(self) -> str:
        """What all front ends know, and nobody else: made by the first that asks."""

    @abstractmethod
    async def adopt_lost(self, front_end_id: str, run: str, limit: int = 100) -> Sequence[Record]:
        """Active records whose front end is gone: this one's from now on, under `run`, to be finished. The
        records come as they were, but for `run` and `front_end`; what is `run`'s already, and has not ended, comes again.
        """

    # --- claims

    @abstractmethod
    async def claim(
        self,
        thing: bytes,
        front_end_id: str,
        *,
        seconds: float,
        instead_of: str | None = None,
        by_force: bool = False,
    ) -> str | None:
        """The living front end that has it; None: it is this one's now, for so long. `instead_of`: not hers any more."""

    @abstractmethod
    async def owner_of(self, thing: bytes) -> str | None:
        """The living front end that has claimed it."""

    # --- keys

    @abstractmethod
    async def use_key(self, key: str, *, requests: int, tokens: int, per_minute: int) -> KeyUse:
        """So much more was used of a key, unless the requests exceed `per_minute` (0: no limit); tokens count
        for the day (UTC) in any case.
        """

    # --- keeping

    @abstractmethod
    async def sweep(self, *, days: float, max_bytes: int, run_seconds: float = 600.0) -> int:
        """Drop what ended before so many days (kind "run": seconds), then the oldest that ended until no more than
        `max_bytes` are left; returns how many went.
        """

    @abstractmethod
    async def numbers(self) -> StoreNumbers: ...

    def watch(self, record_id: str) -> Watch:
        """`async with store.watch(id) as watch: await watch.changed()`."""
        return self.watches.watch(record_id)
