"""`POST /v1/responses` by agents: the order and the shapes of events, items, parameters, failures."""

import asyncio
import base64
import json
from typing import Any

import pytest
from aiohttp import web
from conftest import FakeUpstream, Gateway, MakeGateway, chunk, scripted, until
from response_rules import check_response, check_stream, events_in
from smolagents import CodeAgent, ToolCallingAgent, tool

from server.keys import JAIL_POOL, SUPERVISOR

STEPS = (
    "I compute.\n<code>\nx = 17 * 23\nprint('x is', x)\n</code>",
    "Now I answer.\n<code>\nfinal_answer(f'It is {x}')\n</code>",
)
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather for a location",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string", "description": "The city"}},
        "required": ["location"],
    },
}
PIXEL = (
    "data:image/png;base64,"
    + base64.b64encode(
        bytes.fromhex(
            "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc000"
            "0003010100c9fe92ef0000000049454e44ae426082"
        )
    ).decode()
)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": [{"type": "web_search_call"}]}, "input.0.type"),
    ({"input": [{"role": "judge", "content": "x"}]}, "input.0.role"),
    ({"input": [{"role": "user"}]}, "input.0.content"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_audio"}]}]},
        "input.0.content.0.type",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
        "input.0.content.0.file_id",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_file", "file_data": "AAECAw=="}]}]},
        "input.0.content.0.file_data",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
        "input.0.content.0.image_url",
    ),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        "input.0.content.0",
    ),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0.id"),
    ({"input": [{"role": "system", "content": "x"}]}, "input"),
    ({"temperature": 3}, "temperature"),
    ({"top_p": 2}, "top_p"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_tool_calls": 3}, "max_tool_calls"),
    ({"truncation": "auto"}, "truncation"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"include": ["message.output_text.logprobs"]}, "include.0"),
    ({"reasoning": {"effort": "huge"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "long"}}, "reasoning.summary"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
    ({"text": {"verbosity": "loud"}}, "text.verbosity"),
    ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ({"tools": [{"type": "file_search", "vector_store_ids": []}]}, "tools.0.type"),
    ({"tools": [{"type": "function", "name": "a b"}]}, "tools.0.name"),
    (
        {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["f"]}}]},
        "tools.0.container.file_ids",
    ),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "web_search_preview"}}, "tool_choice.type"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ({"background": True, "store": False}, "background"),
    ({"conversation": "conv_1", "store": False}, "conversation"),
    ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "previous_response_id"),
]


def two_steps(messages: list[dict[str, Any]]) -> str:
    """A model that computes, then answers."""
    return STEPS[1] if "x is 391" in json.dumps(messages) else STEPS[0]


def answers(text: str) -> str:
    return f"<code>\nfinal_answer({text!r})\n</code>"


async def ask(gateway: Gateway, body: dict[str, Any], **options: Any) -> tuple[int, Any]:
    status, _, told = await gateway.post(body, "/v1/responses", **options)
    return status, told


async def streamed(gateway: Gateway, body: dict[str, Any], **options: Any) -> list[Any]:
    """The events of a response, each held against the rules."""
    async with gateway.session.post(
        f"{gateway.base}/v1/responses", json=body | {"stream": True}, **options
    ) as response:
        assert response.status == 200, await response.text()
        events = events_in(await response.read())
    check_stream(events)
    return events


def kinds_of(response: dict[str, Any]) -> list[str]:
    return [item["type"] for item in response["output"]]


def text_of(response: dict[str, Any]) -> str:
    (message,) = (item for item in response["output"] if item["type"] == "message")
    text: str = message["content"][0]["text"]
    return text


@pytest.mark.every_runner
@pytest.mark.parametrize("store", [False, True])
async def test_a_run_is_thoughts_code_with_its_output_and_a_message(
    upstream: FakeUpstream, make_gateway: MakeGateway, store: bool
) -> None:
    upstream.handler = scripted(two_steps)
    gateway = await make_gateway()
    events = await streamed(gateway, {"input": "17 * 23?", "store": store})
    response = events[-1]["response"]
    assert response["status"] == "completed"
    assert response["completed_at"] >= response["created_at"]
    assert kinds_of(response) == ["reasoning", "code_interpreter_call"] * 2 + ["message"]
    thoughts, code = response["output"][:2]
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "I compute.\n"}]
    assert code["code"] == "x = 17 * 23\nprint('x is', x)"
    assert code["outputs"] == [{"type": "logs", "logs": "x is 391\n"}]
    assert text_of(response) == "It is 391"
    usage = response["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (20, 10, 30)
    status, whole = await ask(gateway, {"input": "17 * 23?", "store": store})
    assert status == 200
    check_response(whole)
    for told in (whole, response):  # what differs from run to run
        stem = told["id"].partition("_")[2]
        told.update(json.loads(json.dumps(told).replace(stem, "")))
        told["created_at"] = told["completed_at"] = 0
    assert whole == response


async def test_thoughts_and_code_come_while_they_are_written(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gate = asyncio.Event()

    async def model(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in ("I think.\n", "<code>\nfinal_", "answer(1)\n</code>"):
            await response.write(f"data: {json.dumps(chunk(content=piece))}\n\n".encode())
            if not piece.endswith("</code>"):
                await gate.wait()
                gate.clear()
        await response.write(b"data: [DONE]\n\n")
        return response

    upstream.handler = model
    gateway = await make_gateway()
    raw = b""
    async with gateway.session.post(
        f"{gateway.base}/v1/responses", json={"input": "go", "stream": True}
    ) as response:
        for awaited in (b'"delta":"I think.\\n"', b'"delta":"final_"', b"[DONE]"):
            while awaited not in raw:
                raw += await response.content.readany()
            gate.set()
    check_stream(events_in(raw))


async def test_what_code_prints_comes_live_to_those_who_ask_for_it(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(two_steps)
    gateway = await make_gateway()
    name = "smolgate:code_interpreter_call_logs"
    events = await streamed(gateway, {"input": "go", "include": [name]})
    (live,) = (event for event in events if event["type"] == f"{name}.delta")
    assert live["delta"] == "x is 391\n"
    assert live["item_id"] == events[-1]["response"]["output"][1]["id"]


async def test_thoughts_are_a_summary_for_those_who_ask_for_one(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(two_steps)
    gateway = await make_gateway()
    events = await streamed(gateway, {"input": "go", "reasoning": {"summary": "auto"}})
    response = events[-1]["response"]
    summary = [{"type": "summary_text", "text": "I compute.\n"}]
    assert response["output"][0]["summary"] == summary
    assert "content" not in response["output"][0]
    assert "response.reasoning_summary_text.delta" in {event["type"] for event in events}


async def test_think_tags_are_scrubbed_and_fences_of_no_python_are_thoughts(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    text = "<think>Hm.</think>\n```text\nno code\n```\n<code>\na = 1\n</code>\nand\n<code>\nfinal_answer('<think>so</think>yes')\n</code>"
    upstream.handler = scripted(lambda messages: text, pieces=1)
    gateway = await make_gateway()
    response = (await streamed(gateway, {"input": "go"}))[-1]["response"]
    (code,) = (item for item in response["output"] if item["type"] == "code_interpreter_call")
    assert code["code"].startswith("a = 1\n\nfinal_answer(")
    thoughts = "".join(
        part["text"]
        for item in response["output"]
        if item["type"] == "reasoning"
        for part in item["content"]
    )
    assert "Hm." in thoughts
    assert "no code" in thoughts
    assert "think>" not in json.dumps(response["output"])
    assert text_of(response) == "yes"


async def test_an_error_in_code_is_told_and_the_run_goes_on(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    def model(messages: list[dict[str, Any]]) -> str:
        said = json.dumps(messages)
        return answers("mended") if "ZeroDivision" in said else "<code>\n1 / 0\n</code>"

    upstream.handler = scripted(model)
    gateway = await make_gateway()
    response = (await streamed(gateway, {"input": "go"}))[-1]["response"]
    first, second = (i for i in response["output"] if i["type"] == "code_interpreter_call")
    assert first["status"] == "failed"
    assert "ZeroDivisionError" in first["outputs"][0]["logs"]
    assert second["status"] == "completed"
    assert response["status"] == "completed"


async def test_running_out_of_steps_is_incomplete(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    def model(messages: list[dict[str, Any]]) -> str:
        if messages[0]["role"] == "system" and "code" in json.dumps(messages[-1]).lower():
            return "<code>\nprint('on')\n</code>"
        return "<code>\nprint('on')\n</code>"

    def make(context: Any) -> CodeAgent:
        return CodeAgent([], context.model, max_steps=1)

    upstream.handler = scripted(model)
    gateway = await make_gateway({"short": make})
    response = (await streamed(gateway, {"model": "short", "input": "go"}))[-1]["response"]
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_messages"}
    assert response["output"][-1]["status"] == "incomplete"
    assert response["completed_at"] is None


async def test_an_answer_that_the_limit_of_tokens_cut_is_incomplete(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    def make(context: Any) -> CodeAgent:
        return CodeAgent([], context.model, max_steps=1)

    upstream.handler = scripted(lambda messages: "I was about", finish_reason="length")
    gateway = await make_gateway({"short": make})
    body = {"model": "short", "input": "go", "max_output_tokens": 7}
    response = (await streamed(gateway, body))[-1]["response"]
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert upstream.bodies()[0]["max_tokens"] == 7


async def test_tools_that_an_agent_calls_by_name_are_calls_with_their_output(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    @tool  # type: ignore[untyped-decorator]
    def twice(number: int) -> int:
        """Doubles a number.

        Args:
            number: the number
        """
        return 2 * number

    async def model(request: web.Request) -> web.StreamResponse:
        said = json.dumps(json.loads(await request.read())["messages"])
        name, arguments = (
            ("final_answer", {"answer": "42"})
            if "Observation:\\n42" in said
            else ("twice", {"number": 21})
        )
        function = {"name": name, "arguments": json.dumps(arguments)}
        delta = chunk(tool_calls=[{"index": 0, "id": f"c_{name}", "function": function}])
        data = f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n"
        return web.Response(text=data, content_type="text/event-stream")

    upstream.handler = model
    gateway = await make_gateway(
        {"caller": lambda context: ToolCallingAgent([twice], context.model)}
    )
    response = (await streamed(gateway, {"model": "caller", "input": "go"}))[-1]["response"]
    (made,) = (item for item in response["output"] if item["type"] == "mcp_call")
    assert (made["name"], made["arguments"], made["output"]) == ("twice", '{"number": 21}', "42")
    assert (made["server_label"], made["status"]) == ("agent", "completed")
    assert text_of(response) == "42"


@pytest.mark.every_runner
@pytest.mark.parametrize("store", [False, True])
async def test_functions_of_the_client_pause_the_run_until_their_output_comes(
    upstream: FakeUpstream, make_gateway: MakeGateway, store: bool
) -> None:
    code = "<code>\nw = get_weather(location='Oslo')\nfinal_answer('It is ' + w)\n</code>"
    upstream.handler = scripted(lambda messages: code)
    gateway = await make_gateway()
    body = {"input": "Weather?", "tools": [WEATHER], "store": store}
    first = (await streamed(gateway, body))[-1]["response"]
    assert first["status"] == "completed"
    call = first["output"][-1]
    assert (call["type"], call["name"]) == ("function_call", "get_weather")
    assert json.loads(call["arguments"]) == {"location": "Oslo"}
    output = {"type": "function_call_output", "call_id": call["call_id"], "output": "fair"}
    if store:
        more = {"input": [output], "previous_response_id": first["id"]}
    else:
        question = {"role": "user", "content": "Weather?"}
        more = {"input": [question, *first["output"], output]}
    second = (await streamed(gateway, body | more))[-1]["response"]
    assert text_of(second) == "It is fair"
    assert second["id"] != first["id"]
    assert len(upstream.requests) == 1


async def test_output_that_nobody_waits_for_is_refused(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    output = {"type": "function_call_output", "call_id": "call_x", "output": "fair"}
    status, told = await ask(gateway, {"input": [output]})
    assert status == 400
    assert told["error"]["param"] == "input.0"
    assert told["error"]["code"] == "tool_call_not_found"


async def test_instructions_files_images_and_options_reach_the_model(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda messages: answers("seen"))
    gateway = await make_gateway()
    file = base64.b64encode(b"name,age\nAda,36\n").decode()
    content = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": PIXEL},
        {
            "type": "input_file",
            "filename": "people.csv",
            "file_data": f"data:text/csv;base64,{file}",
        },
    ]
    body = {
        "instructions": "Be brief.",
        "input": [{"role": "user", "content": content}],
        "temperature": 0.5,
        "top_p": 0.9,
        "max_output_tokens": 99,
        "safety_identifier": "someone",
        "metadata": {"a": "b"},
        "tools": [{"type": "code_interpreter", "container": {"type": "auto"}}],
        "include": ["code_interpreter_call.outputs"],
    }
    response = (await streamed(gateway, body))[-1]["response"]
    assert response["metadata"] == {"a": "b"}
    assert response["instructions"] == "Be brief."
    (asked,) = upstream.bodies()
    assert (asked["temperature"], asked["top_p"], asked["max_tokens"]) == (0.5, 0.9, 99)
    assert asked["user"] == "someone"
    said = json.dumps(asked["messages"])
    assert "Be brief." in said
    assert "people.csv" in said
    assert "Ada,36" in said
    assert "image_url" in said


async def test_an_answer_is_json_as_its_schema_has_it(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    def model(messages: list[dict[str, Any]]) -> str:
        good = "does not fit" in json.dumps(messages)
        return answers(json.dumps({"name": "Paris"} if good else {"town": 1}))

    upstream.handler = scripted(model)
    gateway = await make_gateway()
    schema = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
    wanted = {"type": "json_schema", "name": "city", "schema": schema, "strict": True}
    events = await streamed(gateway, {"input": "go", "text": {"format": wanted}})
    assert json.loads(text_of(events[-1]["response"])) == {"name": "Paris"}


async def test_what_cannot_be_honoured_is_refused_by_its_name(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    for body, param in REFUSED:
        await is_refused(gateway, body, param)
    assert not upstream.requests


async def is_refused(gateway: Gateway, body: dict[str, Any], param: str) -> None:
    asked = body if "input" in body or not body else {"input": "go"} | body
    status, told = await ask(gateway, asked)
    assert status == 400, told
    assert told["error"]["param"] == param
    assert told["error"]["type"] == "invalid_request_error"


async def test_an_unknown_previous_response_is_not_found(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    status, told = await ask(gateway, {"input": "go", "previous_response_id": "resp_nobody"})
    assert status == 400
    assert told["error"]["code"] == "previous_response_not_found"
    assert told["error"]["param"] == "previous_response_id"
    status, told = await ask(gateway, {"input": "go", "conversation": {"id": "conv_nobody"}})
    assert (status, told["error"]["code"]) == (404, "conversation_not_found")


@pytest.mark.parametrize("store", [False, True])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_before_anything_is_told_is_a_status(
    upstream: FakeUpstream, make_gateway: MakeGateway, store: bool, stream: bool
) -> None:
    async def model(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"message": "no"}}, status=400)

    upstream.handler = model
    gateway = await make_gateway()
    status, told = await ask(gateway, {"input": "go", "store": store, "stream": stream})
    assert status == 500
    assert told["error"]["code"] == "upstream_refused"


@pytest.mark.parametrize("store", [False, True])
async def test_a_failure_amid_the_stream_ends_what_is_open_and_says_failed(
    upstream: FakeUpstream, make_gateway: MakeGateway, store: bool
) -> None:
    async def model(request: web.Request) -> web.StreamResponse:
        if len(upstream.requests) > 1:
            return web.json_response({"error": {"message": "no"}}, status=400)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f"data: {json.dumps(chunk(content=STEPS[0]))}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    upstream.handler = model
    gateway = await make_gateway()
    response = (await streamed(gateway, {"input": "go", "store": store}))[-1]["response"]
    assert response["status"] == "failed"
    assert response["error"]["code"] == "server_error"
    assert response["error"]["type"] == "upstream_refused"
    assert "message" not in kinds_of(response)


@pytest.mark.parametrize("store", [False, True])
async def test_the_deadline_fails_a_response(
    upstream: FakeUpstream, make_gateway: MakeGateway, store: bool
) -> None:
    async def model(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f"data: {json.dumps(chunk(content='Well'))}\n\n".encode())
        await asyncio.Event().wait()
        return response

    upstream.handler = model
    gateway = await make_gateway(run_seconds=0.3)
    response = (await streamed(gateway, {"input": "go", "store": store}))[-1]["response"]
    assert (response["status"], response["error"]["type"]) == ("failed", "deadline_exceeded")


@pytest.mark.parametrize("store", [False, True])
async def test_a_client_that_leaves_ends_its_run(
    upstream: FakeUpstream, make_gateway: MakeGateway, store: bool
) -> None:
    gate = asyncio.Event()
    upstream.handler = scripted(lambda messages: "I think on and on.", gate=gate)
    gateway = await make_gateway(heartbeat_seconds=0.1)
    body = {"input": "go", "store": store, "stream": True}
    async with gateway.session.post(f"{gateway.base}/v1/responses", json=body):
        # its head is sent after a heartbeat's time, or with the first words
        gate.set()
    gate.clear()
    await until(lambda: not gateway.app[SUPERVISOR].runs)


async def test_a_killed_jail_is_told_and_the_run_goes_on(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    def model(messages: list[dict[str, Any]]) -> str:
        lost = "are lost" in json.dumps(messages)
        return answers("still here") if lost else "<code>\nsum(range(10**12))\n</code>"

    upstream.handler = scripted(model)
    gateway = await make_gateway(jail="auto", step_seconds=1)
    await gateway.app[JAIL_POOL].ready()
    response = (await streamed(gateway, {"input": "go"}))[-1]["response"]
    assert response["output"][0]["status"] == "failed"
    assert "lost" in response["output"][0]["outputs"][0]["logs"]
    assert text_of(response) == "still here"


async def test_long_output_is_cut_into_parts_and_lines(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    code = (
        "<code>\nfor i in range(3000):\n    print('é' * 30, i)\nfinal_answer('é' * 8000)\n</code>"
    )
    thoughts = "Well, I think. " * 3000
    upstream.handler = scripted(lambda messages: f"{thoughts}\n{code}", pieces=50)
    gateway = await make_gateway()
    response = (await streamed(gateway, {"input": "go"}))[-1]["response"]
    assert len(text_of(response)) == 8000
    outputs = next(i for i in response["output"] if i["type"] == "code_interpreter_call")["outputs"]
    assert "".join(part["logs"] for part in outputs).count("\n") == 3000


async def test_a_repeated_request_gets_the_same_response(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(two_steps)
    gateway = await make_gateway(idempotency_seconds=60)
    for store in (False, True):
        headers = {"Idempotency-Key": f"once {store}"}
        _, first = await ask(gateway, {"input": "go", "store": store}, headers=headers)
        _, second = await ask(gateway, {"input": "go", "store": store}, headers=headers)
        assert second["id"] == first["id"]
        assert second["output"] == first["output"]
    assert len(upstream.requests) == 4


async def test_an_upstreams_model_is_relayed(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    async def model(request: web.Request) -> web.StreamResponse:
        return web.json_response({"id": "resp_up", "object": "response"})

    upstream.handler = model
    gateway = await make_gateway()
    status, told = await ask(gateway, {"model": "up/model", "input": "go"})
    assert (status, told["id"]) == (200, "resp_up")
    assert upstream.requests[0][0].path == "/v1/responses"
