"""Upstreams that cannot be reached, say nothing, or say too much: each is told as what it is."""

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from conftest import FakeUpstream, Gateway, MakeGateway, chunk, events_of, text_of

from server.keys import RELAYS
from streaming.chunk_framing import frame_of

MESSAGES = [{"role": "user", "content": "go"}]
ASK = {"model": "up/model", "messages": MESSAGES}
NOTHINK = ASK | {"model": "up/model-nothink"}
BOTH = pytest.mark.parametrize("ask", [ASK, NOTHINK], ids=["verbatim", "nothink"])
FINISH = {"id": "u", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
SSE = {"Content-Type": "text/event-stream"}


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


WHOLE = sse(chunk(content="hello"), FINISH) + b"data: [DONE]\n\n"

OnConnection = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_upstream(answer: OnConnection) -> AsyncIterator[str]:
    """An upstream below HTTP: `answer` reads and writes bytes."""
    connected: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            await answer(reader, writer)
            writer.close()
            await writer.wait_closed()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        connected.add(task)
        task.add_done_callback(connected.discard)

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        for task in connected:
            task.cancel()
        await asyncio.gather(*connected, return_exceptions=True)
        await server.wait_closed()


async def read_raw(gateway: Gateway, body: Any) -> tuple[int, Any, bytes]:
    url = gateway.base + "/v1/chat/completions"
    async with gateway.session.post(url, json=body) as response:
        return response.status, response.headers, await response.read()


@pytest.fixture
def full_backlog() -> Iterator[str]:
    """A listener that accepts nobody, and whose queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        for _ in range(4):
            client = socket.socket()
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
            waiting.append(client)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        for client in waiting:
            client.close()


@BOTH
@pytest.mark.parametrize("fault", ["a name that does not resolve", "no TLS", "no room"])
async def test_an_upstream_that_cannot_be_reached_is_a_503_that_tells_no_address(
    upstream: FakeUpstream,
    make_gateway: MakeGateway,
    full_backlog: str,
    fault: str,
    ask: dict[str, Any],
) -> None:
    base = {
        "a name that does not resolve": "http://upstream.invalid/v1",
        "no TLS": upstream.base.replace("http:", "https:"),
        "no room": full_backlog,
    }[fault]
    gateway = await make_gateway(upstream_base=base, connect_seconds=0.2, retries=0)
    status, headers, reply = await gateway.post(ask)
    assert status == 503
    assert headers["Retry-After"] == "5"
    assert "x-should-retry" not in headers
    assert reply["error"] == {
        "message": "The upstream model server cannot be reached.",
        "type": "server_error",
        "param": None,
        "code": "upstream_unavailable",
    }
    assert not upstream.requests


SILENT = "The upstream model server was silent for too long."


@BOTH
@pytest.mark.parametrize("streaming", [False, True])
async def test_an_upstream_that_never_answers_is_a_504_that_is_not_retried(
    upstream: FakeUpstream, make_gateway: MakeGateway, ask: dict[str, Any], streaming: bool
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    upstream.handler = handler
    gateway = await make_gateway(relay_first_byte_seconds=0.1)
    status, headers, reply = await gateway.post(ask | {"stream": streaming})
    assert (status, headers["x-should-retry"]) == (504, "false")
    assert (reply["error"]["message"], reply["error"]["code"]) == (SILENT, "deadline_exceeded")
    await asyncio.wait_for(upstream.closed.wait(), 10)
    assert len(upstream.requests) == 1


@BOTH
@pytest.mark.parametrize("said", [b"", sse(chunk(content="hello"))], ids=["head", "event"])
async def test_a_stream_that_stalls_ends_in_an_error_event(
    upstream: FakeUpstream, make_gateway: MakeGateway, ask: dict[str, Any], said: bytes
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=SSE)
        await response.prepare(request)
        await response.write(said)
        await asyncio.Event().wait()
        return response

    upstream.handler = handler
    limits = {"relay_first_byte_seconds": 0.2, "relay_idle_seconds": 0.2}
    gateway = await make_gateway(**limits)
    events = await gateway.stream(ask)
    assert text_of(events[:-2], "content") == ("hello" if said else "")
    assert events[-2]["error"]["code"] == "deadline_exceeded"
    assert events[-1] == "[DONE]"
    await asyncio.wait_for(upstream.closed.wait(), 10)


@BOTH
async def test_a_json_reply_that_stalls_is_a_504(
    upstream: FakeUpstream, make_gateway: MakeGateway, ask: dict[str, Any]
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        await response.write(b'{"choices": [')
        await asyncio.Event().wait()
        return response

    upstream.handler = handler
    gateway = await make_gateway(relay_idle_seconds=0.1)
    status, headers, reply = await gateway.post(ask)
    assert (status, reply["error"]["code"]) == (504, "deadline_exceeded")
    assert headers["x-should-retry"] == "false"


@BOTH
async def test_a_slow_stream_that_is_never_silent_for_long_is_whole(
    upstream: FakeUpstream, make_gateway: MakeGateway, ask: dict[str, Any]
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=SSE)
        await response.prepare(request)
        for _ in range(12):
            await response.write(sse(chunk(content="x")))
            await asyncio.sleep(0.05)
        await response.write(sse(FINISH))
        return response

    upstream.handler = handler
    gateway = await make_gateway(relay_idle_seconds=0.3, relay_first_byte_seconds=0.3)
    events = await gateway.stream(ask)
    assert text_of(events, "content") == "x" * 12
    assert "error" not in events[-1]


async def test_a_reader_that_is_slow_is_not_the_upstreams_silence(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    data = bytes(1 << 20) * 24

    async def handler(request: web.Request) -> web.Response:
        return web.Response(body=data, content_type="application/octet-stream")

    upstream.handler = handler
    gateway = await make_gateway(relay_idle_seconds=0.1)
    async with gateway.session.get(gateway.base + "/v1/files/x/content") as response:
        await asyncio.sleep(0.5)
        assert gateway.app[RELAYS]  # it waits for us
        assert len(await response.read()) == len(data)


@BOTH
async def test_headers_that_are_too_large_are_a_502(
    make_gateway: MakeGateway, ask: dict[str, Any]
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Big: %s\r\n\r\n"
        writer.write(head % (b"x" * 200_000) + WHOLE)
        await writer.drain()

    async with raw_upstream(answer) as base:
        gateway = await make_gateway(upstream_base=base)
        for streaming in (False, True):
            status, headers, reply = await gateway.post(ask | {"stream": streaming})
            assert (status, reply["error"]["code"]) == (502, "upstream_failed")
            assert headers["x-should-retry"] == "false"
            assert "xxx" not in reply["error"]["message"]


@BOTH
async def test_what_is_no_http_is_a_502(make_gateway: MakeGateway, ask: dict[str, Any]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 smtp.example ESMTP\r\n")
        await writer.drain()

    async with raw_upstream(answer) as base:
        gateway = await make_gateway(upstream_base=base)
        status, _, reply = await gateway.post(ask)
        assert (status, reply["error"]["code"]) == (502, "upstream_failed")


ERROR_BODIES = {
    "empty": (b"", "application/json"),
    "HTML": (b"<html><title>502 <think></title></html>", "text/html"),
    "text": (b"upstream connect error", "text/plain"),
}


@BOTH
@pytest.mark.parametrize("status", [400, 404, 500, 503])
@pytest.mark.parametrize("name", ERROR_BODIES)
async def test_an_error_body_of_any_kind_is_the_clients_as_it_is(
    upstream: FakeUpstream,
    make_gateway: MakeGateway,
    ask: dict[str, Any],
    status: int,
    name: str,
) -> None:
    body, content_type = ERROR_BODIES[name]

    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, body=body, content_type=content_type)

    upstream.handler = handler
    gateway = await make_gateway()
    for streaming in (False, True):
        got, headers, raw = await read_raw(gateway, ask | {"stream": streaming})
        assert (got, raw) == (status, body)
        assert headers["Content-Type"].startswith(content_type)


@BOTH
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed_wherever_it_leads(
    upstream: FakeUpstream, make_gateway: MakeGateway, ask: dict[str, Any], status: int
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=status, headers={"Location": upstream.base + "/elsewhere"})

    upstream.handler = handler
    gateway = await make_gateway(token="secret")
    got, headers, reply = await gateway.post(ask)
    assert (got, reply["error"]["code"]) == (502, "upstream_failed")
    assert "Location" not in headers
    assert len(upstream.requests) == 1


@BOTH
@pytest.mark.parametrize("chunked", [True, False])
async def test_ten_thousand_tiny_reads_make_one_stream(
    make_gateway: MakeGateway, ask: dict[str, Any], chunked: bool
) -> None:
    stream = sse(*(chunk(content=f"{number} ") for number in range(140))) + WHOLE
    stream = stream[: stream.index(b"\n\n", 9_900)] + b"\n\n" + WHOLE
    assert len(stream) > 10_000

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        writer.write(head + (b"Transfer-Encoding: chunked\r\n\r\n" if chunked else b"\r\n"))
        for byte in stream:
            writer.write(b"1\r\n%c\r\n" % byte if chunked else bytes((byte,)))
            await asyncio.sleep(0)  # the gateway reads
        writer.write(b"0\r\n\r\n" if chunked else b"")
        await writer.drain()

    async with raw_upstream(answer) as base:
        gateway = await make_gateway(upstream_base=base)
        _, _, raw = await read_raw(gateway, ask | {"stream": True})
        assert raw == stream


@BOTH
async def test_an_event_of_100_mb_is_an_error_and_is_not_kept_whole(
    make_gateway: MakeGateway, ask: dict[str, Any]
) -> None:
    piece, pieces = b"x" * (1 << 20), 100
    sent = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n6\r\ndata: \r\n")
        for _ in range(pieces):
            writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            await writer.drain()
            sent += 1

    async with raw_upstream(answer) as base:
        gateway = await make_gateway(upstream_base=base)
        events = await gateway.stream(ask)
        assert events[-2]["error"]["code"] == "upstream_failed"
        assert "too large" in events[-2]["error"]["message"]
        assert events[-1] == "[DONE]"
        assert sent < 80


@BOTH
async def test_json_where_a_stream_was_asked_for_is_json(
    upstream: FakeUpstream, make_gateway: MakeGateway, ask: dict[str, Any]
) -> None:
    body = {"choices": [{"index": 0, "message": {"content": "<think></think>hello"}}]}

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(body)

    upstream.handler = handler
    gateway = await make_gateway()
    status, headers, raw = await read_raw(gateway, ask | {"stream": True})
    assert (status, headers["Content-Type"].partition(";")[0]) == (200, "application/json")
    content = json.loads(raw)["choices"][0]["message"]["content"]
    assert content == ("hello" if ask is NOTHINK else "<think></think>hello")


@BOTH
async def test_a_stream_where_json_was_asked_for_is_a_stream(
    upstream: FakeUpstream, make_gateway: MakeGateway, ask: dict[str, Any]
) -> None:
    text = "<think></think>hello"

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=SSE)
        await response.prepare(request)
        await response.write(sse(chunk(content=text), FINISH) + b"data: [DONE]\n\n")
        return response

    upstream.handler = handler
    gateway = await make_gateway()
    status, headers, raw = await read_raw(gateway, ask)
    assert (status, headers["Content-Type"]) == (200, "text/event-stream")
    assert text_of(events_of(raw), "content") == ("hello" if ask is NOTHINK else text)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def framed(*events: bytes) -> bytes:
    return b"".join(map(frame_of, events))


@BOTH
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_follows_a_streams_end_closes_its_connection_and_is_nobodys(
    make_gateway: MakeGateway, ask: dict[str, Any], at_once: bool
) -> None:
    asked: list[object] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(writer)
        end = b"0\r\n\r\n" + HEAD + framed(sse(chunk(content="another's")))
        if at_once:
            writer.write(HEAD + framed(sse(chunk(content="hello")), sse(FINISH), DONE) + end)
        else:
            writer.write(HEAD + framed(sse(chunk(content="hello"))))
            await asyncio.sleep(0.02)
            writer.write(framed(sse(FINISH), DONE) + end)
        await reader.read()  # its own request's body, and then the end

    async with raw_upstream(answer) as base:
        gateway = await make_gateway(upstream_base=base)
        for _ in range(2):
            status, _, raw = await read_raw(gateway, ask | {"stream": True})
            assert (status, raw.replace(b" ", b"")) == (200, WHOLE.replace(b" ", b""))
        assert len(asked) == 2


@BOTH
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("fault", ["closed", "reset", "half a frame", "silent"])
async def test_a_stream_that_breaks_behind_its_done_was_complete(
    make_gateway: MakeGateway, ask: dict[str, Any], n: int, fault: str
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + framed(sse(chunk(content="hello"))))
        await asyncio.sleep(0.02)
        writer.write(framed(sse(FINISH)) + framed(DONE))
        if fault == "half a frame":
            writer.write(b"0\r\n")
        await asyncio.sleep(0.02)
        if fault == "reset":
            writer.transport.abort()
        if fault == "silent":
            await reader.read()

    async with raw_upstream(answer) as base:
        gateway = await make_gateway(upstream_base=base, relay_idle_seconds=0.1)
        status, _, raw = await read_raw(gateway, ask | {"stream": True, "n": n})
        assert (status, raw.replace(b" ", b"")) == (200, WHOLE.replace(b" ", b""))


@BOTH
async def test_a_stream_that_breaks_before_its_done_was_not(
    make_gateway: MakeGateway, ask: dict[str, Any]
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD + framed(sse(chunk(content="hello")), sse(FINISH)))
        await asyncio.sleep(0.02)

    async with raw_upstream(answer) as base:
        gateway = await make_gateway(upstream_base=base)
        _, _, raw = await read_raw(gateway, ask | {"stream": True})
        assert "error" in events_of(raw)[-2]


@BOTH
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("bad", [b"x\r\n", b"3\r\nabcd\r\n", b"f" * 300])
async def test_events_before_what_cannot_be_read_come_before_the_error(
    make_gateway: MakeGateway, ask: dict[str, Any], at_once: bool, bad: bytes
) -> None:
    many = [sse(chunk(content=text)) for text in ("a", "b <", "c", "d")]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        if not at_once:
            writer.write(framed(*many[:2]))
            await asyncio.sleep(0.02)
        writer.write(framed(*many[0 if at_once else 2 :]) + bad)
        await reader.read()

    async with raw_upstream(answer) as base:
        gateway = await make_gateway(upstream_base=base)
        _, _, raw = await read_raw(gateway, ask | {"stream": True})
        events = events_of(raw)
        assert text_of(events, "content") == "ab <cd"
        assert [("error" in event) for event in events].count(True) == 1
        assert "error" in events[-2]


def in_frames_of_their_own(events: list[bytes]) -> bytes:
    return HEAD + framed(*events)


def in_one_frame(events: list[bytes]) -> bytes:
    return HEAD + framed(b"".join(events))


def without_frames(events: list[bytes]) -> bytes:
    return HEAD.replace(b"Transfer-Encoding: chunked", b"Connection: close") + b"".join(events)


@pytest.mark.parametrize("sent", [in_frames_of_their_own, in_one_frame, without_frames])
@pytest.mark.parametrize("text", ["b", "<think>b</think>"])
@pytest.mark.parametrize("blank_line", [b"\n\n", b"\r\n\r\n"])
async def test_events_before_one_that_is_no_json_come_before_the_error(
    make_gateway: MakeGateway,
    sent: Callable[[list[bytes]], bytes],
    text: str,
    blank_line: bytes,
) -> None:
    events = [sse(chunk(content="a")), sse(chunk(content=text)), b'data: {"<\n\n', sse(FINISH)]
    written = sent([event.replace(b"\n\n", blank_line) for event in events])

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(written)
        await reader.read()

    async with raw_upstream(answer) as base:
        gateway = await make_gateway(upstream_base=base)
        _, _, raw = await read_raw(gateway, NOTHINK | {"stream": True})
        told = events_of(raw)
        assert text_of(told[:-2], "content") == "ab"
        assert "no JSON" in told[-2]["error"]["message"]


@BOTH
@pytest.mark.parametrize("sent", [in_frames_of_their_own, in_one_frame, without_frames])
@pytest.mark.parametrize("opener", ["", "<think>"])
async def test_more_blank_lines_than_are_needed_do_no_harm(
    make_gateway: MakeGateway,
    ask: dict[str, Any],
    sent: Callable[[list[bytes]], bytes],
    opener: str,
) -> None:
    events = [sse(chunk(content=f"{opener}hello")), sse(FINISH), DONE]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent([event + b"\n" for event in events]))

    async with raw_upstream(answer) as base:
        gateway = await make_gateway(upstream_base=base)
        async with asyncio.timeout(20):
            status, _, raw = await read_raw(gateway, ask | {"stream": True})
        said = text_of(events_of(raw), "content")
        assert (status, said) == (200, "hello" if ask is NOTHINK else f"{opener}hello")


@BOTH
@pytest.mark.parametrize("status", [204, 205])
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/chat/completions", "/responses"])
async def test_a_body_where_none_may_be_is_not_taken_for_the_next_reply(
    make_gateway: MakeGateway, ask: dict[str, Any], status: int, stream: bool, path: str
) -> None:
    """The next on that connection may be somebody else's, behind a proxy."""
    body = ask | {"stream": stream, "input": "go", "store": False}
    if path == "/responses":
        del body["messages"]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = HEAD.replace(b"200 OK", b"%d No" % status)
        writer.write(head + framed(sse(chunk(content="hello")), sse(FINISH), DONE) + b"0\r\n\r\n")

    async with raw_upstream(answer) as base:
        gateway = await make_gateway(upstream_base=base)
        said = await asyncio.to_thread(ask_twice, gateway.base, f"/v1{path}", json.dumps(body))
        for told, text, health in said:
            assert health == 200
            if told == 502:
                assert "no reply" in json.loads(text)["error"]["message"]
                assert (path, ask) == ("/responses", NOTHINK)
            else:
                assert (told, text) == (status, b"")


def ask_twice(base: str, path: str, body: str) -> list[tuple[int, bytes, int]]:
    """Each time what is answered, and the status of a healthy reply behind it, all on one connection."""
    connection = http.client.HTTPConnection(base.removeprefix("http://"), timeout=20)
    said = []
    try:
        for _ in range(2):
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            text = reply.read()
            connection.request("GET", "/healthz")
            health = connection.getresponse()
            health.read()
            said.append((reply.status, text, health.status))
    finally:
        connection.close()
    return said


@pytest.mark.parametrize("character", [b"\x01", b"\x7f"])
async def test_a_header_that_nobody_may_send_is_the_upstreams_fault(
    make_gateway: MakeGateway, character: bytes
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        odd = b"X-Odd: a" + character + b"b\r\n"
        writer.write(b"HTTP/1.1 200 OK\r\n" + odd + b"Content-Length: 2\r\n\r\n{}")
        await reader.read()

    async with raw_upstream(answer) as base:
        gateway = await make_gateway(upstream_base=base)
        for method, path in (("POST", "/chat/completions"), ("GET", "/files")):
            url = f"{gateway.base}/v1{path}"
            data = ASK if method == "POST" else None
            async with gateway.session.request(method, url, json=data) as reply:
                assert reply.status == 502
                assert (await reply.json())["error"]["code"] == "upstream_failed"
