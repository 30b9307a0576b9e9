"""What relaying costs in instructions, which neither a neighbour nor a slower machine moves, and what an agent's
printed row does.

    python -m bench.instructions [ROW…] [--keep FOLDER]

The gateway and nginx run under callgrind, which counts what each executes, the kernel's part aside; an agent's jail is
not counted. It is valgrind's, from Debian's package. `--keep` leaves callgrind's files in a folder as ROW.out:
`callgrind_annotate --inclusive=yes` or `--tree=caller` say which functions take them.
"""

import argparse
import asyncio
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import aiohttp
import uvloop

from bench.agent_path import client
from bench.debian_packages import program_path
from bench.processes import measured_gateway
from bench.relay import quiet_machine
from bench.relay_client import Clients
from bench.relay_rows import ROWS
from bench.relay_run import CLIENTS, Bench, Effort
from bench.relay_servers import Server, gateway_server, nginx_server
from bench.relay_work import Work
from bench.supervision import ask

# Of these many requests, after as many that warm it up.
REQUESTS = {"lockstep": 64, "burst": 256, "plain": 512}
ANSWER_SECONDS = 120
ROW_NAMES = ("alone", "burst", "plain", "burst-scrubbed", "alone-scrubbed")
# Printed by an agent's code: what they mean, how many in a run, and the seconds between two.
PRINTED_ROWS = {
    "printed": ("a row of many that an agent prints", 5000, 0.0),
    "printed-alone": ("a row that an agent prints alone", 200, 0.03),
}
_TOTALS = re.compile(r"^totals: (\d+)", re.MULTILINE)


class Counter:
    """Counts what a server executes. `under` runs it."""

    def __init__(self, folder: str) -> None:
        """Raises Unavailable."""
        self._folder = Path(folder)
        self._control = program_path("callgrind_control", "valgrind")
        self._dumps = 0
        self.under = (
            *(program_path("valgrind", "valgrind"), "--tool=callgrind", "--instr-atstart=no"),
            f"--callgrind-out-file={folder}/out",
        )

    def _tell(self, pid: int, *what: str) -> None:
        command = [self._control, *what, str(pid)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    @contextmanager
    def counting(self, pid: int) -> Iterator[None]:
        self._tell(pid, "--instr=on")
        yield
        self._tell(pid, "--instr=off")

    def take(self, pid: int) -> tuple[int, Path]:
        """The instructions since it was last asked, and callgrind's file."""
        self._tell(pid, "--dump")
        self._dumps += 1
        file = self._folder / f"out.{self._dumps}"
        found = _TOTALS.search(file.read_text())
        if found is None:
            raise RuntimeError(f"no totals in {file}")
        return int(found[1]), file


async def answered(load: Clients, requests: int) -> int:
    """Ask until at least so many are answered; returns how many were."""
    before = load.tally.requests
    load.start()
    while not load.tally.stopping:
        await asyncio.sleep(0.005)
        if load.tally.requests - before >= requests - CLIENTS:
            break
    async with asyncio.timeout(ANSWER_SECONDS):
        await load.stop()
    return load.tally.requests - before


async def instructions(
    bench: Bench, server: Server, counter: Counter, work: Work
) -> tuple[float, Path]:
    """What one unit of work takes, and callgrind's file."""
    load = await bench.connected(server.port, work, CLIENTS)
    await answered(load, REQUESTS[work.pace])
    with counter.counting(server.pid):
        done = await answered(load, REQUESTS[work.pace])
    load.close()
    total, file = counter.take(server.pid)
    return total / (done * work.units), file


async def measure(names: Sequence[str], keep: Path | None) -> None:
    bench = Bench(Effort())
    listening = await bench.listen()
    with ExitStack() as stack:
        ours, theirs = (
            Counter(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)
        )
        gateway = stack.enter_context(gateway_server(bench.port, under=ours.under))
        nginx = stack.enter_context(nginx_server(bench.port, under=theirs.under))
        for name in names:
            work = ROWS[name].work
            mine, file = await instructions(bench, gateway, ours, work)
            base, _ = await instructions(bench, nginx, theirs, Work(work.pace, work.stream))
            print(
                f"{ROWS[name].meaning:34}{mine:12,.0f} instructions per {ROWS[name].unit}"
                f"   nginx {base:9,.0f}   {mine / base:6.1f}",
                flush=True,
            )
            if keep is not None:
                shutil.copy(file, keep / f"{name}.out")
    listening.close()


async def measure_printed(names: Sequence[str], keep: Path | None) -> None:
    """A run that prints many rows against one that prints one."""
    with (
        tempfile.TemporaryDirectory() as folder,
        measured_gateway(
            under=(counter := Counter(folder)).under,
            UPSTREAM_OPENAI_BASE="http://127.0.0.1:9/v1",  # never asked
            AGENT_MODEL="up",
            AGENTS="scripted=bench.bare_agent:create_agent",
            JAIL="required",
        ) as (pid, base),
    ):
        async with aiohttp.ClientSession() as session:

            async def run(rows: int, pause: float) -> tuple[int, Path]:
                metadata = {"rows": str(rows), "pause": str(pause)}
                with counter.counting(pid):
                    await client(session, base, ask("rows", "scripted") | {"metadata": metadata})
                return counter.take(pid)

            for name in names:
                meaning, rows, pause = PRINTED_ROWS[name]
                await run(rows // 10, pause)
                few, _ = await run(1, pause)
                many, file = await run(rows + 1, pause)
                mine = (many - few) / rows
                print(f"{meaning:34}{mine:12,.0f} instructions per row", flush=True)
                if keep is not None:
                    shutil.copy(file, keep / f"{name}.out")


def main() -> None:
    known = (*ROWS, *PRINTED_ROWS)
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(known)}")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="for callgrind's files")
    asked = parser.parse_args()
    if unknown := set(asked.rows) - set(known):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    names = asked.rows or (*ROW_NAMES, *PRINTED_ROWS)
    relayed = [name for name in names if name in ROWS]
    printed = [name for name in names if name in PRINTED_ROWS]
    with quiet_machine(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        if relayed:
            runner.run(measure(relayed, asked.keep))
        if printed:
            runner.run(measure_printed(printed, asked.keep))


if __name__ == "__main__":
    main()
