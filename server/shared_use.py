"""What is used of API keys, counted in a shared store: limits are those of all front ends together.

In: requests of limited keys, and tokens as they are used. Out: a refusal where the key has used up what it may, anywhere. While
the store cannot be had, this process counts for itself.
"""

import asyncio
import logging
from collections import Counter

from server.key_ring import KeyHolder
from server.presence import Presence
from streaming.store import StoreFailed

log = logging.getLogger("server")

RETRY_SECONDS = 1.0


class SharedUse:
    """`note` is the key ring's `tell`."""

    def __init__(self, presence: Presence) -> None:
        self._presence = presence
        self._store = presence.store
        self._untold: Counter[str] = Counter()  # tokens, by key
        self._some = asyncio.Event()
        self._telling = asyncio.get_running_loop().create_task(self._tell())

    async def close(self) -> None:
        self._telling.cancel()
        await asyncio.gather(self._telling, return_exceptions=True)
        try:
            await self._flush()
        except StoreFailed as error:
            log.warning("tokens of %d keys are not counted: %s", len(self._untold), error)

    async def count_request(self, holder: KeyHolder) -> None:
        """One more request. Raises KeyLimit past `requests_per_minute`."""
        key = holder.key
        if not key.requests_per_minute and not key.tokens_per_day:
            return
        if not self._presence.reachable:
            holder.count_request()
            return
        try:
            used = await self._store.use_key(
                key.id, requests=1, tokens=0, per_minute=key.requests_per_minute
            )
        except StoreFailed as error:
            log.warning("a key's requests are counted by this server alone: %s", error)
            holder.count_request()
            return
        holder.learn_tokens(used.tokens_today + self._untold[key.id])
        if key.requests_per_minute:
            holder.check_pace(used.ahead_seconds)

    def note(self, key_id: str, requests: int, tokens: int) -> None:
        """So many tokens were used here."""
        if tokens:
            self._untold[key_id] += tokens
            self._some.set()

    async def _tell(self) -> None:
        while True:
            await self._some.wait()
            self._some.clear()
            try:
                await self._flush()
            except StoreFailed:
                self._some.set()
                await asyncio.sleep(RETRY_SECONDS)

    async def _flush(self) -> None:
        for key_id, tokens in list(self._untold.items()):
            if tokens:
                await self._store.use_key(key_id, requests=0, tokens=tokens, per_minute=0)
            self._untold[key_id] -= tokens
            if not self._untold[key_id]:
                del self._untold[key_id]
