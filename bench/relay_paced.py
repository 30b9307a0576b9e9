"""The relay's delay: streams whose events come at a pace of their own, few and many.

In: servers. Out, printed: how much later an event alone arrives; for many idle streams also the memory
of each and the CPU of an event. Servers take turns, so that what else the machine does hits them alike.
"""

import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from bench.debian_packages import Unavailable
from bench.relay_client import Clients, Tally
from bench.relay_run import CLIENTS, STUCK_SECONDS, Bench
from bench.relay_servers import Server, gateway_server, nginx_server
from bench.relay_work import Work, WrongAnswer

DELAY_GAP_SECONDS = 0.02
IDLE_GAP_SECONDS = 0.5
TURNS = 5
# Streams are opened by batches: a listener's backlog is bounded.
BATCH = 50
IDLE_RSS_KIB, IDLE_CPU_RATIO, IDLE_DELAY_MS = 30.0, 2.0, 0.5


@dataclass
class Paced:
    """Streams of one server, and what came of them; delays in milliseconds, a figure per turn."""

    name: str
    load: Clients
    server: Server | None = None
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    sent: int = 0
    late: int = 0

    @property
    def medians(self) -> tuple[float, float]:
        return statistics.median(self.p50), statistics.median(self.p99)

    @property
    def micros(self) -> float:
        return self.cpu_seconds * 1e6 / self.sent

    async def turn(self, bench: Bench, gap_seconds: float, seconds: float) -> None:
        """Send each stream a word every gap, evenly spread; none where the last is still under way."""
        clients, delays = self.load.clients, self.load.tally.delays
        delays.clear()
        cpu = self.server.cpu_seconds() if self.server else 0.0
        began, done = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - began) < seconds:
            self.load.raise_error()
            for due in range(done, int(elapsed / gap_seconds * len(clients))):
                upstream = bench.upstreams[clients[due % len(clients)].number]
                if upstream.sent:
                    self.late += 1
                else:
                    upstream.send_word()
                    self.sent += 1
                done = due + 1
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.1)
        self.cpu_seconds += self.server.cpu_seconds() - cpu if self.server else 0.0
        self.p50.append(percentile(delays, 0.5))
        self.p99.append(percentile(delays, 0.99))

    def forget(self) -> None:
        """The first turn only warms up."""
        self.p50, self.p99, self.cpu_seconds, self.sent, self.late = [], [], 0.0, 0, 0


def percentile(nanoseconds: list[int], share: float) -> float:
    """Milliseconds."""
    delays = sorted(nanoseconds)
    return delays[min(len(delays) - 1, int(len(delays) * share))] / 1e6


async def open_streams(bench: Bench, port: int, count: int) -> Clients:
    """Streams whose first event has come through."""
    load = Clients([], Tally())
    while len(load.clients) < count:
        batch = min(BATCH, count - len(load.clients))
        more = await bench.connected(port, Work("idle"), batch, load.tally)
        more.start()
        load.clients += more.clients
        deadline = time.perf_counter() + STUCK_SECONDS
        while len(load.tally.delays) < len(load.clients):
            load.raise_error()
            if time.perf_counter() > deadline:
                raise WrongAnswer("an idle stream did not begin")
            await asyncio.sleep(0.001)
    return load


async def take_turns(
    bench: Bench, contenders: Sequence[Paced], gap_seconds: float, seconds: float
) -> None:
    """`seconds` of each, in turns."""
    for turn in range(TURNS + 1):
        for each in contenders:
            await each.turn(bench, gap_seconds, seconds / TURNS)
            if not turn:
                each.forget()


async def delay_row(bench: Bench, servers: Sequence[Server]) -> None:
    """How much later an event alone arrives, with 32 streams of fifty events a second."""
    print(f"\nadded delay: {CLIENTS} streams, an event every {DELAY_GAP_SECONDS * 1e3:g} ms each")
    contenders = []
    try:
        for name, port in (("direct", bench.port), *((each.name, each.port) for each in servers)):
            contenders.append(Paced(name, await open_streams(bench, port, CLIENTS)))
        await take_turns(bench, contenders, DELAY_GAP_SECONDS, bench.effort.delay_seconds)
    finally:
        for each in contenders:
            each.load.close()
    direct = contenders[0].medians
    for each in contenders:
        p50, p99 = each.medians
        print(
            f"  {each.name:16} p50 {p50:6.3f} ms  p99 {p99:6.3f} ms   added "
            f"{p50 - direct[0]:6.3f} and {p99 - direct[1]:6.3f} ms"
        )


async def idle_row(bench: Bench) -> None:
    """Memory, CPU and delay of many slow streams, on servers that have done little else."""
    count = bench.effort.idle_streams
    print(f"\n{count:,} idle streams, an event every {IDLE_GAP_SECONDS * 1e3:g} ms each")
    contenders: list[Paced] = []
    kib: dict[str, float] = {}
    with ExitStack() as stack:
        for opened in (nginx_server, gateway_server):
            try:
                server = stack.enter_context(opened(bench.port))
            except Unavailable as error:
                print(f"  no nginx: {error}")
                continue
            for work in (Work("lockstep"), Work("plain")):
                warm = await bench.connected(server.port, work)
                await bench.slice(warm, server, work, None)
                warm.close()
            await asyncio.sleep(0.5)
            before = server.resident_kib()
            load = await open_streams(bench, server.port, count)
            stack.callback(load.close)
            contenders.append(Paced(server.name, load, server))
            await contenders[-1].turn(bench, IDLE_GAP_SECONDS, 1.0)
            kib[server.name] = (server.resident_kib() - before) / count
        await take_turns(bench, contenders, IDLE_GAP_SECONDS, bench.effort.idle_seconds)
    for each in contenders:
        p50, p99 = each.medians
        late = f", {each.late} late by a whole gap" if each.late else ""
        print(
            f"  {each.name:16} RSS {kib[each.name]:5.1f} KiB each   CPU {each.micros:5.2f} µs/event   "
            f"delay p50 {p50:.3f} p99 {p99:.3f} ms   ({each.sent} events{late})"
        )
    _judge_idle(bench, contenders, kib["gateway"])


def _judge_idle(bench: Bench, contenders: Sequence[Paced], kib: float) -> None:
    judge = bench.verdicts.judge
    said = [f"RSS {kib:.1f} KiB {judge('idle RSS KiB', kib, IDLE_RSS_KIB)}"]
    if len(contenders) == 2:
        nginx, gateway = contenders
        ratio, over = gateway.micros / nginx.micros, gateway.medians[1] - nginx.medians[1]
        said.append(f"CPU {ratio:.2f} {judge('idle CPU', ratio, IDLE_CPU_RATIO)}")
        said.append(f"p99 {over:+.3f} ms {judge('idle delay p99', over, IDLE_DELAY_MS)}")
    print(f"  {'gateway : nginx':16} {';   '.join(said)}")
