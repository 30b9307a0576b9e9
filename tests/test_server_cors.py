"""Web pages of other origins: refused unless allowed; preflights, streams and errors alike."""

from typing import Any

import pytest
from aiohttp import web
from conftest import FakeUpstream, Gateway, MakeGateway

from server.setting_values import BadSetting
from server.settings import read_settings

PAGE = "https://chat.example"
ASK = {"model": "up/model", "messages": [{"role": "user", "content": "hello"}]}
RUN = ASK | {"model": "code-writing-agent"}
PREFLIGHT = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
}


async def preflight(gateway: Gateway, origin: str, **headers: str) -> Any:
    url = gateway.base + "/v1/chat/completions"
    sent = {"Origin": origin} | PREFLIGHT | headers
    async with gateway.session.options(url, headers=sent) as response:
        return response.status, response.headers


async def test_without_the_setting_no_page_may_read_anything(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    status, headers = await preflight(gateway, PAGE)
    assert status == 405
    assert not [name for name in headers if name.startswith("Access-Control")]
    for path in ("/v1/chat/completions", "/v1/nothing"):
        _, headers, _ = await gateway.post(RUN, path, headers={"Origin": PAGE})
        assert not [name for name in headers if name.startswith("Access-Control")]


async def test_an_upstream_does_not_decide_which_pages_may_read(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    async def says_all(request: web.Request) -> web.Response:
        return web.json_response({}, headers={"Access-Control-Allow-Origin": "*", "X-Kept": "1"})

    upstream.handler = says_all
    gateway = await make_gateway()
    _, headers, _ = await gateway.post(ASK, headers={"Origin": PAGE})
    assert headers["X-Kept"] == "1"
    assert "Access-Control-Allow-Origin" not in headers


async def test_a_preflight_needs_no_key_and_allows_what_it_asks_for(
    make_gateway: MakeGateway,
) -> None:
    gateway = await make_gateway(cors_origins=(PAGE,), api_keys=("k",))
    status, headers = await preflight(gateway, PAGE)
    assert status == 204
    assert headers["Access-Control-Allow-Origin"] == PAGE
    assert "POST" in headers["Access-Control-Allow-Methods"]
    assert headers["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert "Origin" in headers["Vary"]
    assert "Access-Control-Allow-Credentials" not in headers


@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{PAGE}.evil.example", ""])
async def test_other_pages_are_told_nothing(make_gateway: MakeGateway, origin: str) -> None:
    gateway = await make_gateway(cors_origins=(PAGE,))
    _, headers = await preflight(gateway, origin)
    assert not [name for name in headers if name.startswith("Access-Control")]
    _, headers, _ = await gateway.post(RUN, headers={"Origin": origin})
    assert not [name for name in headers if name.startswith("Access-Control")]
    assert headers["Vary"] == "Origin"  # no cache gives one page's reply to another


async def test_header_names_that_are_none_are_not_said_back(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway(cors_origins=("*",))
    odd = {"Access-Control-Request-Headers": "a;b, <script>"}
    status, headers = await preflight(gateway, PAGE, **odd)
    assert status == 204
    assert "Access-Control-Allow-Headers" not in headers


@pytest.mark.parametrize("model", ["up/model", "up/model-nothink", "code-writing-agent"])
@pytest.mark.parametrize("origins", [(PAGE,), ("*",)])
async def test_streams_may_be_read(
    make_gateway: MakeGateway, model: str, origins: tuple[str, ...]
) -> None:
    gateway = await make_gateway(cors_origins=origins)
    url = gateway.base + "/v1/chat/completions"
    body = ASK | {"model": model, "stream": True}
    async with gateway.session.post(url, json=body, headers={"Origin": PAGE}) as response:
        assert response.headers["Access-Control-Allow-Origin"] == origins[0]
        assert "x-request-id" in response.headers["Access-Control-Expose-Headers"]
        assert (await response.read()).endswith(b"data: [DONE]\n\n")


async def test_errors_may_be_read_too(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway(cors_origins=(PAGE,), api_keys=("k",))
    status, headers, body = await gateway.post(ASK, headers={"Origin": PAGE})
    assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert headers["Access-Control-Allow-Origin"] == PAGE


async def test_an_options_request_that_is_no_preflight_is_refused_as_any(
    make_gateway: MakeGateway,
) -> None:
    gateway = await make_gateway(cors_origins=(PAGE,), api_keys=("k",))
    async with gateway.session.options(gateway.base + "/v1/models") as response:
        assert response.status == 401


@pytest.mark.parametrize("text", ["chat.example", "https://a/path", "*,https://a", ","])
def test_origins_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="CORS_ORIGINS"):
        read_settings([], {"CORS_ORIGINS": text})
