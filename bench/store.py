"""What keeping costs: events a second, how long one takes until it is durable, and the CPU of a stored stream.

`python -m bench.store [sqlite postgres redis …]`: for each store, one writer alone (latency p50 and p99 of an acknowledged
event), many at once (events a second, each append waited for), and a stream of 40 events, written and read one by one.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench.data_servers import postgres_server, redis_server
from bench.debian_packages import Unavailable
from server.store_address import make_store
from streaming.store import Record, Store

EVENT = (
    b'data: {"id":"chatcmpl-0123456789","choices":[{"index":0,"delta":{"content":"word "}}]}\n\n'
)
ALONE = 500
WRITERS, BATCHES, BATCH = 64, 60, 4
REQUEST_EVENTS = 40


@contextmanager
def _address(kind: str) -> Iterator[str]:
    with ExitStack() as stack:
        if kind == "memory":
            yield kind
        elif kind.startswith("sqlite"):
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            full = "?synchronous=full" if kind == "sqlite-full" else ""
            yield f"sqlite:{folder}/store.sqlite3{full}"
        else:
            server = postgres_server() if kind == "postgres" else redis_server()
            yield stack.enter_context(server)


async def _record(store: Store, name: str) -> None:
    await store.create(Record(id=name, owner="o", kind="bench", run="r", front_end="f"))


async def _alone(store: Store) -> list[float]:
    await _record(store, "alone")
    seconds = []
    for number in range(ALONE):
        began = time.perf_counter()
        await store.append("alone", "r", number, [EVENT])
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)


async def _together(store: Store) -> tuple[float, float]:
    """Events a second of all writers, and of this process's CPU."""

    async def write(name: str) -> None:
        await _record(store, name)
        for number in range(0, BATCHES * BATCH, BATCH):
            await store.append(name, "r", number, [EVENT] * BATCH)

    began, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(write(f"w{index}") for index in range(WRITERS)))
    events = WRITERS * BATCHES * BATCH
    return events / (time.perf_counter() - began), events / (time.process_time() - cpu)


async def _request(store: Store) -> float:
    """Seconds of CPU that one stored stream costs: its record, its events one by one, read once."""
    cpu = time.process_time()
    for index in range(50):
        name = f"s{index}"
        await _record(store, name)
        for number in range(REQUEST_EVENTS):
            await store.append(name, "r", number, [EVENT])
            await store.events(name, "o", number)
        await store.finish(name, "r", status="completed", first=REQUEST_EVENTS)
    return (time.process_time() - cpu) / 50


async def measure(kind: str) -> str:
    """One line. Raises Unavailable."""
    with _address(kind) as address:
        store = make_store(address)
        await store.open()
        try:
            alone = await _alone(store)
            a_second, a_cpu_second = await _together(store)
            request = await _request(store)
        finally:
            await store.close()
    median, worst = statistics.median(alone), alone[len(alone) * 99 // 100]
    return (
        f"{kind:12} {median * 1e3:8.3f} ms {worst * 1e3:8.3f} ms {a_second:10,.0f} "
        f"{a_cpu_second:12,.0f} {request * 1e3:10.2f} ms"
    )


def main() -> None:
    print("store         p50 durable  p99 durable   events/s  events/CPU-s  CPU of a stream of 40")
    for kind in sys.argv[1:] or ("memory", "sqlite", "sqlite-full", "postgres", "redis"):
        try:
            print(asyncio.run(measure(kind)), flush=True)
        except Unavailable as error:
            print(f"{kind:12} not measured: {error}")


if __name__ == "__main__":
    main()
