"""smolgate beside other proxies as a table, for `make bench`.

python -m bench.rival_tables
"""

import asyncio
import sys

import uvloop

from bench.relay import quiet_machine
from bench.relay_run import Effort
from bench.rivals import WORKS, measure
from bench.tables import Bar, Table, show

EFFORT = Effort(slice_cpu_seconds=0.3, slices=3)
MEANINGS = {"burst": "burst µs", "alone": "event alone µs", "plain": "2 KB answer µs"}
OURS = "smolgate beside "


def table(found: dict[str, dict[str, float]]) -> Table:
    """Each beside smolgate in the same turns."""
    rows, bars = [], []
    for name, costs in found.items():
        if name.startswith(OURS):
            continue
        ours = found[OURS + name]
        row = [name]
        for work in WORKS:
            if work not in costs:  # it does not answer that
                row += ["–"] * 3
                continue
            ratio = costs[work] / ours[work]
            row += [f"{costs[work]:,.1f}", f"{ours[work]:,.1f}", f"{ratio:.2f}"]
            bars.append(Bar(f"{name}, of smolgate's CPU: {MEANINGS[work][:-3]}", ratio))
        rows.append(tuple(row))
    heads = [head for work in WORKS for head in (MEANINGS[work], "smolgate µs", "ratio")]
    return Table(
        "Beside other proxies",
        "CPU of one process of each, as its makers start it, quiet and without a database, and of smolgate with "
        "keys, limits, metrics and access log on, by turns. A ratio is theirs over smolgate's. What could not be "
        "installed where this was measured, or does not answer what is asked, is missing.",
        ("", *heads),
        tuple(rows),
        tuple(bars),
    )


def main() -> int:
    with quiet_machine(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(measure((), EFFORT))
    return show([table(found)])


if __name__ == "__main__":
    sys.exit(main())
