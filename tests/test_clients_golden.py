"""One whole agent stream, byte for byte, as tests/data/agent_stream.txt has it.

Its id and time come from the application's identity, the step's duration from a step callback; each
event is let go once the client has read the one before, so that they are cut alike every time.
"""

import asyncio
import json
import os
import threading
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from conftest import FakeUpstream, chunk, listening
from smolagents import ActionStep, CodeAgent, Timing
from wire_rules import broken_rules

from server.app import create_app
from server.identity import Identity
from server.registry import load_agents
from server.settings import make_settings

GOLDEN = Path(__file__).parent / "data" / "agent_stream.txt"
TEXT = (
    "I multiply the two.\n",
    "<code>\nprint('a < b \u2028')\nfinal_answer('17 × 23 is 391 😀')\n</code>",
)
ASK = {
    "model": "golden",
    "messages": [{"role": "user", "content": "What is 17 × 23?"}],
    "stream": True,
    "stream_options": {"include_usage": True},
}


async def test_a_whole_stream_is_the_golden_one_byte_for_byte(upstream: FakeUpstream) -> None:
    read_text, read_code = asyncio.Event(), asyncio.Event()
    read_print = threading.Event()

    async def model(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece, read in zip(TEXT, (read_text, read_code), strict=True):
            await response.write(f"data: {json.dumps(chunk(content=piece))}\n\n".encode())
            await read.wait()
        finish = {"index": 0, "delta": {}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        last = {"id": "u", "choices": [finish], "usage": usage}
        await response.write(f"data: {json.dumps(last)}\n\ndata: [DONE]\n\n".encode())
        return response

    def at_step_end(step: ActionStep, agent: Any = None) -> None:
        assert read_print.wait(60)
        step.timing = Timing(0.0, 1.25)

    def make_agent(context: Any) -> CodeAgent:
        return CodeAgent([], context.model, step_callbacks=[at_step_end])

    upstream.handler = model
    agents = load_agents({}, embedded=False)
    agents["golden"] = make_agent
    settings = make_settings(upstream_base=upstream.base, model="up/model", jail="off")
    identity = Identity(new_id=lambda: "chatcmpl-golden", now=lambda: 1_800_000_000.9)
    raw = b""
    async with (
        listening(create_app(settings, agents, identity=identity)) as base,
        aiohttp.ClientSession() as session,
        session.post(f"{base}/v1/chat/completions", json=ASK) as response,
    ):
        try:
            async for data in response.content.iter_any():
                raw += data
                if b"I multiply" in raw:
                    read_text.set()
                if b"print(" in raw:
                    read_code.set()
                if b"````text" in raw:
                    read_print.set()
        finally:
            read_print.set()  # the run's thread waits for nothing but this
    assert not broken_rules(200, "text/event-stream", raw, streamed=True)
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_bytes(raw)
    assert raw == GOLDEN.read_bytes()
