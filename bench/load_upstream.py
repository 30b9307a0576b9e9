"""The upstream of the load test: it tells each request its own token again, at the pace of a model.

In: a chat request whose last task is a token. Out: to the relay, DELTAS deltas of it; to an agent, code that
prints it, for AGENT_STEPS steps, and then one that answers with it.

`python -m bench.load_upstream` prints its port.
"""

import asyncio
import json
import re
from typing import Any

from aiohttp import web

DELTAS = 40
AGENT_STEPS = 3
RELAY_GAP_SECONDS = 0.25
AGENT_GAP_SECONDS = 0.4


def agents_code(token: str, step: int) -> str:
    if step < AGENT_STEPS:
        return f"Now {token}.\n<code>\nprint('{token}printed {step}')\n</code>"
    return f"<code>\nfinal_answer('{token}answer')\n</code>"


async def chat(request: web.Request) -> web.StreamResponse:
    messages = (await request.json())["messages"]
    found = re.search(r"tok-[a-z]+-\d+-", json.dumps(messages[-1]))
    tokens = re.findall(r"tok-[a-z]+-\d+-", json.dumps(messages))
    token = tokens[0] if found is None else found[0]
    if token.startswith("tok-relay"):
        pieces, gap = [f"{token}{number} " for number in range(DELTAS)], RELAY_GAP_SECONDS
    else:
        code = agents_code(token, sum(m["role"] == "assistant" for m in messages))
        size = -(-len(code) // 5)
        pieces = [code[begin : begin + size] for begin in range(0, len(code), size)]
        gap = AGENT_GAP_SECONDS
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for piece in pieces:
        await asyncio.sleep(gap)
        await _send(response, {"index": 0, "delta": {"content": piece}, "finish_reason": None})
    await _send(response, {"index": 0, "delta": {}, "finish_reason": "stop"})
    await response.write(b"data: [DONE]\n\n")
    return response


async def _send(response: web.StreamResponse, choice: dict[str, Any]) -> None:
    data = json.dumps({"id": "load", "choices": [choice]})
    await response.write(f"data: {data}\n\n".encode())


async def serve() -> None:
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
