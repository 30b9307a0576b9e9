"""A process that writes to a store until it is killed, and tells of each event once that is acknowledged.

`python storing_process.py ADDRESS NAME`: several records at once, in bursts; on stdout one line for each event that
is durable: the record and the event's number.
"""

import asyncio
import os
import sys

from server.store_address import make_store
from streaming.store import Record


async def write(name: str) -> None:
    store = make_store(sys.argv[1])
    await store.open()

    async def one(record_id: str) -> None:
        record = Record(id=record_id, owner="me", kind="k", run=name, front_end=name)
        await store.create(record)
        number = 0
        while True:
            events = [b"%s %d" % (record_id.encode(), number + i) for i in range(1 + number % 3)]
            await store.append(record_id, name, number, events)
            number += len(events)
            os.write(1, f"{record_id} {number}\n".encode())  # before anything else can happen

    await asyncio.gather(*(one(f"{name}-{index}") for index in range(4)))


asyncio.run(write(sys.argv[2]))
