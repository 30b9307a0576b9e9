"""A reply that is no stream outlives a proxy's patience, and its failure is told as one."""

import asyncio
import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop
from aiohttp import web
from conftest import FakeUpstream, Gateway, MakeGateway, chunk, events_of, scripted, text_of
from nginx_proxy import nginx_before
from openai import APIConnectionError, AsyncOpenAI, InternalServerError
from openai.types.chat import ChatCompletion

from server.http_runner import HttpRunner
from server.keys import REQUEST_ID
from server.padded_reply import PaddedReply

ASK: dict[str, Any] = {"model": "a", "messages": [{"role": "user", "content": "go"}]}
HTTP_1_1 = "proxy_http_version 1.1;"
FINISH = {"id": "u", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
THROUGH = (None, "", HTTP_1_1)
IDS = ("direct", "HTTP/1.0", "HTTP/1.1")
PADDED = {"padding_seconds": 0.2, "heartbeat_seconds": 0.2}


async def ask(
    gateway: Gateway, through: str | None, *, patience: str = "60s", retries: int = 2
) -> ChatCompletion:
    """Ask by the SDK; `through` is more of an nginx's configuration, None for no nginx."""
    with ExitStack() as stack:
        base = gateway.base
        if through is not None:
            nginx = nginx_before(base, read_timeout=patience, more=through)
            base = stack.enter_context(nginx)
        client = AsyncOpenAI(base_url=f"{base}/v1", api_key="none", max_retries=retries, timeout=60)
        async with client:
            reply: ChatCompletion = await client.chat.completions.create(**ASK)
            return reply


def slow(seconds: float, text: str) -> Any:
    """A model that thinks for a while before it answers."""
    answer = scripted(lambda messages: text, pieces=1000)

    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await answer(request)

    return handler


def failing(seconds: float) -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return web.json_response({"error": {"message": "the model is broken"}}, status=400)

    return handler


@pytest.mark.parametrize("through", ["", HTTP_1_1], ids=["HTTP/1.0", "HTTP/1.1"])
async def test_a_run_longer_than_a_proxys_patience_is_answered(
    upstream: FakeUpstream, make_gateway: MakeGateway, through: str
) -> None:
    upstream.handler = slow(6, "<code>\nfinal_answer('late')\n</code>")
    reply = await ask(await make_gateway(**PADDED), through, patience="4s")
    assert (reply.choices[0].message.content or "").endswith("late")
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("model", ["a", "up/model"])
async def test_a_stream_outlives_a_proxys_patience_by_its_heartbeats(
    upstream: FakeUpstream, make_gateway: MakeGateway, model: str
) -> None:
    async def late(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(6)
        for data in (chunk(content="<code>\nfinal_answer('late')\n</code>"), FINISH):
            await response.write(f"data: {json.dumps(data)}\n\n".encode())
        return response

    upstream.handler = late
    gateway = await make_gateway(heartbeat_seconds=0.2)
    with nginx_before(gateway.base, read_timeout="4s") as base:
        async with gateway.session.post(
            f"{base}/v1/chat/completions", json=ASK | {"model": model, "stream": True}
        ) as response:
            events = events_of(await response.read())
    assert response.status == 200
    assert "late" in text_of(events, "content")
    assert not any("error" in event for event in events)


async def test_without_blanks_the_proxy_gives_up(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = slow(30, "")
    with pytest.raises(InternalServerError) as caught:
        await ask(await make_gateway(padding_seconds=0.0), "", patience="1s", retries=0)
    assert caught.value.status_code == 504


@pytest.mark.parametrize("through", THROUGH, ids=IDS)
async def test_a_failure_after_blanks_reaches_the_sdk_and_the_run_is_not_repeated(
    upstream: FakeUpstream, make_gateway: MakeGateway, through: str | None
) -> None:
    upstream.handler = failing(0.7)
    with pytest.raises(InternalServerError) as caught:
        await ask(await make_gateway(**PADDED), through)
    assert caught.value.status_code == 500
    assert "the model is broken" in caught.value.message
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("through", THROUGH, ids=IDS)
async def test_a_client_that_does_not_repeat_sees_a_broken_connection(
    upstream: FakeUpstream, make_gateway: MakeGateway, through: str | None
) -> None:
    upstream.handler = failing(0.7)
    with pytest.raises(APIConnectionError):
        await ask(await make_gateway(**PADDED), through, retries=0)


async def test_the_blanks_are_json_and_the_headers_those_of_any_reply(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = slow(0.7, "<code>\nfinal_answer('late')\n</code>")
    gateway = await make_gateway(**PADDED)
    async with gateway.session.post(gateway.base + "/v1/chat/completions", json=ASK) as response:
        body = await response.read()
    assert response.status == 200
    assert response.content_type == "application/json"
    assert response.headers["x-request-id"]
    assert body.startswith(b"  ")
    assert json.loads(body)["object"] == "chat.completion"


async def test_an_unforeseen_error_after_blanks_breaks_off_too(
    upstream: FakeUpstream, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("server.agent_reply.completion", broken)
    upstream.handler = slow(0.5, "<code>\nfinal_answer('late')\n</code>")
    gateway = await make_gateway(**PADDED)
    with pytest.raises(aiohttp.ClientError):
        await gateway.post(ASK)
    status, _, reply = await (await make_gateway()).post(ASK)
    assert (status, reply["error"]["code"]) == (500, "internal_error")


class SilentRun:
    """A run that says nothing for a while and then has ended."""

    def __init__(self) -> None:
        self.end_untold = False
        self._end = asyncio.get_running_loop().time() + 0.3

    async def read(self) -> list[Any]:
        await asyncio.sleep(self._end - asyncio.get_running_loop().time())
        return []


def padded_reply(request: web.Request) -> PaddedReply:
    request[REQUEST_ID] = "r"
    run: Any = SilentRun()
    return PaddedReply(request, run, run, first_seconds=0.05, every_seconds=0.05)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_on_either_loop_a_cut_is_a_reset_that_http_1_0_can_see(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        padded = padded_reply(request)
        await padded.read()
        return padded.cut()

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/", handler)
        runner = HttpRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        reader, writer = await asyncio.open_connection(*runner.addresses[0][:2])
        writer.write(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await runner.cleanup()

    with asyncio.Runner(loop_factory=new_loop) as loop:
        loop.run(main())


async def test_where_a_cut_could_not_be_told_there_are_no_blanks(tmp_path: Path) -> None:
    begun = []

    async def handler(request: web.Request) -> web.StreamResponse:
        padded = padded_reply(request)
        await padded.read()
        begun.append(padded.begun)
        return await padded.finish(b"{}")

    app = web.Application()
    app.router.add_get("/", handler)
    runner = HttpRunner(app)
    await runner.setup()
    try:
        path = str(tmp_path / "socket")
        await web.UnixSite(runner, path).start()
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        assert (await reader.read()).endswith(b"\r\n\r\n{}")
        writer.close()
    finally:
        await runner.cleanup()
    assert begun == [False]
