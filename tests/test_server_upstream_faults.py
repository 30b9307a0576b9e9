"""Upstreams that fail, lie or break off: every failure is told as one, and nothing whole is called broken."""

import asyncio
import gc
import json
import socket
import struct
import sys
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from conftest import (
    FakeUpstream,
    Gateway,
    Handler,
    MakeGateway,
    chunk,
    events_of,
    raw_reply,
    text_of,
    until,
)
from smolagents import CodeAgent
from yarl import URL

from server.keys import SUPERVISOR, UPSTREAM, UPSTREAMS
from streaming.agent_context import AgentContext
from streaming.transcript import Transcript

MESSAGES = [{"role": "user", "content": "go"}]
AGENT = {"messages": MESSAGES}
RELAY = {"model": "up/model", "messages": MESSAGES}
NOTHINK = {"model": "up/model-nothink", "messages": MESSAGES}
DONE = b"data: [DONE]\n\n"
SSE, JSON = "text/event-stream", "application/json"


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def finish(reason: str = "stop", index: int = 0) -> dict[str, Any]:
    return {"id": "u", "choices": [{"index": index, "delta": {}, "finish_reason": reason}]}


def reset(request: web.Request) -> None:
    """End the connection with a TCP reset."""
    assert request.transport is not None
    connection = request.transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()


async def read_raw(
    gateway: Gateway, body: Any, path: str = "/v1/chat/completions"
) -> tuple[int, Any, bytes]:
    async with gateway.session.post(gateway.base + path, json=body) as response:
        return response.status, response.headers, await response.read()


async def exchange(gateway: Gateway, body: dict[str, Any]) -> bytes:
    """The very bytes of one HTTP response, from the status line to the end of the connection."""
    payload = json.dumps(body).encode()
    port = int(gateway.base.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    writer.write(head.encode() + payload)
    async with asyncio.timeout(10):
        raw = await reader.read()
    writer.close()
    await writer.wait_closed()
    return raw


def body_of_chunked(raw: bytes) -> bytes:
    """The body of one chunked response; fails where it is not well-formed to its end."""
    head, _, rest = raw.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert b"transfer-encoding: chunked" in head.lower()
    body = b""
    while True:
        size_line, _, rest = rest.partition(b"\r\n")
        size = int(size_line, 16)
        body += rest[:size]
        assert rest[size : size + 2] == b"\r\n"
        rest = rest[size + 2 :]
        if size == 0:
            assert rest == b""
            return body


def assert_ends_in_one_error(events: list[Any], code: str) -> None:
    assert events[-1] == "[DONE]"
    assert events[-2]["error"]["code"] == code
    assert sum(bool(event.get("error")) for event in events[:-1]) == 1
    assert events.count("[DONE]") == 1


NO_COMPLETION = {
    "an error object as JSON": (JSON, b'{"object":"error","message":"overloaded"}'),
    "a detail as JSON": (JSON, b'{"detail":"Not Found"}'),
    "an error object as an event": (SSE, sse({"object": "error", "message": "overloaded"}) + DONE),
    "a bare [DONE]": (SSE, DONE),
    "a bare [DONE] with usage": (SSE, sse({"choices": [], "usage": {"prompt_tokens": 1}}) + DONE),
    "JSON null": (JSON, b"null"),
    "an empty body": (JSON, b""),
    "HTML": ("text/html", b"<html>busy</html>"),
}


@pytest.mark.parametrize("name", NO_COMPLETION)
async def test_a_200_that_is_no_completion_is_a_failure_and_never_the_answer(
    upstream: FakeUpstream, make_gateway: MakeGateway, name: str
) -> None:
    content_type, body = NO_COMPLETION[name]
    upstream.handler = raw_reply([body] if body else [], content_type)
    gateway = await make_gateway()
    for streaming in (False, True):
        status, headers, reply = await gateway.post(AGENT | {"stream": streaming})
        assert status == 500
        assert headers["x-should-retry"] == "false"
        assert (reply["error"]["type"], reply["error"]["code"]) == (
            "agent_error",
            "upstream_failed",
        )
        assert ("overloaded" in reply["error"]["message"]) == (b"overloaded" in body)


async def test_choices_may_be_null_in_a_usage_chunk(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    text = "<code>\nfinal_answer('fine')\n</code>"
    reply = sse(chunk(content=text), finish(), {"choices": None, "usage": usage}) + DONE
    upstream.handler = raw_reply([reply])
    gateway = await make_gateway()
    _, _, got = await gateway.post(AGENT | {"reasoning_format": "none"})
    assert got["choices"][0]["message"]["content"] == "fine"
    assert got["usage"]["total_tokens"] == 7


@pytest.mark.parametrize("depth", [400, 990, 2000, 100_000])
async def test_a_chunk_nested_too_deep_ends_in_an_error_event_and_a_whole_body(
    upstream: FakeUpstream, make_gateway: MakeGateway, depth: int
) -> None:
    deep = b'data: {"choices":[{"index":0,"delta":{"content":"<think>x"}}],"deep":%s%s}\n\n' % (
        b"[" * depth,
        b"]" * depth,
    )
    upstream.handler = raw_reply([sse(chunk(content="before")), deep, sse(finish()) + DONE])
    gateway = await make_gateway()
    events = events_of(body_of_chunked(await exchange(gateway, NOTHINK | {"stream": True})))
    if depth > 1000:
        assert_ends_in_one_error(events, "upstream_failed")
        assert text_of(events, "content") == "before"
    else:
        assert events[-1] == "[DONE]"
        assert b"think" not in json.dumps(events).encode()


async def test_what_nobody_foresaw_in_a_relayed_stream_is_an_error_event_in_a_whole_body(
    upstream: FakeUpstream, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Any, *arguments: Any) -> Any:
        raise KeyError("/a/secret/path")

    monkeypatch.setattr("streaming.relay.DeltaScrubber.feed_text", broken)
    upstream.handler = raw_reply([sse(chunk(content="before")), sse(chunk(content="<think>"))])
    gateway = await make_gateway()
    raw = await exchange(gateway, NOTHINK | {"stream": True})
    assert_ends_in_one_error(events_of(body_of_chunked(raw)), "internal_error")
    assert b"secret" not in raw


async def test_what_nobody_foresaw_in_an_agents_stream_is_an_error_event_in_a_whole_body(
    upstream: FakeUpstream, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed = Transcript.feed
    told: list[str] = []

    def broken(self: Transcript, event: Any) -> str:
        if any(told):
            raise KeyError("/a/secret/path")
        told.append(feed(self, event))
        return told[-1]

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": SSE})
        await response.prepare(request)
        await response.write(sse(chunk(content="before\n")))
        await until(lambda: any(told))
        await response.write(sse(chunk(content="after\n"), finish()) + DONE)
        return response

    monkeypatch.setattr(Transcript, "feed", broken)
    upstream.handler = handler
    gateway = await make_gateway()
    raw = await exchange(gateway, AGENT | {"stream": True})
    events = events_of(body_of_chunked(raw))
    assert_ends_in_one_error(events, "internal_error")
    assert events[-3]["choices"][0]["finish_reason"] == "error"
    assert text_of(events, "content") == ""
    assert text_of(events, "reasoning") == "before\n"
    assert b"secret" not in raw
    await until(lambda: not gateway.app[SUPERVISOR].runs)


BROKEN_OFF = {
    "chunks that carry error: null": (1, sse(chunk(content="hello") | {"error": None})),
    "content with the text of the end": (
        1,
        sse(chunk(content="data: [DONE]\n\ndata: [DONE]"), chunk(content="[DONE]")),
    ),
    "content with the text of a finish": (1, sse(chunk(content='"finish_reason": "stop"'))),
    "one choice of two finished": (
        2,
        sse(chunk(content="hello"), finish(), {"choices": [{"index": 1, "delta": {}}]}),
    ),
    "one choice of two finished twice": (2, sse(chunk(content="hello"), finish(), finish())),
    "an empty finish": (1, sse(chunk(content="hello"), finish(""))),
    "nothing": (1, b""),
}


@pytest.mark.parametrize("model", ["up/model", "up/model-nothink"])
@pytest.mark.parametrize("name", BROKEN_OFF)
async def test_a_stream_that_only_looks_complete_ends_in_an_error_event(
    upstream: FakeUpstream, make_gateway: MakeGateway, model: str, name: str
) -> None:
    count, reply = BROKEN_OFF[name]
    upstream.handler = raw_reply([reply] if reply else [])
    gateway = await make_gateway()
    events = await gateway.stream(RELAY | {"model": model, "n": count})
    assert_ends_in_one_error(events, "upstream_failed")


@pytest.mark.parametrize("size", [100, 10_000, 300_000])
async def test_a_stream_of_responses_has_no_finish_and_is_whole_all_the_same(
    upstream: FakeUpstream, make_gateway: MakeGateway, size: int
) -> None:
    created = b'event: response.created\ndata: {"type":"response.created"}\n\n'
    text = b'event: response.output_text.delta\ndata: {"delta":"%s"}\n\n' % (b"x" * size)
    ended = b'event: response.completed\ndata: {"type":"response.completed"}\n\n'
    upstream.handler = raw_reply([created, text, ended])
    gateway = await make_gateway()
    body = {"model": "up/model", "input": "go", "stream": True}
    status, _, raw = await read_raw(gateway, body, "/v1/responses")
    assert (status, raw) == (200, created + text + ended)


@pytest.mark.parametrize("model", ["up/model", "up/model-nothink"])
async def test_a_finish_and_a_large_usage_chunk_are_whole_without_done(
    upstream: FakeUpstream, make_gateway: MakeGateway, model: str
) -> None:
    usage = {"choices": [], "usage": {"prompt_tokens": 1}, "timings": ["x" * 100] * 60}
    pieces = [sse(chunk(content="hello")), sse(finish()), sse(usage)]
    assert len(pieces[-1]) > 4096
    upstream.handler = raw_reply(pieces)
    gateway = await make_gateway()
    _, _, raw = await read_raw(gateway, RELAY | {"model": model, "stream": True})
    assert raw == b"".join(pieces)


@pytest.mark.parametrize("model", ["up/model", "up/model-nothink"])
async def test_all_choices_finished_are_a_whole_stream(
    upstream: FakeUpstream, make_gateway: MakeGateway, model: str
) -> None:
    reply = sse(chunk(content="hello"), finish(index=1), finish(index=0))
    upstream.handler = raw_reply([reply])
    gateway = await make_gateway()
    _, _, raw = await read_raw(gateway, RELAY | {"model": model, "stream": True, "n": 2})
    assert raw == reply


@pytest.mark.parametrize("body", [RELAY, NOTHINK, RELAY | {"stream": True}])
async def test_an_upstream_that_resets_before_an_answer_may_have_done_the_work(
    upstream: FakeUpstream, make_gateway: MakeGateway, body: dict[str, Any]
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        reset(request)
        return web.Response()

    upstream.handler = handler
    gateway = await make_gateway()
    status, headers, reply = await gateway.post(body)
    assert status == 502
    assert headers["x-should-retry"] == "false"
    assert "Retry-After" not in headers
    assert reply["error"] == {
        "message": "The upstream model server broke off its reply.",
        "type": "server_error",
        "param": None,
        "code": "upstream_failed",
    }
    assert len(upstream.requests) == 1


@pytest.mark.parametrize("body", [RELAY, NOTHINK])
async def test_an_upstream_that_refuses_the_connection_has_done_nothing(
    make_gateway: MakeGateway, body: dict[str, Any]
) -> None:
    gateway = await make_gateway(upstream_base="http://127.0.0.1:1/v1")
    status, headers, reply = await gateway.post(body)
    assert (status, reply["error"]["code"]) == (503, "upstream_unavailable")
    assert headers["Retry-After"] == "5"
    assert "x-should-retry" not in headers


def cut_off(text: bytes, content_type: str = JSON) -> Handler:
    """Promises more than it writes, then closes in good order."""

    async def handler(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": content_type, "Content-Length": str(len(text) + 50)}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        await response.write(text)
        assert request.transport is not None
        request.transport.close()
        return response

    return handler


@pytest.mark.parametrize("body", [RELAY, NOTHINK])
async def test_truncated_json_is_a_502_that_is_not_retried(
    upstream: FakeUpstream, make_gateway: MakeGateway, body: dict[str, Any]
) -> None:
    text = b'{"choices":[{"index":0,"message":{"content":"he'
    handlers = [cut_off(text)]
    if body is NOTHINK:
        handlers.append(raw_reply([text], JSON))
    gateway = await make_gateway()
    for handler in handlers:
        upstream.handler = handler
        status, headers, reply = await gateway.post(body)
        assert (status, reply["error"]["code"]) == (502, "upstream_failed")
        assert headers["x-should-retry"] == "false"


async def test_an_error_body_in_two_pieces_is_read_whole(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    pieces = [b'{"error": {"message": "context length', b' exceeded"}}']
    upstream.handler = raw_reply(pieces, JSON, 400)
    gateway = await make_gateway()
    status, _, reply = await gateway.post(AGENT)
    assert upstream.reads.pieces == pieces
    assert (status, reply["error"]["code"]) == (500, "upstream_refused")
    said = "The upstream answered with status 400: context length exceeded"
    assert reply["error"]["message"] == said


async def test_a_reset_inside_an_error_body_leaks_nothing_of_the_http_library(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=400, headers={"Content-Type": JSON})
        await response.prepare(request)
        await response.write(b'{"error": {"mess')
        reset(request)
        return response

    upstream.handler = handler
    gateway = await make_gateway()
    status, headers, reply = await gateway.post(AGENT)
    assert status == 500
    assert headers["x-should-retry"] == "false"
    assert reply["error"]["message"] in {
        "The upstream answered with status 400.",
        "The upstream model server broke off its reply.",
    }


async def test_an_upstreams_error_text_tells_no_place_and_no_secret(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    said = (
        "context length exceeded at 10.1.2.3, gpu-7.internal:8000, http://vllm.internal/v1, "
        "/srv/models/x.gguf, key sk-abcdef123456, token up-token-77"
    )
    gateway = await make_gateway(token="up-token-77")
    for handler in (
        raw_reply([json.dumps({"error": {"message": said}}).encode()], JSON, 400),
        raw_reply([sse({"error": {"message": said}})]),
    ):
        upstream.handler = handler
        _, _, reply = await gateway.post(AGENT)
        message = reply["error"]["message"]
        assert "context length exceeded" in message
        for secret in ("10.1.2.3", "internal", "8000", "srv", "gguf", "sk-", "up-token-77"):
            assert secret not in message


TAGGED_REPLY = json.dumps({"choices": [{"message": {"content": "a<think>b</think>c"}}]}).encode()
TAGGED_STREAM = sse(chunk(content="a<th"), chunk(content="ink>b</think>c"), finish()) + DONE


@pytest.mark.parametrize("content_type", ["text/plain", "application/octet-stream"])
async def test_tags_are_scrubbed_whatever_type_the_upstream_claims(
    upstream: FakeUpstream, make_gateway: MakeGateway, content_type: str
) -> None:
    gateway = await make_gateway()
    upstream.handler = raw_reply([TAGGED_REPLY], content_type)
    _, _, raw = await read_raw(gateway, NOTHINK)
    assert raw == b'{"choices":[{"message":{"content":"abc"}}]}'

    upstream.handler = raw_reply([TAGGED_STREAM], content_type)
    _, _, raw = await read_raw(gateway, NOTHINK | {"stream": True})
    events = events_of(raw)
    assert b"think" not in raw
    assert text_of(events, "content") == "abc"
    assert events[-2]["choices"][0]["finish_reason"] == "stop"
    assert events[-1] == "[DONE]"


async def test_other_text_passes_the_scrubber_unchanged(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    for text in (b"a plain <think>text</think>\n", b"<html>busy</html>", b"\xff\x00\x01 data: x"):
        upstream.handler = raw_reply([text], "text/plain")
        _, _, raw = await read_raw(gateway, NOTHINK)
        assert raw == text


async def test_events_that_are_written_anew_are_ascii(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    odd = "a\u2028b\u2029c\u0085d\x0be\x0cfé😀"
    event = json.dumps(chunk(content=f"<think></think>{odd}"), ensure_ascii=False)
    upstream.handler = raw_reply([f"data: {event}\n\n".encode() + sse(finish()) + DONE])
    gateway = await make_gateway()
    _, _, raw = await read_raw(gateway, NOTHINK | {"stream": True})
    assert raw.isascii()
    assert len(raw.decode().splitlines()) == raw.count(b"\n") == 6
    assert text_of(events_of(raw), "content") == odd


@pytest.mark.parametrize("body", [RELAY, NOTHINK])
async def test_what_belongs_to_one_hop_or_to_the_client_alone_is_not_relayed(
    upstream: FakeUpstream, make_gateway: MakeGateway, body: dict[str, Any]
) -> None:
    upstream.handler = raw_reply([b"{}"], JSON)
    gateway = await make_gateway()
    headers = [
        ("Connection", "X-One, keep-alive"),
        ("Connection", "x-two"),
        *((name, "dropped") for name in ("X-One", "X-Two", "Proxy-Connection", "X-API-Key")),
        *((name, "dropped") for name in ("X-Forwarded-For", "Forwarded", "Cookie")),
        ("X-Kept", "kept"),
    ]
    url = URL(gateway.base + "/v1/chat/completions?api-version=2&x=%2F%26%25+a", encoded=True)
    async with gateway.session.post(url, json=body, headers=headers) as response:
        assert response.status == 200
    request, _ = upstream.requests[0]
    assert "dropped" not in request.headers.values()
    assert request.headers["X-Kept"] == "kept"
    assert dict(request.query) == {"api-version": "2", "x": "/&% a"}


async def test_both_connection_headers_of_a_reply_are_honoured(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    async def handler(request: web.Request) -> web.Response:
        response = web.Response(body=b"{}", content_type=JSON)
        for name, value in (("Connection", "X-One"), ("Connection", "X-Two")):
            response.headers.add(name, value)
        response.headers.update({"X-One": "1", "X-Two": "2", "X-Kept": "3"})
        return response

    upstream.handler = handler
    gateway = await make_gateway()
    _, headers, _ = await read_raw(gateway, RELAY)
    assert "X-One" not in headers
    assert "X-Two" not in headers
    assert headers["X-Kept"] == "3"


def pings(gateway: Gateway) -> int:
    """How many streams a heartbeat is kept for: by a task, or by the pulse, which also watches the reply."""
    tasks = [task for task in asyncio.all_tasks() if "_ping" in repr(task.get_coro())]
    return len(tasks) + len(gateway.app[UPSTREAMS].pulse) // 2


@pytest.mark.parametrize("body", [AGENT, RELAY, NOTHINK])
async def test_no_heartbeat_outlives_a_client_that_left(
    upstream: FakeUpstream, make_gateway: MakeGateway, body: dict[str, Any]
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": SSE})
        await response.prepare(request)
        await response.write(sse(chunk(content="hello there, ")))
        await asyncio.Event().wait()
        return response

    upstream.handler = handler
    gateway = await make_gateway()
    async with gateway.session.post(
        gateway.base + "/v1/chat/completions", json=body | {"stream": True}
    ) as response:
        await response.content.readany()
        assert pings(gateway) == 1
        response.close()
    async with asyncio.timeout(10):
        await upstream.closed.wait()
    await until(lambda: not pings(gateway))


async def test_stderr_of_the_event_loop_is_not_a_runs_output(
    upstream: FakeUpstream, make_gateway: MakeGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    gateway = await make_gateway()
    opened = gateway.app[UPSTREAM]
    chat = opened.chat

    async def noisy(body: dict[str, Any]) -> AsyncIterator[Any]:
        async for piece in chat(body):
            print("noise of the loop", file=sys.stderr)
            yield piece

    opened.chat = noisy  # type: ignore[method-assign, assignment]
    _, _, reply = await gateway.post(AGENT)
    message = reply["choices"][0]["message"]
    assert "hello" in message["reasoning"]
    assert "noise" not in json.dumps(message)
    assert "noise of the loop" in capsys.readouterr().err


async def test_a_pooled_connection_keeps_no_finished_run_alive(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    supervisor = gateway.app[SUPERVISOR]
    channels: list[weakref.ref[Any]] = []
    submit = supervisor.submit

    def watched(*arguments: Any, **options: Any) -> Any:
        run = submit(*arguments, **options)
        channels.append(weakref.ref(run.channel))
        return run

    supervisor.submit = watched  # type: ignore[method-assign]
    for body in (AGENT, AGENT | {"stream": True}):
        await read_raw(gateway, body)
    ports = {
        request.transport.get_extra_info("peername")[1]
        for request, _ in upstream.requests
        if request.transport is not None
    }
    assert len(ports) == 1  # the connection was kept, and is open
    upstream.requests.clear()

    def all_gone() -> bool:
        gc.collect()
        return not any(channel() for channel in channels)

    assert len(channels) == 2
    await until(all_gone)


async def test_a_run_stopped_while_it_is_built_still_cleans_up_its_executor(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    loop = asyncio.get_running_loop()
    building, released, cleaned = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Cleaning(CodeAgent):  # type: ignore[misc]
        def cleanup(self) -> None:
            super().cleanup()
            loop.call_soon_threadsafe(cleaned.set)

    def factory(context: AgentContext) -> CodeAgent:
        agent = Cleaning(tools=[], model=context.model)
        loop.call_soon_threadsafe(building.set)
        asyncio.run_coroutine_threadsafe(released.wait(), loop).result(10)
        return agent

    gateway = await make_gateway({"slow": factory})
    asking = asyncio.ensure_future(gateway.post(AGENT | {"model": "slow"}))
    async with asyncio.timeout(10):
        await building.wait()
        asking.cancel()
        supervisor = gateway.app[SUPERVISOR]
        await until(lambda: all(run.stop_signal.is_set for run in supervisor.runs.values()))
        assert supervisor.runs
        released.set()
        await cleaned.wait()
        await until(lambda: not supervisor.running)
    assert not upstream.requests
