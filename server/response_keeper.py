"""A run on its way into the store as a response, so that it can be had later: the writing half.

In: a leg of a run, and what was asked. Out: numbered events in the store, in order; then the object and the agent's memory.
Readers (response_stream.py) take them from there, here or at another front end, so that nobody is told what is not durable.
It goes on whoever reads; a run whose reader was its only one is stopped by the supervisor.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from aiohttp import web

from server.errors import error_object
from server.idempotency import Leg
from server.keys import IDENTITY, PRESENCE, SETTINGS, STORE, SUPERVISOR
from server.response_context import KIND, Mark, mark_of, output_of, state_of
from server.response_telling import ResponseTelling, ResponseTerms
from server.response_wire import Json, ResponseWire
from streaming.failures import RunStopped, SmolgateError
from streaming.json_codec import encode_json
from streaming.run import RunReader
from streaming.store import Record, RecordGone, Store, StoreFailed

log = logging.getLogger("server")


class ResponseKeeper:
    """One response. `stored`: its record is there, or `refusal` says why not; `told`: there is more to tell than that
    it has begun, or it has ended; `done`: all is written.
    """

    def __init__(
        self,
        app: web.Application,
        leg: Leg,
        owner: str,
        terms: ResponseTerms,
        input_items: list[Json],
        mark: Mark | None,
    ) -> None:
        self._app = app
        self._store: Store = app[STORE]
        self._presence = app[PRESENCE]
        self._leg = leg
        self._input = input_items
        self._mark = mark
        self._background = terms.background
        self._conversation = (terms.head["conversation"] or {}).get("id")
        self._next = 0
        self.telling = ResponseTelling(
            terms,
            leg.run,
            begin=leg.begin,
            tag_names=app[SETTINGS].think_tags,
            now=app[IDENTITY].now,
        )
        self.stored = asyncio.Event()
        self.told = asyncio.Event()
        self.done = asyncio.Event()
        self.refusal: SmolgateError | None = None
        self.paused = False
        self.record = Record(
            id=terms.id,
            owner=owner,
            kind=KIND,
            run=terms.id,
            front_end="",
            status=self.telling.status,
            previous=terms.head["previous_response_id"],
            conversation=self._conversation,
            body=encode_json(self.telling.response),
            input=encode_json(input_items),
        )

    @property
    def work_begun(self) -> bool:
        return self._leg.run.started is not None

    @property
    def outcome(self) -> str:
        """The run's, in one word."""
        return self._leg.run.outcome or "ok"

    @asynccontextmanager
    async def followed(self, leave_seconds: float) -> AsyncIterator[RunReader]:
        """While inside, the run has a reader; when the last one leaves, it is stopped in time."""
        reading = self._app[SUPERVISOR].reading(
            self._leg.run, begin=self._leg.begin, leave_seconds=leave_seconds
        )
        async with reading as reader:
            try:
                yield reader
            finally:
                reader.paused = self.paused

    @property
    def needs_readers(self) -> bool:
        """It ends when nobody reads it, and can still be joined."""
        return not self._background and self._leg.run.joinable(self._leg.begin)

    async def keep(self) -> None:
        """Write the leg to its end; never raises but for cancellation."""
        created = False
        try:
            await self._presence.create(self.record)
            created = True
            self.stored.set()
            with self._presence.holding(self.record.id, self.record.run, self._cancel):
                await self._write()
        except RecordGone:
            self._cancel()
        except SmolgateError as error:
            log.warning("run %s is stopped: it cannot be stored: %s", self._leg.run.id, error)
            self._stop("The response cannot be stored.", error.code or "store_unavailable")
            self.refusal = error
            if created or isinstance(error, StoreFailed):  # it may be there all the same
                self._presence.abandon(self.record)
        except Exception:
            log.exception("the response of run %s failed", self._leg.run.id)
            self._stop("The server failed.", "internal_error")
            self._presence.abandon(self.record)
        finally:
            for event in (self.stored, self.told, self.done):
                event.set()

    async def _write(self) -> None:
        telling, reader = self.telling, self._leg.run.reader(self._leg.begin)
        await self._append(telling.begin())
        try:
            async for events in reader:
                before = telling.status
                told = telling.feed(events)
                if telling.status != before:
                    await self._store.update(
                        self.record.id,
                        self.record.run,
                        status=telling.status,
                        body=encode_json(telling.response | {"status": telling.status}),
                    )
                await self._append(told)
                if telling.told:
                    self.told.set()
            last = telling.end()
        except (RecordGone, StoreFailed):
            raise
        except Exception as error:
            log.error("run %s: its response failed", self._leg.run.id, exc_info=error)
            self._stop("The server failed.", "internal_error")
            failed = SmolgateError("The server failed.", code="internal_error")
            last = telling.fail(error_object(failed))
        self.paused = reader.paused
        await self._finish(last)

    async def _finish(self, last: list[bytes]) -> None:
        telling, record = self.telling, self.record
        if not telling.told and telling.transcript.failure is not None and not self._background:
            # It was refused before it did anything: the client gets a status, and there is no response.
            await self._store.delete(record.id, record.owner)
            return
        if self._conversation is not None and telling.status in {"completed", "incomplete"}:
            await self._join_conversation(self._conversation)
        await self._store.finish(
            record.id,
            record.run,
            status=telling.status,
            first=self._next,
            events=last,
            body=encode_json(telling.response),
            memory=telling.memory,
        )

    async def _join_conversation(self, conversation_id: str) -> None:
        owner = self.record.owner
        items = [*self._input, *self.telling.response["output"]]
        rows = [(item["id"], encode_json(item)) for item in items]
        if not await self._store.add_items(conversation_id, owner, rows):
            return  # it was deleted meanwhile
        conversation = await self._store.get_conversation(conversation_id, owner)
        if conversation is None or not self.telling.memory or not rows:
            return
        own = [item_id for item_id, _ in rows]
        is_as_it_was = await mark_of(self._store, conversation, own) == self._mark
        state = state_of(conversation)
        # Where another turn, or a deletion, came between, no memory holds what the conversation does: its items are told.
        state.last = self.record.id if is_as_it_was else None
        state.seen = rows[-1][0] if is_as_it_was else None
        await self._store.update_conversation(conversation_id, owner, msgspec.json.encode(state))

    async def _append(self, events: list[bytes]) -> None:
        if events:
            await self._store.append(self.record.id, self.record.run, self._next, events)
            self._next += len(events)

    def _cancel(self) -> None:
        self._stop("The run was cancelled.", "cancelled")

    def _stop(self, message: str, code: str) -> None:
        self._app[SUPERVISOR].stop(self._leg.run, RunStopped(message, code=code))


async def end_lost_response(store: Store, record: Record, error: SmolgateError) -> None:
    """Say that a response's server is gone; what it gave is kept. Raises StoreFailed, RecordGone."""
    response: Json = msgspec.json.decode(record.body)
    wire = ResponseWire(record.id, response, as_summary=False, live_logs=False)
    wire.skip_to(record.next_sequence)
    told = {"code": "server_error", "message": error.message, "type": error.code}
    response |= {
        "status": "failed",
        "error": told,
        "output": await _items_told(store, record) or output_of(record),
    }
    await store.finish(
        record.id,
        record.run,
        status="failed",
        first=record.next_sequence,
        events=wire.end(response),
        body=encode_json(response),
    )


async def _items_told(store: Store, record: Record) -> list[Json]:
    """The items of the events that are there; one that was not done is incomplete."""
    items: dict[int, Json] = {}
    start = 0
    while start < record.next_sequence:
        page = await store.events(record.id, record.owner, start)
        if not page.events:
            break
        for _, event in page.events:
            if b"event: response.output_item." in event[:40]:
                data = _data_of(event)
                done = data["type"].endswith(".done")
                item = data["item"] if done else data["item"] | {"status": "incomplete"}
                items[data["output_index"]] = item
        start = page.events[-1][0] + 1
    return [items[index] for index in sorted(items)]


def _data_of(event: bytes) -> Any:
    lines = [line[6:] for line in event.split(b"\n") if line.startswith(b"data: ")]
    return msgspec.json.decode(b"\n".join(lines))
