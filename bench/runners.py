"""What each runner costs over the bare agent, on this machine.

    python -m bench.runners [thread] [process] [ray]

The bare agent is smolagents' own, in a process of its own, its model a function. The others are whole
gateways with a real upstream, code running inline, and a client over a socket; of Ray there are two
nodes. Everything is in a network namespace that has just a loopback, and ends with it.

    first event   from the request to the first piece of reasoning, of a run of two steps and 20 rows
    whole run     the same run
    rows/s        of a run that prints 20,000 rows, each an event
    CPU, memory   of all processes together, upstream and client apart; memory is that of a run which waits
    token         CPU of a token from the upstream to the client, when ten runs stream 50 a second each
    cancel        from the client's leaving to the slot's being free, while the model is silent
"""

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import NamedTuple

import aiohttp

from bench.bare_agent import bare_run
from bench.processes import measured_gateway, scripted_upstream
from bench.ray_nodes import PORT, SHORT_PLACE, Nodes, below, bring_loopback_up
from bench.supervision import ask, leave_early
from bench.torture import measure

KINDS = ("thread", "process", "ray")
ROWS, MANY_ROWS = 20, 20_000
RUNS, CANCELS, WAITING = 20, 100, 10
STREAMS, TOKENS = 10, 200
TOKEN = "a-token-of-the-benchmark-0123456789"
_NAMESPACES = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")

Session = aiohttp.ClientSession


class Figures(NamedTuple):
    first_ms: float
    whole_ms: float
    rows_a_second: float
    cpu_ms: float
    memory_mb: float
    token_us: float
    cancel_p50_ms: float
    cancel_p99_ms: float


class Tree:
    """What all processes below this one use, one apart."""

    def __init__(self, apart: int) -> None:
        self._apart = apart

    def cpu_seconds(self) -> float:
        ticks = 0
        for pid in self._pids():
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
        return ticks / os.sysconf("SC_CLK_TCK")

    def megabytes(self) -> float:
        kib = 0
        for pid in self._pids():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        kib += int(line.split()[1])
        return kib / 1024

    def _pids(self) -> set[int]:
        return below(os.getpid()) - {self._apart}


async def timed_run(session: Session, base: str, text: str) -> tuple[float, float]:
    """Seconds to the first piece of reasoning and to the end."""
    began = time.perf_counter()
    first = 0.0
    last = b""
    body = ask(text) | {"stream": True}
    async with session.post(f"{base}/chat/completions", json=body) as response:
        async for line in response.content:
            if not first and b'"reasoning' in line:
                first = time.perf_counter() - began
            last = line.strip() or last
    if last != b"data: [DONE]" or not first:
        raise RuntimeError(f"a run of {text!r} went wrong: {last[-500:]!r}")
    return first, time.perf_counter() - began


async def waiting_runs(session: Session, base: str, tree: Tree) -> float:
    """Megabytes of each of some runs that wait for their model, all at once."""
    before = most = tree.megabytes()
    tasks = [asyncio.ensure_future(timed_run(session, base, "wait 10")) for _ in range(WAITING)]
    while not all(task.done() for task in tasks):  # a cluster's workers take seconds to come
        await asyncio.sleep(0.5)
        most = max(most, tree.megabytes())
    await asyncio.gather(*tasks)
    return (most - before) / WAITING


async def token_cpu_us(session: Session, base: str, tree: Tree, text: str) -> float:
    """Microseconds of each token; the runs' own cost is taken off."""
    found = []
    for tokens in (1, TOKENS):
        cpu = tree.cpu_seconds()
        runs = (timed_run(session, base, text.format(tokens)) for _ in range(STREAMS))
        await asyncio.gather(*runs)
        found.append(tree.cpu_seconds() - cpu)
    return (found[1] - found[0]) / STREAMS / (TOKENS - 1) * 1e6


async def cancels(session: Session, base: str) -> list[float]:
    found = []
    for _ in range(CANCELS):
        await leave_early(session, base, "wait 9", 0.1)
        left = time.perf_counter()
        while (await measure(session, base))["running"]:  # noqa: ASYNC110  another process's
            await asyncio.sleep(0.001)
        found.append((time.perf_counter() - left) * 1e3)
    return sorted(found)


async def figures(base: str, tree: Tree) -> Figures:
    timeout = aiohttp.ClientTimeout(total=120)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await until_ready(session, base)
        for _ in range(4):
            await timed_run(session, base, f"rows {ROWS}")
        cpu, began = tree.cpu_seconds(), time.monotonic()
        runs = [await timed_run(session, base, f"rows {ROWS}") for _ in range(RUNS)]
        cpu, seconds = tree.cpu_seconds() - cpu, time.monotonic() - began
        idle = tree.cpu_seconds()
        await asyncio.sleep(2)
        idle = (tree.cpu_seconds() - idle) / 2 * seconds
        memory = await waiting_runs(session, base, tree)
        many = await timed_run(session, base, f"rows {MANY_ROWS}")
        left = await cancels(session, base)
        return Figures(
            first_ms=median(first for first, _ in runs) * 1e3,
            whole_ms=median(whole for _, whole in runs) * 1e3,
            rows_a_second=MANY_ROWS / many[1],
            cpu_ms=max(0.0, cpu - idle) / RUNS * 1e3,
            memory_mb=memory,
            token_us=await token_cpu_us(session, base, tree, "tokens {}"),
            cancel_p50_ms=left[len(left) // 2],
            cancel_p99_ms=left[int(len(left) * 0.99)],
        )


async def until_ready(session: Session, base: str) -> None:
    async with asyncio.timeout(60):
        while True:
            async with session.get(base.removesuffix("/v1") + "/readyz") as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.05)


def bare() -> Figures:
    build, first, whole, cpu = (
        median(values) for values in zip(*(bare_run(ROWS) for _ in range(RUNS)), strict=True)
    )
    return Figures(
        first_ms=(build + first) * 1e3,
        whole_ms=(build + whole) * 1e3,
        rows_a_second=MANY_ROWS / bare_run(MANY_ROWS).whole,
        cpu_ms=cpu * 1e3,
        memory_mb=float("nan"),
        token_us=float("nan"),
        cancel_p50_ms=float("nan"),
        cancel_p99_ms=float("nan"),
    )


@contextmanager
def ray_nodes() -> Iterator[None]:
    """Two nodes, ended with their settings in the environment."""
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN, RAY_USAGE_STATS_ENABLED="0")
    with tempfile.TemporaryDirectory(
        prefix="ray-", dir=SHORT_PLACE, ignore_cleanup_errors=True
    ) as folder:
        nodes = Nodes(Path(folder))
        names = ("head", "other")
        for name in names:
            nodes.start(
                name, f'{{"head": {str(name == "head").lower()}, "cpus": 16, "resources": {{}}}}'
            )
        try:
            yield
        finally:
            for name in names:
                nodes.kill(name)


@contextmanager
def no_nodes() -> Iterator[None]:
    yield


def measured(kind: str) -> Figures:
    cluster: Callable[[], object] = ray_nodes if kind == "ray" else no_nodes
    settings = {"RUNNER": kind, "JAIL": "off", "LOG_LEVEL": "INFO", "AGENT_MODEL": "up"}
    if kind == "ray":
        settings |= {"RAY_ADDRESS": f"127.0.0.1:{PORT}", "RAY_AUTH_TOKEN": TOKEN}
    with cluster(), scripted_upstream() as port:  # type: ignore[attr-defined]
        settings["UPSTREAM_OPENAI_BASE"] = f"http://127.0.0.1:{port}/v1"
        (upstream,) = (pid for pid in below(os.getpid()) if is_upstream(pid))
        with measured_gateway(**settings) as (_, base):
            return asyncio.run(figures(base, Tree(upstream)))


def is_upstream(pid: int) -> bool:
    return b"bench.scripted_upstream" in Path(f"/proc/{pid}/cmdline").read_bytes()


def report(name: str, found: Figures) -> None:
    cells = (
        f"{found.first_ms:9.1f}",
        f"{found.whole_ms:9.1f}",
        f"{found.rows_a_second:9,.0f}",
        f"{found.cpu_ms:9.1f}",
        f"{found.memory_mb:9.1f}",
        f"{found.token_us:9.0f}",
        f"{found.cancel_p50_ms:9.1f}",
        f"{found.cancel_p99_ms:9.1f}",
    )
    print(f"{name:8}" + "".join(cells).replace("nan", "  –"), flush=True)


def main(kinds: list[str]) -> int:
    if os.getpid() != 1:
        command = (*_NAMESPACES, sys.executable, "-m", "bench.runners", *kinds)
        return subprocess.run(command, check=False).returncode
    bring_loopback_up()
    heads = ("first ms", "whole ms", "rows/s", "CPU ms", "MB", "token us", "cancel50", "cancel99")
    print("runner  " + "".join(f"{head:>9}" for head in heads))
    report("bare", bare())
    for kind in kinds or KINDS:
        report(kind, measured(kind))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
