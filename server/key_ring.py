"""Who may call, how much, and what: keys by their hash, and what was used of each.

In: keys, and the `Authorization` of a request. Out: its `KeyHolder`, which refuses past the key's limits.
Keys are known by their SHA-256 alone: a random key has no need of a slow hash, and a table of digests is
asked in the same time whether a guess comes close or not. Counters live as long as the process and survive
a reload.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from server.upstream_settings import NOTHINK, matches
from streaming.failures import InvalidKey, KeyLimit, ModelNotFound

DAY_SECONDS = 86_400.0
MINUTE_SECONDS = 60.0
_SCHEME = "bearer "

# A key's id, requests, tokens.
Tell = Callable[[str, int, int], None]
# More models than this, and longer names, are not remembered of a key: callers name them.
MAX_ALLOWED = 256
MAX_ALLOWED_CHARACTERS = 256


@dataclass(frozen=True)
class ApiKey:
    """One key, by its digest. `id` is what logs and runs call it; `metrics`: may read `/metrics`;
    `operator`: may see and cancel everybody's runs."""

    id: str
    digest: bytes
    requests_per_minute: int = 0
    concurrent_runs: int = 0
    tokens_per_day: int = 0
    models: tuple[str, ...] = ()
    metrics: bool = False
    operator: bool = False


class KeyHolder:
    """A key and what was used of it. Of the event loop alone."""

    def __init__(self, key: ApiKey, tell: Tell = lambda *_: None) -> None:
        self._tell = tell
        self._paid_until = 0.0  # of the monotonic clock: each request moves it on by its share
        self._day = 0
        self._tokens = 0
        self.take(key)

    def take(self, key: ApiKey) -> None:
        """The key as it is set now; what was used stays."""
        self.key = key
        self._share = MINUTE_SECONDS / (key.requests_per_minute or math.inf)
        self._allowed: set[str] = set()  # the models that were asked for and may be used

    def count_request(self) -> None:
        """One more request. Raises KeyLimit past `requests_per_minute`, bursts of as many allowed."""
        if not self._share:
            return
        now = time.monotonic()
        paid_until = self._share + (self._paid_until if self._paid_until > now else now)
        if paid_until - now > MINUTE_SECONDS:
            self.check_pace(paid_until - now)
        self._paid_until = paid_until
        self._tell(self.key.id, 1, 0)

    def check_pace(self, ahead_seconds: float) -> None:
        """Raises KeyLimit where requests are paid further ahead than a minute."""
        ahead = ahead_seconds - MINUTE_SECONDS
        if ahead > 1e-6:
            raise KeyLimit(
                f"This API key may send {self.key.requests_per_minute} requests a minute.",
                retry_after=math.ceil(ahead),
            )

    def learn_tokens(self, tokens_today: int) -> None:
        """So many were used today, here and elsewhere."""
        self._begin_day()
        self._tokens = max(self._tokens, tokens_today)

    def add_tokens(self, tokens: int) -> None:
        self.note(0, tokens)
        if tokens:
            self._tell(self.key.id, 0, tokens)

    def note(self, requests: int, tokens: int) -> None:
        """So much was used, here or elsewhere."""
        if requests:
            self._paid_until = max(time.monotonic(), self._paid_until) + requests * self._share
        self._begin_day()
        self._tokens += tokens

    @property
    def tokens_today(self) -> int:
        """Since midnight UTC."""
        self._begin_day()
        return self._tokens

    def check_tokens(self) -> None:
        """Raises KeyLimit once `tokens_per_day` are used; work under way goes on."""
        most = self.key.tokens_per_day
        if most and self.tokens_today >= most:
            raise KeyLimit(
                f"This API key may use {most} tokens a day, and has.",
                retry_after=math.ceil(DAY_SECONDS - time.time() % DAY_SECONDS),
            )

    def may_use(self, model: str) -> bool:
        """`model` is an agent's or an upstream model's id, or that with `-nothink`."""
        if not self.key.models or model in self._allowed:
            return True
        names = (model, model.removesuffix(NOTHINK))
        allowed = any(matches(pattern, name) for pattern in self.key.models for name in names)
        is_short = len(model) <= MAX_ALLOWED_CHARACTERS
        if allowed and is_short and len(self._allowed) < MAX_ALLOWED:
            self._allowed.add(model)
        return allowed

    def check_model(self, model: str) -> None:
        """Raises ModelNotFound, as OpenAI does: who may not use a model is not told whether it exists."""
        if not self.may_use(model):
            raise ModelNotFound(
                f"The model '{model}' does not exist or you do not have access to it.",
                param="model",
            )

    def _begin_day(self) -> None:
        day = day_now()
        if day != self._day:
            self._day = day
            self._tokens = 0


class KeyRing:
    """All keys of a server. `load` reads them anew; without any, everybody may call.

    `tell` is told of what was used of a limited key, for other workers to `note_elsewhere`.
    """

    def __init__(self, load: Callable[[], Sequence[ApiKey]]) -> None:
        self.tell: Tell = lambda *_: None
        self._load = load
        self._holders: dict[bytes, KeyHolder] = {}
        self.reload()

    @property
    def is_set(self) -> bool:
        return bool(self._holders)

    def reload(self) -> int:
        """Take the keys as they are now; returns how many. Raises BadEntry, and keeps the old ones."""
        holders = {key.digest: KeyHolder(key, self._tell_of) for key in self._load()}
        for digest, old in self._holders.items():
            if digest in holders:
                old.take(holders[digest].key)
                holders[digest] = old
        self._holders = holders
        return len(holders)

    def holder_of(self, authorization: str) -> KeyHolder:
        """Who sends this header. Raises InvalidKey."""
        if authorization[:7].lower() == _SCHEME:
            given = authorization[7:].strip().encode("utf-8", "surrogateescape")
            if (holder := self._holders.get(hashlib.sha256(given).digest())) is not None:
                return holder
        raise InvalidKey("The API key is missing or wrong: send it as 'Authorization: Bearer KEY'.")

    def is_operator(self, holder: KeyHolder | None) -> bool:
        """It still holds a key, and one that is an operator's."""
        return (
            holder is not None
            and holder.key.operator
            and self._holders.get(holder.key.digest) is holder
        )

    def add_tokens(self, key_id: str, tokens: int) -> None:
        """A run of this key has used so many."""
        for holder in self._of_id(key_id):
            holder.add_tokens(tokens)

    def note_elsewhere(self, key_id: str, requests: int, tokens: int) -> None:
        """Another worker says what was used of this key there."""
        for holder in self._of_id(key_id):
            holder.note(requests, tokens)

    def _of_id(self, key_id: str) -> list[KeyHolder]:
        return [holder for holder in self._holders.values() if holder.key.id == key_id]

    def _tell_of(self, key_id: str, requests: int, tokens: int) -> None:
        self.tell(key_id, requests, tokens)


def day_now() -> int:
    """Days since the epoch, in UTC."""
    return int(time.time() // DAY_SECONDS)
