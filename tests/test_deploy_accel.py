"""nginx carries verbatim requests out itself: the shipped site and its include, real nginx, real servers."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from aiohttp import web
from conftest import FakeUpstream, until
from server_process import ServerProcess
from test_deploy_nginx import LockStep, client_of, deployed, error_of, site

from bench.nginx_site import NginxSite, accel_changes
from server.setting_values import BadSetting
from server.settings import make_settings

PROOF = "shown-by-nginx-alone"
TOKEN = "hf_upstream-token"
KEYS = [
    {"key": "sg-free", "name": "free"},
    {"key": "sg-slow", "name": "slow", "requests_per_minute": 2},
    {"key": "sg-metered", "name": "metered", "tokens_per_day": 1_000_000},
    {"key": "sg-other", "name": "other", "models": ["code-writing-agent"]},
    {"key": "sg-metrics", "name": "metrics", "metrics": True},
]
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "go"}], "model": "up"}


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def keys(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    path.write_text(json.dumps(KEYS))
    return str(path)


@contextmanager
def accelerated(upstream: str, keys: str) -> Iterator[tuple[ServerProcess, NginxSite]]:
    with deployed(
        upstream,
        changes=accel_changes(urlsplit(upstream).netloc, PROOF),
        ACCEL_REDIRECT="default",
        ACCEL_KEY=PROOF,
        HF_TOKEN=TOKEN,
        API_KEYS_FILE=keys,
    ) as started:
        yield started


async def echo(request: web.Request) -> web.Response:
    """What came, and headers that must not go on."""
    told = {
        "target": request.raw_path,
        "headers": {name.lower(): value for name, value in request.headers.items()},
        "body": (await request.read()).decode(),
    }
    headers = {
        "Set-Cookie": "a=b",
        "X-Accel-Redirect": "/v1/models",
        "X-Accel-Limit-Rate": "1",
        "X-Smolgate-Authorization": "Bearer forged",
        "X-Request-Id": "upstreams-own",
        "X-Upstream": "kept",
    }
    return web.json_response(told, headers=headers)


async def test_nginx_sends_the_request_as_the_relay_would(
    upstream: FakeUpstream, keys: str
) -> None:
    upstream.handler = echo
    body = json.dumps(ASK | {"text": "ü" * 20_000})  # too long for nginx' memory: it is in a file
    sent = bearer("sg-free") | {
        "Cookie": "c=d",
        "X-Api-Key": "secret",
        "X-Accel-Redirect": "@smolgate_default",
        "X-Smolgate-Accel": "a client's own",
        "X-Request-Id": "clients-own",
        "OpenAI-Organization": "kept",
        "Content-Type": "application/json",
    }
    with accelerated(upstream.base, keys) as (server, nginx):
        async with client_of(nginx) as client:
            reply = await client.post("/chat/completions?a=b%20c", content=body, headers=sent)
            assert reply.status_code == 200
            told = reply.json()
            await until(lambda: "handed_on" in server.log)
    assert told["target"] == f"{urlsplit(upstream.base).path}/chat/completions?a=b%20c"
    assert told["body"] == body
    got = told["headers"]
    assert got["authorization"] == f"Bearer {TOKEN}"
    assert got["x-request-id"] == "clients-own"
    assert got["openai-organization"] == "kept"
    gone = {"cookie", "x-api-key", "x-smolgate-accel", "x-forwarded-for", "x-forwarded-proto"}
    assert not gone & set(got)
    assert reply.headers["x-upstream"] == "kept"
    assert reply.headers["x-request-id"] == "clients-own"
    assert not [name for name in reply.headers if name.startswith(("x-accel", "x-smolgate"))]
    assert "set-cookie" not in reply.headers
    assert TOKEN not in str(reply.headers)
    assert TOKEN not in server.log
    assert PROOF not in server.log


async def test_a_stream_arrives_event_by_event_and_python_sees_none_of_it(
    upstream: FakeUpstream, keys: str
) -> None:
    """Were two events held back together, the second would never have been sent."""
    words = [f"word{number} " for number in range(8)]
    step = LockStep(words)
    upstream.handler = step.serve
    with accelerated(upstream.base, keys) as (server, nginx):
        async with (
            asyncio.timeout(60),
            client_of(nginx) as client,
            client.stream(
                "POST", "/chat/completions", json=ASK | {"stream": True}, headers=bearer("sg-free")
            ) as response,
        ):
            assert response.headers["content-type"] == "text/event-stream"
            told = ""
            async for data in response.aiter_text():
                told += data
                await step.see(sum(word in told for word in words))
                # smolgate was done with it before the upstream was.
                await until(lambda: " 200 " in server.log and "handed_on" in server.log)
    assert all(word in told for word in words)
    assert told.endswith("data: [DONE]\n\n")


async def test_a_client_that_leaves_ends_the_upstreams_work(
    upstream: FakeUpstream, keys: str
) -> None:
    upstream.handler = LockStep(["begun ", "never"]).serve
    with accelerated(upstream.base, keys) as (_, nginx):
        async with (
            client_of(nginx) as client,
            client.stream(
                "POST", "/chat/completions", json=ASK | {"stream": True}, headers=bearer("sg-free")
            ) as reply,
        ):
            async for data in reply.aiter_text():
                if "begun" in data:
                    break
        async with asyncio.timeout(20):
            await upstream.closed.wait()


async def test_keys_and_limits_are_smolgates_and_error_bodies_the_upstreams(
    upstream: FakeUpstream, keys: str
) -> None:
    said = {"error": {"message": "no such voice", "type": "x", "param": None, "code": "odd"}}

    async def refuse(_request: web.Request) -> web.Response:
        return web.json_response(said, status=418)

    upstream.handler = refuse
    with accelerated(upstream.base, keys) as (_, nginx):
        async with client_of(nginx) as client:

            async def ask(key: str, **more: Any) -> tuple[int, str | None]:
                reply = await client.post("/chat/completions", json=ASK | more, headers=bearer(key))
                status, error = error_of(reply)
                return status, error["code"]

            assert await ask("sg-nobodys") == (401, "invalid_api_key")
            assert await ask("sg-other") == (404, "model_not_found")
            assert not upstream.requests
            assert await ask("sg-slow") == (418, "odd")
            assert await ask("sg-slow") == (418, "odd")
            assert (await ask("sg-slow"))[0] == 429
            assert len(upstream.requests) == 2
            text = (await client.get("/metrics", headers=bearer("sg-metrics"))).text
            samples = [line for line in text.splitlines() if line.startswith("smolgate_requests_")]
            counted = {line.split()[-1] for line in samples if "429" in line and "refused" in line}
            assert set(map(float, counted)) == {1.0}
            counted = {
                line.split()[-1] for line in samples if "200" in line and "handed_on" in line
            }
            assert set(map(float, counted)) == {2.0}


async def test_what_nginx_cannot_do_goes_the_ordinary_way(
    upstream: FakeUpstream, keys: str
) -> None:
    upstream.handler = echo
    with accelerated(upstream.base, keys) as (server, nginx):
        async with client_of(nginx) as client:
            for key, more, headers in (
                ("sg-metered", {}, {}),  # its tokens are counted
                ("sg-free", {}, {"Origin": "https://page.example"}),
                ("sg-free", {"model": "up-nothink"}, {}),  # its reply is scrubbed
            ):
                reply = await client.post(
                    "/chat/completions", json=ASK | more, headers=bearer(key) | headers
                )
                assert reply.status_code == 200
                assert "x-smolgate-accel" not in reply.json()["headers"]
                assert reply.headers["x-upstream"] == "kept"
                assert not [name for name in reply.headers if name.startswith("x-accel")]
            await until(lambda: server.log.count("POST") == 3)
            assert "handed_on" not in server.log


async def test_nobody_else_is_told_the_upstreams_token(upstream: FakeUpstream, keys: str) -> None:
    """Neither who reaches smolgate without the proof, nor who asks nginx for a location by its name."""
    upstream.handler = echo
    with accelerated(upstream.base, keys) as (server, nginx):
        path = server.base.removeprefix("unix:")
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
            for shown in ({}, {"X-Smolgate-Accel": ""}, {"X-Smolgate-Accel": PROOF[:-1]}):
                async with session.post(
                    "http://s/v1/chat/completions", json=ASK, headers=bearer("sg-free") | shown
                ) as direct:
                    assert (await direct.json())["target"]  # relayed as ever
                    assert TOKEN not in str(direct.headers)
        seen = len(upstream.requests)
        async with client_of(nginx) as client:
            base = f"https://localhost:{nginx.https_port}"
            for target in ("/@smolgate_default", "/%40smolgate_default", "/v1/@smolgate_default"):
                reply = await client.post(f"{base}{target}", json=ASK, headers=bearer("sg-free"))
                assert error_of(reply)[0] == 404
        # Another site of the same nginx that does not show the proof is only a proxy.
        with site(f"unix:{path}") as other:
            async with client_of(other) as client:
                forged = bearer("sg-free") | {"X-Smolgate-Accel": PROOF}
                reply = await client.post("/chat/completions", json=ASK, headers=forged)
                assert reply.json()["target"]
        assert len(upstream.requests) == seen + 1
        assert "handed_on" not in server.log


async def test_no_client_is_sent_to_where_the_upstream_redirects(
    upstream: FakeUpstream, keys: str
) -> None:
    async def redirect(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": "http://10.0.0.5:8000/v2"})

    upstream.handler = redirect
    with accelerated(upstream.base, keys) as (server, nginx):
        async with client_of(nginx) as client:
            reply = await client.post("/chat/completions", json=ASK, headers=bearer("sg-free"))
            assert reply.status_code == 307
            assert "location" not in reply.headers
        await until(lambda: "handed_on" in server.log)


async def test_whoever_is_no_trusted_proxy_is_not_handed_a_token(
    upstream: FakeUpstream, keys: str
) -> None:
    upstream.handler = echo
    values: dict[str, Any] = {"ACCEL_REDIRECT": "default", "ACCEL_KEY": PROOF, "HF_TOKEN": TOKEN}
    flags = ("--trusted-proxies", "10.0.0.0/8")
    with deployed(upstream.base, *flags, API_KEYS_FILE=keys, **values) as (server, _):
        path = server.base.removeprefix("unix:")
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
            shown = bearer("sg-free") | {"X-Smolgate-Accel": PROOF}
            async with session.post(
                "http://s/v1/chat/completions", json=ASK, headers=shown
            ) as reply:
                assert (await reply.json())["target"]
                assert TOKEN not in str(reply.headers)


async def test_an_upstream_that_is_not_there_is_told_in_openais_shape(keys: str) -> None:
    with accelerated("http://127.0.0.1:9/v1", keys) as (_, nginx):
        async with client_of(nginx) as client:
            reply = await client.post("/chat/completions", json=ASK, headers=bearer("sg-free"))
            status, error = error_of(reply)
            assert (status, error["code"], error["type"]) == (503, "unavailable", "server_error")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"accel_redirect": ("other",)}, "ACCEL_REDIRECT has 'other'; allowed is default"),
        ({"accel_key": None}, "ACCEL_KEY or TRUSTED_PROXIES is not"),
        ({"trusted_proxies": ()}, "ACCEL_KEY or TRUSTED_PROXIES is not"),
    ],
)
def test_what_would_tell_others_the_token_is_refused_at_start_up(
    values: dict[str, Any], said: str
) -> None:
    right: dict[str, Any] = {
        "upstream_base": "http://127.0.0.1:9/v1",
        "accel_redirect": ("default",),
        "accel_key": PROOF,
        "trusted_proxies": ("unix",),
    }
    make_settings(**right)
    with pytest.raises(BadSetting, match=said):
        make_settings(**right | values)
