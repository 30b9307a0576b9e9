"""A writing process is killed at any moment, again and again: nothing that it was told is durable is missing."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from server_process import ROOT, environment
from store_servers import SHARED_KINDS, StoreServers

from server.store_address import make_store

KILLS = 6
WRITERS = 2


class Writer:
    """The process, and what it has acknowledged: events by record."""

    def __init__(self, address: str, name: str) -> None:
        self.acknowledged: dict[str, int] = {}
        self.enough = threading.Event()
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "storing_process.py"), address, name],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        self.reading = threading.Thread(target=self._read)
        self.reading.start()

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        self.reading.join(30)

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                if not line.endswith("\n"):
                    break  # cut by the kill
                record_id, count = line.split()
                self.acknowledged[record_id] = int(count)
                if len(self.acknowledged) == 4:
                    self.enough.set()


@pytest.mark.parametrize("kind", SHARED_KINDS)
async def test_a_killed_process_has_lost_nothing_that_was_acknowledged(
    kind: str, tmp_path: Path, store_servers: StoreServers
) -> None:
    """Two processes write at once; the numbers have no holes, and events are what was written."""
    address = store_servers.address(kind, tmp_path)
    chance = random.Random(kind)
    told: dict[str, int] = {}
    for round_number in range(KILLS // WRITERS):
        writers = [Writer(address, f"w{round_number}-{index}") for index in range(WRITERS)]
        for writer in writers:
            await asyncio.to_thread(writer.enough.wait, 60)
            await asyncio.sleep(chance.random() * 0.2)  # any moment
            writer.kill()
            told |= writer.acknowledged
    store = make_store(address)
    await store.open()
    try:
        assert len(told) == KILLS * 4
        for record_id, count in told.items():
            found: list[tuple[int, bytes]] = []
            while page := (await store.events(record_id, "me", len(found))).events:
                found += page
            assert len(found) >= count
            assert found == [(n, b"%s %d" % (record_id.encode(), n)) for n in range(len(found))]
            head = (await store.heads([record_id]))[record_id]
            assert head.next_sequence == len(found)
    finally:
        await store.close()
