"""The relay through the chat endpoint: exact bytes, scrubbed bytes, and an upstream that misbehaves."""

import asyncio
import gzip
import json
from typing import Any

import pytest
from aiohttp import web
from conftest import FakeUpstream, Handler, MakeGateway, chunk, events_of, raw_reply, text_of, until

ASK = {"model": "up/model", "messages": [{"role": "user", "content": "go"}], "stream": True}
NOTHINK = ASK | {"model": "up/model-nothink"}

# Comments, CRLF, a named event, odd spacing and non-ASCII text: the verbatim route keeps it all.
STREAM = (
    b": hello\n\n"
    b'data: {"id":"1","choices":[{"index":0,"delta":{"role":"assistant","content":"<think>"}}]}\n\n'
    b'data:{"choices":[{"index":0,"delta":{"content":"\xc3\xa9\\u003c/think>"}}],"x":{"y":[1]}}\r\n\r\n'
    b'event: odd\ndata: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)


def in_pieces(data: bytes, size: int) -> list[bytes]:
    return [data[begin : begin + size] for begin in range(0, len(data), size)]


async def read_raw(gateway: Any, body: Any, **kwargs: Any) -> tuple[int, Any, bytes]:
    async with gateway.session.post(
        gateway.base + "/v1/chat/completions", json=body, **kwargs
    ) as response:
        return response.status, response.headers, await response.read()


@pytest.mark.parametrize("size", [1, 7, len(STREAM)])
async def test_a_relayed_stream_is_byte_identical(
    upstream: FakeUpstream, make_gateway: MakeGateway, size: int
) -> None:
    upstream.handler = raw_reply(in_pieces(STREAM, size))
    gateway = await make_gateway()
    status, headers, raw = await read_raw(gateway, ASK)
    assert (status, raw) == (200, STREAM)
    assert upstream.reads.pieces == in_pieces(STREAM, size)
    assert headers["Content-Type"] == "text/event-stream"
    assert headers["Cache-Control"] == "no-cache, no-transform"
    assert headers["X-Accel-Buffering"] == "no"


async def test_a_relayed_reply_that_is_no_stream_is_byte_identical_and_keeps_its_headers(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    body = b'{ "choices" : [ {"message":{"content":"<think>\\u003c"}} ] }\n'

    async def handler(request: web.Request) -> web.Response:
        headers = {"X-Ratelimit-Remaining": "7", "Connection": "X-Hop", "X-Hop": "1"}
        return web.Response(body=body, content_type="application/json", headers=headers)

    upstream.handler = handler
    gateway = await make_gateway()
    status, headers, raw = await read_raw(gateway, ASK | {"stream": False})
    assert (status, raw) == (200, body)
    assert headers["X-Ratelimit-Remaining"] == "7"
    assert "X-Hop" not in headers
    assert int(headers["Content-Length"]) == len(body)


async def test_compressed_replies_stay_as_they_are(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    packed = gzip.compress(STREAM)

    async def handler(request: web.Request) -> web.Response:
        headers = {"Content-Encoding": "gzip", "Content-Type": "text/event-stream"}
        return web.Response(body=packed, headers=headers)

    upstream.handler = handler
    gateway = await make_gateway()
    async with gateway.session.post(
        gateway.base + "/v1/chat/completions", json=ASK, auto_decompress=False
    ) as response:
        assert await response.read() == packed
        assert response.headers["Content-Encoding"] == "gzip"
    _, headers, raw = await read_raw(gateway, NOTHINK)
    assert "Content-Encoding" not in headers
    assert b"think" not in raw


async def test_the_request_goes_up_untouched_but_for_its_credentials(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = raw_reply([STREAM])
    gateway = await make_gateway(token="up-token", api_keys=("my-key",))
    body = b'{"model" :"up/model",\n "stream":true, "odd": 1.50, "messages": []}'
    headers = {
        "Authorization": "Bearer my-key",
        "Content-Type": "application/json",
        "X-Request-Id": "mine-1",
        "X-Custom": "kept",
        "Cookie": "a=b",
    }
    async with gateway.session.post(
        gateway.base + "/chat/completions", data=body, headers=headers
    ) as response:
        assert response.status == 200
        assert response.headers["x-request-id"] == "mine-1"
        assert await response.read() == STREAM
    request, sent = upstream.requests[0]
    assert sent == body
    assert request.headers["Authorization"] == "Bearer up-token"
    assert request.headers["X-Request-Id"] == "mine-1"
    assert request.headers["X-Custom"] == "kept"
    assert "Cookie" not in request.headers


def tagged_stream(*texts: str) -> bytes:
    """A stream whose tags are cut over deltas, with entities and JSON escapes among them."""
    events = [json.dumps(chunk(content=text), ensure_ascii=False) for text in texts]
    finish = {"id": "u", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    lines = [*events, json.dumps(finish), "[DONE]"]
    raw = "".join(f"data: {line}\n\n" for line in lines).encode()
    return raw.replace(b"<thi", b"\\u003cthi")


TAGGED = ("é<th", "ink>", "héllo", "</think", ">wor<", "b> &lt;think&gt;x&lt;/think&gt;", " ld é")
TAGGED_CLEAN = "éhéllowor<b> x ld é"


async def test_no_tag_gets_through_however_the_upstreams_bytes_are_cut(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    raw = tagged_stream(*TAGGED)
    gateway = await make_gateway()
    cuts = [in_pieces(raw, size) for size in (1, 7, len(raw))]
    cuts += [[raw[:at], raw[at:]] for at in range(1, len(raw))]
    for pieces in cuts:
        upstream.handler = raw_reply(pieces)
        status, _, got = await read_raw(gateway, NOTHINK)
        assert status == 200
        events = events_of(got)
        assert text_of(events, "content") == TAGGED_CLEAN
        assert events[-1] == "[DONE]"
        assert events[-2]["choices"][0]["finish_reason"] == "stop"
        assert b"think" not in got


@pytest.mark.parametrize(
    ("mode", "content", "reasoning"),
    [
        ("tags", TAGGED_CLEAN, ""),
        ("block", "éwor<b>  ld é", ""),
        ("reasoning", "éwor<b>  ld é", "héllox"),
    ],
)
async def test_the_scrub_mode_says_what_becomes_of_the_thoughts(
    upstream: FakeUpstream, make_gateway: MakeGateway, mode: str, content: str, reasoning: str
) -> None:
    gateway = await make_gateway(nothink_scrub=mode)
    upstream.handler = raw_reply([tagged_stream(*TAGGED)])
    events = await gateway.stream(NOTHINK)
    assert text_of(events, "content") == content
    assert text_of(events, "reasoning_content") == text_of(events, "reasoning") == reasoning

    whole = json.dumps({"choices": [{"index": 0, "message": {"content": "".join(TAGGED)}}]})
    upstream.handler = raw_reply([whole.encode()], "application/json")
    _, _, reply = await gateway.post(NOTHINK | {"stream": False})
    message = reply["choices"][0]["message"]
    assert message["content"] == content
    assert message.get("reasoning_content", "") == reasoning


async def test_the_directive_is_added_to_every_user_message(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = raw_reply([tagged_stream("hi")])
    gateway = await make_gateway()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "second"}, image]},
    ]
    await gateway.stream({"model": "up/model-nothink", "messages": messages, "top_k": 5})
    sent = upstream.bodies()[0]
    assert sent["model"] == "up/model"
    assert sent["top_k"] == 5
    contents = [message["content"] for message in sent["messages"]]
    assert contents[:3] == ["s", "first\n/nothink", "a"]
    assert contents[3] == [
        {"type": "text", "text": "second"},
        image,
        {"type": "text", "text": "\n/nothink"},
    ]


@pytest.mark.parametrize("model", ["up/model", "up/model-nothink"])
async def test_upstream_errors_are_the_clients(
    upstream: FakeUpstream, make_gateway: MakeGateway, model: str
) -> None:
    error = b'{"error": {"message": "no <think> please", "code": "x"}}'

    async def handler(request: web.Request) -> web.Response:
        return web.Response(
            status=429, body=error, content_type="application/json", headers={"Retry-After": "9"}
        )

    upstream.handler = handler
    gateway = await make_gateway()
    status, headers, raw = await read_raw(gateway, ASK | {"model": model})
    assert (status, raw) == (429, error)
    assert headers["Retry-After"] == "9"


CUT = tagged_stream("hello", "world")[: -len(b"data: [DONE]\n\n")]
UNFINISHED = CUT[: CUT.index(b"world") - 20]


def breaking(pieces: list[bytes]) -> Handler:
    """Writes the pieces, then breaks the connection."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        await asyncio.sleep(0.05)  # lets the bytes go before the reset
        assert request.transport is not None
        request.transport.abort()
        return response

    return handler


@pytest.mark.parametrize("model", ["up/model", "up/model-nothink"])
@pytest.mark.parametrize("handler", [raw_reply([UNFINISHED]), breaking([UNFINISHED])])
async def test_a_stream_that_breaks_off_ends_in_an_error_event(
    upstream: FakeUpstream, make_gateway: MakeGateway, model: str, handler: Handler
) -> None:
    upstream.handler = handler
    gateway = await make_gateway()
    events = await gateway.stream(ASK | {"model": model})
    assert text_of(events[:-2], "content") == "hello"
    assert events[-2]["error"]["code"] == "upstream_failed"
    assert events[-1] == "[DONE]"


async def test_a_stream_that_ends_after_its_finish_is_whole_without_done(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    for body in (ASK, NOTHINK):
        upstream.handler = raw_reply([CUT])
        _, _, raw = await read_raw(gateway, body)
        assert b"error" not in raw
        assert text_of(events_of(raw), "content") == "helloworld"


async def test_an_upstream_that_is_down_is_a_503(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway(upstream_base="http://127.0.0.1:1/v1")
    status, headers, reply = await gateway.post(ASK)
    assert status == 503
    assert headers["Retry-After"] == "5"
    assert reply["error"]["code"] == "upstream_unavailable"


async def test_a_redirect_is_not_followed(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    async def handler(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/steal"})

    upstream.handler = handler
    gateway = await make_gateway(token="secret")
    status, headers, reply = await gateway.post(ASK)
    assert status == 502
    assert "Location" not in headers
    assert reply["error"]["code"] == "upstream_failed"


async def test_a_client_that_leaves_ends_the_upstream_call(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(tagged_stream("hello")[:60])
        await asyncio.Event().wait()
        return response

    upstream.handler = handler
    gateway = await make_gateway()
    for body in (ASK, NOTHINK, ASK | {"stream": False}):
        upstream.closed.clear()
        count = len(upstream.requests)
        asking = asyncio.ensure_future(read_raw(gateway, body))
        async with asyncio.timeout(10):
            await until(lambda: len(upstream.requests) > count)  # noqa: B023
            asking.cancel()
            await upstream.closed.wait()


async def test_model_as_an_object_and_other_endpoints(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = raw_reply([b'{"data": []}'], "application/json")
    gateway = await make_gateway()
    await gateway.post(ASK | {"model": {"id": "up/model"}, "stream": False})
    assert upstream.bodies()[-1]["model"] == "up/model"
    embed = {"model": "up/model", "input": "x"}
    status, _, reply = await gateway.post(embed, "/v1/embeddings")
    assert (status, reply) == (200, {"data": []})
    assert upstream.requests[-1][0].path == "/v1/embeddings"
    status, _, reply = await gateway.post(embed | {"model": "other"}, "/v1/embeddings")
    assert (status, reply["error"]["code"]) == (404, "model_not_found")
