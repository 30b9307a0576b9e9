"""The OpenAPI document is what is served: by its routes, and by schemathesis against the running server."""

import asyncio
import json
import re
from pathlib import Path

import pytest
from aiohttp import web
from client_model import python_of
from conftest import FakeUpstream, Gateway, MakeGateway, scripted

from server.keys import OPEN_FILES
from server.openapi import document

SEED = 20260
CASES = 2000
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance"
)


COMPLETION = {
    "id": "chatcmpl-up",
    "object": "chat.completion",
    "created": 1,
    "model": "up/model",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "x"},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "usage": {
        "prompt_tokens": 1,
        "completion_tokens": 1,
        "total_tokens": 2,
        "completion_tokens_details": {"reasoning_tokens": 0},
    },
}


async def any_reply(request: web.Request) -> web.StreamResponse:
    """An upstream that takes whatever it is sent."""
    if request.path.endswith("/chat/completions"):
        try:
            is_agent = "system" in json.dumps(json.loads(await request.read())["messages"])
        except (ValueError, KeyError, TypeError):
            is_agent = False
        if is_agent:
            return await scripted(lambda _: "<code>\nfinal_answer('x')\n</code>", pieces=99)(
                request
            )
        return web.json_response(COMPLETION)
    return web.json_response({"ok": True})


async def test_the_document_has_the_routes_of_the_application(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    served = {
        (route.method.lower(), re.sub(r"\{id:.*?\}", "{id}", route.resource.canonical))
        for route in gateway.app.router.routes()
        if route.resource is not None
        and route.method != "HEAD"
        and route.resource.canonical not in gateway.app[OPEN_FILES]  # pages are no API
    }
    documented = {
        (method, prefix + path)
        for path, methods in document()["paths"].items()
        for method in methods
        for prefix in ("", "/v1")
    }
    assert served == documented


async def test_the_document_is_served_with_the_types_of_the_code(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    async with gateway.session.get(gateway.base + "/v1/openapi.json") as response:
        assert response.content_type == "application/json"
        served = await response.json()
    assert served["openapi"] == "3.1.0"
    schemas = served["components"]["schemas"]
    assert {"ChatRequest", "Completion", "CompletionChunk", "ErrorBody"} <= set(schemas)
    assert schemas["ErrorObject"]["required"] == ["message", "type", "param", "code"]
    chat = served["paths"]["/chat/completions"]["post"]["responses"]
    assert set(chat) == {
        *("200", "400", "401", "403", "404", "405", "413", "415", "417"),
        *("429", "500", "502", "503", "504"),
    }


async def schemathesis(gateway: Gateway, folder: Path, *options: str) -> int:
    """Run it with these options; how many cases passed. Fails where it finds fault."""
    process = await asyncio.create_subprocess_exec(
        *python_of("openai1"),
        *("-m", "schemathesis.cli", "run", gateway.base + "/openapi.json"),
        *("--url", gateway.base + "/v1", "--seed", str(SEED), "--checks", CHECKS),
        *("--continue-on-failure", "--suppress-health-check", "all", "--workers", "1"),
        *("--phases", "examples,coverage,fuzzing"),
        *options,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(280):
            said = (await process.communicate())[0].decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, said[-8000:]
    found = re.search(r"(\d+) generated, (\d+) passed", said)
    assert found is not None, said[-3000:]
    assert found[1] == found[2]
    return int(found[2])


@pytest.mark.timeout(600)
async def test_schemathesis_finds_no_5xx_and_no_undocumented_shape_in_2000_cases(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path_factory: pytest.TempPathFactory
) -> None:
    upstream.handler = any_reply
    gateway = await make_gateway()
    # The one takes its time with each, and nothing of a request; the other does not end.
    but = ("--exclude-path", "/stream-check", "--exclude-path", "/runs/events")
    path = ("--include-path", "/chat/completions")
    everywhere, chat = await asyncio.gather(  # each has a core to itself
        schemathesis(gateway, tmp_path_factory.mktemp("all"), "--max-examples", "30", *but),
        schemathesis(gateway, tmp_path_factory.mktemp("chat"), "--max-examples", "600", *path),
    )
    print(f"schemathesis --seed {SEED}: {everywhere} cases everywhere, {chat} on chat completions")
    assert everywhere + chat >= CASES
    assert len(upstream.requests) > 100  # it got beyond the refusals
