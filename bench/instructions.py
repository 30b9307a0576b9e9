"""What relaying costs in instructions, which neither a neighbour nor a slower machine moves.

    python -m bench.instructions [ROW…] [--keep FOLDER]

The gateway and nginx run under callgrind, which counts what each executes, the kernel's part aside. It is valgrind's,
from Debian's package. `--keep` leaves callgrind's files in a
folder as ROW.out: `callgrind_annotate --inclusive=yes` or `--tree=caller` say which functions take them.
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

import uvloop

from bench.debian_packages import program_path
from bench.relay import quiet_machine
from bench.relay_client import Clients
from bench.relay_rows import ROWS
from bench.relay_run import CLIENTS, Bench, Effort
from bench.relay_servers import Server, gateway_server, nginx_server
from bench.relay_work import Work

# Of these many requests, after as many that warm it up.
REQUESTS = {"lockstep": 64, "burst": 256, "plain": 512}
ANSWER_SECONDS = 120
ROW_NAMES = ("alone", "burst", "plain", "burst-scrubbed", "alone-scrubbed")
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

    def _tell(self, server: Server, *what: str) -> None:
        command = [self._control, *what, str(server.pid)]
        subprocess.run(command, check=True, capture_output=True, timeout=60)

    @contextmanager
    def counting(self, server: Server) -> Iterator[None]:
        self._tell(server, "--instr=on")
        yield
        self._tell(server, "--instr=off")

    def take(self, server: Server) -> tuple[int, Path]:
        """The instructions since it was last asked, and callgrind's file."""
        self._tell(server, "--dump")
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
    with counter.counting(server):
        done = await answered(load, REQUESTS[work.pace])
    load.close()
    total, file = counter.take(server)
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="for callgrind's files")
    asked = parser.parse_args()
    if unknown := set(asked.rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    with quiet_machine(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(asked.rows or ROW_NAMES, asked.keep))


if __name__ == "__main__":
    main()
