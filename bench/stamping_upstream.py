"""An upstream whose tokens are the time at which they were written (CLOCK_MONOTONIC, nanoseconds).

`python -m bench.stamping_upstream TOKENS GAP_SECONDS` prints its port.
"""

import asyncio
import json
import sys
import time

from aiohttp import web


def chunk(delta: dict[str, str], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return f"data: {json.dumps({'id': 'stamp', 'choices': [choice]})}\n\n".encode()


async def serve(tokens: int, gap_seconds: float) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for _ in range(tokens):
            await asyncio.sleep(gap_seconds)
            await response.write(chunk({"content": f"at {time.monotonic_ns()}\n"}))
        await response.write(chunk({"content": "<code>\nfinal_answer(1)\n</code>"}))
        await response.write(chunk({}, "stop") + b"data: [DONE]\n\n")
        return response

    app = web.Application()
    app.router.add_post("/v1/chat/completions", stream)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2])))
