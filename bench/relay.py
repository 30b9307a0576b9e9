"""The relay against nginx as a plain proxy, and against itself without scrubbing, in one run.

    python -m bench.relay [ROW…] [--quick] [--no-goals]
    python -m bench.relay --profile ROW      where the gateway's time goes, by cProfile

One process is the upstream and all clients, so that "the next event is sent when the client has the
last" is exact; each server is one process on a core of its own. What counts is that process's user and
system time, in slices by turns: the median of these, and of the turns' ratios. Every answer is checked.
The gateway has keys, limits, metrics and its access log on; `bare` is one without keys and log lines.
Exits 1 where a goal of the project is missed or an answer is wrong.
"""

import argparse
import asyncio
import gc
import http.client
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import uvloop

from bench.debian_packages import Unavailable
from bench.relay_accel import accel_floor, accel_server
from bench.relay_paced import delay_row, idle_row
from bench.relay_profiled import Row as ProfileRow
from bench.relay_rows import ROWS, Figure, Through, figures, line_of, title
from bench.relay_run import CLIENTS, QUICK, STUCK_SECONDS, Bench, Cost, Effort, Verdicts
from bench.relay_servers import Server, gateway_server, nginx_server, pin
from bench.relay_work import KEY, SCRUB_MODE, STREAMS

# Nothing lasts longer than this, whatever happens.
WHOLE_SECONDS = 1800
PROFILED_ROWS = 40


PACED_ROWS = ("delay", "idle")
UVLOOP = "uvloop"
UVLOOP_ROWS = ("alone", "burst", "plain")


async def uvloop_rows(bench: Bench, gateway: Server) -> None:
    """What the event loop is worth: the same gateway on asyncio's own."""
    print("\nCPU, asyncio's own event loop : uvloop")
    with gateway_server(
        bench.port, "gateway without uvloop", module="bench.relay_without_uvloop"
    ) as without:
        for name in UVLOOP_ROWS:
            row = ROWS[name]
            own, uv = await bench.costs([(without, row.work), (gateway, row.work)])
            print(
                f"  {row.meaning:31}{own.median:8.2f} : {uv.median:.2f} µs/{row.unit}"
                f" = {own.ratio(uv):.2f}",
                flush=True,
            )


async def measure(names: Sequence[str], effort: Effort) -> tuple[list[Figure], Verdicts]:
    """Measure these rows and print them as they come."""
    found: list[Figure] = []
    bench = Bench(effort)
    listening = await bench.listen()
    with ExitStack() as stack:
        gateway = stack.enter_context(gateway_server(bench.port))
        bare = stack.enter_context(gateway_server(bench.port, "gateway, bare", bare=True))
        servers: dict[Through, Server] = {"gateway": gateway}
        nginx = None
        try:
            nginx = stack.enter_context(nginx_server(bench.port))
            servers["accel"] = stack.enter_context(accel_server(bench.port))
            servers["accel floor"] = stack.enter_context(accel_floor(bench.port))
        except Unavailable as error:
            print(f"no column of nginx: {error}")
        if cpu_names := [name for name in names if name in ROWS]:
            print(title())
            async for figure in figures(bench, cpu_names, servers, bare, nginx):
                print(line_of(figure), flush=True)
                found.append(figure)
        if "delay" in names:
            await delay_row(bench, [each for each in (nginx, gateway, bare) if each])
        if UVLOOP in names:
            await uvloop_rows(bench, gateway)
    if "idle" in names:
        await idle_row(bench)
    listening.close()
    return found, bench.verdicts


async def profile(name: str, effort: Effort) -> None:
    """Print where the gateway's own code spends the time of one row."""
    bench = Bench(effort)
    listening = await bench.listen()
    work = ROWS[name].work
    with gateway_server(bench.port, module="bench.relay_profiled") as server:
        load = await bench.connected(server.port, work)
        await bench.slice(load, server, work, None)
        await asyncio.to_thread(_post, server.port, "/profile/start")
        cost = Cost()
        for _ in range(effort.slices):
            await bench.slice(load, server, work, cost)
        rows: list[ProfileRow] = json.loads(
            await asyncio.to_thread(_post, server.port, "/profile/stop")
        )
        load.close()
    listening.close()
    units = cost.requests * work.units
    print(
        f"{ROWS[name].meaning}: {units:,} {ROWS[name].unit}s, {cost.median:.1f} µs CPU each under "
        "the profiler, which makes small functions look dear\n"
        f"{'own µs':>9}{'whole µs':>10}{'calls':>9}   each per {ROWS[name].unit}"
    )
    for where, calls, own, whole in rows[:PROFILED_ROWS]:
        print(f"{own * 1e6 / units:9.2f}{whole * 1e6 / units:10.2f}{calls / units:9.2f}   {where}")


def _post(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=STUCK_SECONDS)
    try:
        connection.request("POST", path, headers={"Authorization": f"Bearer {KEY}"})
        return connection.getresponse().read()
    finally:
        connection.close()


@contextmanager
def quiet_machine() -> Iterator[None]:
    """The load on the first core, many files, no collector in between, an end in any case."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 20_000), most))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(f"not done in {WHOLE_SECONDS} s"))
    signal.alarm(WHOLE_SECONDS)
    pin(os.getpid(), 0)
    gc.disable()
    try:
        yield
    finally:
        signal.alarm(0)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.relay", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    known = [*ROWS, *PACED_ROWS, UVLOOP]
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(known)}")
    parser.add_argument("--quick", action="store_true", help="a rough figure in half a minute")
    parser.add_argument("--no-goals", action="store_true", help="exit 0 though a goal is missed")
    parser.add_argument("--profile", metavar="ROW", choices=[*ROWS], help=f"of {', '.join(ROWS)}")
    parsed = parser.parse_args()
    if unknown := [name for name in parsed.rows if name not in known]:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(known)}")
    parsed.rows = parsed.rows or known
    return parsed


def main() -> int:
    asked = arguments()
    effort = QUICK if asked.quick else Effort()
    with quiet_machine(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if asked.profile:
            runner.run(profile(asked.profile, effort))
            return 0
        stream = STREAMS["words"]
        print(
            f"{CLIENTS} clients; a stream is {len(stream.events)} events, {len(stream.body):,} bytes; "
            f"scrub mode {SCRUB_MODE}; CPU is user + system of the one process\n"
        )
        _, verdicts = runner.run(measure(asked.rows, effort))
    for missed in verdicts.missed:
        print(f"missed: {missed}")
    return 1 if verdicts.missed and not asked.no_goals else 0


if __name__ == "__main__":
    sys.exit(main())
