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
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

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

# So many requests of each client, after as many that warm it up.
EACH = {"lockstep": 2, "burst": 8, "cut": 8, "plain": 16}
ANSWER_SECONDS = 120
ROW_NAMES = ("alone", "burst", "plain", "burst-scrubbed", "alone-scrubbed")
# Printed by an agent's code: what they mean, how many in a run, and the seconds between two.
PRINTED_ROWS = {
    "printed": ("a row of many that an agent prints", 5000, 0.0),
    "printed-alone": ("a row that an agent prints alone", 200, 0.03),
}
_TOTALS = re.compile(r"^totals: (\d+)", re.MULTILINE)
_CALLED = re.compile(r"^cfn=\((\d+)\)(?: (.*))?$")
_CALLS = re.compile(r"^calls=(\d+) ")
_ALLOCATE = frozenset({"malloc", "calloc", "realloc"})


class Counts(NamedTuple):
    """Of one unit of work, an event or a request. `allocations` are those of the C library: with PYTHONMALLOC=malloc in
    its environment, all that a server's interpreter makes.
    """

    instructions: float
    allocations: float


class Counter:
    """Counts what a server executes. `under` runs it."""

    def __init__(self, folder: Path) -> None:
        """Raises Unavailable."""
        self._folder = folder
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

    def take(self, pid: int, units: int) -> Counts:
        """What was executed since it was last asked, by so many units."""
        self._tell(pid, "--dump")
        self._dumps += 1
        told = self.last_file.read_text()
        found = _TOTALS.search(told)
        if found is None:
            raise RuntimeError(f"no totals in {self.last_file}")
        return Counts(int(found[1]) / units, _calls_of(_ALLOCATE, told) / units)

    @property
    def last_file(self) -> Path:
        """Callgrind's file of what was taken last."""
        return self._folder / f"out.{self._dumps}"


def _calls_of(functions: Container[str], told: str) -> int:
    """How often these are called; callgrind tells a name once, its number from then on."""
    names: dict[str, str] = {}
    calls, called = 0, ""
    for line in told.splitlines():
        if line.startswith(("fn=(", "cfn=(")):
            found = _CALLED.match(line if line[0] == "c" else f"c{line}")
            assert found is not None
            number, name = found.groups()
            names.setdefault(number, (name or "").partition("'")[0])
            called = names[number]
        elif called in functions and (count := _CALLS.match(line)):
            calls += int(count[1])
    return calls


async def answered(load: Clients, requests: int) -> int:
    """Ask until at least so many are answered; returns how many were."""
    before = load.tally.requests
    load.start()
    while not load.tally.stopping:
        await asyncio.sleep(0.005)
        if load.tally.requests - before >= requests - len(load.clients):
            break
    async with asyncio.timeout(ANSWER_SECONDS):
        await load.stop()
    return load.tally.requests - before


async def counts(
    bench: Bench, server: Server, counter: Counter, work: Work, clients: int = CLIENTS
) -> Counts:
    """What one unit of work takes."""
    requests = clients * EACH[work.pace]
    load = await bench.connected(server.port, work, clients)
    await answered(load, requests)
    with counter.counting(server.pid):
        done = await answered(load, requests)
    load.close()
    return counter.take(server.pid, done * work.units)


async def measure(names: Sequence[str], keep: Path | None) -> None:
    bench = Bench(Effort())
    listening = await bench.listen()
    with ExitStack() as stack:
        ours, theirs = (
            Counter(Path(stack.enter_context(tempfile.TemporaryDirectory()))) for _ in range(2)
        )
        gateway = stack.enter_context(
            gateway_server(bench.port, under=ours.under, HEARTBEAT_SECONDS="600")
        )
        nginx = stack.enter_context(nginx_server(bench.port, under=theirs.under))
        for name in names:
            work = ROWS[name].work
            mine, _ = await counts(bench, gateway, ours, work)
            base, _ = await counts(bench, nginx, theirs, Work(work.pace, work.stream))
            print(
                f"{ROWS[name].meaning:34}{mine:12,.0f} instructions per {ROWS[name].unit}"
                f"   nginx {base:9,.0f}   {mine / base:6.1f}",
                flush=True,
            )
            if keep is not None:
                shutil.copy(ours.last_file, keep / f"{name}.out")
    listening.close()


async def measure_printed(names: Sequence[str], keep: Path | None) -> None:
    """A run that prints many rows against one that prints one."""
    with (
        tempfile.TemporaryDirectory() as folder,
        measured_gateway(
            under=(counter := Counter(Path(folder))).under,
            UPSTREAM_OPENAI_BASE="http://127.0.0.1:9/v1",  # never asked
            AGENT_MODEL="up",
            AGENTS="scripted=bench.bare_agent:create_agent",
            JAIL="required",
        ) as (pid, base),
    ):
        async with aiohttp.ClientSession() as session:

            async def run(rows: int, pause: float) -> float:
                metadata = {"rows": str(rows), "pause": str(pause)}
                with counter.counting(pid):
                    await client(session, base, ask("rows", "scripted") | {"metadata": metadata})
                return counter.take(pid, 1).instructions

            for name in names:
                meaning, rows, pause = PRINTED_ROWS[name]
                await run(rows // 10, pause)
                few = await run(1, pause)
                mine = (await run(rows + 1, pause) - few) / rows
                print(f"{meaning:34}{mine:12,.0f} instructions per row", flush=True)
                if keep is not None:
                    shutil.copy(counter.last_file, keep / f"{name}.out")


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
