"""Tokens of relayed replies, for keys with a daily limit; nobody else's replies are looked at.

In: a relayed reply. Out: the same bytes, and at the request's end how many tokens it took: what the upstream
says, or, where it says nothing, one for each event and one for each four bytes asked.
"""

import re
from collections.abc import AsyncIterator
from dataclasses import replace

from aiohttp import web

from server.keys import KEY_HOLDER, TOKEN_METER
from streaming.relay import Relayed, RelayedEvents

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
        self._tail = b""

    def feed(self, data: bytes) -> None:
        self._events += data.count(b"data:")
        self._tail = (self._tail + data)[-TAIL_BYTES:]

    @property
    def tokens(self) -> int:
        told = tokens_told(self._tail)
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


def metered(request: web.Request, relayed: Relayed) -> Relayed:
    """The reply, counted where its caller's key has a daily limit."""
    holder = request.get(KEY_HOLDER)
    if holder is None or not holder.key.tokens_per_day or relayed.status >= 300:
        return relayed
    meter = TokenMeter(request.content_length or 0)
    request[TOKEN_METER] = meter
    if relayed.whole is not None:
        meter.feed(relayed.whole)
        return relayed
    events = relayed.events
    if events is not None:
        events = RelayedEvents(_fed(meter, events.pieces), None, events.stage)
    return replace(relayed, pieces=_fed(meter, relayed.pieces), events=events)


async def _fed(meter: TokenMeter, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    async for data in pieces:
        meter.feed(data)
        yield data
