"""An upstream that does what the last user message says, for agents and for the relay.

    "attack NAME PID"   an agent's first step is that attack, its second the answer "survived"
    "rows COUNT"        an agent's first step prints so many rows, its second is the answer "survived"
    "tokens COUNT"      an agent's only reply is COUNT deltas, one every 20 ms, and then the answer
    "wait SECONDS"      an agent's answer comes after that time
    "slow COUNT"        COUNT deltas, one every 20 ms

`python -m bench.scripted_upstream` prints its port.
"""

import asyncio
import json
import re
from typing import Any

from aiohttp import web

from bench.attacks import ATTACKS

GAP_SECONDS = 0.02


def text_of(message: dict[str, Any]) -> str:
    content = message["content"]
    return content if isinstance(content, str) else " ".join(part["text"] for part in content)


def code(source: str) -> str:
    return f"<code>\n{source}\n</code>"


async def answer(messages: list[dict[str, Any]]) -> list[str]:
    """The deltas of one reply."""
    asked = next(text for m in reversed(messages) if "New task" in (text := text_of(m)))
    has_acted = any(m["role"] == "assistant" for m in messages)
    if (found := re.search(r"attack (.+) (\d+)$", asked)) and not has_acted:
        return [code(ATTACKS[found[1]].code.replace("PARENT", found[2]))]
    if (found := re.search(r"rows (\d+)", asked)) and not has_acted:
        return [code(f"for number in range({found[1]}):\n    print('row', number)")]
    if found := re.search(r"tokens (\d+)", asked):
        return ["w "] * int(found[1]) + [code("final_answer('survived')")]
    if found := re.search(r"wait ([\d.]+)", asked):
        await asyncio.sleep(float(found[1]))
        return [code("final_answer('waited')")]
    return [code("final_answer('survived')")]


async def serve() -> None:
    async def chat(request: web.Request) -> web.StreamResponse:
        messages = (await request.json())["messages"]
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)

        async def send(delta: dict[str, str], finish: str | None = None) -> None:
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            usage = {"prompt_tokens": 5, "completion_tokens": 1} if finish else None
            data = json.dumps({"id": "s", "choices": [choice], "usage": usage})
            await response.write(f"data: {data}\n\n".encode())

        if found := re.match(r"slow (\d+)", text_of(messages[-1])):
            for number in range(int(found[1])):
                await send({"content": f"{number} "})
                await asyncio.sleep(GAP_SECONDS)
        else:
            for piece in await answer(messages):
                await send({"content": piece})
                if piece == "w ":
                    await asyncio.sleep(GAP_SECONDS)
        await send({}, "stop")
        await response.write(b"data: [DONE]\n\n")
        return response

    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/chat/completions", chat)
    runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
