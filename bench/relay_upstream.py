"""The relay benchmark's upstream: prepared bytes, as fast as Python can write them.

In: requests whose first message names a pace, a stream and a client. Out: the reply in one write, or one
event at each call of `send_next`, for which whoever holds the `Upstreams` finds the stream by the
client's number. It runs in the load's own process, so that "the client has the last" is exact.
"""

import asyncio
import json
import re
import time
from typing import cast

from bench.relay_work import MODEL, PLAIN, STREAMS, Stream

_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
# What TCP sends at once over Ethernet before it hears from the other side (RFC 6928), and when it sends more.
WINDOW_BYTES = 10 * 1448
WINDOW_SECONDS = 0.002
_ASKED = re.compile(rb"bench (\w+) (\w+) (\d+)")
_COMMON = (
    b"HTTP/1.1 200 OK\r\ndate: Thu, 01 Jan 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"x-request-id: 5b8e7f0d1c\r\n"
)
STREAM_HEAD = (
    _COMMON
    + b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
PLAIN_REPLY = _COMMON + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(PLAIN),
    PLAIN,
)
# To whoever looks whether it is alive, and what it has.
_ALIVE = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model"}]}).encode()
ALIVE_REPLY = _COMMON + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
    len(_ALIVE),
    _ALIVE,
)
BURSTS = {name: STREAM_HEAD + b"".join(stream.frames) for name, stream in STREAMS.items()}


class Upstreams(dict[int, "UpstreamConnection"]):
    """Client number → the connection on which its stream is under way."""

    def __init__(self) -> None:
        super().__init__()
        self.connections = 0


class UpstreamConnection(asyncio.Protocol):
    """One kept-alive connection."""

    def __init__(self, upstreams: Upstreams) -> None:
        self._upstreams = upstreams
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None
        self._stream: Stream = STREAMS["words"]
        self.sent = 0  # events of the stream under way
        self.sent_at = 0  # time.perf_counter_ns() of the last

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is of no such class
        self._upstreams.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._upstreams.connections -= 1

    def data_received(self, data: bytes) -> None:
        data = self._received + data
        head_end = data.find(_HEAD_END)
        if data.startswith(b"GET ") and head_end != -1:
            self._received = b""
            assert self._transport is not None
            self._transport.write(ALIVE_REPLY)
            return
        found = _LENGTH.search(data, 0, head_end) if head_end != -1 else None
        if found is None or len(data) < head_end + 4 + int(found[1]):
            self._received = data
            return
        self._received = b""
        asked = _ASKED.search(data, head_end)
        assert self._transport is not None
        if asked is None:  # some proxies try what an upstream can do
            self._transport.write(ALIVE_REPLY)
            return
        pace, name, client = asked[1].decode(), asked[2].decode(), int(asked[3])
        if pace == "plain":
            self._transport.write(PLAIN_REPLY)
        elif pace == "burst":
            self._transport.write(BURSTS[name])
        elif pace == "cut":
            self._write_cut(BURSTS[name])
        else:
            self._stream = STREAMS[name]
            self._upstreams[client] = self
            self.sent = 1
            self.sent_at = time.perf_counter_ns()
            self._transport.write(STREAM_HEAD + self._stream.frames[0])

    def _write_cut(self, rest: bytes) -> None:
        """As it comes over a real network: a window's worth at a time, whatever ends there."""
        if self._transport is not None:
            self._transport.write(rest[:WINDOW_BYTES])
            if len(rest) > WINDOW_BYTES:
                loop = asyncio.get_running_loop()
                loop.call_later(WINDOW_SECONDS, self._write_cut, rest[WINDOW_BYTES:])

    @property
    def has_more(self) -> bool:
        return self.sent < len(self._stream.frames)

    @property
    def last_is_silent(self) -> bool:
        """A scrubbing relay may have nothing to send for the last event."""
        return self.sent - 1 in self._stream.silent

    def send_next(self) -> None:
        """Send the stream's next event."""
        assert self._transport is not None
        frame = self._stream.frames[self.sent]
        self.sent += 1
        self.sent_at = time.perf_counter_ns()
        self._transport.write(frame)

    def send_word(self) -> None:
        """Send a word of a stream that never ends."""
        if self._transport is None:
            return
        self.sent = 2  # the first event was the role
        self.sent_at = time.perf_counter_ns()
        self._transport.write(self._stream.frames[1])
