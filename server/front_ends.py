"""The front ends over one shared store: runs, wishes and tools' calls of all of them.

In: this process's runs, and questions about others'. Out: each run under way as a record, so that any front end lists and
cancels it and a key has no more of them than it may, wherever they are; whose an `Idempotency-Key` or a call is; the
road there. While the store cannot be had, runs go on, unseen by the others, and limits are this process's own.
"""

import asyncio
import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from server.finished_runs import KEPT_SECONDS, for_its_caller, run_object
from server.neighbours import JOIN_HEADER, Road
from server.presence import Presence
from server.worker_wire import Inquiry
from streaming.admission import busy
from streaming.failures import RunStopped, SmolgateError, Unavailable
from streaming.run import Run
from streaming.store import OverLimit, Record, RecordGone, Store, StoreFailed
from streaming.supervisor import Supervisor

log = logging.getLogger("server")

KIND = "run"
# How old what others are told of a run may be.
TELL_SECONDS = 1.0
MAX_LISTED = 1000
GRACE_SECONDS = 60.0


class FrontEnds:
    """One per process whose store is shared. `claim_seconds`: how long a wish, or a call, may be asked for;
    `runner`: where runs live here.
    """

    def __init__(
        self,
        presence: Presence,
        supervisor: Callable[[], Supervisor],
        *,
        claim_seconds: float,
        runner: str,
    ) -> None:
        self._presence = presence
        self._store: Store = presence.store
        self._supervisor = supervisor
        self._claim_seconds = claim_seconds
        self._runner = runner
        self._published: dict[str, Callable[[], None]] = {}
        self._told: dict[str, bytes] = {}
        self._secret = ""
        self._telling: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Whether the store can be had or not."""
        with suppress(StoreFailed):
            self._secret = await self._store.secret()
        self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def close(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            await asyncio.gather(self._telling, return_exceptions=True)
        if self._ending:
            await asyncio.wait(self._ending, timeout=1.0)

    # --- this process's runs

    async def begin(self, run_id: str, owner: str, most: int) -> None:
        """A run is about to be submitted. Raises Busy where its key has as many already, anywhere."""
        if not self._presence.reachable:
            return
        record = Record(id=run_id, owner=owner, kind=KIND, run=run_id, front_end="")
        creating = asyncio.ensure_future(self._presence.create(record, most=most))
        try:
            await asyncio.shield(creating)
        except OverLimit:
            raise busy("key_limit") from None
        except StoreFailed as error:
            log.warning("run %s is not listed elsewhere: %s", run_id, error)
            self._presence.abandon(record)  # it may be there all the same
            return
        except asyncio.CancelledError:
            self._later(self._undo(creating, run_id, owner))
            raise
        self._published[run_id] = self._presence.hold(run_id, run_id, lambda: self._cancel(run_id))

    def end(self, run: Run) -> None:
        """It is over."""
        if self._release(run.id):
            self._later(self._finish(run.id, self._body_of(run)))

    def take_back(self, run_id: str, owner: str) -> None:
        """It was not begun after all."""
        if self._release(run_id):
            self._later(self._forget(run_id, owner))

    def _body_of(self, run: Run) -> bytes:
        return _json(run_object(run, self._runner))

    def _release(self, run_id: str) -> bool:
        release = self._published.pop(run_id, None)
        self._told.pop(run_id, None)
        if release is not None:
            release()
        return release is not None

    def _later(self, coroutine: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _undo(self, creating: "asyncio.Future[None]", run_id: str, owner: str) -> None:
        """The client left before the run was begun; its record must not keep a place."""
        await asyncio.gather(creating, return_exceptions=True)
        await self._forget(run_id, owner)

    async def _forget(self, run_id: str, owner: str) -> None:
        with suppress(StoreFailed):
            await self._store.delete(run_id, owner)

    async def call_made(self, owner: str, call_ids: list[str]) -> None:
        """The client is about to be told of these calls, and may answer to any front end."""
        with suppress(StoreFailed):
            for call_id in call_ids:
                await self._store.claim(
                    _call(owner, call_id),
                    self._presence.id,
                    seconds=self._claim_seconds,
                    by_force=True,
                )

    async def end_lost(self, record: Record, error: SmolgateError) -> None:
        told = _untold(record) | msgspec.json.decode(record.body or b"{}")
        told |= {"status": "done", "outcome": error.code, "ended": int(time.time()), "doing": None}
        await self._store.finish(record.id, record.run, status="failed", body=_json(told))

    def _cancel(self, run_id: str) -> None:
        if (run := self._supervisor().runs.get(run_id)) is not None:
            self._supervisor().stop(run, RunStopped("The run was cancelled.", code="cancelled"))

    async def _finish(self, run_id: str, body: bytes) -> None:
        try:
            await self._store.finish(run_id, run_id, status="completed", body=body)
        except StoreFailed:
            self._presence.abandon(
                Record(
                    id=run_id,
                    owner="",
                    kind=KIND,
                    run=run_id,
                    front_end=self._presence.id,
                    body=body,
                )
            )
        except RecordGone:
            pass

    async def _tell(self) -> None:
        """What has changed of the runs here."""
        while True:
            with suppress(StoreFailed):
                await self._word()
            for run_id in list(self._published):
                run = self._supervisor().runs.get(run_id)
                if run is None:
                    continue
                told = f"{run.state} {run.steps}".encode()
                if self._told.get(run_id) == told:
                    continue
                with suppress(StoreFailed, RecordGone):
                    await self._store.update(run_id, run_id, body=self._body_of(run))
                    self._told[run_id] = told
            await asyncio.sleep(TELL_SECONDS)

    # --- the others' (Neighbours)

    async def found_elsewhere(self, inquiry: Inquiry) -> list[bytes]:
        if not self._presence.reachable and inquiry.wish != "tool_call":
            return []
        try:
            return await self._found(inquiry)
        except StoreFailed as error:
            if inquiry.wish == "tool_call":
                raise
            log.warning("runs of other servers are not seen: %s", error)
            return []

    async def _found(self, inquiry: Inquiry) -> list[bytes]:
        store, own = self._store, self._presence.id
        if inquiry.wish == "tool_call":
            owner = await store.owner_of(_call(inquiry.key, inquiry.id))
            return [owner.encode()] if owner is not None and owner != own else []
        if inquiry.wish == "list":
            found = await self._listed(inquiry)
            return [_told_of(each, inquiry) for each in found if each.front_end != own]
        record = await self._record_of(inquiry)
        if record is None or record.kind != KIND:
            return []
        if inquiry.wish == "cancel":
            if not record.active:
                return []
            await store.ask_cancel(inquiry.id, record.owner)
            return [_told_of(record, inquiry, status="stopping")]
        return [_told_of(record, inquiry)]

    async def _listed(self, inquiry: Inquiry) -> list[Record]:
        if inquiry.everybody:
            return await self._store.runs(ended_seconds=inquiry.ended_seconds, limit=MAX_LISTED)
        return await self._store.records(inquiry.key, KIND, status="in_progress", limit=MAX_LISTED)

    async def _record_of(self, inquiry: Inquiry) -> Record | None:
        record = await self._store.get(inquiry.id, inquiry.key)
        if record is None and inquiry.everybody:
            lately = await self._store.runs(ended_seconds=KEPT_SECONDS, limit=MAX_LISTED)
            record = next((each for each in lately if each.id == inquiry.id), None)
        return record

    async def owner_of(
        self, wish: bytes, *, instead_of: str | None = None, by_force: bool = False
    ) -> str | None:
        """While the store cannot be had, every wish is this process's own."""
        if not self._presence.reachable:
            return None
        try:
            return await self._store.claim(
                wish,
                self._presence.id,
                seconds=self._claim_seconds,
                instead_of=instead_of,
                by_force=by_force,
            )
        except StoreFailed as error:
            log.warning("an Idempotency-Key holds for this server alone: %s", error)
            return None

    async def road_to(self, owner: str) -> Road | None:
        there = await self._store.front_end(owner)
        if there is None:
            return None
        headers = {JOIN_HEADER: f"{owner} {await self._word()}"}
        if there.machine == self._presence.who.machine and _is_here(there.socket):
            return Road(headers, socket=there.socket)
        if there.url:
            return Road(headers, url=there.url, certain=False)
        raise Unavailable(
            "This request belongs to a run of another server, which cannot be reached from here.",
            code="run_elsewhere",
            retry_after=self._presence.lease_seconds,
        )

    def passes_on(self, request: web.Request) -> bool:
        _, _, word = request.headers.get(JOIN_HEADER, "").partition(" ")
        return bool(self._secret) and hmac.compare_digest(word.encode(), self._secret.encode())

    def meant_for(self, request: web.Request) -> str | None:
        """The other front end that a request is meant for which came here: by an address that several share."""
        if not self.passes_on(request):
            return None
        owner = request.headers[JOIN_HEADER].partition(" ")[0]
        return owner if owner != self._presence.id else None

    async def _word(self) -> str:
        if not self._secret:
            self._secret = await self._store.secret()
        return self._secret


def _is_here(path: str) -> bool:
    return bool(path) and Path(path).exists()


def _call(owner: str, call_id: str) -> bytes:
    return hashlib.sha256(f"call\n{owner}\n{call_id}".encode()).digest()


def _told_of(record: Record, inquiry: Inquiry, **changed: str) -> bytes:
    told: dict[str, Any] = msgspec.json.decode(record.body or b"{}")
    told = _untold(record) | told | changed
    return _json(told if inquiry.everybody else for_its_caller(told))


def _untold(record: Record) -> dict[str, Any]:
    """A run of which its front end has not told yet."""
    return {
        "id": record.id,
        "object": "run",
        "agent": "",
        "status": "queued",
        "created": int(record.created),
        "ended": None,
        "queue_seconds": 0.0,
        "seconds": 0.0,
        "step": 0,
        "doing": None,
        "usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0},
        "outcome": None,
        "metadata": {},
        "key": record.owner or None,
    }


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)
