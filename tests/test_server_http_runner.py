"""What aiohttp answers by itself is in OpenAI's shape, too, and the server goes on."""

import asyncio
import json
import re
from typing import Any
from urllib.parse import urlsplit

import pytest
from conftest import Gateway, MakeGateway

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"


async def exchange(gateway: Gateway, data: bytes) -> tuple[int, dict[str, str], Any]:
    """Raw bytes to the server; the first reply that is no interim one."""
    address = urlsplit(gateway.base)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        writer.write(data)
        async with asyncio.timeout(10):
            status = 100
            while status < 200:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                status = int(head.split(" ")[1])
            headers = {
                name.lower(): value
                for name, value in re.findall(r"^([\w-]+): (.*?)\r$", head, re.M)
            }
            body = await reader.readexactly(int(headers["content-length"]))
        return status, headers, json.loads(body)
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "is no HTTP"),
        (b"hello there\r\n\r\n", 400, "is no HTTP"),
        (b"GET / HTTP/9.x\r\n\r\n", 400, "is no HTTP"),
        (REQUEST + b"Content-Length: -1\r\n\r\n", 400, "is no HTTP"),
        (REQUEST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, "is no HTTP"),
        (REQUEST + b"Bad Name: x\r\n\r\n", 400, "is no HTTP"),
        (REQUEST + b"X: " + b"x" * 70_000 + b"\r\n\r\n", 400, "too long"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 400, "too long"),
        (REQUEST + b"Expect: tea\r\nContent-Length: 2\r\n\r\n{}", 417, "100-continue"),
        (b"BREW / HTTP/1.1\r\nHost: x\r\n\r\n", 400, "is no HTTP"),
        (b"PURGE /v1/models HTTP/1.1\r\nHost: x\r\n\r\n", 405, "method"),
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404, "no such route"),
    ],
    ids=range(12),
)
async def test_what_aiohttp_refuses_by_itself(
    make_gateway: MakeGateway, data: bytes, status: int, says: str
) -> None:
    gateway = await make_gateway()
    got, headers, body = await exchange(gateway, data)
    assert got == status
    assert headers["content-type"].startswith("application/json")
    assert headers["x-request-id"]
    assert "Traceback" not in json.dumps(body)
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["type"] == "invalid_request_error"
    assert says in body["error"]["message"]
    async with gateway.session.get(gateway.base + "/healthz") as response:
        assert await response.json() == {"ok": True}


async def test_a_client_that_asks_first_is_told_to_go_on(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()
    head = REQUEST + b"Content-Type: application/json\r\nExpect: 100-continue\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n".encode()
    status, _, reply = await exchange(gateway, head + body)
    assert status == 200
    assert reply["object"] == "chat.completion"


async def test_an_error_outside_the_middlewares_is_told_without_its_text(
    make_gateway: MakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gateway = await make_gateway()

    async def broken(*_: object) -> None:
        raise RuntimeError("a secret")

    monkeypatch.setattr(gateway.app.router, "resolve", broken)
    status, headers, body = await exchange(gateway, b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    assert status == 500
    assert headers["x-should-retry"] == "false"
    assert headers["connection"] == "close"
    assert body["error"]["code"] == "internal_error"
    assert "secret" not in json.dumps(body)
    assert "a secret" in caplog.text
