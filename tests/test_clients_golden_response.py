"""One whole response as a stream, byte for byte, as tests/data/response_stream.txt has it; and the same when it is kept.

Its id and times come from the application's identity. Each event of the model is let go once the client has read the one
before, so that they are cut alike every time.
"""

import asyncio
import json
import os
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from conftest import FakeUpstream, chunk, listening
from response_rules import check_stream, events_in

from server.app import create_app
from server.identity import Identity
from server.registry import load_agents
from server.settings import make_settings

GOLDEN = Path(__file__).parent / "data" / "response_stream.txt"
TEXT = (
    "I multiply the two.\n",
    "<code>\nprint('a < b \u2028')\n",
    "final_answer('17 × 23 is 391 😀')\n</code>",
)
ASK = {"model": "code-writing-agent", "input": "What is 17 × 23?", "stream": True}
SEEN = (b"I multiply", b"print(", b"final_answer(")


@pytest.mark.parametrize("store", [False, True])
async def test_a_whole_response_is_the_golden_one_byte_for_byte(
    upstream: FakeUpstream, store: bool
) -> None:
    read = [asyncio.Event() for _ in TEXT]

    async def model(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece, event in zip(TEXT, read, strict=True):
            await response.write(f"data: {json.dumps(chunk(content=piece))}\n\n".encode())
            await event.wait()
        finish = {"index": 0, "delta": {}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        last = {"id": "u", "choices": [finish], "usage": usage}
        await response.write(f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode())
        return response

    upstream.handler = model
    settings = make_settings(upstream_base=upstream.base, model="up/model", jail="off")
    identity = Identity(new_id=lambda: "chatcmpl-golden", now=lambda: 1_800_000_000.9)
    app = create_app(settings, load_agents({}, embedded=False), identity=identity)
    raw = b""
    async with (
        listening(app) as base,
        aiohttp.ClientSession() as session,
        session.post(f"{base}/v1/responses", json=ASK | {"store": store}) as response,
    ):
        async for data in response.content.iter_any():
            raw += data
            for seen, event in zip(SEEN, read, strict=True):
                if seen in raw:
                    event.set()
    check_stream(events_in(raw))
    raw = raw.replace(b'"store":false', b'"store":true')
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_bytes(raw)
    assert raw == GOLDEN.read_bytes()
