"""A server that is killed amid its background runs: what it had told is there, and none of them lies."""

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from conftest import FakeUpstream, chunk
from response_rules import check_response, check_stream, events_in
from server_process import server_process
from test_server_responses import answers

RUNS = 20


async def half_of_them(request: web.Request) -> web.StreamResponse:
    """A model that ends every other run, and halts amid the others."""
    said = (await request.read()).decode()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for i in range(20):
        data = json.dumps(chunk(content=f"word {i}\n"))
        await response.write(f"data: {data}\n\n".encode())
    if "odd" in said:
        await asyncio.Event().wait()
    data = json.dumps(chunk(content="\n" + answers("done")))
    await response.write(f"data: {data}\n\ndata: [DONE]\n\n".encode())
    return response


async def _seen(response: aiohttp.ClientResponse, into: bytearray) -> None:
    """Read until the server is gone."""
    try:
        async for data in response.content.iter_any():
            into += data
    except aiohttp.ClientError:
        pass


async def test_after_a_kill_every_acknowledged_event_is_there_and_no_run_lies(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.handler = half_of_them
    values = {
        "UPSTREAM_OPENAI_BASE": upstream.base,
        "AGENT_MODEL": "up",
        "STORE": f"sqlite:{tmp_path}/store.sqlite3",
        "FRONT_END_SECONDS": "1",
    }
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        with server_process(**values) as server:
            streams: list[tuple[aiohttp.ClientResponse, bytearray]] = []
            for number in range(RUNS):
                body = {
                    "input": "an odd one" if number % 2 else "one",
                    "background": True,
                    "stream": True,
                }
                reply = await session.post(f"{server.base}/v1/responses", json=body)
                assert reply.status == 200
                streams.append((reply, bytearray()))
            reading = [asyncio.create_task(_seen(*each)) for each in streams]
            async with asyncio.timeout(60):
                while not all(b"word 19" in seen for _, seen in streams):
                    await asyncio.sleep(0.01)
            os.kill(server.process.pid, signal.SIGKILL)
            await asyncio.wait(reading)
        with server_process(**values) as server:
            ends = [await _end_of(session, server.base, bytes(seen)) for _, seen in streams]
    assert ends[1::2] == ["failed"] * (RUNS // 2)
    assert set(ends[::2]) <= {"completed", "failed"}
    assert len(upstream.requests) == RUNS  # nothing was run twice


async def _end_of(session: aiohttp.ClientSession, base: str, seen: bytes) -> str:
    """How one ended, once it was held against what had been told of it."""
    told = seen[: seen.rindex(b"\n\n") + 2]
    ended = b"data: [DONE]" in told
    before = events_in(told if ended else told + b"data: [DONE]\n\n")
    response_id = before[0]["response"]["id"]
    url = f"{base}/v1/responses/{response_id}"
    async with session.get(f"{url}?stream=true") as reply:
        raw = await reply.read()
    assert raw.startswith(told)
    events = events_in(raw)
    response: dict[str, Any] = events[-1]["response"]
    check_response(response)
    if response["status"] == "completed":
        check_stream(events)
    else:
        assert (response["error"]["code"], response["error"]["type"]) == (
            *("server_error", "server_lost"),
        )
        assert events[-1]["type"] == "response.failed"
        assert [item["status"] for item in response["output"]][-1] == "incomplete"
    async with session.get(url) as reply:
        assert await reply.json() == response
    return str(response["status"])
