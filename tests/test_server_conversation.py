"""A whole conversation reaches the agent as the turns that it was."""

import base64
import io
import json
from typing import Any

import pytest
from conftest import FakeUpstream, MakeGateway, scripted, text_of
from PIL import Image as PillowImage
from smolagents import CodeAgent


def picture(colour: str) -> dict[str, Any]:
    buffer = io.BytesIO()
    PillowImage.new("RGB", (4, 4), colour).save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def colours_of(message: dict[str, Any]) -> list[tuple[int, ...]]:
    """The colour of each picture of a message that reached the model."""
    found = []
    for part in message["content"]:
        if part["type"] == "image_url":
            data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
            pixel = PillowImage.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0))
            assert isinstance(pixel, tuple)
            found.append(pixel)
    return found


HISTORY: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "I am Anna."},
    {"role": "assistant", "content": "<think>HIDDEN</think>Hello Anna."},
    {"role": "user", "content": "And I live in Oslo."},
    {"role": "assistant", "content": "A fine city."},
    {"role": "developer", "content": "Be kind."},
    {"role": "user", "content": "Who am I?"},
]


@pytest.mark.every_runner
async def test_turns_keep_their_order_their_roles_and_their_words(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    await gateway.post({"messages": HISTORY})
    system, *turns = upstream.bodies()[0]["messages"]
    assert "Anna" not in system["content"]
    assert turns == [
        {"role": "user", "content": "I am Anna."},
        {"role": "assistant", "content": "Hello Anna."},
        {"role": "user", "content": "And I live in Oslo."},
        {"role": "assistant", "content": "A fine city."},
        {"role": "user", "content": "New task:\nBe brief.\n\nBe kind.\n\nWho am I?"},
    ]


async def test_pictures_stay_with_the_turn_that_had_them(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    red, blue = picture("red"), picture("blue")
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "see"}, red]},
        {"role": "assistant", "content": "red"},
        {"role": "user", "content": [blue]},
        {"role": "assistant", "content": "blue"},
        {"role": "user", "content": "and now?"},
    ]
    await gateway.post({"messages": messages})
    _, first, _, second, _, last = upstream.bodies()[0]["messages"]
    assert first["content"][0] == {"type": "text", "text": "see"}
    assert colours_of(first) == [(255, 0, 0)]
    assert colours_of(second) == [(0, 0, 255)]
    assert last["content"] == "New task:\nand now?"


async def test_calls_and_results_of_tools_are_told_in_words(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()

    def call(call_id: str, name: str, arguments: Any) -> dict[str, Any]:
        function = {"name": name, "arguments": arguments}
        return {"id": call_id, "type": "function", "function": function}

    calls = [call("c1", "weather", '{"city":"Ōsaka"}'), call("c2", "time", "{broken")]
    messages = [
        {"role": "user", "content": "Weather and time?"},
        {"role": "assistant", "content": "I look.", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c2", "content": "noon"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "warm"}]},
        {"role": "assistant", "content": None, "tool_calls": [call("c3", "sky", {"a": 1})]},
        {"role": "tool", "tool_call_id": "c3", "content": ""},
        {"role": "assistant", "content": "Warm, at noon."},
        {"role": "user", "content": "Thanks. And tomorrow?"},
        {"role": "assistant", "function_call": {"name": "old", "arguments": "{}"}},
        {"role": "function", "name": "old", "content": "legacy"},
        {"role": "tool", "tool_call_id": "c9", "content": "lost"},
        {"role": "user", "content": "Well?"},
    ]
    status, _, _ = await gateway.post({"messages": messages})
    assert status == 200
    assert [message["content"] for message in upstream.bodies()[0]["messages"][1:]] == [
        "Weather and time?",
        'I look.\n[called weather with {"city": "Ōsaka"}]\n[called time with {broken]',
        "[result of time]\nnoon\n[result of weather]\nwarm",
        '[called sky with {"a": 1}]',
        "[result of sky]\n",
        "Warm, at noon.",
        "Thanks. And tomorrow?",
        "[called old with {}]",
        "[result of old]\nlegacy\n[result of a tool]\nlost\nNew task:\nWell?",
    ]


async def test_the_first_plan_after_a_conversation_is_a_first_plan_that_knows_it(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    def script(messages: list[dict[str, Any]]) -> str:
        if "end_plan" in json.dumps(messages[-1]):
            return f"PLAN {len(upstream.requests)}"
        turn = sum("the code" in json.dumps(m) for m in messages if m["role"] == "assistant")
        return f"the code\n<code>\n{'final_answer(1)' if turn else 'print(5)'}\n</code>"

    upstream.handler = scripted(script)
    gateway = await make_gateway(
        {"planner": lambda c: CodeAgent(tools=[], model=c.model, planning_interval=1, max_steps=4)}
    )
    events = await gateway.stream({"model": "planner", "messages": HISTORY})
    assert text_of(events, "content") == "1"
    plans = [
        body["messages"]
        for body in upstream.bodies()
        if "end_plan" in json.dumps(body["messages"][-1])
    ]
    assert len(plans) == 2
    (first,) = plans[0]  # the initial plan's template stands alone
    assert "First in part 1, write the facts survey" in first["content"]
    told = "User: I am Anna.\nAssistant: Hello Anna.\nUser: And I live in Oslo.\nAssistant: A fine"
    assert told in first["content"]
    assert "The task:\nBe brief." in first["content"]
    update = json.dumps(plans[1])
    assert "history of attempts" in update
    assert json.dumps(told)[1:-1] in update
    attempts = plans[1][1:-1]
    assert "Oslo" not in json.dumps(attempts)  # what was said before is no attempt at this task
    acting = upstream.bodies()[1]["messages"]
    assert {"role": "user", "content": "And I live in Oslo."} in acting


async def test_a_run_without_a_conversation_plans_as_smolagents_does(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda m: "<code>\nfinal_answer(1)\n</code>")
    gateway = await make_gateway(
        {"planner": lambda c: CodeAgent(tools=[], model=c.model, planning_interval=2)}
    )
    await gateway.post({"model": "planner", "messages": [{"role": "user", "content": "go"}]})
    (first,) = upstream.bodies()[0]["messages"]
    assert "What was said before" not in first["content"]
