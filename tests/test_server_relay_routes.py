"""Endpoints other than chat completions: where they lead, and that bodies stream both ways."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from conftest import FakeUpstream, Gateway, MakeGateway, events_of
from yarl import URL

from server.relay_routes import JSON_PATHS, ROUTES
from server.upstream_settings import parse_upstreams


def two(upstream: FakeUpstream) -> Any:
    """A second upstream at the same address, told by its token."""
    entry = {"models": ["p/*"], "strip_prefix": "p/", "base": upstream.base, "token": "second"}
    return parse_upstreams(json.dumps([entry]))


async def echo(request: web.Request) -> web.Response:
    """Says what came, and under which token."""
    token = request.headers.get("Authorization", "")
    headers = {"X-Token": token, "X-Type": request.headers.get("Content-Type", "")}
    return web.Response(body=await request.read(), headers=headers)


async def send(gateway: Gateway, method: str, path: str, **kwargs: Any) -> tuple[int, Any, bytes]:
    async with gateway.session.request(method, gateway.base + path, **kwargs) as response:
        return response.status, response.headers, await response.read()


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_query_goes_up_as_it_came(
    upstream: FakeUpstream, make_gateway: MakeGateway, method: str
) -> None:
    upstream.handler = echo
    gateway = await make_gateway()
    path = "/v1/files?a=b%23c&d=e%26f&g=h+i%2Bj&k=%0D%0AX:y&l=%2520&m=%3D&n"
    data = b"{}" if method == "POST" else None
    headers = {"Content-Type": "application/json"} if data is not None else {}
    url = URL(gateway.base + path, encoded=True)
    async with gateway.session.request(method, url, data=data, headers=headers) as response:
        assert response.status == 200
    assert upstream.requests[-1][0].raw_path == path


@pytest.mark.parametrize("name", ["..", ".", "%2e%2e", ".%2E", "%2E"])
async def test_no_id_leads_to_another_route_of_the_upstream(
    upstream: FakeUpstream, make_gateway: MakeGateway, name: str
) -> None:
    upstream.handler = echo
    gateway = await make_gateway()
    for method, path in (("GET", "/files/{}/content"), ("DELETE", "/files/{}")):
        target = "/v1" + path.format(name)
        reader, writer = await asyncio.open_connection(
            URL(gateway.base).host, URL(gateway.base).port
        )
        head = f"{method} {target} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(20):
            reply = await reader.read()
        writer.close()
        assert reply.startswith(b"HTTP/1.1 404 ")
    assert upstream.requests == []


@pytest.mark.parametrize("path", JSON_PATHS)
async def test_json_goes_where_its_model_leads_and_without_one_to_the_first_upstream(
    upstream: FakeUpstream, make_gateway: MakeGateway, path: str
) -> None:
    upstream.handler = echo
    gateway = await make_gateway(token="first", upstreams=two(upstream))
    for model, token, sent in [
        ('"up/model"', "first", '"up/model"'),
        ('"p/x"', "second", '"x"'),
        ('"p/x-nothink"', "second", '"x"'),
        ('{"id":"p/x"}', "second", '"x"'),
        ("null", "first", "null"),
    ]:
        body = b'{"model":%s,"input":1.50}'
        status, headers, raw = await send(
            gateway, "POST", f"/v1{path}?a=b", data=body % model.encode()
        )
        assert (status, headers["X-Token"]) == (200, f"Bearer {token}")
        request = upstream.requests[-1][0]
        assert request.path_qs == f"/v1{path}?a=b"
        if path == "/completions" and "nothink" in model:
            assert json.loads(raw) == {"model": "x", "input": 1.5}  # it was scrubbed
        else:
            assert raw == body % sent.encode()
    assert (await send(gateway, "POST", f"/v1{path}"))[0] == 400
    for model in ("code-writing-agent", "nobody"):
        status, _, reply = await gateway.post({"model": model}, f"/v1{path}")
        assert (status, reply["error"]["code"]) == (404, "model_not_found")


async def test_every_route_is_relayed_with_and_without_its_prefix(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = echo
    gateway = await make_gateway(token="first", upstreams=two(upstream))
    for method, path in ROUTES:
        path = path.replace("{id}", "file-1%2F2")
        for prefix, model, token in (("/v1", None, "first"), ("", "p/x", "second")):
            headers = {"X-Model": model} if model else {}
            body = b"{}" if method == "POST" and path in JSON_PATHS else None
            status, got, _ = await send(gateway, method, prefix + path, headers=headers, data=body)
            assert (status, got["X-Token"]) == (200, f"Bearer {token}"), path
            request = upstream.requests[-1][0]
            assert (request.method, request.rel_url.raw_path) == (method, f"/v1{path}")
            assert "X-Model" not in request.headers
    status, _, raw = await send(gateway, "GET", "/v1/files", headers={"X-Model": "nobody"})
    assert (status, json.loads(raw)["error"]["param"]) == (404, "model")


async def test_completions_of_nothink_are_scrubbed_as_text(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    ask = {"model": "up/model-nothink", "prompt": "go"}

    async def whole(request: web.Request) -> web.Response:
        return web.json_response({"choices": [{"index": 0, "text": "<think>a</think>b"}]})

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for text in ("<th", "ink>a</", "think>b"):
            event = {"choices": [{"index": 0, "text": text, "finish_reason": None}]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    upstream.handler = whole
    _, _, reply = await gateway.post(ask, "/v1/completions")
    assert reply["choices"][0]["text"] == "ab"
    assert upstream.bodies()[0] == {"model": "up/model", "prompt": "go"}
    upstream.handler = stream
    _, _, raw = await send(gateway, "POST", "/v1/completions", json=ask | {"stream": True})
    events = events_of(raw)
    assert "".join(event["choices"][0]["text"] for event in events[:-1]) == "ab"


async def test_a_form_goes_up_byte_for_byte_with_its_length(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = echo
    gateway = await make_gateway()
    form = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper\r\n--x--\r\n'
    headers = {"Content-Type": 'multipart/form-data; boundary="x"'}
    for path in ("/v1/audio/transcriptions", "/v1/files", "/v1/images/edits", "/v1/embeddings"):
        status, got, raw = await send(gateway, "POST", path, data=form, headers=headers)
        assert (status, raw, got["X-Type"]) == (200, form, headers["Content-Type"])
        assert upstream.requests[-1][0].headers["Content-Length"] == str(len(form))


async def test_an_upload_and_a_download_stream(make_gateway: MakeGateway) -> None:
    """The upstream has the first piece before the client sends the second, and so the other way."""
    came: asyncio.Queue[bytes] = asyncio.Queue()
    go_on: asyncio.Queue[None] = asyncio.Queue()

    async def handler(request: web.Request) -> web.StreamResponse:
        async for piece in request.content.iter_any():
            came.put_nowait(piece)
        response = web.StreamResponse(headers={"Content-Type": "audio/mpeg"})
        await response.prepare(request)
        for piece in (b"one", b"two"):
            await response.write(piece)
            await go_on.get()
        return response

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"first", b"second"):
            yield piece
            assert await asyncio.wait_for(came.get(), 10) == piece

    app = web.Application()
    app.router.add_post("/v1/audio/translations", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        gateway = await make_gateway(upstream_base=f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        url = gateway.base + "/v1/audio/translations"
        async with gateway.session.post(url, data=pieces()) as response:
            assert response.headers["Content-Type"] == "audio/mpeg"
            for piece in (b"one", b"two"):
                assert await asyncio.wait_for(response.content.readany(), 10) == piece
                go_on.put_nowait(None)
            assert await response.content.readany() == b""
    finally:
        await runner.cleanup()


async def test_an_upload_may_be_as_large_as_is_set_and_no_larger(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = echo
    gateway = await make_gateway(max_body_bytes=100_000)
    status, _, raw = await send(gateway, "POST", "/v1/files", data=b"x" * 100_000)
    assert (status, len(raw)) == (200, 100_000)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 5000

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for data in (b"x" * 100_001, pieces()):
        status, _, raw = await send(gateway, "POST", "/v1/files", data=data, headers=headers)
        assert (status, json.loads(raw)["error"]["code"]) == (413, "body_too_large")
    async with gateway.session.get(gateway.base + "/readyz") as response:
        assert (await response.json())["upstreams"] == {"default": "ok"}


async def test_an_upload_is_sent_to_the_next_upstream_only_if_nothing_of_it_was_taken(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    async def busy(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=503, headers={"Retry-After": "0"})

    entry = {"models": ["up/model"], "base": upstream.base}
    upstreams = parse_upstreams(json.dumps([entry, entry]))
    upstream.handler = echo
    gateway = await make_gateway(upstream_base="http://127.0.0.1:1/v1", upstreams=upstreams)
    data = b"x" * 300_000
    headers = {"Content-Type": "audio/wav"}
    status, _, raw = await send(gateway, "POST", "/v1/files", data=data, headers=headers)
    assert (status, raw) == (200, data)
    upstream.handler = busy
    upstream.requests.clear()
    status, _, _ = await send(gateway, "POST", "/v1/files", data=data, headers=headers)
    assert (status, len(upstream.requests)) == (503, 1)
    # What is held whole goes to each.
    await send(gateway, "POST", "/v1/embeddings", json={"model": "up/model"})
    assert len(upstream.requests) == 3


async def test_a_client_that_leaves_its_upload_ends_the_upstreams_call(
    make_gateway: MakeGateway,
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        try:
            async for _ in request.content.iter_any():
                begun.set()
        finally:
            ended.set()
        return web.Response()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await asyncio.Event().wait()

    app = web.Application()
    app.router.add_post("/v1/files", handler)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        gateway = await make_gateway(upstream_base=f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        asking = asyncio.ensure_future(send(gateway, "POST", "/v1/files", data=pieces()))
        await asyncio.wait_for(begun.wait(), 10)
        asking.cancel()
        await asyncio.wait_for(ended.wait(), 10)
    finally:
        await runner.cleanup()


async def test_a_stream_of_another_endpoint_is_relayed_as_it_comes(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    seen = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'event: a\ndata: {"type":"transcript.text.delta"}\n\n')
        await seen.wait()
        await response.write(b'event: b\ndata: {"type":"transcript.text.done"}\n\n')
        return response

    upstream.handler = handler
    gateway = await make_gateway()
    url = gateway.base + "/v1/audio/transcriptions"
    form = aiohttp.FormData({"stream": "true"})
    form.add_field("file", b"RIFF", filename="a.wav")
    async with gateway.session.post(url, data=form) as response:
        first = await asyncio.wait_for(response.content.readany(), 10)
        assert first == b'event: a\ndata: {"type":"transcript.text.delta"}\n\n'
        seen.set()
        assert b"done" in await asyncio.wait_for(response.content.read(), 10)
