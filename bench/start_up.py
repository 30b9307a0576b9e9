"""How long `python -m server` takes until it answers `/healthz`, and what it has used by then.

python -m bench.start_up
"""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from statistics import median
from typing import NamedTuple

from bench.relay_servers import Server, free_port
from bench.tables import Bar, Table, goal, show

STARTS = 7
MOST_SECONDS = 1.0


class Start(NamedTuple):
    """Seconds, CPU seconds and KiB."""

    wall: float
    cpu: float
    resident: float


def start() -> Start:
    """One start, ended again."""
    port = free_port()
    environment = os.environ | {
        "UPSTREAM_OPENAI_BASE": "http://127.0.0.1:1/v1",
        "PORT": str(port),
    }
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "server"], env=environment, stderr=subprocess.DEVNULL
    ) as process:
        try:
            while process.poll() is None:
                with (
                    suppress(urllib.error.URLError),
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5),
                ):
                    wall = time.perf_counter() - began
                    server = Server("gateway", process.pid, port)
                    return Start(wall, server.cpu_seconds(), server.resident_kib())
                time.sleep(0.002)
        finally:
            process.terminate()
    raise RuntimeError(f"the server ended with {process.returncode}")


def interpreter_cpu(statement: str) -> float:
    """CPU seconds of an interpreter that does this and ends."""
    code = f"import time\n{statement}\nprint(time.process_time())"
    return float(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    )


def table() -> Table:
    start()  # once, for the bytecode
    found = [start() for _ in range(STARTS)]
    smolagents = median(interpreter_cpu("import smolagents") for _ in range(STARTS))
    libraries = median(
        interpreter_cpu("import smolagents, aiohttp.web, uvloop, msgspec") for _ in range(STARTS)
    )
    wall, cpu, resident = (median(values) for values in zip(*found, strict=True))
    best = min(each.wall for each in found)
    return Table(
        "Start",
        f"From the start of `python -m server` to its first answer on `/healthz`, {STARTS} times, jails on. Agents "
        "are checked before it listens: a factory that cannot work ends the start with its reason. On an idle machine "
        "its time is its CPU time; on a busy one that is what counts.",
        ("", "found", "goal"),
        (
            ("seconds, best", f"{best:.2f}", ""),
            ("seconds, median", f"{wall:.2f}", ""),
            ("CPU seconds", f"{cpu:.2f}", goal(cpu, MOST_SECONDS)),
            ("of these: importing smolagents alone", f"{smolagents:.2f}", ""),
            ("of these: importing it, aiohttp, uvloop, msgspec", f"{libraries:.2f}", ""),
            ("resident memory, MB", f"{resident / 1024:.0f}", ""),
        ),
        (Bar("start: CPU seconds, of the one allowed", cpu, MOST_SECONDS),),
    )


if __name__ == "__main__":
    sys.exit(show([table()]))
