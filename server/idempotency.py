"""One run for one wish: a request that is sent again joins the run in flight, or gets its end again.

In: an agent request's caller, body and headers. Out: the run to read, one that is there already where
`Idempotency-Key` says so, or where an OpenAI SDK repeats the identical body (`x-stainless-retry-count`)
while the first is still going. Runs that were refused, or stopped because everybody left, are forgotten.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from weakref import WeakValueDictionary

from streaming.failures import InvalidRequest
from streaming.run import Run

KEY_HEADER = "Idempotency-Key"
RETRY_HEADER = "x-stainless-retry-count"
MAX_KEY_CHARACTERS = 255
# The oldest are forgotten first. A kept run holds its events: some hundred KB, at most 8 MiB.
MAX_KEPT = 1000
FORGET_EVERY_SECONDS = 1.0
# Nothing was concluded in these: whoever asks again means it.
INCONCLUSIVE = frozenset({"client_gone", "queue_timeout", "draining", "queue_full", "key_limit"})


@dataclass(frozen=True)
class Wish:
    """What makes two requests the same. `is_repeated`: this one may join an earlier one's run;
    `lasting`: it may have the run's end, too.
    """

    caller: str
    name: str
    digest: bytes
    is_repeated: bool
    lasting: bool

    @property
    def fingerprint(self) -> bytes:
        """What it is known by outside this process: no key, no name."""
        return hashlib.sha256(f"{self.caller}\n{self.name}".encode()).digest()


class Replays:
    """The runs that may be joined; `keep_seconds` is how long an ended one may."""

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._runs: dict[tuple[str, str], tuple[Wish, Run]] = {}
        self._forgot_at = 0.0
        self._settling: WeakValueDictionary[bytes, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def settling(self, wish: Wish | None) -> AsyncIterator[None]:
        """While inside, nobody else finds out which run this wish has."""
        if wish is None:
            yield
            return
        lock = self._settling.setdefault(wish.fingerprint, asyncio.Lock())
        async with lock:
            yield

    def joinable(self, wish: Wish | None) -> Run | None:
        """The run that this wish already has. Raises InvalidRequest where its body was another."""
        self._forget_old()
        if wish is None or not wish.is_repeated:
            return None
        earlier, run = self._runs.get((wish.caller, wish.name), (None, None))
        if earlier is None or run is None or self._is_old(earlier, run):
            return None
        if earlier.digest != wish.digest:
            raise InvalidRequest(
                "This Idempotency-Key was used with another body.",
                param=KEY_HEADER,
                code="idempotency_key_reused",
            )
        return run

    def keep(self, wish: Wish | None, run: Run) -> None:
        """From now on the wish has this run."""
        if wish is None:
            return
        self._runs[wish.caller, wish.name] = wish, run
        while len(self._runs) > MAX_KEPT:
            self._runs.pop(next(iter(self._runs)))

    def _forget_old(self) -> None:
        now = time.monotonic()
        if now - self._forgot_at < FORGET_EVERY_SECONDS:
            return
        self._forgot_at = now
        for name, (wish, run) in list(self._runs.items()):
            if self._is_old(wish, run):
                del self._runs[name]

    def _is_old(self, wish: Wish, run: Run) -> bool:
        kept = self._keep_seconds if wish.lasting else 0.0
        is_over = run.ended is not None and time.time() - run.ended >= kept
        return is_over or run.outcome in INCONCLUSIVE or not run.joinable


def wish_of(headers: Mapping[str, str], body: bytes, caller: str) -> Wish | None:
    """What this request has in common with its repetitions, or None where it has nothing.

    Raises InvalidRequest for a key that is none.
    """
    key = headers.get(KEY_HEADER)
    if key is None and RETRY_HEADER not in headers:
        return None
    digest = hashlib.sha256(body).digest()
    if key is None:
        is_repeated = headers[RETRY_HEADER] not in {"", "0"}
        name = f"body:{digest.hex()}"
        return Wish(caller, name, digest, is_repeated=is_repeated, lasting=False)
    if not 0 < len(key) <= MAX_KEY_CHARACTERS:
        raise InvalidRequest(
            f"The header {KEY_HEADER} must have 1 to {MAX_KEY_CHARACTERS} characters.",
            param=KEY_HEADER,
        )
    return Wish(caller, f"key:{key}", digest, is_repeated=True, lasting=True)
