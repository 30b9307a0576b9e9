"""What the compliance suite of Open Responses asks of a server, made anew from its documentation.

https://www.openresponses.org/compliance: seven requests, each answered by an object that has every field of the specification's
response, and for streams by events that are of its shapes and end with `[DONE]`.
"""

import json
from typing import Any

import pytest
from conftest import FakeUpstream, MakeGateway, scripted
from response_rules import check_response, check_stream, events_in
from test_server_responses import PIXEL, WEATHER, answers

MODEL = "code-writing-agent"
Json = dict[str, Any]


def said(role: str, content: Any) -> Json:
    return {"type": "message", "role": role, "content": content}


PICTURE = [
    {"type": "input_text", "text": "What do you see in this image?"},
    {"type": "input_image", "image_url": PIXEL},
]
CHECKS: dict[str, tuple[Json, bool]] = {
    "basic": ({"input": [said("user", "Say hello in exactly three words.")]}, False),
    "streaming": ({"input": [said("user", "Count from 1 to 5.")]}, True),
    "system prompt": (
        {"input": [said("system", "You are a pirate."), said("user", "Say hello.")]},
        False,
    ),
    "tool calling": ({"input": [said("user", "Weather in Oslo?")], "tools": [WEATHER]}, False),
    "tool calling, streaming": (
        {"input": [said("user", "Weather in Oslo?")], "tools": [WEATHER]},
        True,
    ),
    "image": ({"input": [said("user", PICTURE)]}, False),
    "multi-turn": (
        {
            "input": [
                said("user", "My name is Alice."),
                said("assistant", "Hello Alice! How can I help?"),
                said("user", "What is my name?"),
            ]
        },
        False,
    ),
}


def model(messages: list[Json]) -> str:
    if "Weather in Oslo?" in json.dumps(messages):
        return "<code>\nfinal_answer(get_weather(location='Oslo'))\n</code>"
    return answers("Hello there, you.")


@pytest.mark.parametrize("check", CHECKS)
async def test_it_complies(upstream: FakeUpstream, make_gateway: MakeGateway, check: str) -> None:
    upstream.handler = scripted(model)
    gateway = await make_gateway()
    body, streams = CHECKS[check]
    async with gateway.session.post(
        f"{gateway.base}/v1/responses", json=body | {"model": MODEL, "stream": streams}
    ) as reply:
        assert reply.status == 200
        assert reply.content_type == ("text/event-stream" if streams else "application/json")
        raw = await reply.read()
    if streams:
        events = events_in(raw)
        response = check_stream(events)
        kinds = {event["type"] for event in events}
        if "tools" in body:
            assert {
                "response.function_call_arguments.delta",
                "response.function_call_arguments.done",
            } <= kinds
    else:
        response = json.loads(raw)
        check_response(response)
    assert response["status"] == "completed"
    assert response["output"]
    wanted = "function_call" if "tools" in body else "message"
    assert wanted in [item["type"] for item in response["output"]]
    messages = json.dumps(upstream.bodies()[0]["messages"])
    for turn in body["input"]:
        texts = (
            turn["content"] if isinstance(turn["content"], list) else [{"text": turn["content"]}]
        )
        assert all(part.get("text", "") in messages for part in texts)
