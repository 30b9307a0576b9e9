"""Tools that the client executes: the run pauses for them and goes on with their results, over real sockets."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from conftest import (
    FakeUpstream,
    Gateway,
    MakeGateway,
    chunk,
    events_of,
    raw_reply,
    scripted,
    text_of,
    until,
)
from smolagents import CodeAgent, tool
from test_server_chat_agent import by_turn

from server.drain import drain
from server.keys import SUPERVISOR


def function(name: str, **fields: Any) -> dict[str, Any]:
    """A tool as requests define it."""
    return {"type": "function", "function": {"name": name, **fields}}


WEATHER = function(
    "get-weather",
    description="The weather of a city.",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "its name"},
            "unit": {"type": "string", "enum": ["C", "F"]},
        },
        "required": ["city"],
    },
)
USER: list[dict[str, Any]] = [{"role": "user", "content": "How is the weather in Paris?"}]
ASK: dict[str, Any] = {"model": "code-writing-agent", "messages": USER, "tools": [WEATHER]}
ONE_CALL = (
    "Let me see.\n<code>\nweather = get_weather('Paris')\nprint('it is', weather)\n</code>",
    "<code>\nfinal_answer(f'sunny: {weather}')\n</code>",
)


def code(source: str) -> str:
    return f"<code>\n{source}\n</code>"


def message_of(reply: dict[str, Any]) -> dict[str, Any]:
    message: dict[str, Any] = reply["choices"][0]["message"]
    return message


def with_results(
    message: dict[str, Any], *results: str, before: list[dict[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """The messages of the next request: the assistant's calls, and what came of them."""
    calls = message["tool_calls"]
    assert len(calls) == len(results)
    return [
        *(before or USER),
        message,
        *(
            {"role": "tool", "tool_call_id": call["id"], "content": text}
            for call, text in zip(calls, results, strict=True)
        ),
    ]


@pytest.fixture
async def gateway(upstream: FakeUpstream, make_gateway: MakeGateway) -> Gateway:
    upstream.handler = scripted(by_turn(*ONE_CALL))
    return await make_gateway()


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{gateway.base}/v1", api_key="none") as client:
        yield client


@pytest.mark.every_runner
async def test_the_sdks_tool_loop_works_as_it_does_with_openai(
    upstream: FakeUpstream, client: openai.AsyncOpenAI
) -> None:
    executed = []
    messages: list[Any] = list(USER)
    ids = set()
    while True:
        reply = await client.chat.completions.create(
            model="code-writing-agent",
            messages=messages,
            tools=[WEATHER],  # type: ignore[list-item]
        )
        ids.add(reply.id)
        choice = reply.choices[0]
        messages.append(choice.message)
        if choice.finish_reason != "tool_calls":
            break
        assert choice.message.content is None
        for call in choice.message.tool_calls or []:
            assert call.type == "function"
            executed.append((call.function.name, json.loads(call.function.arguments)))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "24 degrees"})
    assert executed == [("get-weather", {"city": "Paris"})]
    assert choice.finish_reason == "stop"
    assert (choice.message.content or "").endswith("sunny: 24 degrees")
    assert len(ids) == 2
    assert len(upstream.requests) == 2  # the run went on: nothing was asked again
    assert "it is 24 degrees" in json.dumps(upstream.bodies()[1])


async def test_the_sdks_stream_helper_gathers_the_calls_and_their_results_go_on(
    client: openai.AsyncOpenAI,
) -> None:
    async with client.chat.completions.stream(
        model="code-writing-agent",
        messages=USER,  # type: ignore[arg-type]
        tools=[WEATHER],  # type: ignore[list-item]
        stream_options={"include_usage": True},
    ) as stream:
        first = await stream.get_final_completion()
    message = first.choices[0].message
    assert first.choices[0].finish_reason == "tool_calls"
    (call,) = message.tool_calls or []
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert first.usage is not None
    assert first.usage.completion_tokens == 5  # of this leg alone
    follow_up: list[Any] = [
        *USER,
        message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "warm"},
    ]
    async with client.chat.completions.stream(
        model="code-writing-agent",
        messages=follow_up,
        stream_options={"include_usage": True},
    ) as stream:
        second = await stream.get_final_completion()
    assert second.choices[0].message.content == "sunny: warm"
    assert second.usage is not None
    assert second.usage.completion_tokens == 5
    assert second.id != first.id


async def test_the_deltas_of_a_call_have_index_id_type_and_function(gateway: Gateway) -> None:
    events = await gateway.stream(ASK)
    choices = [event["choices"][0] for event in events[:-1]]
    deltas = [c["delta"]["tool_calls"] for c in choices if "tool_calls" in c["delta"]]
    ((head,), (arguments,)) = deltas
    assert head["id"].startswith("call_")
    assert head == {
        "index": 0,
        "id": head["id"],
        "type": "function",
        "function": {"name": "get-weather", "arguments": ""},
    }
    assert arguments == {"index": 0, "function": {"arguments": '{"city": "Paris"}'}}
    assert choices[-1]["finish_reason"] == "tool_calls"
    assert events[-1] == "[DONE]"
    assert text_of(events, "content") == ""
    assert "Let me see." in text_of(events, "reasoning")


async def test_nothing_is_shown_twice_over_the_legs_of_a_run(gateway: Gateway) -> None:
    first = await gateway.stream(ASK)
    call = {"id": _call_id(first), "type": "function", "function": {"name": "x", "arguments": "{}"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    second = await gateway.stream(ASK | {"messages": with_results(message, "warm")})
    reasoning = text_of(first, "reasoning") + text_of(second, "reasoning")
    assert reasoning.count("get_weather('Paris')") == 1
    assert reasoning.splitlines().count("it is warm") == 1
    assert reasoning.count("**Step 1**") == reasoning.count("**Step 2**") == 1
    assert text_of(second, "content") == "sunny: warm"


def _call_id(events: list[Any]) -> str:
    (found,) = [
        call["id"]
        for event in events[:-1]
        for call in event["choices"][0]["delta"].get("tool_calls", ())
        if "id" in call
    ]
    assert isinstance(found, str)
    return found


async def test_the_agent_is_told_of_the_tools_and_their_text_is_no_template(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda m: code("final_answer('hi')"))
    gateway = await make_gateway({"own": lambda context: CodeAgent(tools=[], model=context.model)})
    nasty = "Says {{ 7 * 7 }} {% endraw %}{{ cycler }}"
    weather = function(**WEATHER["function"] | {"description": nasty})
    for model in ("code-writing-agent", "own"):
        asked = {"model": model, "messages": USER, "tools": [weather]}
        status, _, _ = await gateway.post(asked)
        assert status == 200
        system = upstream.bodies()[-1]["messages"][0]["content"]
        assert nasty in system
        assert system.count("def get_weather(city: string, unit: string)") == 1
        assert '"enum": ["C", "F"]' in system


def calls_by_name(*rows: tuple[str, dict[str, Any]]) -> bytes:
    """What a model sends that calls these tools at once."""
    deltas = [
        {"index": i, "id": f"u{i}", "function": {"name": name, "arguments": json.dumps(arguments)}}
        for i, (name, arguments) in enumerate(rows)
    ]
    finish = {"index": 0, "delta": {}, "finish_reason": "tool_calls"}
    events = [chunk(tool_calls=deltas), {"id": "u", "choices": [finish]}]
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def cities_of(message: dict[str, Any]) -> list[str]:
    return [json.loads(call["function"]["arguments"])["city"] for call in message["tool_calls"]]


@pytest.fixture
async def calling(upstream: FakeUpstream, make_gateway: MakeGateway) -> Gateway:
    """A gateway whose agent `calling` calls the tools of CITIES at once, then answers "all"."""

    async def handler(request: Any) -> Any:
        is_first = len(upstream.requests) % 2 == 1
        answer = ("final_answer", {"answer": "all"})
        pieces = calls_by_name(*(("get_weather", {"city": city}) for city in CITIES))
        return await raw_reply([pieces if is_first else calls_by_name(answer)])(request)

    upstream.handler = handler
    return await make_gateway({"calling": "runner_agents:calling"})


CITIES = ("Paris", "Rome", "Oslo", "Bonn", "Cork", "Bern", "Lyon", "Turin")
ASK_CALLING = ASK | {"model": "calling"}


@pytest.mark.every_runner
async def test_an_agent_that_calls_several_at_once_asks_for_all_in_one_reply(
    upstream: FakeUpstream, calling: Gateway
) -> None:
    status, _, reply = await calling.post(ASK_CALLING)
    assert status == 200
    message = message_of(reply)
    assert sorted(cities_of(message)) == sorted(CITIES)
    offered = upstream.bodies()[0]["tools"]
    assert WEATHER["function"]["parameters"] in [t["function"]["parameters"] for t in offered]

    partial = with_results(message, *CITIES)[:-1]
    status, _, reply = await calling.post(ASK_CALLING | {"messages": partial})
    assert (status, reply["error"]["code"]) == (400, "tool_results_missing")
    assert message["tool_calls"][-1]["id"] in reply["error"]["message"]

    backwards = with_results(message, *(f"in {city}" for city in cities_of(message)))
    backwards[2:] = reversed(backwards[2:])
    _, _, reply = await calling.post(ASK_CALLING | {"messages": backwards})
    assert message_of(reply)["content"].endswith("all")
    seen = json.dumps(upstream.bodies()[1]["messages"])
    assert all(f"in {city}" in seen for city in CITIES)


async def test_calls_that_are_not_to_be_parallel_come_one_by_one(calling: Gateway) -> None:
    ask = ASK_CALLING | {"parallel_tool_calls": False}
    _, _, reply = await calling.post(ask)
    messages, asked = list(USER), []
    for _ in CITIES:
        (city,) = cities_of(message_of(reply))
        asked.append(city)
        messages = with_results(message_of(reply), "fine", before=messages)
        _, _, reply = await calling.post(ask | {"messages": messages})
    assert sorted(asked) == sorted(CITIES)
    assert message_of(reply)["content"].endswith("all")


async def test_a_call_of_several_that_cannot_be_made_does_not_keep_the_others_waiting(
    upstream: FakeUpstream, calling: Gateway
) -> None:
    replies = [
        calls_by_name(("get_weather", {"city": "Paris"}), ("get_weather", {})),
        calls_by_name(("final_answer", {"answer": "all"})),
    ]

    async def handler(request: Any) -> Any:
        return await raw_reply([replies[len(upstream.requests) - 1]])(request)

    upstream.handler = handler
    _, _, reply = await calling.post(ASK_CALLING)
    assert cities_of(message_of(reply)) == ["Paris"]
    messages = with_results(message_of(reply), "warm")
    _, _, reply = await calling.post(ASK_CALLING | {"messages": messages})
    assert message_of(reply)["content"].endswith("all")


async def test_json_that_a_tool_gives_is_an_object_for_code_and_text_stays_text(
    upstream: FakeUpstream, gateway: Gateway
) -> None:
    upstream.handler = scripted(
        by_turn(code("w = get_weather(city='Paris', unit='C')\nfinal_answer(str(w['t'] + 1))"))
    )
    _, _, reply = await gateway.post(ASK)
    arguments = message_of(reply)["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments) == {"city": "Paris", "unit": "C"}
    parts: Any = [{"type": "text", "text": '{"t":'}, {"type": "text", "text": "23}"}]
    messages = with_results(message_of(reply), parts)
    _, _, reply = await gateway.post(ASK | {"messages": messages})
    assert message_of(reply)["content"].endswith("24")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("get_weather()", "needs city"),
        ("get_weather('a', 'C', 3)", "at most 2"),
        ("get_weather('a', city='b')", "twice"),
        ("get_weather(city='a', wind=1)", "no argument wind"),
        ("get_weather(city={1, 2})", "only what JSON can say"),
        ("get_weather(city='a', unit='K')", "do not fit"),
    ],
)
async def test_arguments_that_cannot_be_sent_are_the_agents_to_mend(
    upstream: FakeUpstream, gateway: Gateway, call: str, says: str
) -> None:
    upstream.handler = scripted(by_turn(code(call), code("final_answer('mended')")))
    weather = function(**WEATHER["function"], strict=True)
    _, _, reply = await gateway.post(ASK | {"tools": [weather]})
    assert message_of(reply)["content"].endswith("mended")
    assert says in upstream.bodies()[1]["messages"][-1]["content"]


async def paused(gateway: Gateway, **kwargs: Any) -> dict[str, Any]:
    """A run that waits for its client; the message with its calls."""
    status, _, reply = await gateway.post(ASK, **kwargs)
    assert status == 200
    assert reply["choices"][0]["finish_reason"] == "tool_calls"
    return message_of(reply)


async def refused(
    gateway: Gateway, messages: list[dict[str, Any]], **kwargs: Any
) -> dict[str, Any]:
    for streaming in (False, True):
        status, _, reply = await gateway.post(
            ASK | {"messages": messages, "stream": streaming}, **kwargs
        )
        assert status == 400
        assert reply["error"]["type"] == "invalid_request_error"
    error: dict[str, Any] = reply["error"]
    return error


async def test_results_that_nobody_waits_for_are_refused(gateway: Gateway) -> None:
    message = await paused(gateway)
    messages = with_results(message, "warm")
    stranger = {"role": "tool", "tool_call_id": "call_stranger", "content": "x"}

    error = await refused(gateway, [*messages[:-1], stranger])
    assert (error["code"], error["param"]) == ("tool_call_not_found", "messages.2.tool_call_id")
    assert "no call that was made here" in error["message"]

    error = await refused(gateway, [*messages, stranger])
    assert error["param"] == "messages.3.tool_call_id"

    error = await refused(gateway, [*messages, messages[-1]])
    assert "given already" in error["message"]

    error = await refused(gateway, [*messages[:-1], {"role": "tool", "content": "x"}])
    assert error["param"] == "messages.2.tool_call_id"

    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    error = await refused(gateway, [*messages[:-1], messages[-1] | {"content": [image]}])
    assert error["param"] == "messages.2.content"

    other = await paused(gateway)
    both = [*messages, *with_results(other, "cold")[-1:]]
    error = await refused(gateway, both)
    assert "another run" in error["message"]

    status, _, _ = await gateway.post(ASK | {"messages": messages})
    assert status == 200  # all that was refused changed nothing
    error = await refused(gateway, messages)
    assert "was answered already" in error["message"]


async def test_another_keys_results_are_nobodys(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(by_turn(*ONE_CALL))
    gateway = await make_gateway(api_keys=("one", "two"))
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    messages = with_results(await paused(gateway, headers=one), "warm")
    error = await refused(gateway, messages, headers=two)
    assert "no call that was made here" in error["message"]
    status, _, _ = await gateway.post(ASK | {"messages": messages}, headers=one)
    assert status == 200
    error = await refused(gateway, messages, headers=two)
    assert "no call that was made here" in error["message"]


async def test_a_client_that_never_comes_back_ends_the_run_in_time(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(by_turn(*ONE_CALL))
    gateway = await make_gateway(tool_result_seconds=0.1)
    messages = with_results(await paused(gateway), "warm")
    supervisor = gateway.app[SUPERVISOR]
    await until(lambda: not supervisor.runs)
    assert supervisor.running == 0
    error = await refused(gateway, messages)
    assert "given up after 0.1 seconds" in error["message"]


async def test_a_paused_run_has_no_slot_and_its_time_stands_still(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(by_turn(*ONE_CALL))
    gateway = await make_gateway(max_running=1, run_seconds=3.0)
    waiting = [await paused(gateway) for _ in range(3)]
    supervisor = gateway.app[SUPERVISOR]
    assert [run.state for run in supervisor.runs.values()] == ["paused"] * 3
    async with gateway.session.get(gateway.base + "/v1/runs") as response:
        listed = (await response.json())["data"]
    assert {run["status"] for run in listed} == {"paused"}
    await asyncio.sleep(3.1)  # longer than a run may take
    replies = await asyncio.gather(
        *(gateway.post(ASK | {"messages": with_results(m, "warm")}) for m in waiting)
    )
    assert [status for status, _, _ in replies] == [200] * 3
    await until(lambda: not supervisor.runs)
    assert supervisor.running == supervisor.queued == 0


async def test_the_deadline_goes_on_with_the_run(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    never = asyncio.Event()
    upstream.handler = scripted(by_turn(*ONE_CALL))
    gateway = await make_gateway(run_seconds=2.0)
    messages = with_results(await paused(gateway), "warm")
    upstream.handler = scripted(lambda m: "x", gate=never)
    status, _, reply = await gateway.post(ASK | {"messages": messages})
    assert (status, reply["error"]["code"]) == (504, "deadline_exceeded")
    await until(lambda: gateway.app[SUPERVISOR].running == 0)


async def test_a_run_that_goes_on_waits_for_a_slot_before_those_that_have_not_begun(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gate = asyncio.Event()
    free, gated = (
        scripted(by_turn(*ONE_CALL)),
        scripted(lambda m: code("final_answer('x')"), gate=gate),
    )
    upstream.handler = free
    gateway = await make_gateway(max_running=1)
    supervisor = gateway.app[SUPERVISOR]
    messages = with_results(await paused(gateway), "warm")
    upstream.handler = gated
    running = asyncio.ensure_future(gateway.post(ASK))
    await until(lambda: len(upstream.requests) == 2)
    queued = asyncio.ensure_future(gateway.post(ASK))
    await until(lambda: supervisor.queued == 1)
    resumed = asyncio.ensure_future(gateway.post(ASK | {"messages": messages}))
    await until(lambda: supervisor.queued == 2)
    gate.set()
    assert [reply[0] for reply in await asyncio.gather(running, queued, resumed)] == [200] * 3
    assert ["warm" in json.dumps(body) for body in upstream.bodies()[2:]] == [True, False]
    await until(lambda: not supervisor.runs)
    assert supervisor.running == supervisor.queued == 0


async def test_only_so_many_runs_may_be_paused(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(by_turn(*ONE_CALL))
    gateway = await make_gateway(max_paused=1)
    await paused(gateway)
    status, headers, reply = await gateway.post(ASK)
    assert (status, reply["error"]["code"]) == (429, "too_many_paused")
    assert headers["x-should-retry"] == "false"  # work was done
    await until(lambda: len(gateway.app[SUPERVISOR].runs) == 1)


@pytest.mark.every_runner
async def test_a_paused_run_can_be_cancelled_by_either_id(
    upstream: FakeUpstream, gateway: Gateway
) -> None:
    upstream.handler = scripted(
        lambda m: code("print(get_weather('Paris'))") if len(m) < 9 else code("final_answer('x')")
    )
    for legs in (0, 1):
        _, _, reply = await gateway.post(ASK)
        messages = USER
        for _ in range(legs):
            messages = with_results(message_of(reply), "warm", before=messages)
            _, _, reply = await gateway.post(ASK | {"messages": messages})
        url = f"{gateway.base}/v1/runs/{reply['id']}/cancel"
        async with gateway.session.post(url) as response:
            assert response.status == 200
        supervisor = gateway.app[SUPERVISOR]
        await until(lambda: not supervisor.runs)  # noqa: B023
        error = await refused(gateway, with_results(message_of(reply), "late", before=messages))
        assert "by a run that has ended" in error["message"]


async def test_a_drain_gives_paused_runs_their_time_and_then_ends_them(
    upstream: FakeUpstream, gateway: Gateway
) -> None:
    first = with_results(await paused(gateway), "warm")
    await paused(gateway)
    supervisor = gateway.app[SUPERVISOR]
    draining = asyncio.ensure_future(drain(gateway.app, 3.0))
    await until(lambda: supervisor.draining)
    status, _, reply = await gateway.post(ASK)
    assert (status, reply["error"]["code"]) == (503, "draining")
    status, _, reply = await gateway.post(ASK | {"messages": first})
    assert status == 200
    assert message_of(reply)["content"].endswith("sunny: warm")
    await until(lambda: len(supervisor.runs) == 1)  # its work ends a little after its answer
    (left,) = supervisor.runs.values()
    assert left.state == "paused"
    await draining
    assert not supervisor.runs
    assert supervisor.running == 0


async def test_a_client_that_leaves_in_a_later_leg_ends_the_run(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    never = asyncio.Event()
    upstream.handler = scripted(by_turn(*ONE_CALL))
    gateway = await make_gateway()
    messages = with_results(await paused(gateway), "warm")
    upstream.handler = scripted(lambda m: "x" * 40, gate=never)
    asking = asyncio.ensure_future(gateway.post(ASK | {"messages": messages}))
    await until(lambda: len(upstream.requests) == 2)
    asking.cancel()
    supervisor = gateway.app[SUPERVISOR]
    await until(lambda: not supervisor.runs)
    await asyncio.wait_for(upstream.closed.wait(), 10)
    assert supervisor.running == 0


async def test_a_client_that_leaves_before_it_is_told_of_the_calls_ends_the_run(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gate = asyncio.Event()
    upstream.handler = scripted(by_turn(*ONE_CALL), gate=gate, pieces=1000)
    gateway = await make_gateway()
    supervisor = gateway.app[SUPERVISOR]
    asking = asyncio.ensure_future(gateway.post(ASK | {"stream": True}))
    await until(lambda: upstream.requests)
    (run,) = supervisor.runs.values()
    asking.cancel()
    gate.set()
    await until(lambda: not supervisor.runs)
    assert run.outcome == "client_gone"


async def test_results_that_are_sent_again_join_the_leg_that_they_began(
    upstream: FakeUpstream, gateway: Gateway
) -> None:
    named = {"Idempotency-Key": "first"}
    message = await paused(gateway, headers=named)
    assert await paused(gateway, headers=named) == message  # the same calls, not a second run
    messages = with_results(message, "warm")
    named = {"Idempotency-Key": "second"}
    replies = [await gateway.post(ASK | {"messages": messages}, headers=named) for _ in range(2)]
    assert [status for status, _, _ in replies] == [200, 200]
    assert replies[0][2] == replies[1][2]
    assert len(upstream.requests) == 2
    assert await paused(gateway, headers={"Idempotency-Key": "first"}) == message


async def test_an_sdks_retry_of_the_results_joins_the_leg_under_way(
    upstream: FakeUpstream, gateway: Gateway
) -> None:
    messages = with_results(await paused(gateway), "warm")
    gate = asyncio.Event()
    upstream.handler = scripted(by_turn(*ONE_CALL), gate=gate)
    ask = ASK | {"messages": messages}
    asking = [asyncio.ensure_future(gateway.post(ask, headers={"x-stainless-retry-count": "0"}))]
    await until(lambda: len(upstream.requests) == 2)
    asking.append(
        asyncio.ensure_future(gateway.post(ask, headers={"x-stainless-retry-count": "1"}))
    )
    (run,) = gateway.app[SUPERVISOR].runs.values()
    await until(lambda: run.readers == 2)
    gate.set()
    first, second = await asyncio.gather(*asking)
    assert first[0] == second[0] == 200
    assert first[2] == second[2]
    assert len(upstream.requests) == 2


async def test_a_run_that_paused_unattended_tells_of_its_calls_to_who_comes_back(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gate = asyncio.Event()
    upstream.handler = scripted(by_turn(*ONE_CALL), gate=gate)
    gateway = await make_gateway()
    headers = {"Idempotency-Key": "mine", "X-On-Disconnect": "finish"}
    leaving = asyncio.ensure_future(gateway.post(ASK | {"stream": True}, headers=headers))
    await until(lambda: upstream.requests)
    (run,) = gateway.app[SUPERVISOR].runs.values()
    leaving.cancel()
    await until(lambda: not run.readers)
    gate.set()
    await until(lambda: run.state == "paused")
    events = await gateway.stream(ASK, headers=headers)
    call = {"id": _call_id(events), "function": {"name": "get-weather"}}
    messages = with_results({"role": "assistant", "tool_calls": [call]}, "warm")
    _, _, reply = await gateway.post(ASK | {"messages": messages})
    assert message_of(reply)["content"].endswith("sunny: warm")


async def test_thirty_runs_on_four_slots_get_each_its_own_results(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(
        lambda m: code("a = get_weather('one')\nb = get_weather('two')\nfinal_answer(a + b)"),
        pieces=1000,
    )
    gateway = await make_gateway(max_running=4)

    async def one(number: int) -> None:
        messages = USER
        for name in ("one", "two"):
            _, _, reply = await gateway.post(ASK | {"messages": messages})
            assert cities_of(message_of(reply)) == [name]
            messages = with_results(message_of(reply), f"<{number} {name}>", before=messages)
        _, _, reply = await gateway.post(ASK | {"messages": messages})
        assert message_of(reply)["content"].endswith(f"<{number} one><{number} two>")

    await asyncio.gather(*map(one, range(30)))
    supervisor = gateway.app[SUPERVISOR]
    await until(lambda: not supervisor.runs)
    assert supervisor.running == supervisor.queued == 0
    assert len(upstream.requests) == 30


async def test_a_tool_of_the_agent_keeps_its_name(make_gateway: MakeGateway) -> None:
    @tool
    def get_weather(city: str) -> str:
        """The agent's own.

        Args:
            city: its name
        """
        return city

    gateway = await make_gateway(
        {"own": lambda context: CodeAgent(tools=[get_weather], model=context.model)}
    )
    for name, model in (("get-weather", "own"), ("final_answer", "code-writing-agent")):
        tools = [function(name)]
        status, _, reply = await gateway.post({"model": model, "messages": USER, "tools": tools})
        assert status == 400
        assert reply["error"]["param"] == "tools"
        assert name in reply["error"]["message"]


@pytest.mark.parametrize("name", ["print", "class", "2nd", "a-b", "list"])
async def test_a_name_that_code_cannot_call_is_changed_for_the_code_alone(
    upstream: FakeUpstream, gateway: Gateway, name: str
) -> None:
    python = {"print": "print_", "class": "class_", "2nd": "_2nd", "a-b": "a_b", "list": "list_"}
    upstream.handler = scripted(by_turn(code(f"print('ok')\nfinal_answer({python[name]}())")))
    tools = [function(name)]
    _, _, reply = await gateway.post(ASK | {"tools": tools})
    assert message_of(reply)["tool_calls"][0]["function"] == {"name": name, "arguments": "{}"}
    _, _, reply = await gateway.post(ASK | {"messages": with_results(message_of(reply), "done")})
    assert message_of(reply)["content"].endswith("done")


async def test_tool_choice_is_honoured(upstream: FakeUpstream, gateway: Gateway) -> None:
    both = ASK | {"tools": [WEATHER, function("other")]}
    upstream.handler = scripted(lambda m: code("final_answer('at once')"))

    _, _, reply = await gateway.post(both | {"tool_choice": "none"})
    assert message_of(reply)["content"].endswith("at once")
    assert "get_weather" not in json.dumps(upstream.bodies()[-1])

    await gateway.post(both | {"tool_choice": allowed("auto", function("other"))})
    assert "def other" in json.dumps(upstream.bodies()[-1])
    assert "get_weather" not in json.dumps(upstream.bodies()[-1])

    for choice in ("required", function("get-weather")):
        upstream.handler = scripted(lambda m: code("final_answer('at once')"))
        status, _, reply = await gateway.post(both | {"tool_choice": choice})
        assert (status, reply["error"]["code"]) == (500, "answer_refused")
        assert "get_weather" in reply["error"]["message"]
        upstream.handler = scripted(
            by_turn(code("final_answer('at once')"), code("final_answer(get_weather('Rome'))"))
        )
        _, _, reply = await gateway.post(both | {"tool_choice": choice})
        messages = with_results(message_of(reply), "warm")
        _, _, reply = await gateway.post(both | {"tool_choice": choice, "messages": messages})
        assert message_of(reply)["content"].endswith("warm")


def allowed(mode: str, *tools: Any) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": list(tools)}}


NO_SCHEMA = {"properties": {"a": {"type": "nonsense"}}}


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools.0.type", "function"),
        ({"tools": [{"type": "function"}]}, "tools.0.type", "function"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools.0.function.name", "name"),
        ({"tools": [WEATHER, WEATHER]}, "tools.1.function.name", "second time"),
        ({"tools": [WEATHER] * 129}, "tools", "at most 128"),
        ({"tools": {}}, "tools", "array"),
        ({"tools": [function("no spaces")]}, "tools.0.function.name", "letters, digits"),
        ({"tools": [function("")]}, "tools.0.function.name", "1 to 64"),
        (
            {"tools": [function("x", parameters={"type": "array"})]},
            "tools.0.function.parameters.type",
            "object",
        ),
        (
            {"tools": [function("x", parameters={"properties": []})]},
            "tools.0.function.parameters.properties",
            "object",
        ),
        (
            {"tools": [function("x", strict=True, parameters=NO_SCHEMA)]},
            "tools.x.parameters",
            "no JSON schema",
        ),
        ({"tool_choice": "maybe"}, "tool_choice", "none, auto, required"),
        ({"tool_choice": "required", "tools": []}, "tool_choice", "only where there are"),
        ({"tool_choice": function("nobody")}, "tool_choice", "'nobody'"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice.type", "function or allowed_tools"),
        ({"tool_choice": allowed("x")}, "tool_choice.allowed_tools.mode", "auto or required"),
        ({"tool_choice": allowed("auto", function("nobody"))}, "tool_choice", "'nobody'"),
        ({"tool_choice": allowed("required")}, "tool_choice", "only where there are"),
        ({"n": 2}, "n", "must be 1"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls", "bool"),
    ],
)
async def test_tools_that_cannot_be_are_refused_by_name(
    upstream: FakeUpstream, gateway: Gateway, fields: dict[str, Any], param: str, says: str
) -> None:
    status, _, reply = await gateway.post(ASK | fields)
    assert status == 400
    assert reply["error"]["param"] == param
    assert says in reply["error"]["message"]
    assert not upstream.requests


@pytest.mark.every_runner
async def test_a_long_call_comes_in_pieces_and_tools_wait_in_a_jail_too(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(
        by_turn(code("r = get_weather('é' * 100_000)\nfinal_answer(r)")), pieces=1000
    )
    gateway = await make_gateway(jail="required", step_seconds=1.0)
    async with gateway.session.post(
        gateway.base + "/v1/chat/completions", json=ASK | {"stream": True}
    ) as response:
        raw = await response.read()
    assert max(map(len, raw.split(b"\n\n"))) < 64 * 1024
    calls = [
        call
        for event in events_of(raw)[:-1]
        for call in event["choices"][0]["delta"].get("tool_calls", ())
    ]
    arguments = "".join(call["function"]["arguments"] for call in calls)
    assert json.loads(arguments) == {"city": "é" * 100_000}
    await asyncio.sleep(1.1)  # longer than the code of a step may take
    message = {"role": "assistant", "tool_calls": [calls[0] | {"function": {"name": "x"}}]}
    status, _, reply = await gateway.post(ASK | {"messages": with_results(message, "waited")})
    assert status == 200
    assert message_of(reply)["content"].endswith("waited")
