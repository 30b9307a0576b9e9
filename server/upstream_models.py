"""What models an upstream itself says it has.

In: nothing. Out: ids, at most LIST_SECONDS old where the upstream answers in time; else those last known. One
request at a time, whoever asks; none that takes longer than FETCH_SECONDS.
"""

import asyncio
import logging
import time

import msgspec

from streaming.failures import SmolgateError
from streaming.upstream import Upstream

log = logging.getLogger(__name__)

LIST_SECONDS = 60.0
FETCH_SECONDS = 2.0
# How long one that does not answer is not asked again.
REFUSED_SECONDS = 5.0
MAX_LIST_BYTES = 4 << 20


class _Model(msgspec.Struct):
    id: str


class _ModelList(msgspec.Struct):
    data: list[_Model]


class UpstreamModels:
    """The list of one upstream. `wanted` is false where nobody needs it: then it is empty."""

    def __init__(self, name: str, upstream: Upstream, *, wanted: bool) -> None:
        self._name = name
        self._upstream = upstream
        self._wanted = wanted
        self._ids: list[str] = []
        self._good_until = 0.0
        self._fetching: asyncio.Task[None] | None = None

    async def ids(self) -> list[str]:
        if self._wanted and time.monotonic() >= self._good_until:
            if self._fetching is None:
                self._fetching = asyncio.create_task(self._fetch(), name=f"models of {self._name}")
            # Whoever leaves does not take the list from the others.
            await asyncio.wait([self._fetching])
        return self._ids

    async def close(self) -> None:
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.wait([self._fetching])

    async def _fetch(self) -> None:
        good_seconds = REFUSED_SECONDS
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                self._ids = await self._read()
            good_seconds = LIST_SECONDS
        except (SmolgateError, TimeoutError, ValueError) as error:
            log.warning("models of upstream %s: %s %s", self._name, type(error).__name__, error)
        finally:
            self._good_until = time.monotonic() + good_seconds
            self._fetching = None

    async def _read(self) -> list[str]:
        body = bytearray()
        reply = await self._upstream.send("GET", "/models")
        try:
            await reply.head()
            if reply.status != 200:
                raise ValueError(f"status {reply.status}")
            async for data in reply.pieces():
                body += data
                if len(body) > MAX_LIST_BYTES:
                    raise ValueError("the list is too long")
        finally:
            reply.close()
        return [model.id for model in msgspec.json.decode(body, type=_ModelList).data]
