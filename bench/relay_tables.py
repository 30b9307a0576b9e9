"""The relay's rows as tables, for `make bench`.

python -m bench.relay_tables
"""

import asyncio
import io
import sys
from contextlib import redirect_stdout

import uvloop

from bench.relay import PACED_ROWS, measure, quiet_machine
from bench.relay_rows import ROWS, Figure
from bench.relay_run import CLIENTS, Effort
from bench.relay_work import STREAMS
from bench.tables import Bar, Table, goal, show

EFFORT = Effort(0.3, 3, delay_seconds=3.0, idle_seconds=6.0, idle_streams=1000)


def cells(figure: Figure) -> tuple[str, ...]:
    row = figure.row
    base, ratio = figure.base_micros, figure.ratio
    return (
        row.meaning,
        f"{row.clients}",
        row.unit,
        "" if ratio is None else f"{ratio:.2f}",
        "" if ratio is None or row.goal is None else goal(ratio, row.goal),
        "" if base is None else f"{base:.1f}",
        f"{figure.micros:.1f}",
        f"{figure.bytes_per_unit:,.0f}",
        f"{figure.requests_per_second:,.0f}",
    )


def tables() -> list[Table]:
    with quiet_machine(), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        figures, _ = runner.run(measure([*ROWS], EFFORT))
        with redirect_stdout(io.StringIO()) as paced:
            runner.run(measure([*PACED_ROWS], EFFORT))
    stream = STREAMS["words"]
    return [
        Table(
            "Relaying",
            f"CPU of the gateway's process, user and system, with keys, limits, metrics and access log on, over that of "
            "nginx as a plain proxy on the same core by turns; *no tag* over the same without scrubbing. A stream "
            f"is {len(stream.events)} events, {len(stream.body):,} bytes; {CLIENTS} clients unless it says so. A "
            "*burst* is written by the upstream at once, *alone* each event when the last has arrived.",
            (
                *("", "clients", "per", "ratio", "goal", "base µs", "gateway µs", "bytes"),
                "requests/s",
            ),
            tuple(map(cells, figures)),
            tuple(
                Bar(f"relay: {figure.row.meaning}", figure.ratio, figure.row.goal)
                for figure in figures
                if figure.ratio is not None
            ),
        ),
        Table(
            "Delay, and idle streams",
            f"What a pace of its own costs: the delay that is added, and what a stream takes that is silent.\n\n"
            f"```text\n{paced.getvalue().strip()}\n```",
        ),
    ]


if __name__ == "__main__":
    sys.exit(show(tables()))
