"""`client.responses` of OpenAI's clients, on a model of an upstream that has chat completions alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from client_model import node, python_of, run_program
from conftest import FakeUpstream, MakeGateway, chunk

PROGRAMS = Path(__file__).parent / "clients"
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
CALL = {"name": "weather", "arguments": '{"city":"Paris"}'}
KINDS = [
    *("response.created", "response.in_progress", "response.output_item.added"),
    *("response.content_part.added", "response.reasoning_text.delta"),
    *("response.reasoning_text.done", "response.content_part.done", "response.output_item.done"),
    *("response.output_item.added", "response.content_part.added"),
    *("response.output_text.delta", "response.output_text.delta"),
    *("response.output_text.done", "response.content_part.done", "response.output_item.done"),
    "response.completed",
]
TOLD = {"status": "completed", "text": "hello", "kinds": ["reasoning", "message"], "tokens": 15}
BROKEN = ["response.failed", "The upstream ended its reply before it was complete."]


async def model(request: web.Request) -> web.StreamResponse:
    """Without /responses. What is asked says what becomes of it."""
    if not request.path.endswith("/chat/completions"):
        return web.json_response({"detail": "Not Found"}, status=404)
    body = json.loads(await request.read())
    last = body["messages"][-1]
    message: dict[str, Any] = {"content": "hello", "reasoning_content": "hm"}
    if last["role"] == "tool":
        message = {"content": last["content"]}
    elif last["content"] == "city":
        message = {"content": '{"name":"Paris"}'}
    elif last["content"] == "call":
        message = {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": CALL}]}
    finish = {"index": 0, "finish_reason": "tool_calls" if "tool_calls" in message else "stop"}
    if not body.get("stream"):
        return web.json_response({"choices": [finish | {"message": message}], "usage": USAGE})
    chunks = [chunk(**{name: value}) for name, value in message.items() if name != "content"][::-1]
    if text := message.get("content"):
        chunks += [chunk(content=text[:2]), chunk(content=text[2:])]
    if last["content"] != "break":
        chunks += [{"choices": [finish | {"delta": {}}]}, {"choices": [], "usage": USAGE}]
    data = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in chunks)
    return web.Response(body=data, content_type="text/event-stream")


async def told_by(
    program: str, command: list[str], upstream: FakeUpstream, make_gateway: MakeGateway
) -> Any:
    upstream.handler = model
    gateway = await make_gateway()
    return json.loads(await run_program(command, (PROGRAMS / program).read_text(), gateway))


@pytest.mark.parametrize(
    ("environment", "version"), [("openai1", "1."), ("openai2", "2."), ("here", "3.")]
)
async def test_openai_for_python(
    upstream: FakeUpstream, make_gateway: MakeGateway, environment: str, version: str
) -> None:
    command = [*python_of(environment), "-"]
    told = await told_by("responses_python.py", command, upstream, make_gateway)
    assert told.pop("version").startswith(version)
    assert told == {
        "whole": TOLD,
        "helper": TOLD,
        "kinds": KINDS,
        "parsed": ["Paris", "Paris"],
        "calls": [[{"city": "Paris"}, "warm"]] * 2,
        "failed": BROKEN,
        "refused": ["truncation", "invalid_request_error"],
    }


async def test_openai_for_node(upstream: FakeUpstream, make_gateway: MakeGateway) -> None:
    told = await told_by("responses_node.mjs", node(), upstream, make_gateway)
    assert told == {
        "whole": TOLD,
        "helper": TOLD,
        "kinds": KINDS,
        "failed": BROKEN,
        "refused": ["truncation", "invalid_request_error"],
    }
