"""Several upstreams: which is asked for an id, what goes up, and what happens when one fails."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from aiohttp import web
from conftest import FakeUpstream, Gateway, Handler, MakeGateway, chunk, listening, scripted, until

from server.keys import RELAYS
from server.upstream_settings import parse_upstreams
from streaming.circuit_breaker import CircuitBreaker
from streaming.upstream_group import REPEAT_SECONDS

MESSAGES = [{"role": "user", "content": "go"}]
DOWN = "http://127.0.0.1:1/v1"

MakeUpstream = Callable[..., Awaitable[FakeUpstream]]


@pytest.fixture
async def another() -> AsyncIterator[MakeUpstream]:
    """Makes more upstreams."""
    async with AsyncExitStack() as stack:

        async def make(handler: Handler) -> FakeUpstream:
            fake = FakeUpstream(handler)
            app = web.Application(client_max_size=1 << 30)
            app.router.add_route("*", "/v1/{path:.*}", fake.serve)
            fake.base = f"{await stack.enter_async_context(listening(app))}/v1"
            return fake

        yield make


def says(text: str, status: int = 200, **headers: str) -> Handler:
    """Answers with one message, or one error."""

    async def handler(request: web.Request) -> web.Response:
        body = {"choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop"}]}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(
            body if status < 400 else {"error": text}, status=status, headers=named
        )

    return handler


def entries(*found: dict[str, Any]) -> Any:
    return parse_upstreams(json.dumps(found))


async def ask(gateway: Gateway, model: str, **more: Any) -> tuple[int, Any, Any]:
    return await gateway.post({"model": model, "messages": MESSAGES} | more)  # type: ignore[no-any-return]


def text_of_reply(reply: Any) -> Any:
    return reply["choices"][0]["message"]["content"]


async def ready(gateway: Gateway) -> Any:
    async with gateway.session.get(gateway.base + "/readyz") as response:
        return response.status, await response.json()


async def model_ids(gateway: Gateway) -> list[str]:
    async with gateway.session.get(gateway.base + "/v1/models") as response:
        return [model["id"] for model in (await response.json())["data"]]


async def test_ids_and_prefixes_lead_to_their_upstreams(
    upstream: FakeUpstream, make_gateway: MakeGateway, another: MakeUpstream
) -> None:
    upstream.handler = says("first")
    exact, prefix = await another(says("exact")), await another(says("prefix"))
    gateway = await make_gateway(
        token="token-0",
        upstreams=entries(
            {"models": ["big"], "base": exact.base, "token": "token-1"},
            {"models": ["p/*"], "base": prefix.base, "strip_prefix": "p/"},
        ),
    )
    said = [text_of_reply((await ask(gateway, model))[2]) for model in ("up/model", "big", "p/x/y")]
    assert said == ["first", "exact", "prefix"]
    tokens = [
        fake.requests[0][0].headers.get("Authorization") for fake in (upstream, exact, prefix)
    ]
    assert tokens == ["Bearer token-0", "Bearer token-1", None]
    assert prefix.bodies()[0]["model"] == "x/y"


async def test_of_a_body_whose_model_has_another_name_upstream_all_else_stays(
    make_gateway: MakeGateway, another: MakeUpstream
) -> None:
    fake = await another(says("hi"))
    found = entries({"models": ["p/*", "same"], "base": fake.base, "strip_prefix": ""})
    stripped = entries({"models": ["p/*"], "base": fake.base, "strip_prefix": "p/"})
    body = b'{"n": 1, "model" :"p/x", "t":1.50,"big":1e400, "s":"\\u003c", "messages": [ {} ]}'
    headers = {"Content-Type": "application/json"}
    for upstreams in (found, stripped):
        gateway = await make_gateway(upstreams=upstreams)
        url = gateway.base + "/v1/chat/completions"
        async with gateway.session.post(url, data=body, headers=headers) as response:
            assert response.status == 200
    assert fake.requests[0][1] == body
    assert fake.requests[1][1] == (
        b'{"n":1,"model":"x","t":1.50,"big":1e400,"s":"\\u003c","messages":[ {} ]}'
    )


async def test_nothink_has_each_upstreams_own_switch_and_scrub_mode(
    upstream: FakeUpstream, make_gateway: MakeGateway, another: MakeUpstream
) -> None:
    upstream.handler = says("<think>a</think>b")
    other = await another(says("a</think>b"))
    gateway = await make_gateway(
        nothink_body={"reasoning_effort": "none"},
        upstreams=entries(
            {
                "models": ["p/*"],
                "base": other.base,
                "nothink_directive": "",
                "nothink_body": {"chat_template_kwargs": {"enable_thinking": False}},
                "scrub": "block",
                "starts_open": True,
            }
        ),
    )
    _, _, reply = await ask(gateway, "up/model-nothink")
    assert text_of_reply(reply) == "ab"
    assert upstream.bodies()[0]["reasoning_effort"] == "none"
    _, _, reply = await ask(gateway, "p/x-nothink", chat_template_kwargs={"kept": 1})
    assert text_of_reply(reply) == "b"
    sent = other.bodies()[0]
    assert sent["model"] == "p/x"
    assert sent["messages"] == MESSAGES
    assert sent["chat_template_kwargs"] == {"kept": 1, "enable_thinking": False}
    _, _, reply = await ask(gateway, "p/x")
    assert text_of_reply(reply) == "a</think>b"


async def test_agents_run_on_an_upstream_of_the_list_and_fail_over_too(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda messages: "<code>\nfinal_answer('hello')\n</code>")
    gateway = await make_gateway(
        upstream_base=None,
        model="p/x",
        upstreams=entries(
            {"models": ["p/*"], "base": DOWN},
            {"models": ["p/*"], "base": upstream.base, "strip_prefix": "p/"},
        ),
    )
    status, _, reply = await gateway.post({"messages": MESSAGES, "reasoning_format": "none"})
    assert (status, text_of_reply(reply)) == (200, "hello")
    assert upstream.bodies()[0]["model"] == "x"


TRY_AGAIN = [
    (429, {"Retry_After": "1"}),
    (429, {"x_should_retry": "true"}),
    (502, {"Retry_After": "60"}),
    (503, {"Retry_After": "Wed, 21 Oct 2026 07:28:00 GMT"}),
    (504, {"x_should_retry": "true"}),
]


@pytest.mark.parametrize(("status", "headers"), TRY_AGAIN)
async def test_an_answer_that_says_not_now_leads_to_the_next_upstream_at_once(
    make_gateway: MakeGateway, another: MakeUpstream, status: int, headers: dict[str, str]
) -> None:
    busy, well = await another(says("busy", status, **headers)), await another(says("well"))
    found = [{"models": ["m"], "base": fake.base} for fake in (busy, well)]
    gateway = await make_gateway(upstreams=entries(*found))
    for model in ("m", "m-nothink"):
        _, _, reply = await ask(gateway, model)
        assert text_of_reply(reply) == "well"
    assert (len(busy.requests), len(well.requests)) == (2, 2)


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (503, {}),
        (503, {"Retry_After": "1", "x_should_retry": "false"}),
        (500, {"Retry_After": "1"}),
        (400, {"x_should_retry": "true"}),
    ],
)
async def test_an_answer_that_does_not_say_so_is_the_clients(
    make_gateway: MakeGateway, another: MakeUpstream, status: int, headers: dict[str, str]
) -> None:
    first, second = await another(says("no", status, **headers)), await another(says("well"))
    found = [{"models": ["m"], "base": fake.base} for fake in (first, second)]
    gateway = await make_gateway(upstreams=entries(*found))
    got, _, reply = await ask(gateway, "m")
    assert (got, reply) == (status, {"error": "no"})
    assert (len(first.requests), len(second.requests)) == (1, 0)


async def test_the_last_answer_is_told_with_its_retry_after(
    make_gateway: MakeGateway, another: MakeUpstream
) -> None:
    first = await another(says("first", 429, Retry_After="70"))
    second = await another(says("second", 503, Retry_After="80"))
    found = [{"models": ["m"], "base": base} for base in (first.base, second.base, DOWN)]
    gateway = await make_gateway(upstreams=entries(*found), retries=0)
    status, headers, reply = await ask(gateway, "m")
    assert (status, headers["Retry-After"], reply) == (503, "80", {"error": "second"})


async def test_one_upstream_is_asked_again_as_often_and_as_long_as_is_allowed(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = says("busy", 503, Retry_After="0")
    for settings, count in [
        ({}, 2),
        ({"retries": 3}, 4),
        ({"retries": 0}, 1),
        ({"retry_seconds": 0.0}, 1),
    ]:
        upstream.requests.clear()
        gateway = await make_gateway(breaker_failures=0, **settings)  # type: ignore[arg-type]
        status, _, _ = await ask(gateway, "up/model")
        assert (status, len(upstream.requests)) == (503, count)


async def test_an_upstream_that_comes_back_in_time_answers(
    make_gateway: MakeGateway, unused_tcp_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = await make_gateway(upstream_base=f"http://127.0.0.1:{unused_tcp_port}/v1", retries=5)
    waits = asyncio.Event()
    sleep = asyncio.sleep

    async def noted(seconds: float, *rest: Any) -> None:
        if seconds > REPEAT_SECONDS / 2:
            waits.set()
        await sleep(seconds, *rest)

    monkeypatch.setattr("streaming.upstream_group.asyncio.sleep", noted)
    asking = asyncio.ensure_future(ask(gateway, "up/model"))
    await asyncio.wait_for(waits.wait(), 10)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", says("back"))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", unused_tcp_port).start()
    try:
        _, _, reply = await asking
        assert text_of_reply(reply) == "back"
    finally:
        await runner.cleanup()


async def test_a_client_that_leaves_ends_the_waiting(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = says("busy", 503, Retry_After="4")
    gateway = await make_gateway()
    asking = asyncio.ensure_future(ask(gateway, "up/model"))
    await until(lambda: len(upstream.requests) == 1)
    assert gateway.app[RELAYS]
    asking.cancel()
    await until(lambda: not gateway.app[RELAYS], seconds=2)
    assert len(upstream.requests) == 1


async def test_a_reply_that_began_is_never_asked_for_again(
    make_gateway: MakeGateway, another: MakeUpstream
) -> None:
    async def breaks(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: " + json.dumps(chunk(content="he")).encode() + b"\n\n")
        return response

    first, second = await another(breaks), await another(says("well"))
    found = [{"models": ["m"], "base": fake.base} for fake in (first, second)]
    gateway = await make_gateway(upstreams=entries(*found))
    events = await gateway.stream({"model": "m", "messages": MESSAGES})
    assert events[-2]["error"]["code"] == "upstream_failed"
    assert (len(first.requests), len(second.requests)) == (1, 0)


async def test_a_circuit_opens_is_probed_and_closes(
    upstream: FakeUpstream, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(
        "server.upstreams.CircuitBreaker",
        lambda failures, seconds, clock: CircuitBreaker(failures, seconds, lambda: now),
    )
    upstream.handler = says("down", 503)
    gateway = await make_gateway(breaker_failures=2, retries=0)
    for _ in range(2):
        assert (await ready(gateway))[1]["upstreams"] == {"default": "ok"}
        await ask(gateway, "up/model")
    status, headers, reply = await ask(gateway, "up/model")
    assert (status, reply["error"]["code"]) == (503, "upstream_unavailable")
    assert headers["Retry-After"] == "10"
    assert len(upstream.requests) == 2
    assert await ready(gateway) == (
        503,
        {
            "ready": False,
            "reasons": {"upstream": "no upstream can be reached"},
            "upstreams": {"default": "open"},
        },
    )
    now += 10
    assert await ready(gateway) == (
        200,
        {"ready": True, "reasons": {}, "upstreams": {"default": "half-open"}},
    )
    gate = asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        return await says("up")(request)

    upstream.handler = slow
    probing = asyncio.ensure_future(ask(gateway, "up/model"))
    await until(lambda: len(upstream.requests) == 3)
    assert (await ask(gateway, "up/model"))[0] == 503
    gate.set()
    assert (await probing)[0] == 200
    assert (await ready(gateway))[1]["upstreams"] == {"default": "ok"}
    assert (await ask(gateway, "up/model"))[0] == 200


async def test_an_open_circuit_is_passed_over_and_the_server_stays_ready(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = says("well")
    gateway = await make_gateway(
        upstream_base=DOWN,
        breaker_failures=1,
        upstreams=entries(
            {"name": "spare", "models": ["up/model"], "base": upstream.base},
            {"name": "other", "models": ["other"], "base": DOWN},
        ),
    )
    for _ in range(3):
        assert text_of_reply((await ask(gateway, "up/model"))[2]) == "well"
    assert (await ask(gateway, "other"))[0] == 503
    status, told = await ready(gateway)
    assert (status, told["upstreams"]) == (200, {"default": "open", "spare": "ok", "other": "open"})


async def models_of(*ids: str) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in ids]})

    return handler


async def test_the_list_of_models_has_the_upstreams_own_where_they_have_prefixes(
    upstream: FakeUpstream, make_gateway: MakeGateway, another: MakeUpstream
) -> None:
    exact = await another(await models_of("unasked"))
    plain = await another(await models_of("q/1", "r/1"))
    stripped = await another(await models_of("2", "3"))
    gateway = await make_gateway(
        upstreams=entries(
            {"models": ["e"], "base": exact.base},
            {"models": ["q/*"], "base": plain.base},
            {"models": ["s/*"], "base": stripped.base, "strip_prefix": "s/", "token": "t"},
            {"models": ["down/*"], "base": DOWN},
        )
    )
    lists = await asyncio.gather(*(model_ids(gateway) for _ in range(20)))
    own = ["up/model", "e", "q/1", "s/2", "s/3"]
    for ids in lists:
        assert set(ids) == {*own, *(f"{name}-nothink" for name in own), "code-writing-agent"}
    assert (len(exact.requests), len(plain.requests), len(stripped.requests)) == (0, 1, 1)
    assert stripped.requests[0][0].headers["Authorization"] == "Bearer t"
    async with gateway.session.get(gateway.base + "/v1/models/s/2-nothink") as response:
        assert (await response.json())["owned_by"] == "upstream"


async def test_a_list_that_does_not_come_is_the_last_known_one(
    make_gateway: MakeGateway, another: MakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.upstream_models.FETCH_SECONDS", 0.1)
    monkeypatch.setattr("server.upstream_models.LIST_SECONDS", 0.0)
    monkeypatch.setattr("server.upstream_models.REFUSED_SECONDS", 0.0)
    fake = await another(await models_of("p/1"))
    gateway = await make_gateway(upstreams=entries({"models": ["p/*"], "base": fake.base}))
    assert "p/1" in await model_ids(gateway)

    async def never(request: web.Request) -> web.StreamResponse:
        await asyncio.Event().wait()
        return web.Response()

    async def html(request: web.Request) -> web.Response:
        return web.Response(text="<html>", content_type="text/html")

    for handler in (never, html, says("no", 500)):
        fake.handler = handler
        count = len(fake.requests)
        assert "p/1" in await model_ids(gateway)
        assert len(fake.requests) == count + 1
    fake.handler = await models_of("p/2")
    ids = await model_ids(gateway)
    assert "p/2" in ids
    assert "p/1" not in ids
