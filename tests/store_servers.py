"""The stores that tests run over: each kind by its name, on a server that all tests of a session share."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from bench.data_servers import postgres_server, redis_server
from bench.debian_packages import Unavailable

KINDS = ("memory", "sqlite", "postgres")
SHARED_KINDS = ("sqlite", "postgres", "redis")


class StoreServers:
    """Started with the first test that needs one; closed with the session."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[AbstractContextManager[str], str]] = {}

    def address(self, kind: str, folder: Path) -> str:
        """An empty store of this kind, as STORE takes it."""
        if kind == "memory":
            return kind
        if kind == "sqlite":
            return f"sqlite:{folder}/state/store.sqlite3"
        if kind not in self._open:
            server = postgres_server() if kind == "postgres" else redis_server()
            try:
                self._open[kind] = server, server.__enter__()
            except Unavailable as error:
                if os.environ.get("CI") == "true":
                    raise
                pytest.skip(str(error))
        address = self._open[kind][1]
        _empty(address)
        return address

    def close(self) -> None:
        for server, _ in self._open.values():
            server.__exit__(None, None, None)


def _empty(address: str) -> None:
    if address.startswith("postgresql"):
        import psycopg

        with psycopg.connect(address, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        return
    import redis

    client = redis.Redis.from_url(address)
    client.flushall()
    client.close()
