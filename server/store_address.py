"""The setting STORE: where is kept what outlives a request.

In: `memory`, `sqlite:PATH`, `redis://…`, `postgresql://…`, or nothing: a SQLite file in the user's state folder. Out: a
`Store`, not open yet; what it needs besides is loaded here alone.
"""

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from streaming.store import BadStore, Store

# The package that a scheme needs, and the extra that brings it.
NEEDED = {
    "redis": ("redis", "redis"),
    "rediss": ("redis", "redis"),
    "unix": ("redis", "redis"),
    "postgresql": ("psycopg", "postgres"),
    "postgres": ("psycopg", "postgres"),
}
SHARED_SCHEMES = frozenset(NEEDED)


def store_address(text: str) -> str:
    """The setting's value. Raises ValueError."""
    text = text.strip()
    if text == "memory":
        return text
    scheme, colon, rest = text.partition(":")
    if not colon or not rest.strip("/"):
        raise ValueError
    if scheme == "sqlite":
        _sqlite_parts(text)
        return text
    if scheme not in NEEDED or not rest.startswith("//"):
        raise ValueError
    urlsplit(text).port  # noqa: B018 - raises ValueError where it is none
    return text


def missing_extra(address: str) -> str | None:
    """The extra without which this store cannot be opened."""
    package, extra = NEEDED.get(address.partition(":")[0], (None, None))
    return extra if package is not None and importlib.util.find_spec(package) is None else None


def is_shared_by_nature(address: str) -> bool:
    """Other machines reach it."""
    return address.partition(":")[0] in SHARED_SCHEMES


def default_address(environment: Mapping[str, str]) -> str:
    """A file in the user's state folder, as the XDG base directories have it; without a home, memory."""
    state = environment.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):  # the specification wants such a value ignored
        home = environment.get("HOME", "")
        if not os.path.isabs(home):
            return "memory"
        state = str(Path(home) / ".local" / "state")
    return f"sqlite:{Path(state) / 'smolgate' / 'store.sqlite3'}"


def make_store(address: str) -> Store:
    """Raises BadStore where it cannot be one."""
    scheme = address.partition(":")[0]
    if scheme in {"memory", "sqlite"}:
        from streaming.stores.sqlite_store import MEMORY, SqliteStore

        if scheme == "memory":
            return SqliteStore(MEMORY)
        path, full = _sqlite_parts(address)
        return SqliteStore(path, full=full)
    if (extra := missing_extra(address)) is not None:
        raise BadStore(f"it needs the extra: pip install 'smolgate[{extra}]'")
    if scheme in {"postgresql", "postgres"}:
        from streaming.stores.postgres_store import PostgresStore

        return PostgresStore(address)
    from streaming.stores.redis_store import RedisStore

    return RedisStore(address)


def _sqlite_parts(address: str) -> tuple[str, bool]:
    """The file's path, and whether every commit is to wait for the disk (`?synchronous=full`)."""
    path, _, query = address.removeprefix("sqlite:").partition("?")
    options = parse_qs(query, strict_parsing=True) if query else {}
    synchronous = options.pop("synchronous", ["normal"])[-1].lower()
    if options or synchronous not in {"normal", "full"} or not path:
        raise ValueError
    if path.startswith("//"):  # as in a URL: sqlite:///srv/store
        path = path.removeprefix("//")
    return os.path.expanduser(path), synchronous == "full"
