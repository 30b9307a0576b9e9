"""One run of the relay benchmark: its upstream, its clients, slices by turns, and the goals.

In: servers and work. Out: CPU microseconds per unit of work, the median of slices, and requests a second.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.relay_client import Clients, Tally
from bench.relay_servers import Server
from bench.relay_upstream import UpstreamConnection, Upstreams
from bench.relay_work import Work

CLIENTS = 32
IDLE_STREAMS = 2000
SLICE_WALL_SECONDS = 4.0
STUCK_SECONDS = 30.0


@dataclass(frozen=True)
class Effort:
    """How much is measured: CPU seconds of a slice, slices of each server, seconds of paced rows."""

    slice_cpu_seconds: float = 0.45
    slices: int = 5
    delay_seconds: float = 8.0
    idle_seconds: float = 15.0
    idle_streams: int = IDLE_STREAMS


QUICK = Effort(0.15, 2, 2.0, 3.0, 500)


@dataclass
class Cost:
    """What a server's slices came to."""

    micros: list[float] = field(default_factory=list)  # CPU per unit
    requests: int = 0
    units: int = 0
    received_bytes: int = 0
    wall_seconds: float = 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.micros)

    def ratio(self, base: "Cost") -> float:
        """The median of the turns' ratios: what else the machine did in a turn hit both."""
        return float(
            statistics.median(
                [mine / other for mine, other in zip(self.micros, base.micros, strict=True)]
            )
        )

    @property
    def requests_per_second(self) -> float:
        return self.requests / self.wall_seconds

    @property
    def bytes_per_unit(self) -> float:
        return self.received_bytes / self.units


@dataclass
class Verdicts:
    """The goals, met or missed."""

    missed: list[str] = field(default_factory=list)

    def judge(self, name: str, found: float, goal: float) -> str:
        if found <= goal:
            return f"≤ {goal:g} met"
        self.missed.append(f"{name}: {found:.2f}, goal {goal:g}")
        return f"≤ {goal:g} MISSED"


class Bench:
    """All of one run: the upstream's port, its streams, and numbers for clients."""

    def __init__(self, effort: Effort) -> None:
        self.effort = effort
        self.upstreams = Upstreams()
        self.port = 0
        self.verdicts = Verdicts()
        self._next_number = 0

    async def listen(self) -> asyncio.Server:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: UpstreamConnection(self.upstreams), "127.0.0.1", 0, backlog=4096
        )
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def connected(
        self, port: int, work: Work, count: int = CLIENTS, tally: Tally | None = None
    ) -> Clients:
        first = self._next_number
        self._next_number += count
        return await Clients.connected(count, work, port, self.upstreams, first, tally)

    async def slice(self, clients: Clients, server: Server, work: Work, cost: Cost | None) -> None:
        """Load a server until it has used its slice of CPU."""
        tally = clients.tally
        before, received = tally.requests, tally.received_bytes
        cpu, began = server.cpu_seconds(), time.perf_counter()
        clients.start()
        while not tally.stopping:
            await asyncio.sleep(0.02)
            used = server.cpu_seconds() - cpu
            if (
                used >= self.effort.slice_cpu_seconds
                or time.perf_counter() - began > SLICE_WALL_SECONDS
            ):
                break
        async with asyncio.timeout(STUCK_SECONDS):
            await clients.stop()
        if cost is not None:
            done = tally.requests - before
            cost.requests += done
            cost.units += done * work.units
            cost.received_bytes += tally.received_bytes - received
            cost.wall_seconds += time.perf_counter() - began
            cost.micros.append((server.cpu_seconds() - cpu) * 1e6 / (done * work.units))

    async def costs(
        self, contenders: Sequence[tuple[Server, Work]], clients: int = CLIENTS
    ) -> list[Cost]:
        """Slices of each by turns, after one that warms it up."""
        found = [Cost() for _ in contenders]
        loads = [await self.connected(server.port, work, clients) for server, work in contenders]
        try:
            for turn in range(self.effort.slices + 1):
                for (server, work), load, cost in zip(contenders, loads, found, strict=True):
                    await self.slice(load, server, work, cost if turn else None)
        finally:
            for load in loads:
                load.close()
        return found
