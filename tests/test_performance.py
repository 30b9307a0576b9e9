"""What a relayed event, an agent's run and a start may cost, in numbers that a busy machine hardly moves.

Calls of functions are counted exactly, by cProfile in the server's process. CPU time stands in units of a
reference loop that is timed in between, the least of several rounds each, and so moves by a quarter at most;
the limits leave two thirds above what was measured, so that twice the work fails. `make bench` has the figures.
"""

import asyncio
import cProfile
import http.client
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
from server_process import server_process

from bench.agent_path import at_once, bare_runs, client
from bench.processes import measured_gateway, scripted_upstream
from bench.relay_rows import ROWS
from bench.relay_run import Bench, Cost, Effort
from bench.relay_servers import gateway_server
from bench.relay_work import KEY, Work
from bench.supervision import ask
from bench.torture import measure
from server.chat_wire import ChatWire
from streaming.channel import Channel
from streaming.events import Print
from streaming.transcript import Transcript

CLIENTS = 8
ROUNDS = 3
EVENTS = 1000
MANY_ROWS = 3000
WAITING = 50


def reference_micros() -> float:
    """CPU of a loop of what this project does most: dictionaries, bytes, calls, JSON."""
    began = time.thread_time()
    seen: dict[str, int] = {}
    for number in range(2000):
        text = json.dumps({"content": f"word {number}"})
        seen[text] = len(text.encode()) + text.find("9")
    assert len(seen) == 2000
    return (time.thread_time() - began) / 2000 * 1e6


class Counted(NamedTuple):
    """Of one unit of work, an event or a request: function calls, and CPU in turns of the reference loop."""

    calls: float
    turns: float


# Measured with CPython 3.11: calls, turns. A limit is LIMIT times that.
LIMIT = 5 / 3
RELAY: dict[str, Counted] = {
    "alone": Counted(1, 1),
    "burst": Counted(1, 1),
    "alone-scrubbed": Counted(1, 1),
    "burst-scrubbed": Counted(1, 1),
    "plain": Counted(1, 1),
}


@pytest.fixture(scope="module")
def relayed() -> dict[str, Counted]:
    """Every kind of relaying, by one gateway with keys, limits, metrics and its access log on."""
    return asyncio.run(_relayed())


async def _relayed() -> dict[str, Counted]:
    bench = Bench(Effort(slice_cpu_seconds=0.12))
    listening = await bench.listen()
    with gateway_server(bench.port, module="bench.relay_profiled") as server:

        async def count(work: Work) -> Counted:
            load = await bench.connected(server.port, work, CLIENTS)
            cost, profiled, turns = Cost(), Cost(), []
            await bench.slice(load, server, work, None)
            for _ in range(ROUNDS):
                turns.append(reference_micros())
                await bench.slice(load, server, work, cost)
            await asyncio.to_thread(_post, server.port, "/profile/start")
            await bench.slice(load, server, work, profiled)
            rows = json.loads(await asyncio.to_thread(_post, server.port, "/profile/stop"))
            load.close()
            calls = sum(calls for _, calls, _, _ in rows)
            return Counted(
                calls / (profiled.requests * work.units), min(cost.micros) / min(turns)
            )

        found = {name: await count(ROWS[name].work) for name in RELAY}
    listening.close()
    return found


def _post(port: int, path: str) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, headers={"Authorization": f"Bearer {KEY}"})
        return connection.getresponse().read()
    finally:
        connection.close()


@pytest.mark.parametrize("name", RELAY)
def test_relaying_calls_no_more_functions(name: str, relayed: dict[str, Counted]) -> None:
    assert 0 < relayed[name].calls < LIMIT * RELAY[name].calls


@pytest.mark.parametrize("name", RELAY)
def test_relaying_takes_no_more_cpu(name: str, relayed: dict[str, Counted]) -> None:
    assert 0 < relayed[name].turns < LIMIT * RELAY[name].turns


async def test_an_agents_event_calls_no_more_functions() -> None:
    """From the channel to the bytes of its chunk, one by one, as a reader that keeps up sees them."""
    channel, transcript = Channel(), Transcript()
    wire = ChatWire(run_id="chatcmpl-1", created=1, model="m", include_usage=True)

    async def pass_on(number: int) -> bytes:
        await channel.send_on_loop(Print(f"row {number}\n"))
        text = "".join(map(transcript.feed, await channel.receive_many()))
        return b"".join(wire.reasoning(text))

    await pass_on(0)
    profile = cProfile.Profile()
    profile.enable()
    for number in range(EVENTS):
        data = await pass_on(number)
    profile.disable()
    assert b"row 999" in data
    profile.create_stats()
    calls = sum(row[1] for row in profile.stats.values()) / EVENTS  # type: ignore[attr-defined]
    assert 0 < calls < LIMIT * 1


class Agents(NamedTuple):
    """CPU of a run, of the bare agent's; of a printed row, in turns; memory of a run that waits, in KB."""

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
        await at_once(session, base, many, 1, 1)
        bare, run, row, turns = [], [], [], []
        for _ in range(ROUNDS):
            turns.append(reference_micros())
            bare.append((await bare_runs(session, base, 20, 5)).cpu * 1e3)
            run.append((await at_once(session, base, few, 1, 5)).cpu_ms)
            row.append((await at_once(session, base, many, 1, 1)).cpu_ms)
        row_micros = (min(row) - min(run)) * 1e3 / MANY_ROWS
        return Agents(
            min(run) / min(bare), row_micros / min(turns), await _waiting_kb(session, base)
        )


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
    ("name", "most"), [("run", 1.0), ("row_turns", 1.0), ("waiting_kb", 1.0)]
)
def test_an_agent_costs_no_more(name: str, most: float, agents: Agents) -> None:
    assert 0 < getattr(agents, name) < most


# Of these a request may need one some day, but the first one needs none.
LATER = {
    *("prometheus_client", "jsonschema", "mcp", "opentelemetry", "openinference", "ray", "msgpack"),
    *("xllamacpp", "numpy", "pandas", "torch", "transformers", "openai", "grpc", "wsgiref"),
    *("server.embedded", "server.metrics", "server.worker_pool", "server.worker_post"),
    *("streaming.runners.process", "streaming.runners.ray", "streaming.mcp_tool"),
}


def imported(command: tuple[str, ...]) -> set[str]:
    """The modules that a server has imported once it listens; Python itself tells."""
    with server_process(command=command, PYTHONPATH=str(Path(__file__).parent.parent)) as server:
        lines = [line for line in server.lines if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def test_a_start_imports_only_what_the_first_request_needs() -> None:
    found = imported((sys.executable, "-X", "importtime", "-m", "server"))
    assert {"server.chat", "smolagents", "aiohttp.web"} <= found
    assert found & LATER == set()
    own = {name for name in found if name.split(".")[0] in {"sanitize", "streaming", "server"}}
    third = {name.split(".")[0] for name in found - own} - sys.stdlib_module_names
    assert {name for name in third if not name.startswith("_")} <= NEEDED


NEEDED: set[str] = set()
