"""What translated responses go on from: kept responses and conversations, each key's own."""

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from aiohttp import web
from conftest import FakeUpstream, Gateway, Handler, MakeGateway, chunk, raw_reply

from server import response_history
from server.keys import PRESENCE, STORE
from streaming.store import Conversation, Record, StoreFailed

PATH = "/v1/responses"
ASK = {"model": "up/model", "input": "go"}
DONE = b"data: [DONE]\n\n"


def sse(*events: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)


def chat_only(reply: Callable[[list[Any]], str]) -> Handler:
    """Without /responses; answers with what `reply` makes of the messages."""

    async def handler(request: web.Request) -> web.StreamResponse:
        if not request.path.endswith("/chat/completions"):
            return web.json_response({"detail": "Not Found"}, status=404)
        asked = json.loads(await request.read())
        text = reply(asked["messages"])
        finish = {"index": 0, "finish_reason": "stop"}
        if not asked.get("stream"):
            return web.json_response({"choices": [finish | {"message": {"content": text}}]})
        data = sse(chunk(reasoning_content="Hm."), chunk(content=text))
        data += sse({"choices": [finish | {"delta": {}}]}) + DONE
        return web.Response(body=data, content_type="text/event-stream")

    return handler


def contents(messages: list[Any]) -> str:
    return " | ".join(str(message["content"]) for message in messages)


async def post(gateway: Gateway, body: Any, key: str | None = None) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with gateway.session.post(gateway.base + PATH, json=body, headers=headers) as response:
        return response.status, await response.json()


@pytest.mark.parametrize("model", ["up/model", "up/model-nothink"])
async def test_three_turns_go_on_from_each_other_whole_and_streamed(
    upstream: FakeUpstream, make_gateway: MakeGateway, model: str
) -> None:
    upstream.handler = chat_only(lambda messages: f"answer {len(messages)}")
    gateway = await make_gateway(nothink_directive="")
    async with openai.AsyncOpenAI(base_url=f"{gateway.base}/v1", api_key="none") as client:
        first = await client.responses.create(model=model, input="one", instructions="Be brief.")
        assert first.to_dict()["store"] is True
        async with client.responses.stream(
            model=model, input="two", previous_response_id=first.id
        ) as events:
            second = await events.get_final_response()
        assert second.to_dict()["store"] is True
        third = await client.responses.create(
            model=model, input="three", previous_response_id=second.id
        )
    assert third.previous_response_id == second.id
    # Instructions are for one response alone, and old thoughts for none.
    assert [contents(body["messages"]) for body in upstream.bodies() if "messages" in body][
        -3:
    ] == [
        "Be brief. | one",
        "one | answer 2 | two",
        "one | answer 2 | two | answer 3 | three",
    ]
    record = await gateway.app[STORE].get(third.id, "")
    assert record is not None
    assert (record.kind, record.status, record.previous) == ("response", "completed", second.id)
    assert json.loads(record.body) == third.to_dict()
    (item,) = json.loads(record.input)
    assert item == {
        "type": "message",
        "role": "user",
        "content": [{"type": "input_text", "text": "three"}],
        "id": f"msg_{third.id.partition('_')[2]}_in0",
        "status": "completed",
    }


async def test_a_kept_response_can_be_had_listed_and_deleted(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = chat_only(contents)
    gateway = await make_gateway()
    async with openai.AsyncOpenAI(base_url=f"{gateway.base}/v1", api_key="none") as client:
        made = await client.responses.create(model="up/model", input="go")
        assert (await client.responses.retrieve(made.id)).to_dict() == made.to_dict()
        listed = await client.responses.input_items.list(made.id)
        assert [item.to_dict()["content"] for item in listed.data] == [
            [{"type": "input_text", "text": "go"}]
        ]
        await client.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await client.responses.retrieve(made.id)


async def test_an_agent_and_an_upstream_go_on_from_each_other(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    """Both ways: the upstream is told the agent's answer, the agent the upstream's."""
    upstream.handler = chat_only(lambda messages: "<code>\nfinal_answer('forty')\n</code>")
    gateway = await make_gateway()
    _, first = await post(gateway, {"model": "code-writing-agent", "input": "one"})
    _, second = await post(
        gateway, ASK | {"input": "two", "previous_response_id": first["id"], "store": True}
    )
    assert contents(upstream.bodies()[-1]["messages"]) == "one | forty | two"
    status, third = await post(
        gateway,
        {"model": "code-writing-agent", "input": "three", "previous_response_id": second["id"]},
    )
    assert (status, third["status"]) == (200, "completed")
    told = contents(upstream.bodies()[-1]["messages"])
    assert all(turn in told for turn in ("one", "forty", "two", "three"))


async def test_what_is_not_to_be_kept_or_was_not_finished_is_not(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = chat_only(contents)
    gateway = await make_gateway(upstream_responses="translate")
    status, told = await post(gateway, ASK | {"store": False})
    assert (status, told["store"]) == (200, False)
    upstream.handler = raw_reply([sse(chunk(content="h"))])
    async with gateway.session.post(gateway.base + PATH, json=ASK | {"stream": True}) as response:
        last = (await response.text()).strip().split("\n\n")[-1]
    failed = json.loads(last.partition("data: ")[2])["response"]
    assert (failed["status"], failed["store"]) == ("failed", False)
    assert await gateway.app[STORE].records("", "response") == []
    status, told = await post(gateway, ASK | {"previous_response_id": failed["id"]})
    assert (status, told["error"]["code"]) == (400, "previous_response_not_found")


async def test_a_key_goes_on_from_its_own_alone(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = chat_only(contents)
    gateway = await make_gateway(api_keys=("key-a-0000000000", "key-b-0000000000"))
    _, told = await post(gateway, ASK, "key-a-0000000000")
    again = ASK | {"previous_response_id": told["id"]}
    status, error = await post(gateway, again, "key-b-0000000000")
    assert (status, error["error"]["param"]) == (400, "previous_response_id")
    assert error["error"]["code"] == "previous_response_not_found"
    assert (await post(gateway, again, "key-a-0000000000"))[0] == 200


async def test_an_upstream_with_the_api_goes_on_from_its_own_and_is_translated_for_ours(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    async def both(request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/responses"):
            return web.json_response({"id": "resp_theirs"})
        return await chat_only(contents)(request)

    upstream.handler = both
    gateway = await make_gateway()
    asked = ASK | {"previous_response_id": "resp_theirs", "conversation": None}
    assert await post(gateway, asked) == (200, {"id": "resp_theirs"})
    assert upstream.bodies()[-1] == asked
    _, ours = await post(gateway, ASK | {"model": "up/model-nothink"})
    _, told = await post(gateway, ASK | {"previous_response_id": ours["id"]})
    assert told["output"][0]["content"][0]["text"] == "go | go\n/nothink | go"


async def test_a_conversation_is_gone_on_from_and_added_to(
    upstream: FakeUpstream, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(response_history, "PAGE_ITEMS", 3)
    upstream.handler = chat_only(lambda messages: f"answer {len(messages)}")
    gateway = await make_gateway()
    await gateway.app[PRESENCE].arrive()
    await gateway.app[STORE].create_conversation(Conversation(id="conv_1", owner=""))
    for named in ("conv_1", {"id": "conv_1"}, "conv_1"):
        _, told = await post(gateway, ASK | {"conversation": named})
        assert told["conversation"] == {"id": "conv_1"}
        assert told["store"] is True
    assert contents(upstream.bodies()[-1]["messages"]) == "go | answer 1 | go | answer 3 | go"
    items = await gateway.app[STORE].items("conv_1", "")
    assert [json.loads(item)["role"] for _, item in items] == ["user", "assistant"] * 3
    status, told = await post(gateway, ASK | {"conversation": "conv_2"})
    assert (status, told["error"]["code"]) == (400, "conversation_not_found")
    status, told = await post(
        gateway, ASK | {"conversation": "conv_1", "previous_response_id": "resp_1"}
    )
    assert (status, told["error"]["param"]) == (400, "conversation")


async def test_what_cannot_be_gone_on_from_is_refused(
    upstream: FakeUpstream, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.handler = chat_only(contents)
    gateway = await make_gateway()
    ids: list[str] = []
    for _ in range(3):
        more = {"previous_response_id": ids[-1]} if ids else {}
        ids.append((await post(gateway, ASK | more))[1]["id"])
    again = ASK | {"previous_response_id": ids[-1]}
    monkeypatch.setattr(response_history, "MAX_TURNS", 2)
    status, told = await post(gateway, again)
    assert (status, "more than fits" in told["error"]["message"]) == (400, True)
    monkeypatch.undo()
    await gateway.app[STORE].delete(ids[0], "")
    status, told = await post(gateway, again)
    assert (status, ids[0] in told["error"]["message"]) == (400, True)
    running = Record(id="resp_1", owner="", kind="response", run="r", front_end="f")
    await gateway.app[PRESENCE].create(running)
    status, told = await post(gateway, ASK | {"previous_response_id": "resp_1"})
    assert (status, "has not ended" in told["error"]["message"]) == (400, True)


async def test_a_store_that_fails_loses_no_answer_and_is_told(
    upstream: FakeUpstream, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any, **__: Any) -> None:
        raise StoreFailed("The disk is full.")

    upstream.handler = chat_only(contents)
    gateway = await make_gateway()
    monkeypatch.setattr(gateway.app[STORE], "create", fail)
    status, told = await post(gateway, ASK)
    assert (status, told["status"], told["store"]) == (200, "completed", False)
    async with gateway.session.post(gateway.base + PATH, json=ASK | {"stream": True}) as response:
        last = (await response.text()).strip().split("\n\n")[-1]
    event = json.loads(last.partition("data: ")[2])
    assert (event["type"], event["response"]["store"]) == ("response.completed", False)
    monkeypatch.setattr(gateway.app[STORE], "get", fail)
    status, told = await post(gateway, ASK | {"previous_response_id": "resp_1"})
    assert (status, told["error"]["code"]) == (503, "store_unavailable")
