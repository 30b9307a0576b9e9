"""Open WebUI, chat-ui and LibreChat: what their code sends, and how it reads what comes back, replayed.

Open WebUI reads lines with aiohttp and looks at `error`, then at `choices[0].delta`; chat-ui reads chunks by
the OpenAI SDK and takes `reasoning` or `reasoning_content`; LibreChat takes `reasoning_content`, and only
where the delta holds no content.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from client_model import ANSWER, FAILED, PRINTED, model
from conftest import FakeUpstream, Gateway, MakeGateway

# aiohttp's reader gives up at twice its limit of 64 KiB.
MAX_LINE_BYTES = 64 * 1024


def open_webui(content: str, **more: Any) -> dict[str, Any]:
    """A chat request as Open WebUI's backend sends it to an OpenAI connection."""
    thought = '<details type="reasoning" done="true" duration="1">\n<summary>Thought</summary>\n> hm\n</details>\n'
    return {
        "stream": True,
        "model": "code-writing-agent",
        "messages": [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": thought + "Hello!"},
            {"role": "user", "content": [{"type": "text", "text": content}]},
        ],
        "stream_options": {"include_usage": True},
        **more,
    }


def chat_ui(content: str) -> dict[str, Any]:
    """A chat request as chat-ui's openai endpoint sends it."""
    return {
        "model": "code-writing-agent",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": content},
        ],
        "stream": True,
        "max_tokens": 4096,
        "stop": [],
        "temperature": 0.7,
        "top_p": 0.95,
    }


async def lines_of(gateway: Gateway, body: dict[str, Any], **kwargs: Any) -> AsyncIterator[str]:
    """The lines of a stream, read as Open WebUI reads them."""
    async with gateway.session.post(
        f"{gateway.base}/v1/chat/completions", json=body, **kwargs
    ) as response:
        assert response.status == 200
        assert "text/event-stream" in response.headers["Content-Type"]
        async for line in response.content:
            assert len(line) < MAX_LINE_BYTES
            yield line.decode("utf-8", "replace")


async def read_by_open_webui(gateway: Gateway, body: dict[str, Any]) -> dict[str, Any]:
    """What Open WebUI's middleware makes of a stream: content, reasoning, usage, error."""
    told: dict[str, Any] = {"content": "", "reasoning": "", "usage": None, "error": None}
    async for line in lines_of(gateway, body):
        if not line.startswith("data:"):
            continue
        text = line.removeprefix("data:").strip()
        if text == "[DONE]":
            break
        data = json.loads(text)
        told["error"] = data.get("error") or told["error"]
        told["usage"] = data.get("usage") or told["usage"]
        choices = data.get("choices", [])
        if not choices:
            continue
        delta = choices[0].get("delta", {})
        value = delta.get("content")
        told["reasoning"] += (
            delta.get("reasoning_content") or delta.get("reasoning") or delta.get("thinking") or ""
        )
        told["content"] += value or ""
    return told


async def test_open_webui_reads_reasoning_answer_and_usage(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = model
    told = await read_by_open_webui(await make_gateway(), open_webui("go"))
    assert told["content"] == ANSWER
    assert PRINTED in told["reasoning"]
    assert told["usage"]["total_tokens"] == 15
    assert told["error"] is None
    assert "hm" not in json.dumps(upstream.bodies()[0]["messages"][1:])


async def test_open_webui_sees_an_error_that_comes_late(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = model
    told = await read_by_open_webui(await make_gateway(), open_webui("fail"))
    assert told["error"]["message"] == FAILED
    assert told["content"] == ""


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
async def test_chat_ui_and_librechat_read_either_field(
    upstream: FakeUpstream, make_gateway: MakeGateway, field: str
) -> None:
    upstream.handler = model
    gateway = await make_gateway()
    headers = {"X-use-cache": "false", "ChatUI-Conversation-ID": "1", "Authorization": "Bearer sk-"}
    reasoning = answer = ""
    async for line in lines_of(gateway, chat_ui("go"), headers=headers):
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                delta = choice["delta"]
                # LibreChat drops reasoning that shares a delta with content.
                assert not ("content" in delta and field in delta)
                reasoning += delta.get(field) or ""
                answer += delta.get("content") or ""
    assert PRINTED in reasoning
    assert answer == ANSWER
