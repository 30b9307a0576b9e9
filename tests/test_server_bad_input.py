"""Every bad request is a clear 4xx in OpenAI's shape, and nothing is started."""

import io
import json
from typing import Any

import pytest
from conftest import FakeUpstream, MakeGateway

URL = "/v1/chat/completions"
USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        (b"{nope", 400, None, "not valid JSON"),
        (b"", 400, None, "not valid JSON"),
        (b"[1, 2]", 400, None, "object"),
        (b"\xff\xfe", 400, None, "not valid JSON"),
        (b"[" * 100_000, 400, None, ""),
        (b"{}", 400, "messages", "messages"),
        (b'{"messages": []}', 400, "messages", "at least one"),
        (b'{"messages": "hi"}', 400, "messages", "array"),
        (b'{"messages": [5]}', 400, "messages.0", "object"),
        (b'{"messages": [{"content": "x"}]}', 400, "messages.0.role", "role"),
        (b'{"messages": [{"role": "user", "content": 5}]}', 400, "messages.0.content", "str"),
        (b'{"messages": [{"role": "system", "content": "x"}]}', 400, "messages", "user message"),
        (b'{"messages": [{"role": "user", "content": " "}]}', 400, "messages.0.content", "empty"),
        (b'{"model": 5, "messages": []}', 400, "model", "str"),
        (json.dumps({"messages": USER, "model": "x" * 257}).encode(), 400, "model", "at most 256"),
        (json.dumps({"messages": USER, "n": 2}).encode(), 400, "n", "must be 1"),
        (json.dumps({"messages": USER, "stream": "yes"}).encode(), 400, "stream", "bool"),
        (
            json.dumps({"messages": USER, "reasoning_format": "x"}).encode(),
            400,
            "reasoning_format",
            "",
        ),
    ],
)
async def test_a_body_that_cannot_be_taken(
    make_gateway: MakeGateway,
    upstream: FakeUpstream,
    body: bytes,
    status: int,
    param: str | None,
    says: str,
) -> None:
    gateway = await make_gateway()
    async with gateway.session.post(
        gateway.base + URL, data=body, headers={"Content-Type": "application/json"}
    ) as response:
        error = json.loads(await response.read())["error"]
        assert response.status == status
        assert response.content_type == "application/json"
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert says in error["message"]
    assert error["code"] is None
    assert not upstream.requests


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x.png", "data:image/png;base64,%%%", "data:text/plain,hi"]
)
async def test_an_image_that_cannot_be_taken(make_gateway: MakeGateway, url: str) -> None:
    gateway = await make_gateway()
    content = [{"type": "text", "text": "x"}, {"type": "image_url", "image_url": {"url": url}}]
    status, _, reply = await gateway.post({"messages": [{"role": "user", "content": content}]})
    assert status == 400
    assert reply["error"]["param"] == "messages.0.content.1"


async def test_bytes_that_are_no_image(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    url = "data:image/png;base64,aGVsbG8="
    content = [{"type": "image_url", "image_url": {"url": url}}]
    status, _, reply = await gateway.post({"messages": [{"role": "user", "content": content}]})
    assert status == 400
    assert "image/png cannot be read" in reply["error"]["message"]


async def test_a_body_of_20_megabytes_is_a_413(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    body = io.BytesIO(b'{"messages": [{"role": "user", "content": "' + b"x" * 20_000_000 + b'"}]}')
    async with gateway.session.post(
        gateway.base + URL, data=body, headers={"Content-Type": "application/json"}
    ) as response:
        assert response.status == 413
        error = json.loads(await response.read())["error"]
    assert error["code"] == "body_too_large"
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", URL, 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/nobody", 404, "model_not_found"),
    ],
)
async def test_a_route_or_method_that_is_not_served(
    make_gateway: MakeGateway, method: str, path: str, status: int, code: str
) -> None:
    gateway = await make_gateway()
    async with gateway.session.request(method, gateway.base + path) as response:
        error = json.loads(await response.read())["error"]
        assert (response.status, error["code"]) == (status, code)
        assert error["type"] == "invalid_request_error"
        assert ("Allow" in response.headers) == (status == 405)


async def test_a_body_that_is_no_json_by_its_type(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    async with gateway.session.post(gateway.base + URL, data={"form": "x"}) as response:
        assert response.status == 415
        assert json.loads(await response.read())["error"]["code"] == "unsupported_media_type"


async def test_unknown_models_are_answered_or_refused(make_gateway: MakeGateway) -> None:
    open_house = await make_gateway()
    status, _, reply = await open_house.post({"model": "gpt-9", "messages": USER})
    assert (status, reply["model"]) == (200, "gpt-9")
    strict = await make_gateway(unknown_model="reject")
    status, _, reply = await strict.post({"model": "gpt-9", "messages": USER})
    assert status == 404
    assert reply["error"] == {
        "message": "The model 'gpt-9' does not exist.",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


async def test_keys_are_asked_for_everywhere_but_health(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway(api_keys=("one", "two"))
    for headers in ({}, {"Authorization": "Bearer three"}, {"Authorization": "Basic one"}):
        async with gateway.session.get(gateway.base + "/v1/models", headers=headers) as response:
            assert response.status == 401
            error: dict[str, Any] = json.loads(await response.read())["error"]
            assert error["code"] == "invalid_api_key"
    async with gateway.session.get(
        gateway.base + "/v1/models", headers={"Authorization": "Bearer two"}
    ) as response:
        assert response.status == 200
    async with gateway.session.get(gateway.base + "/healthz") as response:
        assert await response.json() == {"ok": True}


async def test_models_are_listed_when_the_upstream_is_down(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway(upstream_base="http://127.0.0.1:1/v1")
    for path in ("/models", "/v1/models"):
        async with gateway.session.get(gateway.base + path) as response:
            listed = await response.json()
        assert listed["object"] == "list"
        assert {model["id"]: model["owned_by"] for model in listed["data"]} == {
            "code-writing-agent": "smolgate",
            "up/model": "upstream",
            "up/model-nothink": "upstream",
        }
    async with gateway.session.get(gateway.base + "/v1/models/up/model") as response:
        assert (await response.json())["id"] == "up/model"
