"""A run's chat stream that is kept in the store, so that it can be resumed: the writing half.

In: a leg of a run, and the name that its client gave it (`X-Conversation-Id`). Out: numbered events in the store, in the
order and the bytes of a plain stream; whoever reads them (stream_routes.py), here or at another front end, reads
them there, so nobody is told what is not durable. The run goes on while nobody reads, for a while; a name has one
stream, and a new one ends the run of the old one.
"""

import asyncio
import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import msgspec
from aiohttp import web

from server.agent_reply import Telling, transcript_of
from server.chat_wire import DONE, ChatWire, error_event
from server.errors import error_object
from server.idempotency import Leg
from server.keys import PRESENCE, SETTINGS, STORE, SUPERVISOR
from server.run_ids import leg_id
from streaming.events import Failure
from streaming.failures import InvalidRequest, RunStopped, SmolgateError
from streaming.run import RunReader
from streaming.store import Record, RecordGone, Store, StoreFailed
from streaming.transcript import Transcript

log = logging.getLogger("server")

NAME_HEADER = "X-Conversation-Id"
MAX_NAME_CHARACTERS = 256
KIND = "chat"
# How long one sign of a reader at any front end counts.
FOLLOWING_SECONDS = 15.0


class StreamBody(msgspec.Struct, kw_only=True):
    """The record's body: what is told about a stream."""

    conversation_id: str
    run: str
    model: str


@dataclass(frozen=True)
class StreamTerms:
    """How a leg is told."""

    name: str
    created: int
    model: str
    reasoning_format: str
    include_usage: bool
    leave_seconds: float


def name_of(request: web.Request) -> str | None:
    """The name in the request's header. Raises InvalidRequest."""
    name = request.headers.get(NAME_HEADER)
    if name is None:
        return None
    return checked_name(name, NAME_HEADER)


def checked_name(name: str, param: str) -> str:
    """Raises InvalidRequest."""
    if not 0 < len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
        raise InvalidRequest(
            f"'{param}' must have 1 to {MAX_NAME_CHARACTERS} printable characters.", param=param
        )
    return name


def record_id_of(owner: str, name: str) -> str:
    """Two owners' equal names are two streams."""
    digest = hashlib.sha256(f"{owner}\n{name}".encode()).hexdigest()
    return f"stream_{digest[:40]}"


def following(record_id: str) -> bytes:
    """What a reader claims, so that the run's front end knows of it."""
    return hashlib.sha256(f"following\n{record_id}".encode()).digest()


class StreamKeeper:
    """One leg on its way into the store. `told`: the client can be told by a stream; before, by a status."""

    def __init__(self, app: web.Application, leg: Leg, owner: str, terms: StreamTerms) -> None:
        self._app = app
        self._store: Store = app[STORE]
        self._presence = app[PRESENCE]
        self._run = leg.run
        self._begin = leg.begin
        self._terms = terms
        self._next = 0
        self._followers = 0
        self._leaving: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self.stored = asyncio.Event()  # or it is known that it cannot be
        self.told = asyncio.Event()
        self.failure: Failure | None = None  # of a run of which nothing was told
        self.refusal: StoreFailed | None = None  # nothing is stored
        self.keeps_another = False
        self._created = False
        self.record = Record(
            id=record_id_of(owner, terms.name),
            owner=owner,
            kind=KIND,
            run=leg_id(leg.run.id, leg.begin),
            front_end="",
            body=msgspec.json.encode(
                StreamBody(conversation_id=terms.name, run=leg.run.id, model=terms.model)
            ),
        )

    async def keep(self) -> None:
        """Write the leg to its end; never raises but for cancellation."""
        try:
            async with self._app[SUPERVISOR].reading(self._run, begin=self._begin) as reader:
                try:
                    is_new = await self._create()
                    self.stored.set()
                    if is_new:
                        with self._presence.holding(
                            self.record.id, self.record.run, self._cancelled
                        ):
                            await self._write(reader)
                except RecordGone:
                    self._cancelled()
                except StoreFailed as error:
                    self._unstored(error)
        except Exception:
            log.exception("the stream of run %s failed", self._run.id)
        finally:
            self.stored.set()
            self.told.set()
            self._no_timer()

    async def _create(self) -> bool:
        """The record, in place of an earlier one of this name; False where this leg is kept already."""
        there = await self._store.get(self.record.id, self.record.owner)
        if there is not None and there.run == self.record.run:
            self.keeps_another = True
            return False
        stop_earlier = self._presence.stopper_of(self.record.id)
        await self._presence.create(self.record, replace=True)
        self._created = True
        stop_earlier()
        return True

    def _unstored(self, error: StoreFailed) -> None:
        log.warning("run %s is stopped: its stream cannot be stored: %s", self._run.id, error)
        self._app[SUPERVISOR].stop(
            self._run, RunStopped("The stream cannot be stored.", code=error.code)
        )
        if self._created:
            self._presence.abandon(self.record)
        else:
            self.refusal = error

    @contextmanager
    def followed(self) -> Iterator[None]:
        """While inside, somebody reads."""
        self._followers += 1
        self._no_timer()
        try:
            yield
        finally:
            self._followers -= 1
            if not self._followers:
                self._leave_in(self._terms.leave_seconds)

    async def _write(self, reader: RunReader) -> None:
        terms = self._terms
        transcript = transcript_of(self._app, self._run, reader)
        wire = ChatWire(
            run_id=self.record.run,
            created=terms.created,
            model=terms.model,
            include_usage=terms.include_usage,
        )
        telling = Telling(wire, terms.reasoning_format)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._app[SETTINGS].heartbeat_seconds):
                    while not telling.anything and (events := await reader.read()):
                        telling.reasoning_of(events, transcript)
            if transcript.failure is not None and not telling.anything:
                self.failure = transcript.failure
            await self._append([wire.role(), *telling.take_events()])
            self.told.set()
            async for events in reader:
                telling.reasoning_of(events, transcript)
                if told := telling.take_events():
                    await self._append(told)
            status = self._end(telling, transcript)
        except (RecordGone, StoreFailed):
            raise
        except Exception as error:
            status = "failed"
            log.error("run %s: its stream failed", self._run.id, exc_info=error)
            telling.failure(
                error_object(SmolgateError("The server failed.", code="internal_error"))
            )
        await self._store.finish(
            self.record.id,
            self.record.run,
            status=status,
            first=self._next,
            events=telling.take_events(),
        )

    def _end(self, telling: Telling, transcript: Transcript) -> str:
        if transcript.failure is None:
            telling.end(transcript)
            return "completed"
        telling.failure(error_object(transcript.failure))
        return "cancelled" if transcript.failure.code == "cancelled" else "failed"

    async def _append(self, events: list[bytes]) -> None:
        await self._store.append(self.record.id, self.record.run, self._next, events)
        self._next += len(events)

    def _cancelled(self) -> None:
        self._app[SUPERVISOR].stop(
            self._run, RunStopped("The run was cancelled.", code="cancelled")
        )

    def _leave_in(self, seconds: float) -> None:
        if seconds != float("inf") and not self._run.concluded:
            loop = asyncio.get_running_loop()
            self._leaving = loop.call_later(seconds, self._look_for_readers)

    def _no_timer(self) -> None:
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None

    def _look_for_readers(self) -> None:
        task = asyncio.get_running_loop().create_task(self._leave())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _leave(self) -> None:
        """Nobody has read here for long: if nobody does elsewhere, the run is stopped."""
        with suppress(StoreFailed):
            if await self._store.owner_of(following(self.record.id)) is not None:
                self._leave_in(FOLLOWING_SECONDS)
                return
        if not self._followers:
            self._app[SUPERVISOR].stop(
                self._run, RunStopped("Nobody came back for the stream.", code="client_gone")
            )


async def end_lost_stream(store: Store, record: Record, error: SmolgateError) -> None:
    """Say in the stream that it ended so. Raises StoreFailed, RecordGone."""
    body = msgspec.json.decode(record.body, type=StreamBody)
    wire = ChatWire(
        run_id=body.run, created=int(record.created), model=body.model, include_usage=False
    )
    events = [wire.finish("error"), error_event(error_object(error)), DONE]
    await store.finish(
        record.id,
        record.run,
        status="failed",
        first=record.next_sequence,
        events=events if record.next_sequence else [wire.role(), *events],
    )
