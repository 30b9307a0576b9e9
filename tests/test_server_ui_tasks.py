"""Titles, tags and follow-ups that web UIs ask of an agent come from the upstream's model itself."""

import asyncio
import json
from typing import Any

import aiohttp
import openai
import pytest
from conftest import FakeUpstream, MakeGateway, chunk, events_of, raw_reply, text_of, until

from server.drain import drain
from server.keys import RELAYS, SUPERVISOR

HISTORY = "\n### Chat History:\n<chat_history>\nUSER: hi\nASSISTANT: hello\n</chat_history>"

# How the default prompts of Open WebUI begin.
OPEN_WEBUI = {
    "title": "Generate a concise, 3-5 word title with an emoji summarizing the chat history.",
    "tags": "Generate 1-3 broad tags categorizing the main themes of the chat history, along with",
    "follow-ups": "Suggest 3-5 relevant follow-up questions or prompts that the user might naturally",
    "queries": "Analyze the chat history to determine the necessity of generating search queries,",
    "image": "Generate a detailed prompt for am image generation task based on the given language",
    "autocomplete": "You are an autocompletion system. Continue the text in `<text>` based on the",
    "an operator's own": "Give this conversation a name.",
}
CHAT_UI = {
    "2025": "You are a chat thread titling assistant.\nGoal: Produce a very short, descriptive title",
    "2024": "You are a summarization AI. You'll never answer a user's question directly, but instead",
}


def from_open_webui(name: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"### Task:\n{OPEN_WEBUI[name]}{HISTORY}"}]


def from_chat_ui(name: str) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": CHAT_UI[name]},
        {"role": "user", "content": 'User message: "plan a menu"'},
    ]


ERRANDS = [*map(from_open_webui, OPEN_WEBUI), *map(from_chat_ui, CHAT_UI)]
QUESTIONS: list[list[dict[str, Any]]] = [
    # Open WebUI's default for a question with documents.
    [
        {
            "role": "user",
            "content": "### Task:\nRespond to the user query using the provided context, "
            f"incorporating inline citations.\n<context>{HISTORY}</context>\nwhy?",
        }
    ],
    [{"role": "user", "content": "### Task:\nWrite a function that adds.\n### Output:\nPython"}],
    [{"role": "user", "content": "Generate a concise, 3-5 word title for my essay on tags."}],
    [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "### Task:\nSummarize the chat history."},
    ],
]


def sse(*events: dict[str, Any]) -> list[bytes]:
    finish = {
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
    }
    return [b"data: " + json.dumps(event).encode() + b"\n\n" for event in (*events, finish)]


PLAIN = [
    *sse(
        chunk(role="assistant", content=""),
        chunk(reasoning_content="hm"),
        chunk(content="<think>a ti"),
        chunk(content="tle</thi"),
        chunk(content='nk>\n\n{"title": '),
        chunk(content='"Hello"}'),
    ),
    b"data: [DONE]\n\n",
]
TITLE = '{"title": "Hello"}'


@pytest.mark.parametrize("messages", ERRANDS)
@pytest.mark.parametrize("model", ["code-writing-agent", "somebody", None])
async def test_an_errand_is_the_upstreams_models_under_the_name_asked_for(
    upstream: FakeUpstream, make_gateway: MakeGateway, messages: Any, model: str | None
) -> None:
    upstream.handler = raw_reply(PLAIN)
    gateway = await make_gateway(max_running=1)
    ask = {"messages": messages, "max_tokens": 24, "temperature": 0, "custom": {"x": 1}}
    ask |= {"model": model} if model else {}
    status, _, reply = await gateway.post(ask)
    assert status == 200
    assert reply["model"] == (model or "code-writing-agent")
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": TITLE}
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"]["total_tokens"] == 13
    events = await gateway.stream(ask | {"stream_options": {"include_usage": True}})
    assert text_of(events, "content") == TITLE
    assert text_of(events, "reasoning") == ""
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert events[-3]["choices"][0]["finish_reason"] == "stop"
    assert events[-2]["usage"]["total_tokens"] == 13
    assert events[-1] == "[DONE]"
    assert {event["model"] for event in events[:-1]} == {model or "code-writing-agent"}
    for body in upstream.bodies():
        assert body["model"] == "up/model"
        assert body["messages"] == messages  # no agent's prompt around them
        assert (body["max_tokens"], body["custom"]) == (24, {"x": 1})


@pytest.mark.parametrize("messages", QUESTIONS)
async def test_what_a_person_asks_is_the_agents(
    upstream: FakeUpstream, make_gateway: MakeGateway, messages: Any
) -> None:
    gateway = await make_gateway()
    _, _, reply = await gateway.post({"messages": messages})
    assert reply["choices"][0]["message"]["content"].endswith("hello")
    assert "final_answer" in json.dumps(upstream.bodies()[0])


async def test_the_setting_and_a_clients_tools_leave_errands_to_the_agent(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    ask: dict[str, Any] = {"messages": from_open_webui("title")}
    tools = [{"type": "function", "function": {"name": "x"}}]
    for settings, fields in (({"plain_ui_tasks": False}, {}), ({}, {"tools": tools})):
        gateway = await make_gateway(**settings)
        _, _, reply = await gateway.post(ask | fields)
        assert reply["choices"][0]["message"]["content"].endswith("hello")


async def test_an_errand_waits_for_no_slot(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    never = asyncio.Event()

    async def handler(request: Any) -> Any:
        if len(upstream.requests) == 1:
            await never.wait()
        return await raw_reply(PLAIN)(request)

    upstream.handler = handler
    gateway = await make_gateway(max_running=1, max_queued=0)
    running = asyncio.ensure_future(gateway.post({"messages": [{"role": "user", "content": "go"}]}))
    await until(lambda: gateway.app[SUPERVISOR].running)
    await until(lambda: upstream.requests)
    status, _, _ = await gateway.post({"messages": from_chat_ui("2025")})
    assert status == 200
    running.cancel()


async def test_the_sdk_streams_a_title(upstream: FakeUpstream, make_gateway: MakeGateway) -> None:
    upstream.handler = raw_reply(PLAIN)
    gateway = await make_gateway()
    async with openai.AsyncOpenAI(base_url=f"{gateway.base}/v1", api_key="none") as client:
        messages: Any = from_chat_ui("2025")
        async with client.chat.completions.stream(model="x", messages=messages) as stream:
            assert (await stream.get_final_completion()).choices[0].message.content == TITLE


async def test_a_failure_is_a_status_before_the_first_byte_and_an_error_event_after_it(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    ask = {"messages": from_open_webui("title")}
    gateway = await make_gateway()
    upstream.handler = raw_reply([b'{"error": {"message": "bad luck"}}'], "application/json", 400)
    for streaming in (False, True):
        status, _, reply = await gateway.post(ask | {"stream": streaming})
        assert status == 502
        assert "bad luck" in reply["error"]["message"]
    upstream.handler = raw_reply(PLAIN[:6])
    status, _, reply = await gateway.post(ask)
    assert (status, reply["error"]["code"]) == (502, "upstream_failed")
    events = await gateway.stream(ask)
    assert text_of(events, "content") == TITLE
    assert events[-3]["choices"][0]["finish_reason"] == "error"
    assert events[-2]["error"]["code"] == "upstream_failed"
    assert events[-1] == "[DONE]"


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_ends_the_call_at_once(
    upstream: FakeUpstream, make_gateway: MakeGateway, streaming: bool, begun: bool
) -> None:
    never = asyncio.Event()

    async def handler(request: Any) -> Any:
        response = await raw_reply(PLAIN[:4] if begun else [])(request)
        await never.wait()
        return response

    upstream.handler = handler
    gateway = await make_gateway()
    ask = {"messages": from_open_webui("title"), "stream": streaming}
    asking = asyncio.ensure_future(gateway.post(ask))
    await until(lambda: gateway.app[RELAYS])
    await until(lambda: upstream.requests)
    asking.cancel()
    await asyncio.wait_for(upstream.closed.wait(), 10)
    await until(lambda: not gateway.app[RELAYS])


async def test_a_silent_model_gets_heartbeats_and_a_drain_an_end(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    never = asyncio.Event()

    async def handler(request: Any) -> Any:
        await never.wait()

    upstream.handler = handler
    gateway = await make_gateway(heartbeat_seconds=0.05)
    ask = {"messages": from_open_webui("title"), "stream": True}
    async with gateway.session.post(gateway.base + "/v1/chat/completions", json=ask) as response:
        raw = b""
        while raw.count(b": ping") < 2:
            raw += await response.content.readany()
        draining = asyncio.ensure_future(drain(gateway.app, 0.05))
        raw += await response.content.read()
        await draining
    events = events_of(raw)
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert events[-2]["error"]["code"] == "draining"
    assert events[-1] == "[DONE]"
    async with (
        aiohttp.ClientSession() as session,
        session.post(gateway.base + "/v1/chat/completions", json=ask) as response,
    ):
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "draining"
