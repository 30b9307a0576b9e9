"""Each parameter of a chat request for an agent is honoured, or refused by its name."""

import asyncio
import json
from typing import Any, Literal

import openai
import pytest
from conftest import FakeUpstream, MakeGateway, scripted, text_of, until
from pydantic import BaseModel
from smolagents import CodeAgent
from test_server_chat_agent import by_turn

from server.chat_schema import ChatRequest
from streaming.agent_context import AgentContext

USER: list[dict[str, Any]] = [{"role": "user", "content": "go"}]
ASK: dict[str, Any] = {"model": "code-writing-agent", "messages": USER}


def code(source: str) -> str:
    return f"<code>\n{source}\n</code>"


def content_of(reply: dict[str, Any]) -> str:
    """The answer without its think block."""
    content: str = reply["choices"][0]["message"]["content"]
    return content.rpartition("</think>\n\n")[2]


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": 2.1}, "temperature", "from 0 to 2"),
    ({"temperature": -0.1}, "temperature", "from 0 to 2"),
    ({"temperature": "hot"}, "temperature", "float"),
    ({"top_p": 1.1}, "top_p", "from 0 to 1"),
    ({"frequency_penalty": 3}, "frequency_penalty", "from -2 to 2"),
    ({"presence_penalty": -3}, "presence_penalty", "from -2 to 2"),
    ({"max_tokens": 0}, "max_tokens", "above 0"),
    ({"max_tokens": 10.5}, "max_tokens", "whole number"),
    ({"max_completion_tokens": -1}, "max_completion_tokens", "above 0"),
    ({"logit_bias": {"50256": 101}}, "logit_bias.50256", "from -100 to 100"),
    ({"logit_bias": [1]}, "logit_bias", "object"),
    ({"seed": 1.5}, "seed", "int"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "at most 4"),
    ({"stop": ["a", ""]}, "stop", "empty"),
    ({"stop": 5}, "stop", "str | array | null"),
    ({"n": 0}, "n", "must be 1"),
    ({"user": 5}, "user", "str"),
    ({"metadata": {"a": 5}}, "metadata", "str"),
    ({"metadata": {str(i): "x" for i in range(17)}}, "metadata", "at most 16"),
    ({"metadata": {"k" * 65: "x"}}, "metadata", "64 characters"),
    ({"metadata": {"k": "x" * 513}}, "metadata.k", "512 characters"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "json_object, json_schema"),
    ({"response_format": {}}, "response_format.type", "type"),
    (
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema.schema",
        "JSON schema",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "response_format.json_schema.name",
        "name",
    ),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
            }
        },
        "response_format.json_schema.schema",
        "nonsense",
    ),
    ({"reasoning_effort": "maximal"}, "reasoning_effort", "none, minimal, low, medium, high"),
    ({"reasoning_format": "x"}, "reasoning_format", "deepseek"),
    ({"verbosity": "loud"}, "verbosity", "low, medium, high"),
    ({"logprobs": True}, "logprobs", "must be false"),
    ({"top_logprobs": 3}, "top_logprobs", "must be 0"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio", "text"),
    ({"modalities": ["text", "audio"]}, "modalities", "text"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction", "absent"),
    ({"store": True}, "store", "must be false"),
    ({"service_tier": "flex"}, "service_tier", "auto or default"),
    ({"moderation": {"model": "x"}}, "moderation", "absent"),
    ({"web_search_options": {}}, "web_search_options", "absent"),
    ({"functions": [{"name": "x"}]}, "functions", "'tools'"),
    ({"function_call": "auto"}, "function_call", "'tool_choice'"),
    ({"stream_options": []}, "stream_options", "object"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "system, developer"),
    ({"messages": [{"role": "user", "content": [5]}]}, "messages.0.content.0", "object"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}, *USER]},
        "messages.0.tool_calls.0.function",
        "function",
    ),
]


@pytest.mark.parametrize(("fields", "param", "says"), REFUSED)
async def test_what_cannot_be_honoured_is_a_400_that_names_it(
    upstream: FakeUpstream, make_gateway: MakeGateway, fields: Any, param: str, says: str
) -> None:
    gateway = await make_gateway()
    for streaming in (False, True):
        status, _, reply = await gateway.post(ASK | fields | {"stream": streaming})
        error = reply["error"]
        assert (status, error["type"], error["code"]) == (400, "invalid_request_error", None)
        assert error["param"] == param
        assert says in error["message"]
        assert f"'{param}'" in error["message"]
    assert not upstream.requests


async def test_what_is_refused_to_agents_is_relayed_untouched(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    for fields, _, _ in REFUSED:
        if isinstance(fields.get("n"), int):
            continue
        body = {"model": "up/model", "messages": USER} | fields
        async with gateway.session.post(
            gateway.base + "/v1/chat/completions", data=json.dumps(body, indent=1)
        ) as response:
            assert response.status == 200
        assert upstream.requests[-1][1] == json.dumps(body, indent=1).encode()


# What clients send as a matter of course, and what asks for nothing.
HARMLESS: dict[str, Any] = {
    "stream": False,
    "n": 1,
    "store": False,
    "logprobs": False,
    "top_logprobs": 0,
    "modalities": ["text"],
    "service_tier": "auto",
    "parallel_tool_calls": True,
    "tools": [],
    "tool_choice": "auto",
    "functions": [],
    "function_call": "none",
    "response_format": {"type": "text"},
    "reasoning_effort": "medium",
    "verbosity": "medium",
    "user": "u-1",
    "metadata": {"session": "7"},
    "safety_identifier": "s",
    "prompt_cache_key": "p",
    "logit_bias": {},
    "stop": [],
    "stream_options": {"include_usage": True, "include_obfuscation": False},
}


async def test_what_clients_send_as_a_matter_of_course_is_taken(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    status, _, reply = await gateway.post(ASK | HARMLESS)
    assert (status, content_of(reply)) == (200, "hello")
    status, _, _ = await gateway.post(ASK | dict.fromkeys(HARMLESS))  # each of them null
    assert status == 200


async def test_every_parameter_of_the_sdk_is_decided() -> None:
    from openai.types.chat.completion_create_params import CompletionCreateParamsBase

    known = set(ChatRequest.__struct_fields__)
    # Hints about caching: nothing is cached here that they could change.
    ignored = {"model", "prompt_cache_options", "prompt_cache_retention"}
    assert set(CompletionCreateParamsBase.__annotations__) - known - ignored == set()


async def test_fields_that_no_schema_has_are_ignored(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    extras = {"chat_id": "x", "session_id": 5, "features": {"web": True}, "top_k": 40, "files": []}
    message = USER[0] | {"id": "m-1", "timestamp": 5, "annotations": []}
    status, _, reply = await gateway.post(ASK | extras | {"messages": [message]})
    assert (status, content_of(reply)) == (200, "hello")


async def test_sampling_goes_into_every_call_of_the_agents_model(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(by_turn(code("print(1)"), code("final_answer('done')")))
    gateway = await make_gateway()
    options = {
        "temperature": 0.5,
        "top_p": 0.9,
        "frequency_penalty": 0.1,
        "presence_penalty": -0.1,
        "logit_bias": {"5": -100},
        "seed": 7,
        "user": "u-1",
    }
    await gateway.post(ASK | options | {"max_tokens": 50, "max_completion_tokens": 70})
    assert len(upstream.requests) == 2
    for body in upstream.bodies():
        assert {name: body[name] for name in options} == options
        assert body["max_tokens"] == 70
        assert "max_completion_tokens" not in body


async def test_the_answer_ends_before_the_first_stop(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda m: code("final_answer('one END two; three')"))
    gateway = await make_gateway()
    for stop, answer in (
        ("END", "one"),
        (["; ", " END"], "one"),
        ("nowhere", "one END two; three"),
    ):
        events = await gateway.stream(ASK | {"stop": stop})
        assert text_of(events, "content") == answer
        assert events[-2]["choices"][0]["finish_reason"] == "stop"
        assert "END" not in upstream.bodies()[-1]["stop"]  # the agent's own code may have it


async def test_user_and_metadata_reach_the_agent_and_the_list_of_runs(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    seen: list[AgentContext] = []

    def factory(context: AgentContext) -> CodeAgent:
        seen.append(context)
        return CodeAgent(tools=[], model=context.model)

    gate = asyncio.Event()
    upstream.handler = scripted(lambda m: code("final_answer('x')"), gate=gate)
    gateway = await make_gateway({"own": factory})
    fields = {"model": "own", "user": "u-1", "metadata": {"session": "7"}}
    asking = asyncio.ensure_future(gateway.post(ASK | fields))
    await until(lambda: upstream.requests)
    async with gateway.session.get(gateway.base + "/v1/runs") as response:
        (run,) = (await response.json())["data"]
    assert run["metadata"] == {"session": "7"}
    gate.set()
    assert (await asking)[0] == 200
    assert (seen[0].user, seen[0].metadata) == ("u-1", {"session": "7"})


async def test_verbosity_is_said_to_the_agent(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway()
    for verbosity, said in (("low", "short"), ("high", "at length")):
        await gateway.post(ASK | {"verbosity": verbosity})
        assert said in upstream.bodies()[-1]["messages"][-1]["content"]


@pytest.mark.parametrize(
    ("effort", "steps", "plans"),
    [
        ("none", 2, 0),
        ("minimal", 2, 0),
        ("low", 3, 0),
        ("medium", 6, 3),
        ("high", 12, 6),
        ("xhigh", 18, 9),
    ],
)
async def test_effort_is_steps_and_plans(
    upstream: FakeUpstream, make_gateway: MakeGateway, effort: str, steps: int, plans: int
) -> None:
    def script(messages: list[dict[str, Any]]) -> str:
        last = json.dumps(messages[-1])
        if "end_plan" in last:
            return "go on"
        return "summed up" if "provide an answer" in last else code("print('again')")

    upstream.handler = scripted(script, pieces=1000)
    gateway = await make_gateway(
        {
            "planner": lambda context: CodeAgent(
                tools=[], model=context.model, max_steps=6, planning_interval=2
            ),
            "plain": lambda context: CodeAgent(tools=[], model=context.model, max_steps=1),
        }
    )
    events = await gateway.stream(ASK | {"model": "planner", "reasoning_effort": effort})
    assert text_of(events, "content") == "summed up"
    asked = [json.dumps(body["messages"][-1]) for body in upstream.bodies()]
    assert sum("end_plan" in text for text in asked) == plans
    assert len(asked) - plans - 1 == steps
    # Less effort is never more than the agent's own.
    count = len(upstream.requests)
    await gateway.post(ASK | {"model": "plain", "reasoning_effort": effort})
    most = {"high": 2, "xhigh": 3}.get(effort, 1)
    plan = 1 if effort in {"high", "xhigh"} else 0
    assert len(upstream.requests) - count == most + plan + 1


@pytest.mark.every_runner
async def test_an_answer_that_the_limit_of_tokens_cut_says_so(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    def script(messages: list[dict[str, Any]]) -> str:
        return "It is beca" if "provide an answer" in json.dumps(messages[-1]) else "I would"

    upstream.handler = scripted(script, finish_reason="length")
    gateway = await make_gateway({"short": "runner_agents:short"})
    fields = {"model": "short", "max_tokens": 3}
    _, _, reply = await gateway.post(ASK | fields)
    assert content_of(reply) == "It is beca"
    assert reply["choices"][0]["finish_reason"] == "length"
    events = await gateway.stream(ASK | fields)
    assert events[-2]["choices"][0]["finish_reason"] == "length"
    # Code that was whole gave a whole answer, whatever came of the text around it.
    upstream.handler = scripted(lambda m: code("final_answer('whole')"), finish_reason="length")
    _, _, reply = await gateway.post(ASK | fields)
    assert reply["choices"][0]["finish_reason"] == "stop"


class Capital(BaseModel):
    city: str
    population: int
    kind: Literal["capital", "town"]


def wanted(schema: dict[str, Any], **fields: Any) -> dict[str, Any]:
    named = {"name": "wanted", "schema": schema} | fields
    return {"response_format": {"type": "json_schema", "json_schema": named}}


GOOD = "final_answer({'city': 'Oslo', 'population': 700000, 'kind': 'capital'})"


async def test_the_sdks_parse_gets_an_answer_that_fits(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(
        by_turn(
            code("final_answer('Oslo')"),
            code("final_answer({'city': 'Oslo', 'population': 'many', 'kind': 'capital'})"),
            code(GOOD),
        )
    )
    gateway = await make_gateway()
    async with openai.AsyncOpenAI(base_url=f"{gateway.base}/v1", api_key="none") as client:
        completion = await client.chat.completions.parse(
            model="code-writing-agent",
            messages=[{"role": "user", "content": "Norway"}],
            response_format=Capital,
            extra_body={"reasoning_format": "deepseek"},
        )
        async with client.chat.completions.stream(
            model="code-writing-agent",
            messages=[{"role": "user", "content": "Norway"}],
            response_format=Capital,
        ) as stream:
            streamed = await stream.get_final_completion()
    good = Capital(city="Oslo", population=700000, kind="capital")
    assert completion.choices[0].message.parsed == good
    assert streamed.choices[0].message.parsed == good
    first, second, third = upstream.bodies()[:3]
    assert "fit this JSON schema" in first["messages"][-1]["content"]
    assert "not valid JSON" in second["messages"][-1]["content"]
    assert "'many' is not of type 'integer' (at $.population)" in third["messages"][-1]["content"]


@pytest.mark.every_runner
async def test_an_agent_mends_its_answer_three_times_and_then_has_failed(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda m: code("final_answer({'city': 5})"))
    gateway = await make_gateway()
    fields = wanted({"type": "object", "properties": {"city": {"type": "string"}}})
    status, headers, reply = await gateway.post(ASK | fields)
    assert (status, headers["x-should-retry"]) == (500, "false")
    assert reply["error"]["type"] == "agent_error"
    assert reply["error"]["code"] == "answer_refused"
    assert "5 is not of type 'string'" in reply["error"]["message"]
    assert len(upstream.requests) == 4
    events = await gateway.stream(ASK | fields)
    assert events[-3]["choices"][0]["finish_reason"] == "error"
    assert events[-2]["error"]["code"] == "answer_refused"
    assert text_of(events, "content") == ""


@pytest.mark.parametrize(
    ("source", "answer"),
    [
        ("final_answer({'a': [1, None, True]})", '{"a": [1, null, true]}'),
        ("final_answer('{\"a\": 1}')", '{"a": 1}'),
        ("final_answer('```json\\n{\"a\": 1}\\n```')", '{"a": 1}'),
        ("final_answer([1])", None),
        ("final_answer('a')", None),
        ("final_answer(None)", None),
        ("final_answer({'a': float('nan')})", None),
    ],
)
async def test_a_json_object_is_an_object_and_nothing_around_it(
    upstream: FakeUpstream, make_gateway: MakeGateway, source: str, answer: str | None
) -> None:
    upstream.handler = scripted(lambda m: code(source))
    gateway = await make_gateway()
    fields = {"response_format": {"type": "json_object"}}
    status, _, reply = await gateway.post(ASK | fields)
    assert "must be a JSON object" in upstream.bodies()[0]["messages"][-1]["content"]
    if answer is None:
        assert (status, reply["error"]["code"]) == (500, "answer_refused")
    else:
        assert (status, content_of(reply)) == (200, answer)


@pytest.mark.parametrize(("mended", "status"), [('{"a": 1}', 200), ("no JSON", 500)])
async def test_a_summary_for_want_of_steps_is_mended_too(
    upstream: FakeUpstream, make_gateway: MakeGateway, mended: str, status: int
) -> None:
    def script(messages: list[dict[str, Any]]) -> str:
        last = json.dumps(messages[-1])
        if "mended JSON object" in last:
            return mended
        return "so it is 1" if "provide an answer" in last else code("print('again')")

    upstream.handler = scripted(script)
    gateway = await make_gateway(
        {"short": lambda context: CodeAgent(tools=[], model=context.model, max_steps=1)}
    )
    fields = {"model": "short", "response_format": {"type": "json_object"}}
    got, _, reply = await gateway.post(ASK | fields)
    assert got == status
    if status == 200:
        assert content_of(reply) == mended
    else:
        assert reply["error"]["code"] == "answer_refused"
        assert len(upstream.requests) == 2 + 3


async def test_a_hostile_schema_holds_up_nobody_but_its_own_run(
    upstream: FakeUpstream, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.answer_check.MAX_MENDS", 0)
    upstream.handler = scripted(lambda m: code("final_answer({'a': 'a' * 40 + '!'})"))
    gateway = await make_gateway()
    fields = wanted({"properties": {"a": {"pattern": "^(a+)+$"}}})
    asking = asyncio.ensure_future(gateway.post(ASK | fields))
    await until(lambda: upstream.requests)
    answered = 0
    while not asking.done():  # an expression that held up this process would do so for ever
        async with gateway.session.get(gateway.base + "/healthz") as response:
            answered += response.status == 200
        await asyncio.sleep(0.02)
    assert answered
    status, _, reply = await asking
    assert (status, reply["error"]["code"]) == (500, "answer_refused")
    assert "takes too long" in reply["error"]["message"]
