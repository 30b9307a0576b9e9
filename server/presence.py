"""This process over its store: its lease, what is asked of its records, and what others have left behind.

In: the store, and the records that are written here. Out: a lease that is renewed; a call for each record that is
to be cancelled; records whose front end is gone, each ended once by what its kind asks for; old ones swept. Nothing of this
runs before the store is used, or is there already.
"""

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from streaming.failures import SmolgateError, WorkerLost
from streaming.store import BadStore, FrontEnd, Record, RecordGone, Store, StoreFailed, StoreNumbers

log = logging.getLogger("server")

CANCEL_POLL_SECONDS = 0.2
SWEEP_SECONDS = 60.0
# Of a lease: so often it is renewed.
RENEWALS = 4
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# Appends a record's last words, which say this error, and finishes it as failed.
EndLost = Callable[[Record, SmolgateError], Awaitable[None]]
LOST = WorkerLost("The server that ran this was lost.", code="server_lost")
UNSTORED = StoreFailed("What the run did could not be stored.")


class Presence:
    """`ends_lost` has for each kind of record how one ends that its run will not (code `server_lost`, …)."""

    def __init__(
        self,
        store: Store,
        *,
        lease_seconds: float,
        days: float,
        max_bytes: int,
    ) -> None:
        self.store = store
        self.who = FrontEnd(id=f"fe-{secrets.token_hex(8)}", machine=machine_id())
        self.ends_lost: dict[str, EndLost] = {}
        self.lease_seconds = lease_seconds
        # One for good: what was adopted in an answer that never came is adopted again.
        self._adopter = f"adopted-{secrets.token_hex(8)}"
        self._days = days
        self._max_bytes = max_bytes
        self._held: dict[str, tuple[str, Callable[[], None]]] = {}
        self._abandoned: dict[str, Record] = {}
        self.numbers: StoreNumbers | None = None  # as they were when it was last swept
        self.reachable = False  # the store was there when it was last asked
        self._moved = asyncio.Event()
        self._arriving = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def id(self) -> str:
        return self.who.id

    async def arrive(self) -> None:
        """Have a lease, from the first time on. Raises StoreFailed."""
        if self._tasks:
            return
        async with self._arriving:
            if self._tasks:
                return
            await self.store.heartbeat(self.who, self.lease_seconds)
            self.reachable = True
            loop = asyncio.get_running_loop()
            self._tasks = [
                loop.create_task(each)
                for each in (self._renew(), self._look_for_cancels(), self._sweep())
            ]

    def reached_at(self, *, socket_path: str = "", url: str = "") -> None:
        """Where others reach this process, from now on."""
        self.who.socket, self.who.url = socket_path, url
        self._moved.set()

    async def arrive_later(self) -> None:
        """As soon as the store can be had."""
        while True:
            try:
                return await self.arrive()
            except BadStore as error:
                log.error("store %s: %s", self.store.name, error)
                return None
            except SmolgateError as error:
                log.warning("store %s: %s; trying again", self.store.name, error.message)
            await asyncio.sleep(self.lease_seconds / 2)

    async def leave(self) -> None:
        """Whatever is not ended now is lost, and others may say so at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._tasks:
            self._tasks = []
            with suppress(SmolgateError):
                await self.store.leave(self.id)

    async def create(self, record: Record, *, replace: bool = False, most: int = 0) -> None:
        """`store.create` for a record that is written here."""
        await self.arrive()
        record.front_end = self.id
        await self.store.create(record, replace=replace, most=most)

    @contextmanager
    def holding(self, record_id: str, run: str, on_cancel: Callable[[], None]) -> Iterator[None]:
        """While inside, `on_cancel` is called, again and again, once the record is to be cancelled, or is no
        longer its run's: deleted, replaced, or taken for lost.
        """
        release = self.hold(record_id, run, on_cancel)
        try:
            yield
        finally:
            release()

    def hold(self, record_id: str, run: str, on_cancel: Callable[[], None]) -> Callable[[], None]:
        """`holding`, until what is returned is called."""
        held = self._held[record_id] = run, on_cancel

        def release() -> None:
            if self._held.get(record_id) is held:
                del self._held[record_id]

        return release

    def stopper_of(self, record_id: str) -> Callable[[], None]:
        """Stops whoever writes the record here now: it was deleted or replaced, and need not wait to be told."""
        held = self._held.get(record_id)
        return held[1] if held is not None else lambda: None

    def abandon(self, record: Record) -> None:
        """Nobody writes it any more, and the store could not be told: it is as soon as it can be."""
        self._abandoned[record.id] = record

    async def _renew(self) -> None:
        while True:
            self._moved.clear()  # before it is told: it may move again meanwhile
            with _said(self.store):
                try:
                    await self.store.heartbeat(self.who, self.lease_seconds)
                except StoreFailed:
                    self.reachable = False
                    raise
                self.reachable = True
                await self._end_lost()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), self.lease_seconds / RENEWALS)

    async def _end_lost(self) -> None:
        for record in await self.store.adopt_lost(self.id, self._adopter):
            log.warning("%s %s is lost: its server is gone", record.kind, record.id)
            await self._end(record, LOST)
        if not self._abandoned:
            return
        heads = await self.store.heads(list(self._abandoned))
        for record in list(self._abandoned.values()):
            del self._abandoned[record.id]
            head = heads.get(record.id)
            if head is not None and head.run == record.run and head.ended is None:
                record.next_sequence = head.next_sequence
                await self._end(record, UNSTORED)

    async def _end(self, record: Record, error: SmolgateError) -> None:
        """Whatever one holds, it does not keep the others from being ended."""
        try:
            if (end := self.ends_lost.get(record.kind)) is not None:
                try:
                    return await end(record, error)
                except SmolgateError:
                    raise
                except Exception:
                    log.exception("%s %s cannot be told as lost", record.kind, record.id)
            await self.store.finish(
                record.id, record.run, status="failed", first=record.next_sequence
            )
        except StoreFailed:
            self.abandon(record)
        except RecordGone:
            pass  # it has ended, or is no more

    async def _look_for_cancels(self) -> None:
        while True:
            await asyncio.sleep(CANCEL_POLL_SECONDS)
            held = dict(self._held)
            if not held:
                continue
            with _said(self.store):
                heads = await self.store.heads(list(held))
                for record_id, (run, on_cancel) in held.items():
                    head = heads.get(record_id)
                    if head is None or head.run != run or head.cancel_asked:
                        on_cancel()

    async def _sweep(self) -> None:
        while True:
            with _said(self.store):
                if swept := await self.store.sweep(days=self._days, max_bytes=self._max_bytes):
                    log.info("store %s: %d old records went", self.store.name, swept)
                self.numbers = await self.store.numbers()
            await asyncio.sleep(SWEEP_SECONDS)


def machine_id() -> str:
    """The same for all processes of a machine since it was started."""
    with suppress(OSError):
        return _BOOT_ID.read_text(encoding="ascii").strip()
    return socket.gethostname()


@contextlib.contextmanager
def _said(store: Store) -> Iterator[None]:
    """What fails is said, and tried again in its time."""
    try:
        yield
    except SmolgateError as error:
        cause = error.__cause__ if error.__cause__ is not None else "no more is known"
        log.warning("store %s: %s (%s)", store.name, error.message, cause)
    except Exception:
        log.exception("store %s failed", store.name)
