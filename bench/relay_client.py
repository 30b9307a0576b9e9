"""The relay benchmark's load: raw keep-alive clients that check every answer.

In: where a server listens and a `Work`. Out: answers counted by a `Tally`; in lockstep each event that
comes in makes the upstream send the next, so that no two are ever under way in one stream.
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

from bench.relay_upstream import Upstreams
from bench.relay_work import STREAMS, Work, WrongAnswer

# How long a silent event is given before the next one follows it.
SILENT_SECONDS = 0.001
# Likewise behind a proxy that makes events of its own, of which some may be left out.
OTHERS_SILENT_SECONDS = 0.03


@dataclass
class Tally:
    """What the clients of one server did. `stopping` lets each finish the answer it is at."""

    requests: int = 0
    received_bytes: int = 0
    active: int = 0
    stopping: bool = True
    error: Exception | None = None
    delays: list[int] = field(default_factory=list)  # nanoseconds
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def ended(self, error: Exception | None = None) -> None:
        """One client stopped."""
        self.active -= 1
        if error is not None:
            self.error = self.error or error
            self.stopping = True
        if self.active <= 0 or error is not None:
            self.idle.set()


class Client(asyncio.Protocol):
    """One client: asks, checks, asks again."""

    def __init__(self, number: int, work: Work, tally: Tally, upstreams: Upstreams) -> None:
        self.number = number
        self._work = work
        self._tally = tally
        self._upstreams = upstreams
        self._request = work.request(number)
        self._is_lockstep = work.pace == "lockstep"
        self._is_idle = work.pace == "idle"
        self._transport: asyncio.WriteTransport | None = None
        self._silence: asyncio.TimerHandle | None = None
        self._busy = False
        self._reset()

    def _reset(self) -> None:
        self._rest = b""  # received and not yet read
        self._body: list[bytes] = []
        self._in_head = True
        self._length: int | None = None  # None: chunked

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is of no such class

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._busy:
            self._fail(exc or ConnectionResetError("closed within an answer"))

    def close(self) -> None:
        self._busy = False
        self._upstreams.pop(self.number, None)
        if self._silence is not None:
            self._silence.cancel()
        if self._transport is not None:
            self._transport.abort()

    def ask(self) -> None:
        if self._transport is None:
            self._busy = True
            self._fail(ConnectionResetError("the server closed an idle connection"))
            return
        self._busy = True
        self._reset()
        self._transport.write(self._request)
        if self._is_lockstep and not self._work.exact:
            self._await_silence(OTHERS_SILENT_SECONDS)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter_ns()
        self._tally.received_bytes += len(data)
        try:
            self._read(self._rest + data if self._rest else data, now)
        except Exception as error:  # noqa: BLE001 - reported by the tally
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if self._busy:
            self._busy = False
            self._tally.ended(error)
        if self._transport is not None:
            self._transport.abort()

    def _read(self, data: bytes, now: int) -> None:
        at = 0
        if self._in_head:
            at = data.find(b"\r\n\r\n") + 4
            if at == 3:
                self._rest = data
                return
            self._read_head(data[:at].lower())
        if self._length is not None:
            self._rest = data[at:]
            self._in_head = False
            if len(self._rest) >= self._length:
                self._finish(self._rest)
            return
        self._in_head = False
        size = -1
        while (line_end := data.find(b"\r\n", at)) != -1:
            size = int(data[at:line_end], 16)
            end = line_end + 2 + size + 2
            if len(data) < end:
                break
            if not size:
                self._finish(b"".join(self._body))
                return
            self._body.append(data[line_end + 2 : end - 2])
            at = end
        self._rest = data[at:]
        if self._is_lockstep:
            if at and self._body and self._body[-1].endswith(b"\n\n"):
                self._next_event()
        elif self._is_idle and at and self._body:
            self._note_delay(now)

    def _read_head(self, head: bytes) -> None:
        if not head.startswith(b"http/1.1 200 "):
            raise WrongAnswer(f"{head!r}")
        _, named, length = head.partition(b"\r\ncontent-length:")
        self._length = int(length.split(b"\r\n", 1)[0]) if named else None

    def _next_event(self) -> None:
        upstream = self._upstreams.get(self.number)
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        if upstream is not None and upstream.has_more:
            upstream.send_next()
        elif upstream is not None and self._work.exact:
            return
        if not self._work.exact:
            self._await_silence(OTHERS_SILENT_SECONDS)
        elif self._work.scrubbed and upstream is not None and upstream.last_is_silent:
            self._await_silence(SILENT_SECONDS)

    def _await_silence(self, seconds: float) -> None:
        self._silence = asyncio.get_running_loop().call_later(seconds, self._next_event)

    def _note_delay(self, now: int) -> None:
        body, self._body = b"".join(self._body), []
        if body.startswith(b":"):
            return  # a heartbeat, while others have their turn
        upstream = self._upstreams[self.number]
        if body != STREAMS["words"].events[upstream.sent - 1]:
            raise WrongAnswer(f"not the event sent: {body!r}")
        self._tally.delays.append(now - upstream.sent_at)
        upstream.sent = 0  # it arrived

    def _finish(self, body: bytes) -> None:
        self._work.check(body)
        self._busy = False
        if self._silence is not None:
            self._silence.cancel()
            self._silence = None
        self._tally.requests += 1
        if self._tally.stopping:
            self._tally.ended()
        else:
            self.ask()


class Clients:
    """So many clients of one server. Close them."""

    def __init__(self, clients: list[Client], tally: Tally) -> None:
        self.clients = clients
        self.tally = tally

    @classmethod
    async def connected(
        cls,
        count: int,
        work: Work,
        port: int,
        upstreams: Upstreams,
        first_number: int,
        tally: Tally | None = None,
    ) -> "Clients":
        """Their numbers begin at `first_number`, which no other's may repeat."""
        tally = tally or Tally()
        loop = asyncio.get_running_loop()
        clients = []
        for number in range(first_number, first_number + count):
            client = Client(number, work, tally, upstreams)
            await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
            clients.append(client)
        return cls(clients, tally)

    def start(self) -> None:
        self.tally.stopping = False
        self.tally.idle.clear()
        self.tally.active = len(self.clients)
        for client in self.clients:
            client.ask()

    async def stop(self) -> None:
        """Let each finish its answer. Raises what went wrong with any."""
        self.tally.stopping = True
        await self.tally.idle.wait()
        self.raise_error()

    def raise_error(self) -> None:
        if self.tally.error is not None:
            raise self.tally.error

    def close(self) -> None:
        for client in self.clients:
            client.close()
