"""From the model's token to the client's reasoning delta, in milliseconds.

An upstream process stamps its tokens; the gateway runs an agent on it; the client compares each stamp
with the time at which its reasoning delta came in. Prints p50, p99 and the worst; exits 1 where p99 is
over the limit on an otherwise idle machine.
"""

import asyncio
import json
import re
import sys
import time

import aiohttp

from bench.processes import gateway, process_saying

TOKENS = 1000
GAP_SECONDS = 0.005
LIMIT_MILLISECONDS = 5.0


async def delays(base: str) -> list[float]:
    """Milliseconds from each token's stamp to its arrival."""
    body = {"stream": True, "messages": [{"role": "user", "content": "stamp"}]}
    found = []
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{base}/chat/completions", json=body) as response,
    ):
        async for line in response.content:
            now = time.monotonic_ns()
            if not line.startswith(b"data: {"):
                continue
            choices = json.loads(line[6:])["choices"]
            text = choices[0]["delta"].get("reasoning", "") if choices else ""
            found += [(now - int(stamp)) / 1e6 for stamp in re.findall(r"at (\d+)\n", text)]
    return sorted(found)


def main() -> int:
    upstream = ("bench.stamping_upstream", str(TOKENS), str(GAP_SECONDS))
    with (
        process_saying(r"^(\d+)$", *upstream) as (_, port),
        gateway(UPSTREAM_OPENAI_BASE=f"http://127.0.0.1:{port}/v1") as (_, base),
    ):
        asyncio.run(delays(base))  # the first run loads what later ones find loaded
        found = asyncio.run(delays(base))
    p50, p99 = found[len(found) // 2], found[int(len(found) * 0.99)]
    print(f"token to reasoning delta, {len(found)} tokens, one every {GAP_SECONDS * 1e3:g} ms")
    print(f"p50 {p50:.2f} ms   p99 {p99:.2f} ms   worst {found[-1]:.2f} ms")
    return int(p99 > LIMIT_MILLISECONDS)


if __name__ == "__main__":
    sys.exit(main())
