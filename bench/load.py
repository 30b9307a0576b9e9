"""A load test of what is deployed: nginx with the shipped site, two workers, agents and relayed streams at once.

In: `--agents`, `--relays` streams at a time, for `--seconds`. Out: figures, and exit code 1 where one stream was
lost, cut, refused or mixed with another. Every request carries a token of its own: an agent's steps, prints
and answer, and each delta of a relayed stream, must be of that token and no other, all of them, in order.

`python -m bench.load --agents 500 --relays 500 --seconds 60`
"""

import argparse
import asyncio
import json
import re
import resource
import ssl
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from bench.load_upstream import AGENT_STEPS, DELTAS
from bench.nginx_site import NginxSite, nginx_site
from bench.processes import process_saying
from bench.relay_servers import await_port, free_port

RELAYED = "load/model"
# The site's limits are for clients of many addresses; here all have one.
NO_LIMITS = {
    "rate=20r/s": "rate=100000r/s",
    "burst=40": "burst=100000",
    "limit_conn smolgate_streams 100;": "limit_conn smolgate_streams 60000;",
    "keepalive 64;": "keepalive 1024;",
}
TOKEN = re.compile(r"tok-[a-z]+-\d+-")


@dataclass
class Tally:
    """What became of the streams of one kind."""

    name: str
    whole: int = 0
    events: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    firsts: list[float] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0

    def line(self, seconds: float) -> str:
        firsts = sorted(self.firsts) or [0.0]
        median, high = firsts[len(firsts) // 2], firsts[int(len(firsts) * 0.99)]
        return (
            f"{self.name:8}{self.whole:8} whole{sum(self.faults.values()):6} lost or mixed"
            f"{self.most_at_once:7} at once{self.events / seconds:9.0f} events/s"
            f"   first event {median:6.2f} s median, {high:6.2f} s p99"
        )


class Mixed(Exception):
    """A stream that is not wholly and only its own."""


def check_relayed(token: str, events: list[Any]) -> None:
    expected = "".join(f"{token}{number} " for number in range(DELTAS))
    if text_of(events, "content") != expected:
        raise Mixed("a relayed stream is not its own")


def check_agent(token: str, events: list[Any]) -> None:
    reasoning, answer = text_of(events, "reasoning"), text_of(events, "content")
    if answer != f"{token}answer":
        raise Mixed("an answer is not its own")
    if set(TOKEN.findall(reasoning)) != {token}:
        raise Mixed("reasoning is not its own")
    printed = [f"{token}printed {step}" for step in range(AGENT_STEPS)]
    places = [reasoning.find(f"\n{line}\n") for line in printed]
    if -1 in places or places != sorted(places):
        raise Mixed("a print is missing or out of order")


def text_of(events: list[Any], name: str) -> str:
    return "".join(
        choice["delta"].get(name) or "" for event in events for choice in event["choices"]
    )


CHECKS = {"agent": check_agent, "relay": check_relayed}


class Load:
    """Keeps so many streams of one kind going until the time is over; each is read to its end."""

    def __init__(self, kind: str, session: aiohttp.ClientSession, url: str) -> None:
        self._kind = kind
        self._session = session
        self._url = url
        self.tally = Tally(kind)
        self._count = 0

    async def keep(self, streams: int, seconds: float) -> None:
        until = time.monotonic() + seconds
        # Not all in one instant: a herd of clients is another test.
        starts = (self._one_after_another(until, i / streams) for i in range(streams))
        await asyncio.gather(*starts)

    async def _one_after_another(self, until: float, delay: float) -> None:
        await asyncio.sleep(delay)
        while time.monotonic() < until:
            self._count += 1
            await self._count_one(f"tok-{self._kind}-{self._count}-")

    async def _count_one(self, token: str) -> None:
        tally = self.tally
        tally.at_once += 1
        tally.most_at_once = max(tally.most_at_once, tally.at_once)
        try:
            events = await self._read(token)
            CHECKS[self._kind](token, events)
        except (aiohttp.ClientError, TimeoutError, Mixed, json.JSONDecodeError) as error:
            tally.faults[f"{type(error).__name__}: {error}"[:200]] += 1
        else:
            tally.whole += 1
        finally:
            tally.at_once -= 1

    async def _read(self, token: str) -> list[Any]:
        """The events of one stream. Raises Mixed where it does not end as it should."""
        body = {
            "model": RELAYED if self._kind == "relay" else "code-writing-agent",
            "messages": [{"role": "user", "content": token}],
            "stream": True,
        }
        began = time.monotonic()
        events: list[Any] = []
        done = False
        async with self._session.post(self._url, json=body) as response:
            if response.status != 200:
                raise Mixed(f"status {response.status}: {(await response.text())[:100]}")
            async for line in response.content:
                if not line.startswith(b"data: "):
                    continue
                if not events:
                    self.tally.firsts.append(time.monotonic() - began)
                self.tally.events += 1
                if line == b"data: [DONE]\n":
                    done = True
                elif b'"error"' in line:
                    raise Mixed(f"an error event: {line.decode()[:100]}")
                else:
                    events.append(json.loads(line.removeprefix(b"data: ")))
        if not done:
            raise Mixed("a stream without its end")
        return events


@asynccontextmanager
async def clients(nginx: NginxSite) -> AsyncIterator[aiohttp.ClientSession]:
    context = ssl.create_default_context(cafile=str(nginx.authority))
    connector = aiohttp.TCPConnector(limit=0, ssl=context)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


async def run_load(agents: int, relays: int, seconds: float, workers: int) -> list[Tally]:
    """Start all that is deployed, load it, and tell what became of it."""
    async with AsyncExitStack() as stack:
        nginx, server = await asyncio.to_thread(_deploy, stack, agents, workers)
        session = await stack.enter_async_context(clients(nginx))
        url = f"{nginx.base}/chat/completions"
        loads = [Load("agent", session, url), Load("relay", session, url)]
        cpu, began = cpu_seconds(server), time.monotonic()
        await asyncio.gather(loads[0].keep(agents, seconds), loads[1].keep(relays, seconds))
        spent, took = cpu_seconds(server) - cpu, time.monotonic() - began
        print(f"{workers} workers, {agents} agent and {relays} relay streams, {seconds:g} s, TLS")
        for load in loads:
            print("  " + load.tally.line(took))
            for fault, times in load.tally.faults.most_common(5):
                print(f"    {times} times {fault}")
        print(f"  the server's CPU: {spent:.1f} s in {took:.1f} s")
        return [load.tally for load in loads]


def _deploy(stack: AsyncExitStack, agents: int, workers: int) -> tuple[NginxSite, int]:
    own = stack.enter_context(ExitStack())
    _, upstream = own.enter_context(process_saying(r"^(\d+)$", "bench.load_upstream"))
    port = free_port()
    pid, _ = own.enter_context(
        process_saying(
            r"(listening on)",
            *("server", "--port", str(port), "--workers", str(workers)),
            *("--max-running", str(agents), "--max-queued", str(agents)),
            UPSTREAM_OPENAI_BASE=f"http://127.0.0.1:{upstream}/v1",
            AGENT_MODEL=RELAYED,
            JAIL="off",
            LOG_LEVEL="INFO",
            TRUSTED_PROXIES="127.0.0.1",
        )
    )
    await_port(port)
    nginx = own.enter_context(nginx_site(f"127.0.0.1:{port}", NO_LIMITS))
    return nginx, pid


def cpu_seconds(pid: int) -> float:
    """Of a process and its children, those that live."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    total = (int(fields[11]) + int(fields[12])) / 100
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return total + sum(cpu_seconds(int(child)) for child in children)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agents", type=int, default=500)
    parser.add_argument("--relays", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
    tallies = asyncio.run(run_load(asked.agents, asked.relays, asked.seconds, asked.workers))
    bad = any(tally.faults or not tally.whole for tally in tallies)
    print("some were lost or mixed" if bad else "none was lost, none was mixed")
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
