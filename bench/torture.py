"""The worst code that a model can write, three at once, while twenty relayed streams go on.

For each attack: how the three runs ended, the event loop's lag, and that nothing of them is left. Exits 1
where the server or a stream suffered, a secret got out, or anything stayed behind.

    python -m bench.torture [NAME…]
"""

import asyncio
import json
import sys
import time
from typing import Any, NamedTuple

import aiohttp

from bench.attacks import ATTACKS, Attack
from bench.processes import measured_gateway, scripted_upstream

ATTACKERS = 3
RELAYS = 20
RELAY_EVENTS = 50  # about a second
STEP_SECONDS = 2.0
LATE_LIMIT = 0.01  # of all samples of the loop's lag: its p99 is under 20 ms
# Connections to the upstream are kept for the next request.
POOLED_FDS = ATTACKERS + RELAYS
SETTLE_SECONDS = 10.0
MEMORY_BACK_KIB = 64 * 1024
SECRETS = {"HF_TOKEN": "hf_SECRET_token", "MY_PASSWORD": "SECRET_password"}


class Verdict(NamedTuple):
    name: str
    outcome: str
    seconds: float
    lag_ms: dict[str, float]
    wrong: list[str]


async def read_stream(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> str:
    """All text of a chat stream, an error's too; ends with [DONE]."""
    text = ""
    async with session.post(url, json=body | {"stream": True}) as response:
        raw = (await response.read()).decode()
    for line in raw.splitlines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            return text + "[DONE]"
        event = json.loads(line[6:])
        for choice in event.get("choices", []):
            delta = choice["delta"]
            text += delta.get("reasoning") or delta.get("content") or ""
        if "error" in event:
            text += f"ERROR {event['error']['code']}"
    return text


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def attack(session: aiohttp.ClientSession, base: str, name: str, spec: Attack) -> Verdict:
    """One row of the table."""
    url = f"{base}/chat/completions"
    before = await measure(session, base)
    began = time.monotonic()
    ask = {"model": "open", "messages": messages(f"attack {name} {before['pid']}")}
    relay = {"model": "up", "messages": messages(f"slow {RELAY_EVENTS}")}
    runs = [read_stream(session, url, ask) for _ in range(ATTACKERS)]
    relays = [read_stream(session, url, relay) for _ in range(RELAYS)]
    texts = await asyncio.gather(*runs, *relays)
    seconds = time.monotonic() - began
    told, streams = texts[:ATTACKERS], texts[ATTACKERS:]
    after = await settled(session, base, before, pooled_fds=POOLED_FDS)
    wrong = [
        *(["a relayed stream suffered"] if set(streams) != {whole_relay()} else []),
        *(["a run did not survive"] if not all(t.endswith("survived[DONE]") for t in told) else []),
        *(["not told: " + spec.told] if not all(spec.told in text for text in told) else []),
        *(["told: " + spec.not_told] if any(spec.not_told in text for text in told) else []),
        *(["a secret got out"] if any(s in t for t in told for s in SECRETS.values()) else []),
        *left_behind(before, after, pooled_fds=POOLED_FDS),
    ]
    outcome = "killed" if "was killed" in told[0] or "SIG" in told[0] else "refused"
    return Verdict(name, outcome, seconds, after["lag_ms"], wrong)


def whole_relay() -> str:
    return "".join(f"{number} " for number in range(RELAY_EVENTS)) + "[DONE]"


def left_behind(before: dict[str, Any], after: dict[str, Any], *, pooled_fds: int = 0) -> list[str]:
    slack = {"jails": 0, "fds": pooled_fds, "running": 0, "stuck": 0, "rss_kib": MEMORY_BACK_KIB}
    return [
        f"{name}: {before[name]} before, {after[name]} after"
        for name, more in slack.items()
        if after[name] > before[name] + more
    ]


async def measure(session: aiohttp.ClientSession, base: str) -> dict[str, Any]:
    async with session.get(base.removesuffix("/v1") + "/measure") as response:
        found: dict[str, Any] = await response.json()
        return found


async def settled(
    session: aiohttp.ClientSession, base: str, before: dict[str, Any], *, pooled_fds: int = 0
) -> dict[str, Any]:
    """What is measured once nothing is left over, or when it should have been; with the first lag."""
    first = after = await measure(session, base)
    deadline = time.monotonic() + SETTLE_SECONDS
    while left_behind(before, after, pooled_fds=pooled_fds) and time.monotonic() < deadline:
        await asyncio.sleep(0.05)
        after = await measure(session, base)
    return after | {"lag_ms": first["lag_ms"]}


async def torture(base: str, names: list[str]) -> bool:
    """Every attack, and what is left in the end; true where nothing was wrong."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=60)
    verdicts = []
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        # Load what the first run of each kind loads, and let the warm jails be there.
        await attack(session, base, "read /etc/passwd", ATTACKS["read /etc/passwd"])
        first = await measure(session, base)
        for name in names:
            verdict = await attack(session, base, name, ATTACKS[name])
            verdicts.append(verdict)
            lag = verdict.lag_ms
            print(
                f"{verdict.name:24} {verdict.outcome:8} {verdict.seconds:6.2f} s   "
                f"lag p99 {lag['p99']:6.2f} max {lag['max']:6.2f} ms   "
                f"{'; '.join(verdict.wrong) or 'ok'}",
                flush=True,
            )
        left = left_behind(first, await settled(session, base, first))
    late = sum(v.lag_ms["late"] for v in verdicts) / sum(v.lag_ms["samples"] for v in verdicts)
    print(f"in all: {late:.2%} of the loop's wakeups over 20 ms late; left: {left or 'nothing'}")
    return late < LATE_LIMIT and not left and not any(verdict.wrong for verdict in verdicts)


def main(names: list[str]) -> int:
    with (
        scripted_upstream() as port,
        measured_gateway(
            UPSTREAM_OPENAI_BASE=f"http://127.0.0.1:{port}/v1",
            AGENT_MODEL="up",
            AGENTS="open=bench.open_agent:create_agent",
            JAIL="required",
            STEP_SECONDS=str(STEP_SECONDS),
            LOG_LEVEL="INFO",
            **SECRETS,
        ) as (_, base),
    ):
        return int(not asyncio.run(torture(base, names or list(ATTACKS))))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
