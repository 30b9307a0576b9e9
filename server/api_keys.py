"""API keys: who may call, how much, and what.

In: `API_KEYS` (keys or their hashes, by commas) and `API_KEYS_FILE` (one a line, or a JSON list with limits).
Out: a `KeyRing`, which knows keys by their SHA-256 alone: a random key has no need of a slow hash, and a
table of digests is asked in the same time whether a guess comes close or not. Counters live as long as the
process and survive a reload.
"""

import hashlib
import math
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from server.upstream_settings import NOTHINK, BadEntry, matches
from streaming.failures import InvalidKey, KeyLimit, ModelNotFound

HASH_MARK = "sha256:"
DAY_SECONDS = 86_400.0
MINUTE_SECONDS = 60.0
_SCHEME = "bearer "


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One element of a keys file. 0 and an empty list do not limit."""

    key: str
    name: str | None = None
    requests_per_minute: int = 0
    concurrent_runs: int = 0
    tokens_per_day: int = 0
    models: list[str] = []
    metrics: bool = False


@dataclass(frozen=True)
class ApiKey:
    """One key, by its digest. `id` is what logs and runs call it; `metrics`: may read `/metrics`."""

    id: str
    digest: bytes
    requests_per_minute: int = 0
    concurrent_runs: int = 0
    tokens_per_day: int = 0
    models: tuple[str, ...] = ()
    metrics: bool = False


class KeyHolder:
    """A key and what was used of it. Of the event loop alone."""

    def __init__(self, key: ApiKey) -> None:
        self.key = key
        self._paid_until = 0.0  # of the monotonic clock: each request moves it on by its share
        self._day = 0
        self._tokens = 0

    def count_request(self) -> None:
        """One more request. Raises KeyLimit past `requests_per_minute`, bursts of as many allowed."""
        if not self.key.requests_per_minute:
            return
        now = time.monotonic()
        paid_until = max(now, self._paid_until) + MINUTE_SECONDS / self.key.requests_per_minute
        ahead = paid_until - now - MINUTE_SECONDS
        if ahead > 1e-6:
            raise KeyLimit(
                f"This API key may send {self.key.requests_per_minute} requests a minute.",
                retry_after=math.ceil(ahead),
            )
        self._paid_until = paid_until

    def add_tokens(self, tokens: int) -> None:
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
        allowed = self.key.models
        if not allowed:
            return True
        names = (model, model.removesuffix(NOTHINK))
        return any(matches(pattern, name) for pattern in allowed for name in names)

    def check_model(self, model: str) -> None:
        """Raises ModelNotFound, as OpenAI does: who may not use a model is not told whether it exists."""
        if not self.may_use(model):
            raise ModelNotFound(
                f"The model '{model}' does not exist or you do not have access to it.",
                param="model",
            )

    def _begin_day(self) -> None:
        day = int(time.time() // DAY_SECONDS)
        if day != self._day:
            self._day = day
            self._tokens = 0


class KeyRing:
    """All keys of a server. `load` reads them anew; without any, everybody may call."""

    def __init__(self, load: Callable[[], Sequence[ApiKey]]) -> None:
        self._load = load
        self._holders: dict[bytes, KeyHolder] = {}
        self.reload()

    @property
    def is_set(self) -> bool:
        return bool(self._holders)

    def reload(self) -> int:
        """Take the keys as they are now; returns how many. Raises BadEntry, and keeps the old ones."""
        holders = {key.digest: KeyHolder(key) for key in self._load()}
        for digest, old in self._holders.items():
            if digest in holders:
                old.key = holders[digest].key
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

    def add_tokens(self, key_id: str, tokens: int) -> None:
        """A run of this key has used so many."""
        for holder in self._holders.values():
            if holder.key.id == key_id:
                holder.add_tokens(tokens)


def load_keys(given: Sequence[str], path: str | None) -> tuple[ApiKey, ...]:
    """The keys of both settings, as they are now. Raises BadEntry."""
    keys = tuple(_key(KeyEntry(text)) for text in given)
    if path is not None:
        keys += keys_of_file(path)
    try:
        _check_distinct(keys)
    except ValueError as error:
        raise BadEntry(f" and API_KEYS cannot work together: {error}") from None
    return keys


def parse_keys(text: str) -> tuple[str, ...]:
    """Keys and hashes by commas, as hashes. Raises ValueError."""
    keys = hashed(part.strip() for part in text.split(",") if part.strip())
    if not keys or len(set(keys)) < len(keys):
        raise ValueError
    return keys


def hashed(keys: Iterable[str]) -> tuple[str, ...]:
    """Keys, of which some are hashes already, as hashes. Raises ValueError."""
    return tuple(HASH_MARK + _key(KeyEntry(key)).digest.hex() for key in keys)


def keys_of_file(path: str) -> tuple[ApiKey, ...]:
    """The keys of a file. Raises BadEntry, which says where and never shows a key."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError):
        raise BadEntry(f" is {path!r}, which cannot be read; allowed is a file of keys") from None
    if text.lstrip().startswith("["):
        return _of_json(text)
    lines = (line.strip() for line in text.splitlines())
    try:
        found = tuple(_key(KeyEntry(line)) for line in lines if line and not line.startswith("#"))
        _check_filled(found)
        _check_distinct(found)
    except ValueError:
        raise BadEntry(f" is {path!r}; allowed is one key or hash a line, each once") from None
    return found


def check_file(path: str) -> str:
    """The path, once its keys have been read. Raises BadEntry."""
    keys_of_file(path)
    return path


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _of_json(text: str) -> tuple[ApiKey, ...]:
    try:
        entries = msgspec.json.decode(text, type=list[KeyEntry])
    except msgspec.ValidationError as error:
        said, _, where = str(error).partition(" - at `$")
        raise BadEntry(
            f"{where.rstrip('`')} does not fit: {said[:1].lower()}{said[1:]}; "
            "allowed is what docs/operations.md lists"
        ) from None
    except (msgspec.DecodeError, RecursionError):
        raise BadEntry(" is no valid JSON; allowed is a list of keys, or one a line") from None
    found: list[ApiKey] = []
    for index, entry in enumerate(entries):
        try:
            found.append(_key(entry))
        except ValueError as error:
            raise BadEntry(f"[{index}] cannot work: {error}") from None
    try:
        _check_filled(found)
        _check_distinct(found)
    except ValueError as error:
        raise BadEntry(f" cannot work: {error}") from None
    return tuple(found)


def _key(entry: KeyEntry) -> ApiKey:
    """Raises ValueError, which does not show the key."""
    text = entry.key
    if text.startswith(HASH_MARK):
        if not re.fullmatch(r"[0-9a-f]{64}", text[len(HASH_MARK) :]):
            raise ValueError("its hash is not sha256: and 64 hexadecimal digits")
        digest = bytes.fromhex(text[len(HASH_MARK) :])
    elif re.fullmatch(r"[!-+\--~]+", text):
        digest = digest_of(text)
    else:
        raise ValueError("its key is not printable ASCII without blanks and commas")
    if entry.name is not None and not re.fullmatch(r"[\w.@:/-]{1,64}", entry.name, re.ASCII):
        raise ValueError("its name is not of letters, digits and . _ @ : / -")
    limits = (entry.requests_per_minute, entry.concurrent_runs, entry.tokens_per_day)
    if min(limits) < 0:
        raise ValueError("a limit is below 0")
    return ApiKey(
        entry.name or digest.hex()[:12], digest, *limits, tuple(entry.models), entry.metrics
    )


def _check_filled(keys: Sequence[ApiKey]) -> None:
    """A file of no keys would open the server to everybody."""
    if not keys:
        raise ValueError("there is no key in it")


def _check_distinct(keys: Sequence[ApiKey]) -> None:
    for values in ([key.digest for key in keys], [key.id for key in keys]):
        if len(set(values)) < len(values):
            raise ValueError("a key or a name is in it twice")
