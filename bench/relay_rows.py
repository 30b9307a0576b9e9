"""The rows of the relay benchmark: what a gateway with everything on costs, against nginx or itself.

In: a `Bench`, and rows by name. Out: a `Figure` each: CPU microseconds and bytes for the client per unit, and
the median of the turns' ratios. Everything on: keys with limits, metrics, an access log line a request.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from bench.relay_run import CLIENTS, Bench
from bench.relay_servers import Server
from bench.relay_work import Work

# Who is measured: the gateway; nginx that it tells to carry a request out, and itself; or nginx that a server tells
# which answers a constant, and that server.
Through = Literal["gateway", "accel", "accel floor"]


@dataclass(frozen=True)
class Row:
    """One line of the table: the gateway's CPU for `work`, against nginx's or its own for `base`."""

    meaning: str
    work: Work
    goal: float | None = None
    base: Work | None = None  # None: nginx, verbatim
    clients: int = CLIENTS
    through: Through = "gateway"

    @property
    def unit(self) -> str:
        return "event" if self.work.pace == "lockstep" else "request"


@dataclass(frozen=True)
class Figure:
    """One measured line. CPU is in microseconds per `unit`; `bare`: without keys, limits and log lines."""

    name: str
    row: Row
    base_micros: float | None
    micros: float
    ratio: float | None
    bare_micros: float
    bytes_per_unit: float
    requests_per_second: float

    @property
    def is_met(self) -> bool:
        return self.row.goal is None or self.ratio is None or self.ratio <= self.row.goal


ALONE, BURST, PLAIN = Work("lockstep"), Work("burst"), Work("plain")
ALONE_SCRUBBED = Work("lockstep", "thoughts", scrubbed=True)
BURST_SCRUBBED = Work("burst", "thoughts", scrubbed=True)
_GOALS = {
    "alone": Row("events alone, verbatim", ALONE, 1.15),
    "burst": Row("burst, verbatim", BURST, 2.2),
    "plain": Row("2 KB, not streamed", PLAIN, 7.5),
    "burst-scrubbed": Row("burst, scrubbed, thoughts", BURST_SCRUBBED, 5.5),
    "alone-scrubbed": Row("events alone, scrubbed, thoughts", ALONE_SCRUBBED, 1.5),
    "burst-tagless": Row("burst, scrubbed, no tag", Work("burst", scrubbed=True), 1.25, BURST),
    "alone-tagless": Row(
        "events alone, scrubbed, no tag", Work("lockstep", scrubbed=True), 1.25, ALONE
    ),
}
_CUT = {
    "cut": Row("burst cut by the network, verbatim", Work("cut")),
    "cut-scrubbed": Row(
        "burst cut by the network, scrubbed, thoughts", Work("cut", "thoughts", scrubbed=True)
    ),
}
_ACCEL = {
    "alone-accel": Row("events alone, X-Accel-Redirect", ALONE, 1.3, through="accel"),
    "burst-accel": Row("burst, X-Accel-Redirect", BURST, 1.3, through="accel"),
    "plain-accel": Row("2 KB, X-Accel-Redirect", PLAIN, through="accel"),
    "alone-floor": Row("events alone, X-Accel-Redirect's floor", ALONE, through="accel floor"),
    "burst-floor": Row("burst, X-Accel-Redirect's floor", BURST, through="accel floor"),
}
_CLIENTS = {
    f"{name}-{clients}": Row(
        f"{row.meaning}, {clients} client{'s' * (clients > 1)}", row.work, clients=clients
    )
    for clients in (1, 256)
    for name, row in _GOALS.items()
    if row.base is None
}
ROWS = _GOALS | _CUT | _ACCEL | _CLIENTS
_TITLES = ("µs per", "base", "gateway", "ratio", "goal", "bare", "bytes", "requests/s")


async def figures(
    bench: Bench,
    names: Sequence[str],
    servers: Mapping[Through, Server],
    bare: Server,
    nginx: Server | None,
) -> AsyncIterator[Figure]:
    """Each row as it is measured; what misses its goal is noted with the bench's verdicts."""
    for name in names:
        row = ROWS[name]
        if row.through not in servers:
            continue
        contenders = [(servers[row.through], row.work), (bare, row.work)]
        if row.base is not None:
            contenders.append((servers[row.through], row.base))
        elif nginx is not None:
            contenders.append((nginx, Work(row.work.pace, row.work.stream)))
        mine, without, *other = await bench.costs(contenders, row.clients)
        ratio = mine.ratio(other[0]) if other else None
        if ratio is not None and row.goal is not None:
            bench.verdicts.judge(row.meaning, ratio, row.goal)
        yield Figure(
            name,
            row,
            other[0].median if other else None,
            mine.median,
            ratio,
            without.median,
            mine.bytes_per_unit,
            mine.requests_per_second,
        )


def title() -> str:
    return "{:38}{:9}{:>8}{:>9}{:>7}  {:13}{:>7}{:>8}{:>12}".format("CPU", *_TITLES)


def line_of(figure: Figure) -> str:
    """One line of the table."""
    row = figure.row
    base = "no nginx" if figure.base_micros is None else f"{figure.base_micros:.1f}"
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    goal = "" if row.goal is None or figure.ratio is None else f"≤ {row.goal:g} "
    verdict = goal and goal + ("met" if figure.is_met else "MISSED")
    return (
        f"{row.meaning:38}{row.unit:9}{base:>8}{figure.micros:9.2f}{ratio:>7}  {verdict:13}"
        f"{figure.bare_micros:7.2f}{figure.bytes_per_unit:8,.0f}{figure.requests_per_second:12,.0f}"
    )
