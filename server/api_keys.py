"""The settings `API_KEYS`, `API_KEYS_FILE` and `OPERATOR_KEYS` → keys.

In: keys or their hashes, by commas; a file of them, one a line, or a JSON list with limits. Out: `ApiKey`s, each
once. What cannot work is refused without a key being shown.
"""

import hashlib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from server.key_ring import ApiKey
from server.upstream_settings import BadEntry

HASH_MARK = "sha256:"


class KeyEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One element of a keys file. 0 and an empty list do not limit."""

    key: str
    name: str | None = None
    requests_per_minute: int = 0
    concurrent_runs: int = 0
    tokens_per_day: int = 0
    models: list[str] = []
    metrics: bool = False
    operator: bool = False


def load_keys(
    given: Sequence[str], path: str | None, operators: Sequence[str] = ()
) -> tuple[ApiKey, ...]:
    """The keys of all settings, as they are now. Raises BadEntry."""
    keys = tuple(_key(KeyEntry(text)) for text in given)
    keys += tuple(_key(KeyEntry(text, operator=True)) for text in operators)
    if path is not None:
        keys += keys_of_file(path)
    try:
        _check_distinct(keys)
    except ValueError as error:
        raise BadEntry(f", API_KEYS and OPERATOR_KEYS cannot work together: {error}") from None
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
        entry.name or digest.hex()[:12],
        digest,
        *limits,
        tuple(entry.models),
        entry.metrics,
        entry.operator,
    )


def _check_filled(keys: Sequence[ApiKey]) -> None:
    """A file of no keys would open the server to everybody."""
    if not keys:
        raise ValueError("there is no key in it")


def _check_distinct(keys: Sequence[ApiKey]) -> None:
    for values in ([key.digest for key in keys], [key.id for key in keys]):
        if len(set(values)) < len(values):
            raise ValueError("a key or a name is in it twice")
