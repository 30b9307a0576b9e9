"""Ten thousand bodies that no client would send, and five thousand more of Responses: none is a 5xx, and the server goes on.

The seed is fixed and printed; FUZZ_SEED sets another.
"""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import msgspec
import pytest
from conftest import FakeUpstream, Gateway, MakeGateway
from test_clients_openapi import any_reply

from server.api_shapes import Completion, CompletionChunk, ErrorBody

BODIES = 10_000
AT_ONCE = 16
PATHS = ("/v1/chat/completions",) * 8 + ("/v1/completions", "/v1/embeddings")
MODELS = ("code-writing-agent", "up/model", "up/model-nothink", "", "nobody", None, {"id": "x"})
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
SEEDS: tuple[dict[str, Any], ...] = (
    {"messages": [{"role": "user", "content": "hi"}]},
    {
        "stream": True,
        "stream_options": {"include_usage": True},
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "<think>x</think>b", "tool_calls": []},
            {"role": "tool", "tool_call_id": "1", "content": "c"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}, IMAGE]},
        ],
        "temperature": 0.5,
        "max_tokens": 16,
        "stop": ["x"],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "response_format": {"type": "json_object"},
        "reasoning_format": "deepseek",
        "metadata": {"a": "b"},
        "seed": 1,
        "user": "u",
        "n": 1,
    },
)
RESPONSES = 5_000
RESPONSE_PATHS = ("/v1/responses",) * 6 + (
    *("/v1/conversations", "/v1/conversations/conv_1", "/v1/conversations/conv_1/items"),
    *("/v1/streams/lookup", "/v1/responses/resp_1/cancel"),
)
RESPONSE_SEEDS: tuple[dict[str, Any], ...] = (
    {"input": "hi", "store": False},
    {"input": "hi", "background": True, "model": "code-writing-agent"},
    {"items": [{"type": "message", "role": "user", "content": "hi"}], "metadata": {"a": "b"}},
    {"conversation_ids": ["a", "b"]},
    {
        "stream": True,
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": "a"},
            {
                "type": "message",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "b"}],
            },
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "c"},
            {"type": "reasoning", "id": "r", "summary": []},
            {
                "type": "code_interpreter_call",
                "id": "ci_1",
                "code": "x",
                "outputs": [{"logs": "x"}],
            },
            {"type": "item_reference", "id": "msg_1"},
            {
                "role": "user",
                "content": [
                    {"type": "input_text", "text": "hi"},
                    {"type": "input_image", "image_url": "data:image/png;base64,aGVsbG8="},
                ],
            },
        ],
        "temperature": 0.5,
        "max_output_tokens": 16,
        "tools": [
            {"type": "function", "name": "f", "parameters": {}},
            {"type": "code_interpreter", "container": {"type": "auto"}},
        ],
        "text": {"format": {"type": "json_object"}},
        "reasoning": {"effort": "low"},
        "include": ["code_interpreter_call.outputs"],
        "previous_response_id": "resp_1",
        "conversation": "conv_1",
        "store": True,
        "metadata": {"a": "b"},
    },
)
ODD: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e308, 2**63, 10**30, "", "x" * 300, "\U0001f600\u2028\x00", "</think>"),
    *([], {}, [[]], [None], {"": None}, [{"role": "user"}], {"type": "text"}, {"id": 5}),
)


def odd_body(chance: random.Random, seeds: Sequence[dict[str, Any]]) -> bytes:
    """A body made of a good one, then spoiled: values, names, bytes, its end."""
    value = deepcopy(chance.choice(seeds))
    value["model"] = deepcopy(chance.choice(MODELS))
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        spoil(value, chance)
    body = json.dumps(value, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
    kind = chance.random()
    if kind < 0.15:
        changed = bytearray(body)
        for _ in range(chance.randint(1, 8)):
            changed[chance.randrange(len(changed))] = chance.randrange(256)
        return bytes(changed)
    if kind < 0.25:
        return body[: chance.randrange(len(body))]
    if kind < 0.3:
        return chance.randbytes(chance.randrange(200))
    if kind < 0.33:
        depth = chance.randrange(2, 3000)
        return b'{"messages":' * (depth % 2) + b"[" * depth + b"]" * (depth % 3)
    if kind < 0.36:
        return body.replace(b'"hi"', b'"\\ud83d"').replace(b"0.5", b"NaN")
    return body


def spoil(value: Any, chance: random.Random) -> None:
    """Change one place somewhere inside."""
    while True:
        places: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not places:
            return
        place = chance.choice(places)
        inner = value[place]
        if isinstance(inner, dict | list) and inner and chance.random() < 0.75:
            value = inner
            continue
        if isinstance(value, dict) and chance.random() < 0.2:
            del value[place]
        elif isinstance(value, dict) and chance.random() < 0.1:
            value[chance.choice(("x", "", "messages", "\ud800"))] = value.pop(place)
        else:
            value[place] = deepcopy(chance.choice(ODD))
        return


async def ask(gateway: Gateway, path: str, body: bytes) -> int:
    """The status, once the reply has been held against the shapes."""
    async with gateway.session.post(
        gateway.base + path, data=body, headers={"Content-Type": "application/json"}
    ) as response:
        raw = await response.read()
    assert response.status < 500, raw
    if response.status >= 400:
        msgspec.json.decode(raw, type=ErrorBody)
    elif response.content_type == "text/event-stream":
        *events, done, rest = raw.split(b"\n\n")
        assert (done, rest) == (b"data: [DONE]", b"")
        for event in events:
            data = event.removeprefix(b"data: ")
            if data.startswith(b'{"error"'):
                msgspec.json.decode(data, type=ErrorBody)
            elif data.startswith(b'{"id":"chatcmpl-'):  # else it is the upstream's
                msgspec.json.decode(data, type=CompletionChunk)
    elif b'"id":"chatcmpl-' in raw:
        msgspec.json.decode(raw, type=Completion)
    return response.status


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("bodies", "paths", "seeds"),
    [(BODIES, PATHS, SEEDS), (RESPONSES, RESPONSE_PATHS, RESPONSE_SEEDS)],
    ids=["chat", "responses"],
)
async def test_odd_bodies_are_no_5xx_and_the_server_goes_on(
    upstream: FakeUpstream,
    make_gateway: MakeGateway,
    bodies: int,
    paths: Sequence[str],
    seeds: Sequence[dict[str, Any]],
) -> None:
    upstream.handler = any_reply
    gateway = await make_gateway()
    seed = int(os.environ.get("FUZZ_SEED", "5"))
    print(f"FUZZ_SEED={seed}")
    chance = random.Random(seed)
    statuses: Counter[int] = Counter()
    left = iter(range(bodies))

    async def keep_asking() -> None:
        for number in left:
            body, path = odd_body(chance, seeds), chance.choice(paths)
            try:
                statuses[await ask(gateway, path, body)] += 1
            except Exception as error:
                error.add_note(f"FUZZ_SEED={seed}, body {number} to {path}: {body[:3000]!r}")
                raise

    async with asyncio.timeout(200), asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(keep_asking())
    print(dict(statuses))
    assert statuses.total() == bodies
    assert statuses[200] > bodies // 20 < statuses[400]  # neither side was left out
    async with gateway.session.get(gateway.base + "/healthz") as response:
        assert await response.json() == {"ok": True}
