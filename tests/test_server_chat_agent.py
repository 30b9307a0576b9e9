"""The agent path of the chat endpoint, over real sockets, on an upstream that a script drives."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    FakeUpstream,
    MakeGateway,
    Script,
    chunk,
    events_of,
    raw_reply,
    scripted,
    text_of,
    until,
)

ASK = {"model": "code-writing-agent", "messages": [{"role": "user", "content": "go"}]}
TWO_STEPS = (
    "I will look.\n<code>\nfor i in range(3):\n    print('row', i)\n</code>",
    "Now I know.\n<code>\nfinal_answer('three rows')\n</code>",
)


def by_turn(*replies: str) -> Script:
    """A script that answers by how many assistant messages there are already."""

    def script(messages: list[dict[str, Any]]) -> str:
        turn: int = min(sum(m["role"] == "assistant" for m in messages), len(replies) - 1)
        return replies[turn]

    return script


@pytest.mark.every_runner
async def test_a_stream_has_the_order_of_the_wire_rules(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(by_turn(*TWO_STEPS))
    gateway = await make_gateway()
    events = await gateway.stream(ASK | {"stream_options": {"include_usage": True}})

    deltas = [event["choices"][0]["delta"] for event in events[:-2]]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert all("role" not in delta for delta in deltas[1:])
    kinds = ["content" if "content" in delta else "reasoning" for delta in deltas[1:-1]]
    assert kinds == sorted(kinds, reverse=True)  # all reasoning, then all content
    for delta in deltas[1:-1]:
        assert delta.get("reasoning") == delta.get("reasoning_content")
        assert len(delta) == (1 if "content" in delta else 2)
    assert deltas[-1] == {}
    assert events[-3]["choices"][0]["finish_reason"] == "stop"
    assert events[-2]["choices"] == []
    assert events[-2]["usage"] == {
        "prompt_tokens": 20,
        "completion_tokens": 10,
        "total_tokens": 30,
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    assert all(event["usage"] is None for event in events[:-2])
    assert events[-1] == "[DONE]"
    assert len({(e["id"], e["created"], e["model"], e["object"]) for e in events[:-1]}) == 1
    assert text_of(events, "content") == "three rows"


@pytest.mark.every_runner
async def test_reasoning_holds_tokens_code_prints_and_steps_each_once(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(by_turn(*TWO_STEPS))
    gateway = await make_gateway()
    reasoning = text_of(await gateway.stream(ASK), "reasoning")

    assert "<code>" not in reasoning
    assert "</code>" not in reasoning
    for once in ("I will look.", "print('row', i)", "Now I know.", "final_answer('three rows')"):
        assert reasoning.count(once) == 1, once
    assert [reasoning.count(f"row {i}\n") for i in range(3)] == [1, 1, 1]
    assert "```python\nfor i in range(3):\n    print('row', i)\n```\n" in reasoning
    assert "````text\nrow 0\nrow 1\nrow 2\n````\n" in reasoning
    places = [
        reasoning.index(part) for part in ("I will look", "row 0", "Step 1", "Now I", "Step 2")
    ]
    assert places == sorted(places)


@pytest.mark.every_runner
async def test_prints_arrive_while_the_code_still_runs(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    released = tmp_path / "released"
    upstream.handler = scripted(
        lambda m: (
            f"<code>\nprint('before')\nwait_for_file('{released}')\nfinal_answer('after')\n</code>"
        )
    )
    gateway = await make_gateway({"waiting": "runner_agents:able"})
    async with gateway.session.post(
        gateway.base + "/v1/chat/completions",
        json=ASK | {"model": "waiting", "stream": True},
    ) as response:
        raw = b""
        async with asyncio.timeout(10):
            while "before\n" not in text_of(events_of(raw), "reasoning"):
                raw += await response.content.readany()
        assert not text_of(events_of(raw), "content")
        released.touch()
        raw += await response.content.read()
    assert text_of(events_of(raw), "content") == "after"


@pytest.mark.every_runner
async def test_twenty_concurrent_runs_keep_their_secrets_apart(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    def script(messages: list[dict[str, Any]]) -> str:
        secret = re.findall(r"secret-\d+", json.dumps(messages))[-1]
        return (
            f"<code>\nfor i in range(20):\n    print('code says {secret}')\n"
            f"shout('{secret}')\nfinal_answer('{secret}')\n</code>"
        )

    upstream.handler = scripted(script, pieces=16)
    gateway = await make_gateway({"shouting": "runner_agents:able"})

    async def one(number: int) -> list[Any]:
        message = {"role": "user", "content": f"my secret is secret-{number}"}
        return await gateway.stream({"model": "shouting", "messages": [message]})

    for number, events in enumerate(await asyncio.gather(*map(one, range(100, 120))), 100):
        assert text_of(events, "content") == f"secret-{number}"
        reasoning = text_of(events, "reasoning")
        assert set(re.findall(r"secret-\d+", reasoning)) == {f"secret-{number}"}
        assert reasoning.splitlines().count(f"code says secret-{number}") == 20
        assert reasoning.splitlines().count(f"tool says secret-{number}") == 1


@pytest.mark.every_runner
async def test_not_streaming_is_the_same_run_collected(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(by_turn(*TWO_STEPS))
    gateway = await make_gateway()
    status, headers, reply = await gateway.post(ASK)

    assert status == 200
    assert headers["x-request-id"]
    message = reply["choices"][0]["message"]
    assert message["reasoning"] == message["reasoning_content"]
    assert message["content"] == f"<think>\n{message['reasoning']}\n</think>\n\nthree rows"
    assert reply["usage"]["total_tokens"] == 30
    assert reply["choices"][0]["finish_reason"] == "stop"


async def test_reasoning_format_says_where_the_reasoning_stands(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(by_turn(*TWO_STEPS))
    gateway = await make_gateway()
    messages = {}
    for name in ("deepseek", "think_tags", "none"):
        _, _, reply = await gateway.post(ASK | {"reasoning_format": name})
        messages[name] = reply["choices"][0]["message"]
    assert messages["deepseek"]["content"] == "three rows"
    assert "row 1" in messages["deepseek"]["reasoning"]
    assert set(messages["think_tags"]) == {"role", "content"}
    assert messages["think_tags"]["content"].startswith("<think>\nI will look.")
    assert messages["think_tags"]["content"].endswith("</think>\n\nthree rows")
    assert messages["none"] == {"role": "assistant", "content": "three rows"}

    in_stream = await gateway.stream(ASK | {"reasoning_format": "think_tags"})
    assert text_of(in_stream, "reasoning") == ""
    content = text_of(in_stream, "content")
    assert content.startswith("<think>\nI will look.")
    assert content.endswith("\n</think>\n\nthree rows")
    silent = await gateway.stream(ASK | {"reasoning_format": "none"})
    assert text_of(silent, "content") == "three rows"
    assert text_of(silent, "reasoning") == ""


@pytest.mark.every_runner
async def test_a_code_error_is_shown_and_the_run_goes_on(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(
        by_turn("<code>\n1 / 0\n</code>", "no code here", "<code>\nfinal_answer(42)\n</code>")
    )
    gateway = await make_gateway()
    events = await gateway.stream(ASK)
    reasoning = text_of(events, "reasoning")
    assert text_of(events, "content") == "42"
    assert "**Error:** Code execution failed at line '1 / 0'" in reasoning
    assert "Error in code parsing" in reasoning
    assert [f"**Step {n}**" in reasoning for n in (1, 2, 3)] == [True] * 3


async def test_thoughts_in_tags_are_neither_run_nor_in_the_answer(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(
        lambda m: (
            "<think>maybe <code>\nfinal_answer('wrong')\n</code> no</think>"
            "<code>\nfinal_answer('<' + 'think>secret<' + '/think>right')\n</code>"
        )
    )
    gateway = await make_gateway()
    events = await gateway.stream(ASK)
    assert text_of(events, "content") == "secretright"
    assert "<think>" not in text_of(events, "reasoning")


@pytest.mark.every_runner
async def test_the_answer_falls_back_to_a_printed_one_and_then_to_done(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    answers = []
    for code in (
        "print('Final answer: 7')\nfinal_answer(None)",
        "final_answer(None)",
        "final_answer('')",
        "final_answer('none')",
        "print('Final answer: 7')\nfinal_answer(8)",
        "final_answer({'a': [1, 'é']})",
    ):
        upstream.handler = scripted(lambda m, code=code: f"<code>\n{code}\n</code>")  # type: ignore[misc]
        answers.append(text_of(await gateway.stream(ASK), "content"))
    assert answers == ["7", "Done.", "Done.", "none", "8", '{"a": [1, "é"]}']


@pytest.mark.every_runner
async def test_history_system_and_images_reach_the_model(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    picture = (
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAC"
        "hwGA60e6kgAAAABJRU5ErkJggg=="
    )
    gateway = await make_gateway()
    await gateway.post(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "first question"},
                {"role": "assistant", "content": "<think>hidden thought</think>first answer"},
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "second"},
                        {"type": "image_url", "image_url": {"url": picture}},
                        {"type": "file", "file": {"file_id": "f1"}},
                        {"type": "text", "text": "question"},
                    ],
                },
            ]
        }
    )
    sent = json.dumps(upstream.bodies()[0]["messages"])
    order = [sent.index(text) for text in ("first question", "first answer", "Be brief.", "second")]
    assert order == sorted(order)
    assert "hidden thought" not in sent
    assert '\\"file_id\\":\\"f1\\"' in sent
    assert "data:image/png;base64," in sent


@pytest.mark.every_runner
async def test_a_model_that_is_down_is_a_503_before_the_first_byte(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway(upstream_base="http://127.0.0.1:1/v1")
    for body in (ASK, ASK | {"stream": True}):
        status, headers, reply = await gateway.post(body)
        assert status == 503
        assert headers["x-should-retry"] == "false"
        assert reply["error"]["type"] == "agent_error"
        assert reply["error"]["code"] == "upstream_unavailable"
        assert "127.0.0.1" not in reply["error"]["message"]


@pytest.mark.every_runner
async def test_a_failure_in_a_stream_ends_with_an_error_event_and_done(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    good = scripted(by_turn(*TWO_STEPS))

    async def handler(request: Any) -> Any:
        if len(upstream.requests) == 1:
            return await good(request)
        return await raw_reply([b'{"error": {"message": "bad luck"}}'], "application/json", 400)(
            request
        )

    upstream.handler = handler
    gateway = await make_gateway()
    events = await gateway.stream(ASK)
    assert "row 2" in text_of(events, "reasoning")
    assert text_of(events, "content") == ""
    assert events[-3]["choices"][0]["finish_reason"] == "error"
    assert events[-2]["error"]["type"] == "agent_error"
    assert "bad luck" in events[-2]["error"]["message"]
    assert events[-1] == "[DONE]"


@pytest.mark.every_runner
async def test_a_broken_factory_is_a_500_that_is_not_retried(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway({"broken": "runner_agents:broken"})
    status, headers, reply = await gateway.post(ASK | {"model": "broken"})
    assert status == 500
    assert headers["x-should-retry"] == "false"
    assert reply["error"] == {
        "message": "The agent failed: RuntimeError.",
        "type": "agent_error",
        "param": None,
        "code": "agent_failed",
    }


@pytest.mark.every_runner
async def test_max_steps_ends_with_the_models_own_summary_and_no_step_twice(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    def script(messages: list[dict[str, Any]]) -> str:
        last = json.dumps(messages[-1])
        return "summed up" if "provide an answer" in last else "<code>\nprint('again')\n</code>"

    upstream.handler = scripted(script)
    gateway = await make_gateway({"short": "runner_agents:short"})
    events = await gateway.stream(ASK | {"model": "short"})
    assert text_of(events, "content") == "summed up"
    reasoning = text_of(events, "reasoning")
    assert reasoning.count("**Step 2**") == 1
    assert reasoning.splitlines().count("again") == 2


@pytest.mark.every_runner
async def test_a_client_that_leaves_ends_the_model_call_and_frees_the_slot(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    from server.keys import SUPERVISOR

    never = asyncio.Event()
    upstream.handler = scripted(lambda m: "x" * 40, gate=never)
    gateway = await make_gateway()
    supervisor = gateway.app[SUPERVISOR]
    for streaming in (True, False):
        upstream.closed.clear()
        count = len(upstream.requests)
        asking = asyncio.ensure_future(gateway.post(ASK | {"stream": streaming}))
        async with asyncio.timeout(10):
            await until(lambda: len(upstream.requests) > count)  # noqa: B023
            asking.cancel()
            await upstream.closed.wait()
            await until(lambda: not supervisor.running)
        assert not supervisor.runs


@pytest.mark.every_runner
async def test_an_authors_model_that_fails_at_max_steps_is_a_failure_and_not_the_answer(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway({"own": "runner_agents:own_model"})
    status, headers, reply = await gateway.post(ASK | {"model": "own"})
    assert status == 500
    assert headers["x-should-retry"] == "false"
    assert reply["error"] == {
        "message": "The agent's model call failed: RuntimeError.",
        "type": "agent_error",
        "param": None,
        "code": "agent_failed",
    }
    events = await gateway.stream(ASK | {"model": "own"})
    assert events[-2]["error"] == reply["error"]
    assert events[-3]["choices"][0]["finish_reason"] == "error"
    assert text_of(events, "content") == ""
    assert "secret" not in json.dumps(events)


@pytest.mark.every_runner
async def test_a_plan_appears_once(upstream: FakeUpstream, make_gateway: MakeGateway) -> None:
    def script(messages: list[dict[str, Any]]) -> str:
        asked = json.dumps(messages[-1])
        if "end_plan" in asked:
            return f"PLAN {len(upstream.requests)}: look, then say."
        turn = sum("the code" in json.dumps(m) for m in messages if m["role"] == "assistant")
        code = "final_answer('seen')" if turn else "print('looked')"
        return f"Here is the code.\n<code>\n{code}\n</code>"

    upstream.handler = scripted(script)
    gateway = await make_gateway({"planner": "runner_agents:planner"})
    events = await gateway.stream(ASK | {"model": "planner"})
    reasoning = text_of(events, "reasoning")
    assert text_of(events, "content") == "seen"
    assert [reasoning.count(f"PLAN {number}: look, then say.") for number in (1, 3)] == [1, 1]
    assert reasoning.count("look, then say.") == 2
    assert reasoning.count("print('looked')") == reasoning.count("final_answer('seen')") == 1
    assert len(upstream.requests) == 4


async def test_code_is_shown_once_where_smolagents_joins_or_mends_it(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    for reply, once in (
        ("<code>\nrow = 1\n</code>\nand\n<code>\nfinal_answer(row)\n</code>", "row = 1"),
        ("<code>\nfinal_answer = 1\nfinal_answer(final_answer)\n</code>", "final_answer = 1"),
    ):
        upstream.handler = scripted(lambda m, reply=reply: reply)  # type: ignore[misc]
        events = await gateway.stream(ASK)
        reasoning = text_of(events, "reasoning")
        assert text_of(events, "content") == "1"
        assert reasoning.count(once) == 1
        assert reasoning.count("```python") == reply.count("<code>")


async def test_an_open_code_tag_in_a_thought_leaves_the_codes_fence_alone(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    code = chunk(content="Well.\n<code>\nfinal_answer('fine')\n</code>")
    thoughts = [
        [chunk(reasoning_content="maybe <code>\nwrong()")],
        [chunk(content="<think>maybe <code>\nwr"), chunk(content="ong()</think>")],
    ]
    gateway = await make_gateway()
    for thought in thoughts:
        pieces = [f"data: {json.dumps(event)}\n\n".encode() for event in (*thought, code)]
        upstream.handler = raw_reply([*pieces, b"data: [DONE]\n\n"])
        events = await gateway.stream(ASK)
        assert text_of(events, "content") == "fine"
        reasoning = text_of(events, "reasoning")
        assert "wrong()\n```\n\nWell.\n```python\nfinal_answer('fine')\n```\n" in reasoning
        assert reasoning.count("```") == 4


@pytest.mark.every_runner
async def test_no_event_of_a_stream_nears_64_kilobytes(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    code = "text = 'abcdef' + '\\U0001f600' * 20000\nprint(text)\nfinal_answer(text)"
    upstream.handler = scripted(lambda m: f"{'😀' * 9000}\n<code>\n{code}\n</code>", pieces=9000)
    gateway = await make_gateway()
    for name in ("deepseek", "think_tags"):
        async with gateway.session.post(
            gateway.base + "/v1/chat/completions",
            json=ASK | {"stream": True, "reasoning_format": name},
        ) as response:
            raw = await response.read()
        assert max(map(len, raw.split(b"\n\n"))) < 64 * 1024
        said = text_of(events_of(raw), "content")
        assert said.endswith("abcdef" + "😀" * 20000)
