"""A worker's line to its parent: what is true of all workers together is asked for here.

In: the worker's end of a socket pair. Out: places within the limits of all workers (`Admission`), runs of
other workers, who owns an `Idempotency-Key`, how the embedded model is, and the word to retire. When the
parent is gone, the worker stops: there is nobody left to keep the limits.
"""

import asyncio
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import msgspec
from aiohttp import web

from server.key_ring import KeyRing
from server.neighbours import JOIN_HEADER, Road
from server.worker_wire import (
    Ask,
    Claim,
    Claimed,
    EmbeddedState,
    Findings,
    GiveBack,
    Granted,
    Inquiry,
    KeyUse,
    Message,
    Pause,
    Refused,
    Resume,
    Retire,
    Serving,
    Totals,
    ToWorker,
    Welcome,
    read_frame,
    write_message,
)
from streaming.admission import busy, new_grant
from streaming.failures import UpstreamUnavailable

log = logging.getLogger("server")

Findable = Callable[[Inquiry], list[bytes]]


@dataclass
class SharedPlace:
    """A place that the parent gives."""

    link: "WorkerLink"
    run_id: str
    granted: asyncio.Future[None] = field(default_factory=new_grant)

    def pause(self) -> None:
        self.link.send(Pause(self.run_id))

    def resume(self) -> None:
        self.granted = new_grant()
        self.link.send(Resume(self.run_id))

    def give_back(self) -> None:
        self.link.give_back(self.run_id)


class WorkerLink:
    """Opened with `await WorkerLink.open(line)`. It is the worker's `Admission`, too.

    `find` answers other workers' questions, `key_ring` hears of what they use.
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, welcome: Welcome
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.welcome = welcome
        self.retired = asyncio.Event()
        self.parent_gone = asyncio.Event()
        self.embedded_ready = asyncio.Event()
        self.embedded_reason: str | None = "the embedded model is being loaded"
        self.find: Findable = lambda inquiry: []
        self.key_ring: KeyRing | None = None
        self._places: dict[str, SharedPlace] = {}
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = count()
        self._totals = Totals(0, 0)
        self._reading = asyncio.get_running_loop().create_task(self._read())

    @classmethod
    async def open(cls, line: socket.socket) -> "WorkerLink":
        """Raises ConnectionError where the parent is gone already."""
        reader, writer = await asyncio.open_connection(sock=line)
        frame = await read_frame(reader)
        if frame is None:
            raise ConnectionResetError("the parent process is gone")
        return cls(reader, writer, msgspec.msgpack.decode(frame, type=Welcome))

    async def close(self) -> None:
        self._reading.cancel()
        self._writer.close()

    @property
    def running(self) -> int:
        return self._totals.running

    @property
    def queued(self) -> int:
        return self._totals.queued

    @property
    def paused(self) -> int:
        return self._totals.paused

    def ask(self, run_id: str, key: str, max_of_key: int) -> SharedPlace:
        place = SharedPlace(self, run_id)
        self._places[run_id] = place
        self.send(Ask(run_id, key, max_of_key))
        return place

    def give_back(self, run_id: str) -> None:
        if self._places.pop(run_id, None) is not None:
            self.send(GiveBack(run_id))

    def serving(self) -> None:
        """Say that this worker listens."""
        self.send(Serving())

    async def found_elsewhere(self, inquiry: Inquiry) -> list[bytes]:
        """What the other workers find; its number is given here."""
        numbered = msgspec.structs.replace(inquiry, number=next(self._numbers))
        found: list[bytes] = await self._answer(numbered)
        return found

    async def owner_of(
        self, wish: bytes, *, instead_of: str | None = None, by_force: bool = False
    ) -> str | None:
        """The join path of the worker that has this wish's run; None: it is this worker's now."""
        number = next(self._numbers)
        owner: str | None = await self._answer(Claim(number, wish, instead_of, by_force))
        return owner

    async def road_to(self, owner: str) -> Road | None:
        return Road({JOIN_HEADER: "1"}, socket=owner)

    def passes_on(self, request: web.Request) -> bool:
        """It came by the socket that other workers have the way to."""
        if JOIN_HEADER not in request.headers or request.transport is None:
            return False
        return bool(request.transport.get_extra_info("sockname") == self.welcome.join_path)

    async def _answer(self, question: Inquiry | Claim) -> Any:
        """What the parent says; as if nobody else were there, once it is gone."""
        nobody: Any = [] if isinstance(question, Inquiry) else None
        if self.parent_gone.is_set():
            return nobody
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._answers[question.number] = answer
        self.send(question)
        try:
            return await answer
        except ConnectionError:
            return nobody
        finally:
            del self._answers[question.number]

    def send(self, message: Message) -> None:
        if not self.parent_gone.is_set():
            write_message(self._writer, message)

    async def _read(self) -> None:
        decoder = msgspec.msgpack.Decoder(ToWorker)
        while (frame := await read_frame(self._reader)) is not None:
            self._take(decoder.decode(frame))
        log.error("the parent process is gone; stopping")
        self.parent_gone.set()
        for answer in self._answers.values():
            if not answer.done():  # its request may have been cancelled
                answer.set_exception(ConnectionResetError("the parent process is gone"))

    def _take(self, message: ToWorker) -> None:
        match message:
            case Granted(run_id=run_id):
                place = self._places.get(run_id)
                if place is not None and not place.granted.done():
                    place.granted.set_result(None)
            case Refused(run_id=run_id, code=code):
                place = self._places.pop(run_id, None)
                if place is not None and not place.granted.done():
                    place.granted.set_exception(busy(code))
            case Totals():
                self._totals = message
            case EmbeddedState(reason=reason):
                self.embedded_reason = reason
                if reason is None:
                    self.embedded_ready.set()
                else:
                    self.embedded_ready.clear()
            case Inquiry(number=number):
                self.send(Findings(number, self.find(message)))
            case KeyUse():
                if self.key_ring is not None:
                    self.key_ring.note_elsewhere(message.key, message.requests, message.tokens)
            case Findings(number=number, found=found):
                self._resolve(number, found)
            case Claimed(number=number, owner=owner):
                self._resolve(number, owner)
            case Retire():
                self.retired.set()

    def _resolve(self, number: int, value: Any) -> None:
        answer = self._answers.get(number)
        if answer is not None and not answer.done():
            answer.set_result(value)


class LinkedEmbedded:
    """The embedded model that the parent owns, as a worker sees it."""

    def __init__(self, link: WorkerLink, base_url: str) -> None:
        self._link = link
        self.base_url = base_url

    def why_not_ready(self) -> str | None:
        return self._link.embedded_reason

    async def wait_ready(self, timeout_seconds: float | None = None) -> None:
        """Raises UpstreamUnavailable, with the reason, when the time is over."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._link.embedded_ready.wait()
        except TimeoutError:
            reason = self._link.embedded_reason
            raise UpstreamUnavailable(reason or "the embedded model is not ready") from None
