"""What supervision promises, measured: stopping, and leaking nothing.

    python -m bench.supervision disconnects   200 clients leave at random moments: time until all has stopped
    python -m bench.supervision leaks         1,000 runs, a third of them left early: nothing stays behind
    python -m bench.supervision soak [SECONDS]   a mixed load; memory flat, nothing lost or mixed

Without an argument all but the soak. Exits 1 where a promise is broken.
"""

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from bench.processes import measured_gateway, scripted_upstream
from bench.torture import left_behind, measure, messages, read_stream, settled, whole_relay

STOP_LIMIT_SECONDS = 0.1
SOAK_SECONDS = 600.0
SOAK_GROWTH_KIB = 32 * 1024

Session = aiohttp.ClientSession


def ask(text: str, model: str = "code-writing-agent") -> dict[str, Any]:
    return {"model": model, "messages": messages(text)}


async def leave_early(session: Session, base: str, text: str, after_seconds: float) -> None:
    """Begin a streamed run and leave."""
    task = asyncio.ensure_future(read_stream(session, f"{base}/chat/completions", ask(text)))
    await asyncio.sleep(after_seconds)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def disconnects(session: Session, base: str) -> bool:
    """One client after the other leaves in a random phase of its run."""
    pid = (await measure(session, base))["pid"]
    texts = ("wait 5", f"attack 10**10**8 {pid}", f"attack sleep 600 {pid}")
    await read_stream(session, f"{base}/chat/completions", ask("warm up"))
    found = []
    for number in range(200):
        await leave_early(session, base, texts[number % 3], random.uniform(0, 0.15))
        left = time.monotonic()
        while (await measure(session, base))["running"]:
            pass
        found.append(time.monotonic() - left)
    found.sort()
    p50, p99 = found[100], found[197]
    print(
        f"client gone to slot free, 200 times: p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms, "
        f"worst {found[-1] * 1e3:.1f} ms (measured with a request each, about 1 ms)"
    )
    return p99 < STOP_LIMIT_SECONDS


async def leaks(session: Session, base: str) -> bool:
    """A thousand runs, sixteen at a time."""
    url = f"{base}/chat/completions"
    await asyncio.gather(*(read_stream(session, url, ask("warm up")) for _ in range(16)))
    await asyncio.sleep(5)  # connections to the upstream are kept four seconds
    first = await measure(session, base)
    limit = asyncio.Semaphore(16)

    async def one(number: int) -> bool:
        async with limit:
            if number % 3 == 0:
                await leave_early(session, base, "wait 1", random.uniform(0, 0.2))
                return True
            return (await read_stream(session, url, ask("x"))).endswith("survived[DONE]")

    began = time.monotonic()
    good = all(await asyncio.gather(*map(one, range(1000))))
    seconds = time.monotonic() - began
    last = await settled(session, base, first)
    left = left_behind(first, last)
    # Idle threads of the pool wait for work for half a minute; sixteen at a time can need a few more.
    if last["threads"] > first["threads"] + 8 or last["tasks"] > first["tasks"]:
        left.append(f"threads or tasks: {first} before, {last} after")
    cpu_ms = (last["cpu_seconds"] - first["cpu_seconds"]) * 1e3 / 1000
    grown = last["rss_kib"] - first["rss_kib"]
    print(
        f"1,000 runs in {seconds:.1f} s, {cpu_ms:.1f} ms CPU each (jails apart), "
        f"RSS {grown:+} KiB; left: {left or 'nothing'}"
    )
    return good and not left


async def soak(session: Session, base: str, seconds: float = SOAK_SECONDS) -> bool:
    """Agents, attacks, relays and clients that leave, all at once, for a long time."""
    url = f"{base}/chat/completions"
    pid = (await measure(session, base))["pid"]
    end = time.monotonic() + seconds
    done = {"agents": 0, "relays": 0, "left": 0, "wrong": 0}

    async def agents() -> None:
        while time.monotonic() < end:
            name = random.choice(
                ("x", f"attack print 1 GB {pid}", f"attack exec {pid}", "wait 0.2")
            )
            text = await read_stream(session, url, ask(name, "open"))
            done["agents"] += 1
            done["wrong"] += not text.endswith(("survived[DONE]", "waited[DONE]"))

    async def relays() -> None:
        while time.monotonic() < end:
            text = await read_stream(session, url, ask("slow 50", "up"))
            done["relays"] += 1
            done["wrong"] += text != whole_relay()

    async def leavers() -> None:
        while time.monotonic() < end:
            await leave_early(session, base, "wait 2", random.uniform(0, 0.5))
            done["left"] += 1

    async def watch() -> list[int]:
        found = []
        while time.monotonic() < end:
            await asyncio.sleep(min(30.0, seconds / 10))
            found.append((await measure(session, base))["rss_kib"])
            print(
                f"  {end - time.monotonic():5.0f} s to go: RSS {found[-1]} KiB, {done}", flush=True
            )
        return found

    kinds = (agents, agents, agents, relays, relays, relays, relays, relays, leavers, leavers)
    watching = asyncio.ensure_future(watch())
    await asyncio.gather(*(kind() for kind in kinds))
    rss = await watching
    grown = rss[-1] - rss[len(rss) // 3]  # the first third fills pools and caches
    print(f"soak of {seconds:g} s: {done}; RSS {grown:+} KiB after the first third")
    return not done["wrong"] and grown < SOAK_GROWTH_KIB


PROMISES: dict[str, Callable[[Session, str], Awaitable[bool]]] = {
    "disconnects": disconnects,
    "leaks": leaks,
}


async def keep(base: str, names: list[str]) -> bool:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        if names[:1] == ["soak"]:
            return await soak(session, base, *map(float, names[1:2]))
        return all([await PROMISES[name](session, base) for name in names or PROMISES])


def main(names: list[str]) -> int:
    with (
        scripted_upstream() as port,
        measured_gateway(
            UPSTREAM_OPENAI_BASE=f"http://127.0.0.1:{port}/v1",
            AGENT_MODEL="up",
            AGENTS="open=bench.open_agent:create_agent",
            JAIL="required",
            MAX_RUNNING="200",
        ) as (_, base),
    ):
        return int(not asyncio.run(keep(base, names)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
