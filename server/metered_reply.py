"""Tokens of relayed replies, for keys with a daily limit; nobody else's replies are looked at.

In: a relayed reply. Out: the same bytes, and at the request's end how many tokens it took: what the upstream
says, or, where it says nothing, one for each event and one for each four bytes asked.
"""

import re
from collections.abc import AsyncIterator
from functools import partial

from aiohttp import web

from server.keys import KEY_HOLDER, TOKEN_METER
from streaming.relay import Relayed
from streaming.upstream_reply import OnData, OnLost, Taken, UpstreamReply

# The usage comes last, or next to last.
TAIL_BYTES = 8192
BYTES_PER_TOKEN = 4
_TOTAL = re.compile(rb'"total_tokens"\s*:\s*(\d{1,12})')
_PARTS = re.compile(rb'"(?:prompt|completion|input|output)_tokens"\s*:\s*(\d{1,12})')


class TokenMeter:
    """Fed with a reply's bytes; `tokens` is its count so far."""

    def __init__(self, asked_bytes: int) -> None:
        self._asked_bytes = asked_bytes
        self._events = 0
        # In pieces: to join them at each event would copy all of it each time.
        self._tail: list[bytes] = []
        self._tail_bytes = 0

    def feed(self, data: bytes) -> None:
        self._events += data.count(b"data:")
        self._tail.append(data)
        self._tail_bytes += len(data)
        if self._tail_bytes > 2 * TAIL_BYTES:
            self._tail = [self._last_bytes()]
            self._tail_bytes = TAIL_BYTES

    def _last_bytes(self) -> bytes:
        return b"".join(self._tail)[-TAIL_BYTES:]

    @property
    def tokens(self) -> int:
        told = tokens_told(self._last_bytes())
        return self._events + self._asked_bytes // BYTES_PER_TOKEN if told is None else told


def tokens_told(reply: bytes) -> int | None:
    """The tokens that a reply's own usage counts. What a model writes is escaped and looks otherwise."""
    begin = reply.rfind(b'"usage"')
    if begin < 0:
        return None
    usage = reply[begin:]
    if found := _TOTAL.search(usage):
        return int(found[1])
    parts = _PARTS.findall(usage)
    return sum(map(int, parts)) if parts else None


class MeteredReply(UpstreamReply):
    """A reply whose body the meter sees on its way."""

    def __init__(self, reply: UpstreamReply, meter: TokenMeter) -> None:
        super().__init__()
        self._reply = reply
        self._meter = meter
        self.status, self.headers = reply.status, reply.headers

    async def head(self) -> None:
        await self._reply.head()

    @property
    def progress(self) -> int:
        return self._reply.progress

    @property
    def is_paused(self) -> bool:
        return self._reply.is_paused

    async def pieces(self) -> AsyncIterator[bytes]:
        async for data in self._reply.pieces():
            self._meter.feed(data)
            yield data

    def take(self) -> Taken | None:
        taken = self._reply.take()
        return None if taken is None else taken._replace(start=partial(self._start, taken))

    def _start(self, taken: Taken, on_data: OnData, on_lost: OnLost) -> bytes:
        def on_seen(data: bytes) -> None:
            self._meter.feed(data)
            on_data(data)

        first = taken.start(on_seen, on_lost)
        self._meter.feed(first)
        return first

    def fail(self, error: Exception) -> None:
        self._reply.fail(error)

    def close(self) -> None:
        super().close()
        self._reply.close()


def metered(request: web.Request, relayed: Relayed) -> None:
    """Count the reply where its caller's key has a daily limit."""
    holder = request.get(KEY_HOLDER)
    if holder is None or not holder.key.tokens_per_day or relayed.status >= 300:
        return
    meter = TokenMeter(request.content_length or 0)
    request[TOKEN_METER] = meter
    if relayed.whole is not None:
        meter.feed(relayed.whole)
    else:
        relayed.reply = MeteredReply(relayed.reply, meter)
