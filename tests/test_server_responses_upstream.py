"""`POST /v1/responses` for an upstream's model: relayed or translated, with real sockets and OpenAI's own client."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web
from conftest import (
    FakeUpstream,
    Gateway,
    Handler,
    MakeGateway,
    chunk,
    listening,
    raw_reply,
    until,
)
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from server.app import create_app
from server.embedded import MODEL as EMBEDDED
from server.identity import Identity
from server.keys import RELAYS, UPSTREAMS
from server.settings import make_settings
from server.upstream_settings import parse_upstreams
from streaming import responses_route

PATH = "/v1/responses"
ASK = {"model": "up/model", "input": "go"}
NO_ROUTE = {"detail": "Not Found"}
MISSING = b'{"error":{"message":"The model `x` does not exist.","type":"NotFoundError","code":404}}'
DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "Weather of a city.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="

_event: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def finished(reason: str = "stop") -> dict[str, Any]:
    return {"id": "u", "choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def chat_only(reply: Callable[[dict[str, Any]], Any], *, status: int = 404) -> Handler:
    """An upstream without /responses, which answers chat completions with what `reply` makes of a request."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if not request.path.endswith("/chat/completions"):
            return web.json_response(NO_ROUTE, status=status)
        asked = json.loads(await request.read())
        message = reply(asked)
        finish = "tool_calls" if message.get("tool_calls") else "stop"
        if not asked.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish}
            return web.json_response({"id": "u", "choices": [choice], "usage": USAGE})
        deltas = [chunk(role="assistant", content="")]
        deltas += [chunk(reasoning_content=text) for text in message.get("reasoning_content", "")]
        deltas += [chunk(content=text) for text in message.get("content") or ""]
        for index, call in enumerate(message.get("tool_calls", [])):
            head = call | {
                "index": index,
                "function": {"name": call["function"]["name"], "arguments": ""},
            }
            deltas.append(chunk(tool_calls=[head]))
            for text in call["function"]["arguments"]:
                deltas.append(chunk(tool_calls=[{"index": index, "function": {"arguments": text}}]))
        data = sse(*deltas, finished(finish), {"choices": [], "usage": USAGE}) + DONE
        return web.Response(body=data, content_type="text/event-stream")

    return handler


def says(text: str, **more: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda asked: {"role": "assistant", "content": text, **more}


def tool_model(asked: dict[str, Any]) -> dict[str, Any]:
    """Calls the tool that it is given, and tells what came of it."""
    last = asked["messages"][-1]
    if last["role"] == "tool":
        return {"content": f"It is {last['content']}."}
    function = {
        "name": asked["tools"][0]["function"]["name"],
        "arguments": '{"city":"Paris"}',
    }
    return {"content": None, "tool_calls": [{"id": "c1", "type": "function", "function": function}]}


async def post(gateway: Gateway, body: Any, **kwargs: Any) -> tuple[int, Any, bytes]:
    async with gateway.session.post(gateway.base + PATH, json=body, **kwargs) as response:
        return response.status, response.headers, await response.read()


def checked(raw: bytes) -> list[Any]:
    """A stream's events, each valid for OpenAI's client and numbered; comments are left out."""
    events = []
    for block in raw.decode().removesuffix("\n\n").split("\n\n"):
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        _event.validate_python(event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


async def stream(gateway: Gateway, body: Any) -> list[Any]:
    status, headers, raw = await post(gateway, body | {"stream": True})
    assert (status, headers["Content-Type"]) == (200, "text/event-stream"), raw
    return checked(raw)


@pytest.fixture
async def client(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> AsyncIterator[openai.AsyncOpenAI]:
    gateway = await make_gateway()
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.base}/v1", api_key="none", max_retries=0
    ) as made:
        yield made


# Which way a request takes.


def paths(upstream: FakeUpstream) -> list[str]:
    taken = [request.path.removeprefix("/v1/") for request, _ in upstream.requests]
    upstream.requests.clear()
    return taken


@pytest.mark.parametrize(
    ("status", "content_type", "body"),
    [
        (404, "application/json", b'{"detail":"Not Found"}'),  # FastAPI
        (404, "application/json", b'{"error":{"message":"Not Found","code":404}}'),  # vLLM
        (404, "application/json", b'{"error":{"code":404,"message":"File Not Found"}}'),
        (404, "text/plain", b"404 page not found"),  # Ollama
        (404, "text/plain", b""),
        (404, "text/html", b"<html><title>404 Not Found</title></html>"),
        (404, "text/html", b"<pre>Cannot POST /v1/responses</pre>"),
        (404, "application/json", b'{"error":{"message":"Invalid URL (POST /v1/responses)"}}'),
        (404, "application/json", b'{"error":{"message":"There is no such route."}}'),
        (405, "application/json", b'{"detail":"Method Not Allowed"}'),
        (
            400,
            "application/json",
            b'{"error":{"message":"The model does not support Responses API"}}',
        ),
        (501, "text/plain", b"Not Implemented"),
    ],
)
async def test_an_upstream_that_says_it_has_no_such_route_is_asked_for_chat_and_stays_so(
    upstream: FakeUpstream,
    make_gateway: MakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    content_type: str,
    body: bytes,
) -> None:
    chat = chat_only(says("hi"))

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/responses"):
            return web.Response(status=status, content_type=content_type, body=body)
        return await chat(request)

    upstream.handler = handler
    gateway = await make_gateway()
    got, headers, raw = await post(gateway, ASK)
    assert (got, headers["Content-Type"]) == (200, "application/json")
    assert Response.model_validate_json(raw).output_text == "hi"
    assert paths(upstream) == ["responses", "chat/completions"]
    events = await stream(gateway, ASK)
    assert events[-1]["type"] == "response.completed"
    assert paths(upstream) == ["chat/completions"]
    monkeypatch.setattr(responses_route, "MISSING_SECONDS", -1.0)
    route = gateway.app[UPSTREAMS].default.responses["default"]
    route.note_missing()  # as if the time had passed
    await post(gateway, ASK)
    assert paths(upstream) == ["responses", "chat/completions"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (404, MISSING),
        (404, b'{"error":{"message":"Not Found","code":"model_not_found"}}'),
        (404, b'{"error":{"message":"Response with id \'resp_1\' not found."}}'),
        (404, b'{"error":"model \\"x\\" not found, try pulling it first"}'),
        (404, b'{"error":' + b" " * 70_000 + b"1}"),
        (404, b'{"error":{"message":"File not found"}}'),
        (400, b'{"error":{"message":"Invalid URL (POST /v1/responses)"}}'),
        (500, b'{"detail":"Not Found"}'),
    ],
)
async def test_any_other_refusal_is_the_clients_as_it_came(
    upstream: FakeUpstream, make_gateway: MakeGateway, status: int, body: bytes
) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, content_type="application/json", body=body)

    upstream.handler = handler
    gateway = await make_gateway()
    for asks_stream in (False, True):
        got, _, raw = await post(gateway, ASK | {"stream": asks_stream})
        assert (got, raw) == (status, body)
    assert paths(upstream) == ["responses", "responses"]


NATIVE = (
    b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n'
    b'event: response.completed\ndata: {"type":"response.completed","sequence_number":1}\n\n'
)


async def test_an_upstream_that_has_it_gets_and_gives_the_very_bytes(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = raw_reply([NATIVE[:30], NATIVE[30:]])
    gateway = await make_gateway()
    # What could not be translated is not looked at.
    body = (
        b'{ "model":"up/model", "tools":[{"type":"web_search"}],"background":true,"stream":true }'
    )
    url = gateway.base + PATH + "?a=b"
    headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip"}
    async with gateway.session.post(url, data=body, headers=headers) as response:
        assert await response.read() == NATIVE
    request, sent = upstream.requests[0]
    assert (sent, request.path_qs) == (body, "/v1/responses?a=b")
    assert request.headers["Accept-Encoding"] == "identity"
    upstream.handler = raw_reply([b'{"id":"resp_1"}'], "application/json")
    assert (await post(gateway, ASK))[2] == b'{"id":"resp_1"}'


@pytest.mark.parametrize("ended", [True, False])
async def test_a_relayed_stream_without_its_end_ends_in_an_error(
    upstream: FakeUpstream, make_gateway: MakeGateway, ended: bool
) -> None:
    whole = NATIVE if ended else NATIVE[: NATIVE.index(b"event: response.completed")]
    upstream.handler = raw_reply([whole])
    gateway = await make_gateway()
    _, _, raw = await post(gateway, ASK | {"stream": True})
    error = (
        b'event: error\ndata: {"type":"error","sequence_number":1,"code":"upstream_failed",'
        b'"message":"The upstream ended its reply before it was complete.","param":null}\n\n'
    )
    assert raw == (whole if ended else whole + error)


@pytest.mark.parametrize(
    ("option", "path"), [("relay", "responses"), ("translate", "chat/completions")]
)
async def test_the_operator_may_say_which_way(
    upstream: FakeUpstream, make_gateway: MakeGateway, option: str, path: str
) -> None:
    upstream.handler = chat_only(says("hi"))
    gateway = await make_gateway(upstream_responses=option)
    status, _, _ = await post(gateway, ASK)
    assert (status, paths(upstream)) == (404 if option == "relay" else 200, [path])
    entry = [{"models": ["p/*"], "strip_prefix": "p/", "base": upstream.base, "responses": option}]
    gateway = await make_gateway(upstreams=parse_upstreams(json.dumps(entry)))
    await post(gateway, ASK | {"model": "p/x"})
    assert upstream.bodies()[0]["model"] == "x"
    assert paths(upstream) == [path]


async def test_each_upstream_of_a_group_is_asked_in_its_own_way(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    """The first is down, the second has chat alone, the third would have had it all."""

    async def busy(request: web.Request) -> web.StreamResponse:
        return web.json_response({}, status=503, headers={"Retry-After": "60"})

    fakes = [FakeUpstream(handler) for handler in (busy, chat_only(says("second")))]
    async with AsyncExitStack() as stack:
        for fake in fakes:
            app = web.Application()
            app.router.add_route("*", "/v1/{path:.*}", fake.serve)
            fake.base = f"{await stack.enter_async_context(listening(app))}/v1"
        entries = [{"models": ["m"], "base": fake.base} for fake in (*fakes, upstream)]
        gateway = await make_gateway(upstreams=parse_upstreams(json.dumps(entries)))
        _, _, raw = await post(gateway, {"model": "m", "input": "go"})
        assert Response.model_validate_json(raw).output_text == "second"
        assert paths(fakes[0]) == ["responses"]
        assert paths(fakes[1]) == ["responses", "chat/completions"]
        await post(gateway, {"model": "m", "input": "go"})
        assert paths(fakes[0]) == ["responses"]  # of it nothing was learnt
        assert paths(fakes[1]) == ["chat/completions"]
        assert paths(upstream) == []


# What goes up.


async def test_what_is_asked_goes_up_as_a_chat_completion(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = chat_only(says("hi"))
    gateway = await make_gateway(upstream_responses="translate")
    asked = {"input": "go", "instructions": "Be brief.", "max_output_tokens": 7, "seed": 3}
    await post(gateway, asked | {"model": "up/model"})
    await stream(gateway, asked | {"model": {"id": "up/model"}})
    whole, streamed = upstream.bodies()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "go"}]
    assert whole == {"model": "up/model", "messages": messages, "max_tokens": 7, "seed": 3}
    assert streamed == whole | {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"input": []}, "input"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"conversation": {"id": "conv_1"}}, "conversation"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"reasoning": {"effort": 1}}, "reasoning.effort"),
    ],
)
async def test_what_a_chat_completion_cannot_say_is_refused_by_its_name(
    upstream: FakeUpstream, make_gateway: MakeGateway, asked: dict[str, Any], param: str
) -> None:
    upstream.handler = chat_only(says("hi"))
    gateway = await make_gateway()
    for asks_stream in (False, True):
        status, _, raw = await post(gateway, ASK | asked | {"stream": asks_stream})
        error = json.loads(raw)["error"]
        assert (status, error["type"], error["param"]) == (400, "invalid_request_error", param)
    # It was asked in its own way first, and then not asked for what cannot be said.
    assert paths(upstream) == ["responses"]
    async with gateway.session.get(gateway.base + "/readyz") as response:
        assert (await response.json())["upstreams"] == {"default": "ok"}


@pytest.mark.parametrize(
    ("mode", "output"),
    [
        ("tags", [("message", "ab")]),
        ("block", [("message", "b")]),
        ("reasoning", [("reasoning", "a"), ("message", "b")]),
    ],
)
async def test_nothink_has_its_directive_its_switch_and_its_scrubbing(
    upstream: FakeUpstream, make_gateway: MakeGateway, mode: str, output: list[tuple[str, str]]
) -> None:
    """However the upstream is set: its own responses could not be scrubbed as well."""
    upstream.handler = chat_only(says("<think>a</think>b"))
    extra = {"chat_template_kwargs": {"enable_thinking": False}}
    for option in ("auto", "relay", "translate"):
        gateway = await make_gateway(
            nothink_scrub=mode, nothink_body=extra, upstream_responses=option
        )
        asked = {"model": "up/model-nothink", "input": [{"role": "user", "content": "go"}]}
        _, _, raw = await post(gateway, asked)
        whole = json.loads(raw)
        assert whole["model"] == "up/model-nothink"
        streamed = (await stream(gateway, asked))[-1]["response"]
        for response in (whole, streamed):
            told = [(item["type"], item["content"][0]["text"]) for item in response["output"]]
            assert told == output
    first = upstream.bodies()[0]
    assert first["model"] == "up/model"
    assert first["messages"] == [{"role": "user", "content": "go\n/nothink"}]
    assert first["chat_template_kwargs"] == {"enable_thinking": False}
    assert set(paths(upstream)) == {"chat/completions"}


# What comes back.


async def test_the_bytes_of_a_stream_are_these(upstream: FakeUpstream) -> None:
    """Through real sockets, with an identity of its own."""
    upstream.handler = chat_only(says("hi", reasoning_content="h"))
    settings = make_settings(
        upstream_base=upstream.base, model="up/model", jail="off", upstream_responses="translate"
    )
    identity = Identity(new_id=lambda: "chatcmpl-5eed", now=lambda: 7.0)
    async with (
        listening(create_app(settings, {}, identity=identity)) as base,
        aiohttp.ClientSession() as session,
        session.post(base + PATH, json=ASK | {"stream": True}) as response,
    ):
        raw = await response.read()
        headers = response.headers
    assert headers["Cache-Control"] == "no-cache, no-transform"
    assert headers["X-Accel-Buffering"] == "no"
    assert "x-request-id" in headers
    blocks = raw.split(b"\n\n")
    assert blocks[2:5] == [
        b'event: response.output_item.added\ndata: {"type":"response.output_item.added",'
        b'"sequence_number":2,"output_index":0,"item":{"id":"rs_5eed0000","type":"reasoning",'
        b'"status":"in_progress","summary":[],"content":[]}}',
        b'event: response.content_part.added\ndata: {"type":"response.content_part.added",'
        b'"sequence_number":3,"item_id":"rs_5eed0000","output_index":0,"content_index":0,'
        b'"part":{"type":"reasoning_text","text":""}}',
        b'event: response.reasoning_text.delta\ndata: {"type":"response.reasoning_text.delta",'
        b'"item_id":"rs_5eed0000","output_index":0,"content_index":0,"sequence_number":4,'
        b'"delta":"h"}',
    ]
    response_object = checked(raw)[-1]["response"]
    assert (response_object["id"], response_object["created_at"]) == ("resp_5eed", 7)


async def test_what_was_asked_is_told_in_the_response(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = chat_only(says("hi"))
    gateway = await make_gateway()
    asked = ASK | {
        "instructions": "Be brief.",
        "tools": [TOOL],
        "tool_choice": "none",
        "metadata": {"a": "b"},
        "temperature": 0,
        "max_output_tokens": 9,
        "reasoning": {"effort": "low"},
        "text": {"verbosity": "low"},
        "parallel_tool_calls": False,
        "store": False,
    }
    _, _, raw = await post(gateway, asked)
    response = json.loads(raw)
    assert response["tools"] == [TOOL]
    assert response["reasoning"] == {"effort": "low", "summary": None}
    assert response["text"] == {"format": {"type": "text"}, "verbosity": "low"}
    assert response["store"] is False
    same = ("instructions", "tool_choice", "metadata", "temperature", "max_output_tokens")
    assert {name: response[name] for name in same} == {name: asked[name] for name in same}
    assert response["parallel_tool_calls"] is False


async def test_a_stream_where_none_was_asked_for_and_none_where_one_was(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway(upstream_responses="translate")
    upstream.handler = raw_reply([sse(chunk(content="hi"), finished()) + DONE])
    status, headers, raw = await post(gateway, ASK)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert Response.model_validate_json(raw).output_text == "hi"
    whole = {"choices": [{"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}]}
    upstream.handler = raw_reply([json.dumps(whole).encode()], "application/json")
    events = await stream(gateway, ASK)
    assert Response.model_validate(events[-1]["response"]).output_text == "hi"


async def test_a_client_of_http_1_0_gets_the_same_events(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = chat_only(says("hi"))
    gateway = await make_gateway(upstream_responses="translate")
    body = json.dumps(ASK | {"stream": True}).encode()
    host, port = gateway.base.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {PATH} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    writer.write(head.encode() + b"\r\n\r\n" + body)
    raw = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    assert checked(raw.partition(b"\r\n\r\n")[2])[-1]["type"] == "response.completed"


# What goes wrong.


@pytest.mark.parametrize("asks_stream", [False, True])
@pytest.mark.parametrize("status", [400, 404, 429, 500])
async def test_a_refusal_of_the_chat_completion_is_the_clients(
    upstream: FakeUpstream, make_gateway: MakeGateway, status: int, asks_stream: bool
) -> None:
    upstream.handler = raw_reply([MISSING], "application/json", status)
    gateway = await make_gateway(upstream_responses="translate")
    got, _, raw = await post(gateway, ASK | {"stream": asks_stream})
    assert (got, raw) == (status, MISSING)


@pytest.mark.parametrize(
    ("content_type", "body", "said"),
    [
        ("application/json", b'{"error":{"message":"no"}}', "The upstream failed: no"),
        (
            "application/json",
            b"nonsense",
            "The upstream sent something that is no chat completion.",
        ),
        ("text/plain", sse(chunk(content="h")), "The upstream ended its reply before"),
        ("text/html", b"<html>", "The upstream sent something that is no chat completion."),
        ("text/event-stream", sse(chunk(content="h")), "The upstream ended its reply before"),
    ],
)
async def test_a_whole_reply_that_is_no_completion_is_a_502(
    upstream: FakeUpstream, make_gateway: MakeGateway, content_type: str, body: bytes, said: str
) -> None:
    upstream.handler = raw_reply([body], content_type)
    gateway = await make_gateway(upstream_responses="translate")
    for asks_stream in (False, content_type != "text/event-stream"):
        status, headers, raw = await post(gateway, ASK | {"stream": asks_stream})
        assert (status, headers["x-should-retry"]) == (502, "false")
        assert json.loads(raw)["error"]["message"].startswith(said)


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([sse(chunk(content="h"))], "The upstream ended its reply before it was complete."),
        (
            [sse(chunk(content="h")), sse({"error": {"message": "out of memory"}})],
            "The upstream failed: out of memory",
        ),
        (
            [sse(chunk(content="h")), b"data: nonsense\n\n"],
            "The upstream sent something that is no chat completion.",
        ),
    ],
)
async def test_a_stream_that_goes_wrong_fails_its_response(
    upstream: FakeUpstream, make_gateway: MakeGateway, pieces: list[bytes], message: str
) -> None:
    upstream.handler = raw_reply(pieces)
    gateway = await make_gateway(upstream_responses="translate")
    events = await stream(gateway, ASK)
    assert [event["type"] for event in events][-1] == "response.failed"
    response = events[-1]["response"]
    assert response["error"] == {"code": "server_error", "message": message}
    assert response["output"][0]["content"][0]["text"] == "h"


async def test_an_upstream_that_breaks_off_or_stalls_fails_the_response(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(sse(chunk(content="h")))
        assert request.transport is not None
        request.transport.close()
        return response

    async def stalls(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(sse(chunk(content="h")))
        await asyncio.Event().wait()
        return response

    gateway = await make_gateway(upstream_responses="translate", relay_idle_seconds=0.1)
    for handler in (breaks, stalls):
        upstream.handler = handler
        assert (await stream(gateway, ASK))[-1]["type"] == "response.failed"


async def test_a_refusal_behind_a_heartbeat_is_an_error_event(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    go_on = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        await go_on.wait()
        return web.json_response({"error": {"message": "too long"}}, status=400)

    upstream.handler = slow
    for option in ("translate", "relay"):
        gateway = await make_gateway(upstream_responses=option, heartbeat_seconds=0.05)
        url = gateway.base + PATH
        go_on.clear()
        async with gateway.session.post(url, json=ASK | {"stream": True}) as response:
            begun = await asyncio.wait_for(response.content.readuntil(b"\n\n"), 10)
            assert begun == b": ping\n\n"
            go_on.set()
            raw = await response.read()
        (event,) = checked(raw)
        assert event == {
            "type": "error",
            "sequence_number": 0,
            "code": "upstream_refused",
            "message": "The upstream answered with status 400 and no stream: too long",
            "param": None,
        }


async def test_a_whole_completion_behind_a_heartbeat_is_a_stream(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    go_on = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        await go_on.wait()
        choice = {"index": 0, "message": {"content": "hi"}, "finish_reason": "stop"}
        return web.json_response({"choices": [choice]})

    upstream.handler = slow
    gateway = await make_gateway(upstream_responses="translate", heartbeat_seconds=0.05)
    asked = ASK | {"stream": True}
    async with gateway.session.post(gateway.base + PATH, json=asked) as response:
        assert await asyncio.wait_for(response.content.readuntil(b"\n\n"), 10) == b": ping\n\n"
        go_on.set()
        events = checked(await response.read())
    assert Response.model_validate(events[-1]["response"]).output_text == "hi"


async def test_a_client_that_leaves_ends_the_upstreams_call(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(sse(chunk(content="h")))
            await asyncio.sleep(0.005)

    upstream.handler = endless
    gateway = await make_gateway(upstream_responses="translate")
    async with gateway.session.post(gateway.base + PATH, json=ASK | {"stream": True}) as response:
        await response.content.readuntil(b"output_text.delta")
    await asyncio.wait_for(upstream.closed.wait(), 10)
    await until(lambda: not gateway.app[RELAYS])


async def test_an_unreachable_upstream_is_a_503(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway(upstream_base="http://127.0.0.1:1/v1", retries=0)
    status, headers, raw = await post(gateway, ASK)
    assert (status, headers["Retry-After"]) == (503, "5")
    assert json.loads(raw)["error"]["code"] == "upstream_unavailable"


# OpenAI's own client.


class City(BaseModel):
    name: str


async def test_the_client_creates_streams_and_parses(
    upstream: FakeUpstream, client: openai.AsyncOpenAI
) -> None:
    upstream.handler = chat_only(says('{"name":"Paris"}', reasoning_content="Hm."))
    made = await client.responses.create(model="up/model", input="go")
    assert made.output_text == '{"name":"Paris"}'
    assert made.usage is not None
    assert made.usage.total_tokens == 15
    parsed = await client.responses.parse(model="up/model", input="go", text_format=City)
    assert parsed.output_parsed == City(name="Paris")
    async with client.responses.stream(model="up/model", input="go", text_format=City) as streaming:
        kinds = [event.type async for event in streaming]
        final = await streaming.get_final_response()
    assert final.output_parsed == City(name="Paris")
    assert list(dict.fromkeys(kinds)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_text.delta",
        "response.output_text.done",
        "response.completed",
    ]


@pytest.mark.parametrize("asks_stream", [False, True])
async def test_a_tool_is_called_and_its_output_goes_back(
    upstream: FakeUpstream, client: openai.AsyncOpenAI, asks_stream: bool
) -> None:
    upstream.handler = chat_only(tool_model)

    async def ask(given: Any) -> Any:
        if not asks_stream:
            return await client.responses.create(model="up/model", input=given, tools=[TOOL])
        async with client.responses.stream(
            model="up/model", input=given, tools=[TOOL]
        ) as streaming:
            return await streaming.get_final_response()

    given: list[Any] = [{"role": "user", "content": "Weather of Paris?"}]
    first = await ask(given)
    (call,) = first.output
    assert (call.type, call.name, call.arguments) == (
        "function_call",
        "weather",
        '{"city":"Paris"}',
    )
    # As programs do: what came is sent back as it came.
    given += [call.model_dump(exclude_none=True, exclude={"parsed_arguments"})]
    given += [{"type": "function_call_output", "call_id": call.call_id, "output": "warm"}]
    assert (await ask(given)).output_text == "It is warm."


async def test_the_client_raises_what_the_server_says(
    upstream: FakeUpstream, client: openai.AsyncOpenAI
) -> None:
    upstream.handler = chat_only(says("hi"))
    with pytest.raises(openai.BadRequestError) as caught:
        await client.responses.create(model="up/model", input="go", tools=[{"type": "web_search"}])
    assert caught.value.param == "tools.0.type"


# The checks of the public Open Responses suite, from its documentation.

REQUIRED = (
    *("id", "object", "created_at", "completed_at", "status", "incomplete_details", "model"),
    *("previous_response_id", "instructions", "output", "error", "tools", "tool_choice"),
    *("truncation", "parallel_tool_calls", "text", "top_p", "presence_penalty"),
    *("frequency_penalty", "top_logprobs", "temperature", "reasoning", "usage"),
    *("max_output_tokens", "max_tool_calls", "store", "background", "service_tier", "metadata"),
    *("safety_identifier", "prompt_cache_key"),
)
USER = {"type": "message", "role": "user"}
CHECKS: dict[str, dict[str, Any]] = {
    "basic": {"input": [USER | {"content": "Say hello in exactly 3 words."}]},
    "system prompt": {
        "input": [
            {"type": "message", "role": "system", "content": "You are a pirate."},
            USER | {"content": "Say hello."},
        ]
    },
    "tool calling": {
        "input": [USER | {"content": "What's the weather like in Paris?"}],
        "tools": [TOOL],
    },
    "image": {
        "input": [
            USER
            | {
                "content": [
                    {"type": "input_text", "text": "What do you see?"},
                    {"type": "input_image", "image_url": PIXEL},
                ]
            }
        ]
    },
    "multi-turn": {
        "input": [
            USER | {"content": "My name is Alice."},
            {"type": "message", "role": "assistant", "content": "Hello Alice!"},
            USER | {"content": "What is my name?"},
        ]
    },
}


@pytest.mark.parametrize("check", CHECKS)
async def test_the_open_responses_suite_finds_what_it_looks_for(
    upstream: FakeUpstream, make_gateway: MakeGateway, check: str
) -> None:
    calls = check == "tool calling"
    upstream.handler = chat_only(tool_model if calls else says("Ahoy!"))
    gateway = await make_gateway()
    asked = CHECKS[check] | {"model": "up/model"}
    _, _, raw = await post(gateway, asked)
    events = await stream(gateway, asked)
    streamed = events[-1]["response"]
    for response in (json.loads(raw), streamed):
        Response.model_validate(response)
        assert set(REQUIRED) <= response.keys()
        assert (response["object"], response["status"]) == ("response", "completed")
        (item,) = response["output"]
        assert item["type"] == ("function_call" if calls else "message")
        assert item["status"] == "completed"
    kinds = {event["type"] for event in events}
    assert {"response.created", "response.in_progress", "response.completed"} < kinds


async def test_the_embedded_model_has_it_and_can_be_translated(make_gateway: MakeGateway) -> None:
    """llama.cpp's server: its own responses and ours say the same."""
    settings = {"upstream_base": None, "model": EMBEDDED}
    asked = {"model": EMBEDDED, "input": "Hello", "max_output_tokens": 8, "temperature": 0}
    told = []
    for option in ("auto", "translate"):
        gateway = await make_gateway(**settings, upstream_responses=option)
        async with openai.AsyncOpenAI(base_url=f"{gateway.base}/v1", api_key="none") as client:
            made = await client.responses.create(**asked)  # type: ignore[call-overload]
            told.append(made.output_text)
            events = await client.responses.create(**asked, stream=True)  # type: ignore[call-overload]
            kinds = [event.type async for event in events]
        assert kinds[0] == "response.created"
        assert kinds[-1] in ("response.completed", "response.incomplete")
        if option == "translate":
            assert (made.status, kinds[-1]) == ("incomplete", "response.incomplete")
            assert made.incomplete_details.reason == "max_output_tokens"
    assert told[0] == told[1] != ""
