"""The one place that leans on aiohttp's private side: what it needs is there, and it gives way where not."""

import functools
import logging
from typing import Any

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler
from conftest import FakeUpstream, MakeGateway, events_of, raw_reply, text_of, until

from streaming import direct_body
from streaming.direct_body import DirectHandler, direct_handler, install

ASK: dict[str, Any] = {
    "model": "up/model",
    "stream": True,
    "messages": [{"role": "user", "content": "go"}],
}
STREAM = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


async def test_this_aiohttp_is_as_expected() -> None:
    connector = aiohttp.TCPConnector()
    factory = connector._factory
    assert isinstance(factory, functools.partial)
    assert factory.func is ResponseHandler
    assert install(connector)
    assert isinstance(connector._factory(), DirectHandler)
    await connector.close()


async def test_another_aiohttp_is_left_alone() -> None:
    connector = aiohttp.TCPConnector()
    connector._factory = ResponseHandler  # type: ignore[assignment]
    assert not install(connector)
    assert connector._factory is ResponseHandler
    await connector.close()


async def test_a_taken_body_leaves_the_connection_fit_for_the_next_exchange(
    upstream: FakeUpstream,
) -> None:
    upstream.handler = raw_reply([STREAM])
    connector = aiohttp.TCPConnector(limit=1)
    assert install(connector)
    async with aiohttp.ClientSession(connector=connector) as session:
        ports = set()
        for _ in range(3):
            async with session.post(f"{upstream.base}/chat/completions", json=ASK) as response:
                handler = direct_handler(response)
                assert handler is not None
                assert handler.transport is not None
                ports.add(handler.transport.get_extra_info("sockname")[1])
                taken = bytearray()
                first = handler.take(taken.extend, lambda error: None)
                assert first is not None
                taken += first
                await until(lambda: taken.endswith(b"0\r\n\r\n"))  # noqa: B023
                handler.finish()
                assert handler.take(taken.extend, lambda error: None) is None
            assert STREAM in taken
        assert len(ports) == 1


@pytest.mark.parametrize("content_type", ["application/json", "text/event-stream; charset=utf-8"])
async def test_a_body_that_nobody_takes_is_read_as_ever(
    upstream: FakeUpstream, content_type: str
) -> None:
    upstream.handler = raw_reply([STREAM], content_type)
    connector = aiohttp.TCPConnector()
    assert install(connector)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(f"{upstream.base}/chat/completions", json=ASK) as response,
    ):
        handler = direct_handler(response)
        assert handler is not None
        handler.go_public()
        assert await response.read() == STREAM


async def test_without_it_streams_take_the_public_way(
    upstream: FakeUpstream,
    make_gateway: MakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(direct_body, "ResponseHandler", object())
    monkeypatch.setattr("streaming.upstream.install", direct_body.install)

    async def handler(request: Any) -> Any:
        response = aiohttp.web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(STREAM)
        return response

    upstream.handler = handler
    with caplog.at_level(logging.WARNING):
        gateway = await make_gateway()
    assert "streams take the slower way" in caplog.text
    for model in ("up/model", "up/model-nothink"):
        async with gateway.session.post(
            gateway.base + "/v1/chat/completions", json=ASK | {"model": model}
        ) as response:
            raw = await response.read()
        assert raw == STREAM
        assert text_of(events_of(raw), "content") == "hi"
