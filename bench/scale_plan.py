"""A plan on paper: what a million idle streams and ten thousand running agents take, from measured costs.

    python -m bench.scale_plan

The costs are what `bench.runners` and `bench.relay` print on two shared cores; change them to what they
print on yours. The agents are simulated, second by second, each with a life of its own, and what they ask
of each machine is counted: means hide what breaks first. docs/scale.md tells what follows.
"""

import math
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass

SEED = 7

# Measured: bench.relay and bench.runners.
IDLE_STREAM_KB = 27.0  # user memory of one relayed stream, both of its sockets
SOCKET_KB = 5.0  # kernel memory of one idle TCP socket (slabs; buffers are empty)
EVENT_US = 10.0  # a heartbeat or one relayed event, kernel included
TOKEN_US = 130.0  # one token of an agent's model, from the upstream's socket to the client's
CONNECT_US = 150.0  # a new connection and its request
# What each runner takes of its machine: CPU of a run, and memory while it waits.
RUN_CPU_MS = {"thread": 4.0, "process": 20.0, "ray": 25.0}
# A worker of a cluster has a zygote of its own for its jails, 34 MB of these.
RUN_MEMORY_MB = {"thread": 0.3, "process": 7.0, "ray": 92.0}
JAIL_MEMORY_MB, JAIL_START_MS = 4.0, 8.0
DRIVER_BATCHES_PER_SECOND = 2_500.0  # of one Ray driver, with back-pressure
RAY_NODE_MEMORY_MB = 400.0

# Assumed: how agents live.
TOKENS_PER_SECOND, TOKENS_PER_CALL = 40.0, 160.0
FIRST_TOKEN_SECONDS = 0.6
CODE_SECONDS, CODE_CPU_MS = 0.4, 30.0
STEPS = 4.0
TOOL_SECONDS = 2.0
EVENT_BYTES = 320  # a chunk of one token, TCP's and IP's heads included
HEARTBEAT_SECONDS, HEARTBEAT_BYTES = 15.0, 64

# Chosen: how full a machine may be, so that the loss of one does not take the next.
FULL = 0.6
MACHINE_CORES, MACHINE_GB, MACHINE_GBIT = 16, 64, 10
DESCRIPTORS, PORTS = 1_048_576, 28_232  # of a process; of one address towards one other

IDLE_STREAMS, AGENTS = 1_000_000, 10_000
SIMULATED_SECONDS, SETTLING_SECONDS = 90, 30


@dataclass
class Second:
    """What happens in one second on one machine."""

    tokens: float = 0.0
    code_ms: float = 0.0
    batches: float = 0.0
    begun: int = 0


def life(rng: random.Random) -> Iterator[tuple[str, float]]:
    """One agent after the other in one slot: what it does and for how many seconds."""
    while True:
        yield "begin", 0.0
        for _ in range(max(1, round(rng.expovariate(1 / STEPS)))):
            yield "wait", rng.lognormvariate(math.log(FIRST_TOKEN_SECONDS), 0.6)
            yield "write", rng.expovariate(TOKENS_PER_SECOND / TOKENS_PER_CALL)
            yield "code", rng.expovariate(1 / CODE_SECONDS)
            yield "tool", rng.expovariate(1 / TOOL_SECONDS)


def simulate(agents: int, machines: int) -> list[list[Second]]:
    """By machine and second, once the agents are out of step with each other."""
    rng = random.Random(SEED)
    found = [[Second() for _ in range(SIMULATED_SECONDS)] for _ in range(machines)]
    for _ in range(agents):
        machine = found[rng.randrange(machines)]
        now = -rng.uniform(0, SETTLING_SECONDS)
        for kind, seconds in life(rng):
            _spend(machine, kind, now, seconds)
            now += seconds
            if now >= SIMULATED_SECONDS:
                break
    return [machine[SETTLING_SECONDS:] for machine in found]


def _spend(machine: list[Second], kind: str, start: float, seconds: float) -> None:
    if 0 <= start < SIMULATED_SECONDS:
        at = machine[int(start)]
        at.begun += kind == "begin"
        at.batches += kind != "write"  # a question or a step; tokens do not pass through a worker
        at.code_ms += CODE_CPU_MS if kind == "code" else 0.0
    if kind != "write":
        return
    now, end = max(0.0, start), min(start + seconds, SIMULATED_SECONDS)
    while now < end:
        until = min(math.floor(now) + 1.0, end)
        machine[int(now)].tokens += (until - now) * TOKENS_PER_SECOND
        now = until


def at_worst(values: list[float]) -> float:
    """The 99th of a hundred."""
    values = sorted(values)
    return values[int(len(values) * 0.99)]


def idle_streams() -> None:
    print(f"\n{IDLE_STREAMS:,} idle streams")
    memory_gb = IDLE_STREAMS * (IDLE_STREAM_KB + 2 * SOCKET_KB) / 1e6
    beats = IDLE_STREAMS / HEARTBEAT_SECONDS
    cores = beats * EVENT_US / 1e6
    mbit = beats * HEARTBEAT_BYTES * 8 / 1e6
    rows = (
        ("memory", f"{memory_gb:,.0f} GB", memory_gb / (MACHINE_GB * FULL)),
        ("ports to one upstream address", f"{IDLE_STREAMS:,}", IDLE_STREAMS / PORTS / FULL),
        ("descriptors", f"{2 * IDLE_STREAMS:,}", 2 * IDLE_STREAMS / DESCRIPTORS / FULL),
        ("CPU of heartbeats", f"{cores:.2f} cores", cores / (MACHINE_CORES * FULL)),
        ("network of heartbeats", f"{mbit:,.0f} Mbit/s", mbit / (MACHINE_GBIT * 1e3 * FULL)),
    )
    print(f"  {'':32}{'in all':>16}{'at the limit of':>20}")
    for name, amount, share in rows:
        unit = {"descriptors": "processes", "ports to one upstream address": "addresses"}
        print(f"  {name:32}{amount:>16}{share:>12.2f} {unit.get(name, 'machines')}")
    print("\n  front ends   streams each   memory each   the others take over one's streams in")
    for machines in (2, 4, 8, 16):
        each = IDLE_STREAMS / machines
        more = each / (machines - 1)
        seconds = more * CONNECT_US / 1e6 / (MACHINE_CORES * FULL)
        gb = memory_gb / machines
        verdict = "" if gb * (1 + 1 / (machines - 1)) <= MACHINE_GB * FULL else "   too full"
        print(f"  {machines:>10}{each:>15,.0f}{gb:>11.1f} GB{seconds:>15.1f} s{verdict}")


def running_agents() -> None:
    print(f"\n{AGENTS:,} running agents, simulated for {SIMULATED_SECONDS - SETTLING_SECONDS} s")
    print(
        "  front ends   tokens/s each   cores each (p50 / p99)   Mbit/s each   driver batches/s each"
    )
    for machines in (1, 2, 4, 8):
        seconds = [second for machine in simulate(AGENTS, machines) for second in machine]
        cores = [second.tokens * TOKEN_US / 1e6 for second in seconds]
        tokens = at_worst([second.tokens for second in seconds])
        batches = at_worst([second.batches for second in seconds])
        p50 = sorted(cores)[len(cores) // 2]
        verdict = "" if at_worst(cores) < MACHINE_CORES * FULL else "   too full"
        if batches > DRIVER_BATCHES_PER_SECOND * FULL:
            verdict += f"   {math.ceil(batches / DRIVER_BATCHES_PER_SECOND / FULL)} drivers each"
        print(
            f"  {machines:>10}{tokens:>16,.0f}{p50:>16.1f} / {at_worst(cores):<6.1f}"
            f"{tokens * EVENT_BYTES * 8 / 1e6:>13.0f}{batches:>20,.0f}{verdict}"
        )
    _workers(simulate(AGENTS, 1)[0])


def _workers(seconds: list[Second]) -> None:
    """What runs take where they live, jails included."""
    begun = at_worst([float(second.begun) for second in seconds])
    code = at_worst([second.code_ms for second in seconds]) / 1e3
    print(f"\n  {begun:,.0f} runs begin a second, their code takes {code:.0f} cores")
    print("  runner    cores   memory   machines by cores   by memory   take")
    for kind in RUN_CPU_MS:
        cores = code + begun * (RUN_CPU_MS[kind] + JAIL_START_MS) / 1e3
        gb = AGENTS * (RUN_MEMORY_MB[kind] + JAIL_MEMORY_MB) / 1e3
        by_cores = cores / (MACHINE_CORES * FULL)
        room = MACHINE_GB * FULL - (RAY_NODE_MEMORY_MB / 1e3 if kind == "ray" else 0.0)
        by_memory = gb / room
        take = math.ceil(max(by_cores, by_memory)) + 1  # one may be lost
        print(f"  {kind:8}{cores:>7.0f}{gb:>6.0f} GB{by_cores:>20.1f}{by_memory:>12.1f}{take:>7}")


def main() -> int:
    print(
        f"machines of {MACHINE_CORES} cores, {MACHINE_GB} GB and {MACHINE_GBIT} Gbit/s, "
        f"{FULL:.0%} full at most"
    )
    idle_streams()
    running_agents()
    return 0


if __name__ == "__main__":
    sys.exit(main())
