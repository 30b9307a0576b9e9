"""An agent's run through the gateway against a bare `agent.run()` in the same process.

    python -m bench.agent_path

Two agents: "in process", the default one on a model that answers at once and costs nothing, which shows
what the gateway adds; "upstream", on a model behind HTTP, as it is used. Both take two steps, print 20
rows in a jail, and stream to a client in another process. CPU is the gateway's; jails are apart.
"""

import asyncio
import sys
import time
from statistics import median
from typing import Any, NamedTuple

import aiohttp

from bench.bare_agent import ROWS, BareRun
from bench.processes import measured_gateway, scripted_upstream
from bench.supervision import ask
from bench.tables import Bar, Table, goal, show
from bench.torture import measure

Session = aiohttp.ClientSession
MANY_ROWS = 20_000
REPEATS = 3
AT_ONCE = (1, 16, 64, 256)
WAITING_RUNS = 1000
FIRST_MS, CPU_MS, WAITING_RATIO, EVENT_US, WAITING_KB = 15.0, 12.0, 1.15, 30.0, 400.0


class Client(NamedTuple):
    """What one client saw: seconds to the first reasoning and to the end, bytes, events."""

    first: float
    whole: float
    bytes: int
    events: int


class Found(NamedTuple):
    """Of many runs: medians of milliseconds, CPU of each in milliseconds, bytes of each, events a second."""

    first_ms: float
    whole_ms: float
    cpu_ms: float
    jail_ms: float
    bytes: float
    events_a_second: float
    seconds: float


async def client(session: Session, base: str, body: dict[str, Any]) -> Client:
    """One streamed run. Raises RuntimeError where it did not end well."""
    began = time.perf_counter()
    first, size, events, last = 0.0, 0, 0, b""
    async with session.post(f"{base}/chat/completions", json=body | {"stream": True}) as response:
        async for data, _ in response.content.iter_chunks():
            if not first and b'"reasoning' in data:
                first = time.perf_counter() - began
            size += len(data)
            events += data.count(b"data: ")
            last = (last + data)[-200:]
    if not last.endswith(b"data: [DONE]\n\n") or b'"stop"' not in last or not first:
        raise RuntimeError(f"a run of {body!r} went wrong: {last!r}")
    return Client(first, time.perf_counter() - began, size, events)


async def at_once(
    session: Session, base: str, body: dict[str, Any], count: int, rounds: int
) -> Found:
    """So many runs at once, several times; the least CPU of a round counts, for others use the machine."""
    seen: list[Client] = []
    costs: list[tuple[float, float]] = []
    took: list[float] = []
    for _ in range(rounds):
        before, began = await measure(session, base), time.perf_counter()
        seen += await asyncio.gather(*(client(session, base, body) for _ in range(count)))
        took.append(time.perf_counter() - began)
        after = await measure(session, base)
        costs.append(
            (
                (after["cpu_seconds"] - before["cpu_seconds"]) / count * 1e3,
                (after["jails_cpu_seconds"] - before["jails_cpu_seconds"]) / count * 1e3,
            )
        )
    return Found(
        median(each.first for each in seen) * 1e3,
        median(each.whole for each in seen) * 1e3,
        median(cpu for cpu, _ in costs),
        sum(jail for _, jail in costs) / len(costs),
        median(each.bytes for each in seen),
        sum(each.events for each in seen) / sum(took),
        min(took),
    )


async def bare_runs(session: Session, base: str, rows: int, runs: int, at_once: int = 1) -> BareRun:
    """Medians of bare runs in the gateway's own process, so many threads at once."""
    query = {"rows": str(rows), "runs": str(runs), "at_once": str(at_once)}
    async with session.post(base.removesuffix("/v1") + "/bare", params=query) as reply:
        found = [BareRun(*each) for each in await reply.json()]
    return BareRun(*(median(values) for values in zip(*found, strict=True)))


async def path_table(session: Session, base: str) -> Table:
    rows: list[tuple[str, ...]] = []
    bars = []
    for count in AT_ONCE:
        bare = await bare_runs(session, base, ROWS, max(15, count), count)
        built_ms = (bare.build + bare.whole) * 1e3
        rows.append(
            (
                f"bare, {count} at once",
                *(f"{bare.first * 1e3:.1f}", "", f"{built_ms:.1f}", "1", f"{bare.cpu * 1e3:.1f}"),
                *("1", "", "", ""),
            )
        )
        for name, model in (("in process", "scripted"), ("upstream", "code-writing-agent")):
            body = ask(f"rows {ROWS}", model)
            found = await at_once(session, base, body, count, max(1, 30 // count))
            rows.append(_path_row(f"{name}, {count} at once", bare, found, judged=count == 1))
            bars.append(
                Bar(f"agent, model {name}, {count} at once: CPU", found.cpu_ms / bare.cpu / 1e3)
            )
    return Table(
        "An agent's run",
        f"Two steps, {ROWS} printed rows. *Bare* is smolagents' agent alone in a thread of the gateway's process, on "
        "a model that answers at once; *in process* is the default agent on the same model through the whole "
        "gateway, jail and client included; *upstream* is the same on a model behind HTTP. First: to the first "
        "reasoning byte, for the bare agent from `agent.run()` on; all else counts its building, too. CPU and "
        "bytes are of one run; the jail's CPU is apart.",
        (
            *("", "first ms", "over bare ms", "whole ms", "ratio", "CPU ms", "ratio"),
            *("jail ms", "bytes", "events/s"),
        ),
        tuple(rows),
        tuple(bars),
    )


def _path_row(name: str, bare: BareRun, found: Found, *, judged: bool) -> tuple[str, ...]:
    """Alone, a run is held against the goals."""
    over = found.first_ms - bare.first * 1e3
    whole = found.whole_ms / (bare.build + bare.whole) / 1e3
    return (
        name,
        f"{found.first_ms:.1f}",
        f"{over:+.1f}" + (f" ({goal(over, FIRST_MS)})" if judged else ""),
        f"{found.whole_ms:.1f}",
        f"{whole:.2f}",
        f"{found.cpu_ms:.1f}" + (f" ({goal(found.cpu_ms, CPU_MS)})" if judged else ""),
        f"{found.cpu_ms / bare.cpu / 1e3:.2f}",
        f"{found.jail_ms:.1f}",
        f"{found.bytes:,.0f}",
        f"{found.events_a_second:,.0f}",
    )


async def event_table(session: Session, base: str) -> Table:
    """Runs that print much: what each printed row costs."""
    bare = (await bare_runs(session, base, MANY_ROWS, 1)).cpu / MANY_ROWS * 1e6
    few = await at_once(session, base, ask("rows", "scripted"), 1, REPEATS)
    body = ask("rows", "scripted") | {"metadata": {"rows": str(MANY_ROWS)}}
    many = await at_once(session, base, body, 1, REPEATS)
    mine = (many.cpu_ms - few.cpu_ms) * 1e3 / MANY_ROWS
    jail = (many.jail_ms - few.jail_ms) * 1e3 / MANY_ROWS
    return Table(
        "An event of an agent",
        f"One printed row of {MANY_ROWS:,}: CPU of smolagents' own interpreter, which only collects it, and of the "
        "gateway, which takes it from the jail through thread and channel to the client at once.",
        ("", "bare µs", "gateway µs", "goal", "jail µs", "rows/s"),
        (
            (
                "a printed row",
                f"{bare:.1f}",
                f"{mine:.1f}",
                goal(mine, EVENT_US),
                f"{jail:.1f}",
                f"{MANY_ROWS / many.whole_ms * 1e3:,.0f}",
            ),
        ),
        (Bar("agent: CPU of an event, of the 30 µs allowed", mine / EVENT_US, 1.0),),
    )


async def waiting_table(session: Session, base: str) -> Table:
    one = (await at_once(session, base, ask("wait 1"), 1, 2)).whole_ms / 1e3
    many = await at_once(session, base, ask("wait 1"), 64, REPEATS)
    cpu = (many.cpu_ms + many.jail_ms) * 64 / 1e3
    ratio = many.seconds / (one + cpu)
    before = await measure(session, base)
    body = ask("wait 30")
    runs = [asyncio.ensure_future(client(session, base, body)) for _ in range(WAITING_RUNS)]
    began = time.monotonic()
    while (during := await measure(session, base))["running"] < WAITING_RUNS:
        if time.monotonic() > began + 28:
            raise RuntimeError(f"of {WAITING_RUNS} runs {during['running']} began in time")
        await asyncio.sleep(0.2)
    await asyncio.sleep(2)
    during = await measure(session, base)
    each = (during["rss_kib"] - before["rss_kib"]) / during["running"] * 1.024
    await asyncio.gather(*runs)
    return Table(
        "Runs that wait for their model",
        "64 at once, whose model takes a second: the wall time of all against one, and against one and the CPU "
        f"that they need in all. {WAITING_RUNS:,} at once: resident memory of the one process.",
        ("", "found", "goal"),
        (
            ("64 at once, of one run's time", f"{many.seconds / one:.2f}", ""),
            (
                "64 at once, of one run's time and all CPU",
                f"{ratio:.2f}",
                goal(ratio, WAITING_RATIO),
            ),
            (f"{during['running']:,} waiting, KB each", f"{each:.0f}", goal(each, WAITING_KB)),
        ),
        (
            Bar("64 agents waiting: time, of the ideal", ratio, WAITING_RATIO),
            Bar("a waiting agent's memory, of the 400 KB allowed", each / WAITING_KB, 1.0),
        ),
    )


async def tables(base: str) -> list[Table]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=180)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        for model in ("scripted", "code-writing-agent"):  # load what later ones find loaded
            await at_once(session, base, ask(f"rows {ROWS}", model), 4, 2)
        return [
            await path_table(session, base),
            await event_table(session, base),
            await waiting_table(session, base),
        ]


def main() -> int:
    with (
        scripted_upstream() as port,
        measured_gateway(
            UPSTREAM_OPENAI_BASE=f"http://127.0.0.1:{port}/v1",
            AGENT_MODEL="up",
            AGENTS="scripted=bench.bare_agent:create_agent",
            JAIL="required",
            MAX_RUNNING=str(WAITING_RUNS),
            LOG_LEVEL="INFO",
        ) as (_, base),
    ):
        return show(asyncio.run(tables(base)))


if __name__ == "__main__":
    sys.exit(main())
