"""The gateway as it is, with two routes more: what only its own process knows, and bare agents in it.

`GET /measure` tells numbers; `POST /bare?rows=20&runs=10&at_once=1` carries out
runs of smolagents' own agent.

`python -m bench.measured_gateway [flags of the server]` logs where it listens, as the server does.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aiohttp import web

from bench.bare_agent import bare_run
from server.keys import JAIL_POOL, SUPERVISOR
from server.listen import serve
from server.registry import load_agents
from server.settings import read_settings

SAMPLE_SECONDS = 0.005
LATE_MS = 20.0


class LoopLag:
    """How late the event loop is, in milliseconds, sampled every SAMPLE_SECONDS."""

    def __init__(self) -> None:
        self.samples: list[float] = []

    async def sample(self) -> None:
        while True:
            due = time.monotonic() + SAMPLE_SECONDS
            await asyncio.sleep(SAMPLE_SECONDS)
            self.samples.append(max(0.0, (time.monotonic() - due) * 1e3))

    def take(self) -> dict[str, float]:
        samples, self.samples = sorted(self.samples), []
        if not samples:
            samples = [0.0]
        return {
            "samples": len(samples),
            "late": sum(sample > LATE_MS for sample in samples),
            "p50": samples[len(samples) // 2],
            "p99": samples[int(len(samples) * 0.99)],
            "max": samples[-1],
        }


def resident_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


def children_cpu_seconds() -> float:
    """CPU of the zygote and of all jails that it has reaped."""
    pid = os.getpid()
    ticks = 0
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


def add_measure(app: web.Application) -> None:
    lag = LoopLag()
    sampling: list[asyncio.Task[None]] = []

    async def end_sampling(app: web.Application) -> None:
        for task in sampling:
            task.cancel()

    async def measure(request: web.Request) -> web.Response:
        if not sampling:  # until then it costs nothing
            sampling.append(asyncio.create_task(lag.sample()))
        pool = request.app.get(JAIL_POOL)
        supervisor = request.app[SUPERVISOR]
        return web.json_response(
            {
                "pid": os.getpid(),
                "lag_ms": lag.take(),
                "cpu_seconds": time.process_time(),
                "jails_cpu_seconds": children_cpu_seconds(),
                "rss_kib": resident_kib(),
                "threads": threading.active_count(),
                "fds": len(os.listdir("/proc/self/fd")),
                "tasks": len(asyncio.all_tasks()),
                "jails": pool.stats.alive if pool else 0,
                "running": supervisor.running,
                "stuck": supervisor.stuck,
            }
        )

    app.on_cleanup.append(end_sampling)

    async def bare(request: web.Request) -> web.Response:
        rows, runs, at_once = (int(request.query[name]) for name in ("rows", "runs", "at_once"))
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(at_once) as pool:
            found = [loop.run_in_executor(pool, bare_run, rows) for _ in range(runs)]
            return web.json_response(await asyncio.gather(*found))

    app.router.add_get("/measure", measure)
    app.router.add_post("/bare", bare)


def signal_by_pid(pidfd: int, number: int) -> None:
    """What `pidfd_send_signal` does, where valgrind does not know that system call."""
    lines = Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines()
    pid = int(next(line for line in lines if line.startswith("Pid:")).split()[1])
    if pid < 0:
        raise ProcessLookupError
    os.kill(pid, number)


def knows_pidfds() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError:
        return False
    return True


if __name__ == "__main__":
    if sys.platform == "linux" and not knows_pidfds():
        signal.pidfd_send_signal = signal_by_pid  # type: ignore[assignment]
    settings = read_settings(sys.argv[1:], os.environ)
    logging.basicConfig(level=settings.log_level)
    agents = load_agents(settings.agents, embedded=settings.embedded)
    if sys.platform == "linux":
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    else:
        runner = asyncio.Runner()
    with runner:
        runner.run(serve(settings, agents, also=add_measure))
