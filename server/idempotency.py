"""One run for one wish: a request that is sent again joins the run in flight, or gets its end again.

In: an agent request's caller, body and headers. Out: the run to read, one that is there already where
`Idempotency-Key` says so, or where an OpenAI SDK repeats the identical body (`x-stainless-retry-count`)
while the first is still going, or has just ended with nothing but a broken connection to tell it by. Runs
that were refused, or stopped because everybody left, are forgotten.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass

from streaming.failures import InvalidRequest
from streaming.run import Run

KEY_HEADER = "Idempotency-Key"
RETRY_HEADER = "x-stainless-retry-count"
MAX_KEY_CHARACTERS = 255
# The oldest are forgotten first. A kept run holds its events: some hundred KB, at most 8 MiB.
MAX_KEPT = 1000
FORGET_EVERY_SECONDS = 1.0
# An SDK repeats what was cut off within 8 s.
UNTOLD_SECONDS = 60.0
# Nothing was concluded in these: whoever asks again means it.
INCONCLUSIVE = frozenset({"client_gone", "queue_timeout", "draining"})


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


@dataclass(frozen=True)
class Leg:
    """What one request reads of a run: from there on to its end, or to where it pauses for tools."""

    run: Run
    begin: int = 0


class Replays:
    """The legs of runs that may be joined; `keep_seconds` is how long one of an ended run may."""

    def __init__(self, keep_seconds: float) -> None:
        self._keep_seconds = keep_seconds
        self._legs: dict[tuple[str, str], tuple[Wish, Leg]] = {}
        self._forgot_at = 0.0

    def joinable(self, wish: Wish | None) -> Leg | None:
        """The leg that this wish already has. Raises InvalidRequest where its body was another."""
        self._forget_old()
        if wish is None or not wish.is_repeated:
            return None
        earlier, leg = self._legs.get((wish.caller, wish.name), (None, None))
        if earlier is None or leg is None or self._is_old(earlier, leg):
            return None
        if earlier.digest != wish.digest:
            raise InvalidRequest(
                "This Idempotency-Key was used with another body.",
                param=KEY_HEADER,
                code="idempotency_key_reused",
            )
        return leg

    def keep(self, wish: Wish | None, leg: Leg) -> None:
        """From now on the wish has this leg."""
        if wish is None:
            return
        self._legs[wish.caller, wish.name] = wish, leg
        while len(self._legs) > MAX_KEPT:
            self._legs.pop(next(iter(self._legs)))

    def _forget_old(self) -> None:
        now = time.monotonic()
        if now - self._forgot_at < FORGET_EVERY_SECONDS:
            return
        self._forgot_at = now
        for name, (wish, leg) in list(self._legs.items()):
            if self._is_old(wish, leg):
                del self._legs[name]

    def _is_old(self, wish: Wish, leg: Leg) -> bool:
        run = leg.run
        kept = self._keep_seconds if wish.lasting else 0.0
        if run.end_untold:
            kept = max(kept, UNTOLD_SECONDS)
        is_over = run.ended is not None and time.time() - run.ended >= kept
        return is_over or run.outcome in INCONCLUSIVE or not run.joinable(leg.begin)


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
