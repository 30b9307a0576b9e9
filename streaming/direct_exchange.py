"""One exchange on a connection of its own, with as little in between as its reply allows.

In: a request as bytes, and a connection's doing. Out: an `UpstreamReply`. The request is written in one piece. An
event stream's chunked bytes are handed on in the very callback that they come in, a short body is collected; any
other body, and a reply whose head is not an ordinary one, goes through aiohttp's parser.
"""

import re
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import aiohttp

from streaming.failures import UpstreamFailed
from streaming.http_head import has_control
from streaming.reply_head import ReplyHead, ordinary_head
from streaming.upstream_reply import (
    OnData,
    OnLost,
    Taken,
    UpstreamReply,
    broken_off,
    is_held,
    read_through,
)

if TYPE_CHECKING:
    import asyncio

    from streaming.direct_connections import Address, DirectHandler

# Heads are small; aiohttp has limits of its own for what is in them.
MAX_HEAD_BYTES = 64 * 1024
# What may come before anybody takes a stream; more waits in the kernel.
MAX_WAITING_BYTES = 256 * 1024
# Bodies up to this size are collected, if they say how long they are.
MAX_COLLECTED_BYTES = 1 << 20

# A connection kept from before that ends this soon after a request, without a byte, had been closed by the
# upstream before the request came: llama.cpp does so after each stream, others after some seconds of rest.
STALE_SECONDS = 1.0
# So often such a request is sent once more; each time on a connection that rested for less time, the last time
# on a new one: after a restart nothing that rests may be of use.
MAX_STALE = 3

# What ends a head; aiohttp also takes lines that end in a line feed alone.
_BLANK_LINE = re.compile(rb"\n\r?\n")


class _State:
    """No Enum: its members take CPython 3.11 as long as a call."""

    HEAD = "the head is being read"
    WAITING = "an event stream waits to be taken"
    TAKEN = "its bytes go to whoever took it"
    COLLECTING = "a body of known length is being read"
    PARSED = "aiohttp reads the body"
    DONE = "the reply has been read to its end; no byte may follow"


class DirectReply(UpstreamReply):
    """One exchange: `send` its request first."""

    _handler: "DirectHandler"

    # What it begins with.
    _state = _State.HEAD
    _waiter: "asyncio.Future[None] | None" = None  # of the head, or of a collected body
    _error: Exception | None = None
    _has_heard = False
    _is_stale = False  # nothing came of it, and nothing was begun
    _sent_at = 0.0
    _bytes = b""
    _head_bytes = 0  # of these, which aiohttp's parser has not seen
    _missing = 0  # bytes of a collected body
    _is_parsing = False  # aiohttp's parser has been asked
    _reader: aiohttp.StreamReader | None = None
    _on_lost: OnLost | None = None
    _is_promised = False  # somebody will take the stream
    _is_held = False  # we paused the transport

    def __init__(self, address: "Address", request: bytes, *, raw: bool) -> None:
        self._address = address
        self._loop = address.loop
        self._request = request
        self._raw = raw
        self._parts: list[bytes] = []

    def send(self, handler: "DirectHandler") -> None:
        """Write the request on a connection."""
        self._handler = handler
        self._sent_at = self._loop.time()
        handler.reply = self
        handler.receive = self._read_head
        handler.exchanges += 1
        if handler.transport is not None:
            handler.transport.write(self._request)
        else:
            self.broke(None)

    @property
    def progress(self) -> int:
        if self._state is _State.HEAD:
            return 0
        self._handler.count_next_read()
        return self._handler.reads

    @property
    def is_paused(self) -> bool:
        return is_held(self._handler.transport)

    async def head(self) -> None:
        repeats = MAX_STALE
        while True:
            try:
                await self._while(_State.HEAD)
                break
            except UpstreamFailed:
                if not self._is_stale or not repeats:
                    raise
            repeats -= 1
            self._leave()
            self._error, self._is_stale = None, False
            handler = self._address.rested() if repeats else None
            self.send(handler if handler is not None else await self._address.connect())
        self._request = b""

    async def body(self) -> bytes:
        if self._state is _State.COLLECTING:
            await self._while(_State.COLLECTING)
        if self._parts:
            return b"".join(self._parts)
        return await super().body()

    async def pieces(self) -> AsyncIterator[bytes]:
        if self._state is _State.COLLECTING or self._parts:
            yield await self.body()
            return
        self.go_public()
        if self._error is not None:
            raise self._error
        if self._reader is not None:
            async for data in read_through(self._reader):
                yield data

    def take(self) -> Taken | None:
        if self._state is not _State.WAITING:
            return None
        self._is_promised = True
        return Taken(self._start, self._pause, self._resume, self._finish)

    def fail(self, error: Exception) -> None:
        if self._is_read:
            return
        self._error = self._error or error
        if self._state is _State.TAKEN and self._on_lost is not None:
            self._on_lost(error)
        elif self._state is _State.PARSED and self._reader is not None:
            self._reader.set_exception(error)
        self._wake()

    def close(self) -> None:
        super().close()
        handler = self._handler
        if handler.reply is not self:
            return
        transport = handler.transport
        if transport is not None and transport.get_write_buffer_size():
            transport.abort()  # what it has not taken of a request it would be sent for ever
        self._on_lost = None
        if self._is_read:
            self._reader = None
            self._parts = []
            self._state = _State.DONE
            self._resume()
            handler.reply = None
            self._address.rest(handler)
        else:
            self._leave()

    def _leave(self) -> None:
        self._handler.reply = None
        self._handler.leave()

    @property
    def _is_read(self) -> bool:
        """Nothing of it is left in the connection."""
        if self._state is _State.PARSED:
            return self._reader is not None and self._reader.is_eof()
        return self._state is _State.DONE

    # What the connection tells.

    def _read_head(self, data: bytes) -> None:
        self._has_heard = True
        if self._bytes:
            data = self._bytes + data
        head = None if self._is_parsing else ordinary_head(data)
        if head is None or not self._begins(head):
            self._parse_head(data)
            return
        _, _, _, stays_open, end = head
        if not stays_open:
            self._handler.force_close()
        if len(data) > end:
            self._handler.reads = 1
        if self._state is _State.COLLECTING:
            self._bytes = b""
            self._collect(data[end:])
        else:
            self._bytes, self._head_bytes = data, end
        self._wake()

    def _begins(self, head: ReplyHead) -> bool:
        """Whether what comes behind this head is read here."""
        self.status, self.headers, length, _, _ = head
        if length is None:
            if self._has_events:
                self._begin_body(_State.WAITING, self._wait)
        elif length <= MAX_COLLECTED_BYTES:
            self._missing = length
            self._begin_body(_State.COLLECTING, self._collect)
        return self._state is not _State.HEAD

    @property
    def _has_events(self) -> bool:
        return self.status == 200 and self.content_type == "text/event-stream"

    def _parse_head(self, data: bytes) -> None:
        self._bytes = b""
        while self._state is _State.HEAD:  # interim replies come before it
            blank_line = _BLANK_LINE.search(data)
            if blank_line is None:
                self._bytes = data
                if len(data) > MAX_HEAD_BYTES:
                    self.broke(aiohttp.ClientPayloadError("its head is too long"))
                return
            self._parse(data[: blank_line.end()])
            if self._error is not None:
                return
            data = data[blank_line.end() :]
        if data:
            self._handler.reads = 1
            self._handler.receive(data)
        self._wake()

    def _parse(self, data: bytes) -> None:
        if not self._is_parsing:
            self._is_parsing = True
            self._handler.begin_parsing(raw=self._raw)
        self._handler.parse(data)

    def head_received(self, message: Any, reader: aiohttp.StreamReader) -> None:
        """Called from within `DirectHandler.parse`."""
        if self._reader is not None:  # another reply, behind the one that was asked for
            self._handler.force_close()
            return
        if message.code == 101:
            self.broke(aiohttp.ClientPayloadError("it switches protocols without being asked"))
        if has_control(message.headers):
            self.broke(aiohttp.ClientPayloadError("a header holds a control character"))
            return
        if message.code < 200:
            return
        self._reader = reader
        if self._state is not _State.HEAD:
            return
        self.status = message.code
        self.headers = message.headers
        if message.chunked and self._has_events and "Content-Encoding" not in message.headers:
            self._begin_body(_State.WAITING, self._wait)
        else:
            self._begin_body(_State.PARSED, self._handler.parse)

    def _begin_body(self, state: str, receive: OnData) -> None:
        self._state = state
        self._handler.receive = receive
        self._handler.reads = 0

    def broke(self, error: Exception | None) -> None:
        """The connection is lost, or what came of it cannot be read."""
        if self._state is _State.DONE or self._error is not None:
            return
        if self._state is _State.PARSED:
            reader = self._reader
            if reader is not None and not reader.is_eof() and reader.exception() is None:
                reader.set_exception(aiohttp.ClientPayloadError(str(error or "it was closed")))
            return
        silent_seconds = self._loop.time() - self._sent_at
        self._is_stale = (
            self._state is _State.HEAD
            and self._handler.exchanges > 1
            and not self._has_heard
            and silent_seconds < STALE_SECONDS
        )
        if self._is_stale:
            self._error = UpstreamFailed("The upstream had closed its connection.")
        else:
            self._error = broken_off(error or aiohttp.ServerDisconnectedError())
        if self._state is _State.TAKEN and self._on_lost is not None:
            self._on_lost(self._error)
        self._wake()

    def _wait(self, data: bytes) -> None:
        self._bytes += data
        if len(self._bytes) > MAX_WAITING_BYTES:
            self._pause()

    def _collect(self, data: bytes) -> None:
        if data:
            self._parts.append(data)
            self._missing -= len(data)
        if self._missing > 0:
            return
        if self._missing < 0:  # more than it said
            self._parts[-1] = data[: self._missing]
            self._handler.force_close()
        self._end()
        self._wake()

    def _start(self, on_data: OnData, on_lost: OnLost) -> bytes:
        data, self._bytes = self._bytes[self._head_bytes :], b""
        self._state = _State.TAKEN
        self._on_lost = on_lost
        self._handler.open_tap(on_data)
        self._resume()
        if self._error is not None:  # after what has come
            self._loop.call_soon(on_lost, self._error)
        return data

    def _finish(self) -> None:
        if self._state is _State.TAKEN:
            self._end()

    def _pause(self) -> None:
        transport = self._handler.transport
        if not self._is_held and transport is not None and not transport.is_closing():
            self._is_held = True
            transport.pause_reading()

    def _resume(self) -> None:
        if self._is_held:
            self._is_held = False
            transport = self._handler.transport
            if transport is not None and not transport.is_closing():
                transport.resume_reading()

    def _end(self) -> None:
        self._state = _State.DONE
        self._handler.close_tap()
        self._handler.receive = self._handler.refuse
        if self._reader is not None:
            self._reader.feed_eof()

    def go_public(self) -> None:
        """Let aiohttp read a stream that nobody took: it has the rest, or the end, to make sense of."""
        if self._state is _State.WAITING and not self._is_promised:
            self._state = _State.PARSED
            self._handler.receive = self._handler.parse
            data, self._bytes = self._bytes, b""
            if data:
                self._parse(data)
            self._resume()

    async def _while(self, state: str) -> None:
        while self._state is state and self._error is None:
            self._waiter = self._loop.create_future()
            await self._waiter
        if self._error is not None:
            raise self._error

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
