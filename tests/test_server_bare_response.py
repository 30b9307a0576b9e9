"""What the relay writes itself is HTTP as a client expects it, byte by byte."""

import asyncio
import json
import re
from unittest.mock import patch

import aiohttp
import pytest
from aiohttp import web
from conftest import FakeUpstream, Gateway, MakeGateway, chunk, listening, until

from server.bare_response import BareResponse
from server.direct_stream import DirectStream
from server.sse_writer import ClientStalled
from streaming.chunk_framing import frame_of, payload_of
from streaming.event_stages import DirectEvents, VerbatimEvents
from streaming.pulse import Pulse
from streaming.stream_end import MANY_SMALL
from streaming.upstream_reply import OnData, OnLost, Taken

FINISH = {"id": "u", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
EVENTS = [
    b"data: " + json.dumps(event).encode() + b"\n\n" for event in (chunk(content="hello"), FINISH)
]
EVENTS.append(b"data: [DONE]\n\n")
DATE = re.compile(rb"Date: \w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT\r\n")


def request(stream: bool, *more: str, version: str = "1.1", model: str = "up/model") -> bytes:
    body = json.dumps(
        {"model": model, "stream": stream, "messages": [{"role": "user", "content": "go"}]}
    ).encode()
    lines = [
        f"POST /v1/chat/completions HTTP/{version}",
        "Host: here",
        "Content-Type: application/json",
        "X-Request-Id: mine",
        f"Content-Length: {len(body)}",
        *more,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def exchange(gateway: Gateway, data: bytes, until: bytes | None = None) -> bytes:
    """What comes back until these bytes, or until the gateway closes."""
    host, port = gateway.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        async with asyncio.timeout(20):
            writer.write(data)
            return await (reader.readuntil(until) if until is not None else reader.read())
    finally:
        writer.close()


@pytest.fixture
async def gateway(upstream: FakeUpstream, make_gateway: MakeGateway) -> Gateway:
    async def handler(asked: web.Request) -> web.StreamResponse:
        if not json.loads(await asked.read())["stream"]:
            return web.json_response({"hello": "you"}, headers={"X-Its-Own": "1", "Date": "then"})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(asked)
        await response.write(b"".join(EVENTS))
        return response

    upstream.handler = handler
    return await make_gateway()


async def test_a_whole_reply(gateway: Gateway) -> None:
    raw = await exchange(gateway, request(False), b"}")
    assert raw == (
        b"HTTP/1.1 200 OK\r\nX-Its-Own: 1\r\nDate: then\r\n"
        b"Content-Type: application/json; charset=utf-8\r\nx-request-id: mine\r\n"
        b'Content-Length: 16\r\n\r\n{"hello": "you"}'
    )


async def test_a_stream(gateway: Gateway) -> None:
    raw = await exchange(gateway, request(True), b"\r\n0\r\n\r\n")
    head, _, frames = raw.partition(b"\r\n\r\n")
    assert DATE.sub(b"", head + b"\r\n") == (
        b"HTTP/1.1 200 OK\r\nx-request-id: mine\r\nContent-Type: text/event-stream\r\n"
        b"Cache-Control: no-cache, no-transform\r\nX-Accel-Buffering: no\r\n"
        b"Transfer-Encoding: chunked\r\n"
    )
    assert payload_of(frames.removesuffix(b"0\r\n\r\n")) == b"".join(EVENTS)


@pytest.mark.parametrize("stream", [False, True])
async def test_requests_in_one_connection_are_answered_in_order(
    gateway: Gateway, stream: bool
) -> None:
    asked = request(stream) + request(not stream) + request(stream, "Connection: close")
    raw = await exchange(gateway, asked)
    replies = raw.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert len(replies) == 3
    for number, reply in enumerate(replies):
        is_stream = stream if number != 1 else not stream
        assert reply.endswith(b"0\r\n\r\n" if is_stream else b'{"hello": "you"}')
        assert (b"\r\nConnection: close\r\n" in reply) == (number == 2)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("more", [(), ("Connection: keep-alive",)])
async def test_a_client_of_http_1_0_gets_no_chunks(
    gateway: Gateway, stream: bool, more: tuple[str, ...]
) -> None:
    whole = b'{"hello": "you"}'
    # A stream's end is its connection's.
    end = None if stream or not more else whole
    raw = await exchange(gateway, request(stream, *more, version="1.0"), end)
    head, _, body = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"chunked" not in head
    assert body == (b"".join(EVENTS) if stream else whole)


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_a_status_without_a_body_has_none(
    gateway: Gateway, upstream: FakeUpstream, status: int
) -> None:
    async def handler(asked: web.Request) -> web.Response:
        return web.Response(status=status)

    upstream.handler = handler
    raw = await exchange(gateway, request(False, "Connection: close"))
    if status == 304:
        assert raw.startswith(b"HTTP/1.1 502 ")  # no redirect, and nothing that a POST may get
    else:
        assert raw.startswith(b"HTTP/1.1 %d " % status)
        assert raw.endswith(b"\r\n\r\n")


async def test_what_an_application_adds_to_responses_is_added() -> None:
    async def answer(asked: web.Request) -> web.StreamResponse:
        return BareResponse(200, [("A", "b")], b"hi")

    async def add(asked: web.Request, response: web.StreamResponse) -> None:
        response.headers["X-Added"] = "yes"

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    app.on_response_prepare.append(add)
    async with listening(app) as base, aiohttp.ClientSession() as session:
        raw = await exchange(Gateway(app, base, session), request(False), b"hi")
    assert b"\r\nX-Added: yes\r\n" in raw


async def test_a_response_that_is_to_end_its_connection_ends_it() -> None:
    async def end(asked: web.Request, response: web.StreamResponse) -> None:
        response.force_close()

    async def handle(asked: web.Request) -> web.StreamResponse:
        return BareResponse(200, (), b"{}")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    app.on_response_prepare.append(end)
    async with listening(app) as base, aiohttp.ClientSession() as session:
        raw = await exchange(Gateway(app, base, session), request(False))
    assert b"\r\nConnection: close\r\n" in raw
    assert raw.endswith(b"\r\n\r\n{}")


@pytest.mark.parametrize("model", ["up/model", "up/model-nothink"])
async def test_heartbeats_stand_between_events_while_the_upstream_is_silent(
    upstream: FakeUpstream, make_gateway: MakeGateway, model: str
) -> None:
    seen = asyncio.Event()

    async def handler(asked: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(asked)
        await response.write(EVENTS[0] + EVENTS[1][:20])
        await seen.wait()
        await response.write(EVENTS[1][20:] + EVENTS[2])
        return response

    upstream.handler = handler
    gateway = await make_gateway(heartbeat_seconds=0.05)
    host, port = gateway.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(20):
        writer.write(request(True, model=model))
        raw = await reader.readuntil(b"8\r\n: ping\n\n\r\n")
        raw += await reader.readuntil(b"8\r\n: ping\n\n\r\n")
        seen.set()
        raw += await reader.readuntil(b"\r\n0\r\n\r\n")
    writer.close()
    payload = payload_of(raw.partition(b"\r\n\r\n")[2].removesuffix(b"0\r\n\r\n"))
    blocks = payload.split(b"\n\n")
    assert blocks.count(b": ping") >= 2
    assert [block + b"\n\n" for block in blocks if block not in (b": ping", b"")] == EVENTS


LATE: dict[str, tuple[web.Response | None, bytes]] = {
    # what a slow upstream answers in the end, None for a stream; what the client's stream ends with
    "a stream": (None, EVENTS[1] + EVENTS[2]),
    "an error": (
        web.Response(status=500, text='{"error": {"message": "no memory"}}'),
        b"status 500 and no stream: no memory",
    ),
    "JSON": (web.json_response({"object": "chat.completion"}), b"status 200 and no stream"),
    "a large error": (web.Response(status=500, body=b"x" * (2 << 20)), b"status 500 and no stream"),
    "a redirect": (web.Response(status=302, headers={"Location": "/"}), b"redirect"),
}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("model", ["up/model", "up/model-nothink"])
@pytest.mark.parametrize("kind", LATE)
async def test_a_stream_begins_with_a_heartbeat_where_the_upstream_takes_its_time(
    upstream: FakeUpstream, make_gateway: MakeGateway, kind: str, model: str, version: str
) -> None:
    answer, end = LATE[kind]
    seen = asyncio.Event()

    async def handler(asked: web.Request) -> web.StreamResponse:
        await seen.wait()
        if answer is not None:
            return web.Response(status=answer.status, headers=answer.headers, body=answer.body)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(asked)
        await response.write(b"".join(EVENTS))
        return response

    upstream.handler = handler
    gateway = await make_gateway(heartbeat_seconds=0.05)
    host, port = gateway.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    async with asyncio.timeout(20):
        writer.write(request(True, "Connection: close", version=version, model=model))
        head = await reader.readuntil(b"\r\n\r\n")
        raw = await reader.readuntil(b": ping\n\n")
        raw += await reader.readuntil(b": ping\n\n")
        seen.set()
        raw += await reader.read()
    writer.close()
    assert head.startswith(f"HTTP/{version} 200 OK\r\n".encode())
    assert b"\r\nx-request-id: mine\r\n" in head
    if version == "1.1":
        assert raw.endswith(b"\r\n0\r\n\r\n")
        raw = payload_of(raw.removesuffix(b"0\r\n\r\n"))
    blocks = [block + b"\n\n" for block in raw.split(b"\n\n")[:-1] if block != b": ping"]
    assert blocks[-1] == b"data: [DONE]\n\n"
    if answer is None:
        assert blocks == EVENTS
    else:
        error, _ = blocks
        assert end in error
        assert json.loads(error.removeprefix(b"data: "))["error"]["type"] == "server_error"


async def test_what_fails_after_a_heartbeat_is_an_event(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    async def handler(asked: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    upstream.handler = handler
    gateway = await make_gateway(heartbeat_seconds=0.05, relay_first_byte_seconds=0.5)
    raw = await exchange(gateway, request(True), b"\r\n0\r\n\r\n")
    payload = payload_of(raw.partition(b"\r\n\r\n")[2].removesuffix(b"0\r\n\r\n"))
    *pings, error, done, rest = payload.split(b"\n\n")
    assert set(pings) == {b": ping"}
    assert json.loads(error.removeprefix(b"data: "))["error"]["code"] == "deadline_exceeded"
    assert (done, rest) == (b"data: [DONE]", b"")


async def test_no_heartbeat_comes_while_events_do(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    async def handler(asked: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(asked)
        for _ in range(40):
            await response.write(EVENTS[0])
            await asyncio.sleep(0.01)
        await response.write(EVENTS[1] + EVENTS[2])
        return response

    upstream.handler = handler
    gateway = await make_gateway(heartbeat_seconds=20, relay_idle_seconds=0.4)
    raw = await exchange(gateway, request(True), b"\r\n0\r\n\r\n")
    assert b"ping" not in raw
    assert raw.count(b"hello") == 40


@pytest.mark.parametrize("value", [b"a\rSet-Cookie: b", b"a\0b", b"a\r\n folded: b"])
async def test_an_upstreams_header_cannot_hold_another(
    upstream: FakeUpstream, make_gateway: MakeGateway, value: bytes
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nX-A: " + value + b"\r\nContent-Length: 2\r\n\r\nhi")
        await writer.drain()
        await reader.read()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    base = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    gateway = await make_gateway(upstream_base=base)
    raw = await exchange(gateway, request(False, "Connection: close"))
    head = raw.partition(b"\r\n\r\n")[0]
    names = [line.partition(b":")[0].lower() for line in re.split(rb"[\r\n\0]+", head)[1:]]
    assert b"set-cookie" not in names
    assert not any(name.startswith(b" ") for name in names)
    server.close()


async def test_a_client_that_takes_no_replies_is_served_no_more(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    async def handler(asked: web.Request) -> web.Response:
        return web.Response(body=b"x" * 1_000_000, content_type="application/json")

    upstream.handler = handler
    gateway = await make_gateway()
    host, port = gateway.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    count = 30
    writer.write(request(False) * (count - 1) + request(False, "Connection: close"))
    served = 0
    async with asyncio.timeout(20):
        await until(lambda: upstream.requests)
        while served < len(upstream.requests):
            served = len(upstream.requests)
            await asyncio.sleep(0.3)
        assert served < count  # as many as the kernel holds
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert (await reader.read()).count(b"HTTP/1.1 200 OK") == count
    writer.close()


async def test_a_stream_whose_head_cannot_be_made_is_an_error_with_a_head(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(stream: DirectStream, asked: web.Request) -> None:
        raise ValueError

    monkeypatch.setattr(DirectStream, "tell_application", fail)
    raw = await exchange(gateway, request(True, "Connection: close"))
    assert raw.startswith(b"HTTP/1.1 500 ")
    assert b"internal_error" in raw


async def test_no_other_response_follows_in_what_was_begun() -> None:
    async def answer(asked: web.Request) -> web.StreamResponse:
        await BareResponse(200, [], b"hi").prepare(asked)
        raise ValueError

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with listening(app) as base, aiohttp.ClientSession() as session:
        raw = await exchange(Gateway(app, base, session), request(False))
    assert raw.count(b"HTTP/1.1 ") == 1
    assert raw.endswith(b"hi")


async def test_no_heartbeat_follows_a_streams_end_that_a_slow_client_took() -> None:
    """A look between a client's taking of the last bytes and the handler's waking, on a loop that was held up."""
    looked = []

    async def answer(asked: web.Request) -> web.StreamResponse:
        pulse = Pulse(60)
        stream = DirectStream(asked, (), pulse=pulse, heartbeat_seconds=1, stall_seconds=20)
        drain = stream._drain

        async def drain_and_look() -> None:
            stream._look(pulse.loop.time())
            await drain()
            stream._look(pulse.loop.time() + 100)
            looked.append(stream)

        with patch.object(stream, "_drain", drain_and_look):
            whole = frame_of(b"data: " + b"x" * (1 << 23) + b"\n\n") + b"0\r\n\r\n"
            await stream.carry(
                Taken(lambda *_: whole, *3 * (lambda: None,)), DirectEvents(VerbatimEvents())
            )
        stream.release()
        pulse.close()
        return stream

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with listening(app) as base, aiohttp.ClientSession() as session:
        raw = await exchange(Gateway(app, base, session), request(True, "Connection: close"))
    assert looked
    assert raw.endswith(b"x\n\n\r\n0\r\n\r\n")


async def test_a_client_that_takes_nothing_holds_up_events_that_come_alone() -> None:
    """And is given up after the limit; what is held for it meanwhile is bounded."""
    one = frame_of(b"data: " + b"x" * 900 + b"\n\n")
    outcome: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()
    paused = asyncio.Event()
    held = 0

    async def answer(asked: web.Request) -> web.StreamResponse:
        nonlocal held
        pulse = Pulse(60)
        stream = DirectStream(asked, (), pulse=pulse, heartbeat_seconds=60, stall_seconds=0.2)
        taps: list[OnData] = []

        def start(on_data: OnData, on_lost: OnLost) -> bytes:
            taps.append(on_data)
            return b""

        taken = Taken(start, paused.set, lambda: None, lambda: None)
        carried = asyncio.ensure_future(stream.carry(taken, DirectEvents(VerbatimEvents())))
        carried.add_done_callback(lambda task: outcome.set_result(task.exception()))
        await asyncio.sleep(0)
        while not paused.is_set():
            taps[0](one)
            await asyncio.sleep(0)
        assert asked.transport is not None
        held = asked.transport.get_write_buffer_size()
        try:
            await asyncio.wait([carried])  # cancelled as the connection is cut
        finally:
            stream.release()
            pulse.close()
        return stream

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with listening(app) as base, asyncio.timeout(20):
        host, port = base.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(request(True))
        assert isinstance(await outcome, ClientStalled)
        writer.close()
    assert held < 64 * 1024 + MANY_SMALL * 1024
