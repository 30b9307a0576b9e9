"""What a relayed event, an agent's run and a start may cost, in numbers that a busy machine hardly moves.

Instructions and allocations are counted by callgrind, calls of functions by cProfile in the server's process, system calls
by the kernel. CPU time stands in turns of a reference loop, the least of several rounds, with a wide margin; so do
instructions, with a narrow one. `make bench` has the figures themselves.
"""

import asyncio
import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
from server_process import ROOT, server_process

from bench.agent_path import at_once, bare_runs, client
from bench.debian_packages import Unavailable
from bench.instructions import Counter, Counts, counts
from bench.processes import measured_gateway, scripted_upstream
from bench.reference_loop import micros_of_a_turn
from bench.relay_profiled import REFERENCE_TURNS
from bench.relay_rows import ROWS
from bench.relay_run import Bench, Cost, Effort
from bench.relay_servers import gateway_server
from bench.relay_work import KEY, Work
from bench.supervision import ask
from bench.torture import measure

CLIENTS = 8
ROUNDS = 2
MANY_ROWS = 3000
WAITING = 50


class Counted(NamedTuple):
    """Of one unit of work, an event or a request: function calls, reads and writes of the kernel's, and CPU in
    turns of the reference loop.
    """

    calls: float
    system_calls: float
    turns: float


# As measured, and what more may be. A neighbour on the same core doubles CPU time, which counts never do.
MORE = Counted(1.4, 1.3, 4)
RELAY: dict[str, Counted] = {
    "alone": Counted(7.1, 2, 5),
    "burst": Counted(370, 4, 100),
    "alone-scrubbed": Counted(12.3, 2, 6),
    "burst-scrubbed": Counted(900, 4, 220),
    "plain": Counted(325, 4, 80),
}


@pytest.fixture(scope="module")
def relayed() -> dict[str, Counted]:
    """Every kind of relaying, by one gateway with keys, limits, metrics and its access log on."""
    return asyncio.run(_relayed())


async def _relayed() -> dict[str, Counted]:
    bench = Bench(Effort(slice_cpu_seconds=0.08))
    listening = await bench.listen()
    with gateway_server(bench.port, module="bench.relay_profiled") as server:

        async def count(work: Work) -> Counted:
            load = await bench.connected(server.port, work, CLIENTS)
            cost, profiled, turns = Cost(), Cost(), []
            await bench.slice(load, server, work, None)
            before = system_calls_of(server.pid)
            for _ in range(ROUNDS):
                turns.append(micros_of_a_turn())
                await bench.slice(load, server, work, cost)
            system_calls = system_calls_of(server.pid) - before
            await asyncio.to_thread(_post, server.port, "/profile/start")
            await bench.slice(load, server, work, profiled)
            rows = json.loads(await asyncio.to_thread(_post, server.port, "/profile/stop"))
            load.close()
            return Counted(
                sum(calls for _, calls, _, _ in rows) / (profiled.requests * work.units),
                system_calls / (cost.requests * work.units),
                min(cost.micros) / min(turns),
            )

        found = {name: await count(ROWS[name].work) for name in RELAY}
    listening.close()
    return found


def system_calls_of(pid: int) -> int:
    """How often a process has read and written."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("syscr", "syscw")))


def _post(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, headers={"Authorization": f"Bearer {KEY}"})
        return connection.getresponse().read()
    finally:
        connection.close()


@pytest.mark.parametrize("what", Counted._fields)
@pytest.mark.parametrize("name", RELAY)
def test_relaying_costs_no_more(name: str, what: str, relayed: dict[str, Counted]) -> None:
    most = getattr(RELAY[name], what) * getattr(MORE, what)
    assert 0 < getattr(relayed[name], what) <= most


# As measured: instructions in turns of the reference loop, and allocations; and what more may be.
EXECUTED: dict[str, Counts] = {
    "alone": Counts(0.35, 5.9),
    "burst": Counts(
        25.7 if sys.version_info >= (3, 11, 5) else 34, 327
    ),  # by the pattern of frames
    "alone-scrubbed": Counts(0.56, 9.8),
    "burst-scrubbed": Counts(61, 1045),
    "plain": Counts(15.6, 269),
}
MORE_EXECUTED = 1.3  # for another interpreter


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Counts]:
    """The same, under callgrind."""
    try:
        counter = Counter(tmp_path_factory.mktemp("callgrind"))
    except Unavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
    return asyncio.run(_executed(counter))


async def _executed(counter: Counter) -> dict[str, Counts]:
    bench = Bench(Effort())
    listening = await bench.listen()
    with gateway_server(
        bench.port,
        module="bench.relay_profiled",
        under=counter.under,
        PYTHONMALLOC="malloc",
        HEARTBEAT_SECONDS="600",  # all takes fifty times as long
    ) as server:
        with counter.counting(server.pid):
            await asyncio.to_thread(_post, server.port, "/reference")
        turn = counter.take(server.pid, REFERENCE_TURNS)
        found = {}
        for name in EXECUTED:
            one = await counts(bench, server, counter, ROWS[name].work, CLIENTS)
            found[name] = one._replace(instructions=one.instructions / turn.instructions)
    listening.close()
    return found


@pytest.mark.timeout(600)  # what is counted runs fifty times slower
@pytest.mark.parametrize("what", Counts._fields)
@pytest.mark.parametrize("name", EXECUTED)
def test_relaying_executes_no_more(name: str, what: str, executed: dict[str, Counts]) -> None:
    most = getattr(EXECUTED[name], what) * MORE_EXECUTED
    assert 0 < getattr(executed[name], what) <= most


def test_an_agents_event_calls_no_more_functions() -> None:
    command = (sys.executable, "-m", "bench.event_calls")
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert 0 < float(said.stdout) < 70  # 47 as measured


class Agents(NamedTuple):
    """CPU of a run, as part of the bare agent's that is built anew; of a printed row, in turns; memory of a run
    that waits, in KB. As measured: 0.15, 6, 93.
    """

    run: float
    row_turns: float
    waiting_kb: float


@pytest.fixture(scope="module")
def agents() -> Iterator[Agents]:
    with (
        scripted_upstream() as port,
        measured_gateway(
            UPSTREAM_OPENAI_BASE=f"http://127.0.0.1:{port}/v1",
            AGENTS="scripted=bench.bare_agent:create_agent",
            JAIL="off",
            MAX_RUNNING=str(WAITING),
        ) as (_, base),
    ):
        yield asyncio.run(_agents(base))


async def _agents(base: str) -> Agents:
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        few = ask("rows", "scripted")
        many = few | {"metadata": {"rows": str(MANY_ROWS)}}
        await at_once(session, base, few, 4, 2)
        waiting_kb = await _waiting_kb(session, base)
        await at_once(session, base, many, 1, 1)
        bare, run, row, turns = [], [], [], []
        for _ in range(ROUNDS):
            turns.append(micros_of_a_turn())
            bare.append((await bare_runs(session, base, 20, 5)).cpu * 1e3)
            run.append((await at_once(session, base, few, 1, 5)).cpu_ms)
            row.append((await at_once(session, base, many, 1, 1)).cpu_ms)
        row_micros = (min(row) - min(run)) * 1e3 / MANY_ROWS
        return Agents(min(run) / min(bare), row_micros / min(turns), waiting_kb)


async def _waiting_kb(session: aiohttp.ClientSession, base: str) -> float:
    before = await measure(session, base)
    runs = [asyncio.ensure_future(client(session, base, ask("wait 2"))) for _ in range(WAITING)]
    while (during := await measure(session, base))["running"] < WAITING:
        assert not any(run.done() for run in runs), "the first ended before the last began"
        await asyncio.sleep(0.1)
    during = await measure(session, base)
    await asyncio.gather(*runs)
    return float(during["rss_kib"] - before["rss_kib"]) / WAITING * 1.024


@pytest.mark.parametrize(
    ("name", "most"), [("run", 0.3), ("row_turns", 15.0), ("waiting_kb", 150.0)]
)
def test_an_agent_costs_no_more(name: str, most: float, agents: Agents) -> None:
    assert 0 < getattr(agents, name) < most


# What the first request needs of others, with all that these import. smolagents takes most of a start.
NEEDED = "aiohttp.web, aiohttp_sse, anyio, msgspec, multidict, smolagents, uvloop, yaml"
# Of ours, what a deployment may never need.
LATER = {
    *("server.embedded", "server.metrics", "server.worker_pool", "server.worker_post"),
    *("streaming.runners.process", "streaming.runners.ray", "streaming.mcp_tool"),
}


def imported(lines: Iterable[str]) -> set[str]:
    """The modules that `python -X importtime` tells of."""
    told = (line for line in lines if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip() for line in told}


def packages(modules: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules} - sys.stdlib_module_names


def test_a_start_imports_only_what_the_first_request_needs() -> None:
    telling = (sys.executable, "-X", "importtime")
    command = (*telling, "-c", f"import {NEEDED}")
    needed = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=True).stderr
    folder = str(Path(__file__).parent.parent)
    with server_process(command=(*telling, "-m", "server"), PYTHONPATH=folder) as server:
        found = imported(server.lines)
    assert {"server.chat", "smolagents", "aiohttp.web"} <= found
    assert found & LATER == set()
    own = {"sanitize", "streaming", "server"}
    assert packages(found) - own - packages(imported(needed.splitlines())) == set()
