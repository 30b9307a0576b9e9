"""Responses that are kept: what an agent remembers, had again, in the background, cancelled, deleted, whose they are."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import FakeUpstream, Gateway, MakeGateway, chunk, scripted, until
from response_rules import check_response, check_stream, events_in
from test_server_responses import answers, ask, streamed, text_of

from server.keys import SUPERVISOR

FIRST = """<code>
import math
class Box:
    pass
def area(r):
    return math.pi * r * r
radius = 2
names = ['a', 'b']
crate = Box()
final_answer('kept')
</code>"""
CODE_OF_TURN = {
    "first": FIRST,
    "second": answers("nothing done"),
    "third": "<code>\nfinal_answer(f'{round(area(radius), 2)} {names} {isinstance(Box(), Box)}')\n</code>",
    "lost": "<code>\ntry:\n    final_answer(crate)\nexcept Exception as error:\n    final_answer('lost')\n</code>",
}


def by_turn(messages: list[dict[str, Any]]) -> str:
    """What a model writes for the last task that it was given."""
    said = "\n".join(_text(message["content"]) for message in messages)
    return CODE_OF_TURN[said.rpartition("New task:\n")[2].split("\n")[0].strip()]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part.get("text", "") for part in content)


async def get(gateway: Gateway, path: str, method: str = "GET", **options: Any) -> tuple[int, Any]:
    async with gateway.session.request(method, f"{gateway.base}/v1{path}", **options) as response:
        return response.status, json.loads(await response.read())


async def get_events(gateway: Gateway, response_id: str, after: int | None = None) -> list[Any]:
    query = "" if after is None else f"&starting_after={after}"
    url = f"{gateway.base}/v1/responses/{response_id}?stream=true{query}"
    async with gateway.session.get(url) as response:
        assert response.status == 200, await response.text()
        events = events_in(await response.read())
    check_stream(events, start=0 if after is None else after + 1)
    return events


class Held:
    """A model that writes a word, and goes on when it is let."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(f"data: {json.dumps(chunk(content='Well. '))}\n\n".encode())
        self.begun.set()
        await self.gate.wait()
        data = json.dumps(chunk(content=answers("done")))
        await response.write(f"data: {data}\n\ndata: [DONE]\n\n".encode())
        return response


@pytest.mark.every_runner
async def test_variables_functions_and_imports_of_the_first_turn_are_there_in_the_third(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(by_turn, pieces=1000)
    gateway = await make_gateway()
    await remembers(upstream, gateway)


async def test_what_was_in_a_jail_is_in_the_next_one(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(by_turn, pieces=1000)
    gateway = await make_gateway(jail="required")
    await remembers(upstream, gateway)


async def remembers(upstream: FakeUpstream, gateway: Gateway) -> None:
    _, first = await ask(gateway, {"input": "first"})
    _, second = await ask(gateway, {"input": "second", "previous_response_id": first["id"]})
    _, third = await ask(gateway, {"input": "third", "previous_response_id": second["id"]})
    assert text_of(third) == "12.57 ['a', 'b'] True"
    assert third["previous_response_id"] == second["id"]
    # An instance of the agent's own class cannot be kept, and the model is told so.
    said = json.dumps(upstream.bodies()[-1]["messages"])
    assert "could not be kept: crate." in said
    assert "Still defined in Python: " in said
    assert "radius = 2" in said  # the step itself is remembered
    _, lost = await ask(gateway, {"input": "lost", "previous_response_id": third["id"]})
    assert text_of(lost) == "lost"
    # A response may be gone on from more than once.
    _, again = await ask(gateway, {"input": "third", "previous_response_id": first["id"]})
    assert text_of(again) == "12.57 ['a', 'b'] True"


async def test_a_conversation_remembers_over_three_turns_and_a_restart(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    upstream.handler = scripted(by_turn, pieces=1000)
    store = f"sqlite:{tmp_path}/store.sqlite3"
    gateway = await make_gateway(store=store)
    _, conversation = await get(gateway, "/conversations", "POST", json={"metadata": {"a": "b"}})
    body = {"conversation": conversation["id"]}
    for turn in ("first", "second"):
        _, told = await ask(gateway, body | {"input": turn})
        assert told["conversation"] == {"id": conversation["id"]}
    other = await make_gateway(store=store)
    events = await streamed(other, body | {"input": "third"})
    assert text_of(events[-1]["response"]) == "12.57 ['a', 'b'] True"
    _, items = await get(other, f"/conversations/{conversation['id']}/items?order=asc")
    kinds = [(item["type"], item.get("role")) for item in items["data"]]
    assert (
        kinds
        == [*(("message", "user"), ("code_interpreter_call", None), ("message", "assistant"))] * 3
    )


async def test_without_a_memory_the_items_are_told(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda messages: answers("ok"))
    gateway = await make_gateway()
    items = [
        {"role": "user", "content": "I am Ada."},
        {"role": "assistant", "content": "Hello Ada!"},
    ]
    _, conversation = await get(gateway, "/conversations", "POST", json={"items": items})
    await ask(gateway, {"conversation": conversation["id"], "input": "Who am I?"})
    said = json.dumps(upstream.bodies()[-1]["messages"])
    assert said.index("I am Ada.") < said.index("Hello Ada!") < said.index("Who am I?")


async def test_a_deleted_item_is_not_remembered(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda messages: answers("ok"))
    gateway = await make_gateway()
    _, conversation = await get(gateway, "/conversations", "POST")
    path = f"/conversations/{conversation['id']}/items"
    await ask(gateway, {"conversation": conversation["id"], "input": "My secret is 42."})
    _, items = await get(gateway, f"{path}?order=asc")
    status, _ = await get(gateway, f"{path}/{items['data'][0]['id']}", "DELETE")
    assert status == 200
    await ask(gateway, {"conversation": conversation["id"], "input": "What is it?"})
    said = json.dumps(upstream.bodies()[-1]["messages"])
    assert "My secret" not in said
    assert "ran code" in said


async def test_a_kept_response_can_be_had_again_listed_and_deleted(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda messages: answers("ok"))
    gateway = await make_gateway()
    content = [{"type": "input_text", "text": f"part {i}"} for i in range(3)]
    items = [{"role": "user", "content": [part]} for part in content]
    events = await streamed(gateway, {"input": items})
    response = events[-1]["response"]
    path = f"/responses/{response['id']}"
    assert await get(gateway, path) == (200, response)
    assert await get_events(gateway, response["id"]) == events
    assert await get_events(gateway, response["id"], 4) == events[5:]
    status, told = await get(gateway, f"{path}?stream=true&starting_after=999")
    assert (status, told["error"]["param"]) == (400, "starting_after")
    _, page = await get(gateway, f"{path}/input_items?order=asc&limit=2")
    assert [item["content"] for item in page["data"]] == [[part] for part in content[:2]]
    assert page["has_more"]
    _, rest = await get(gateway, f"{path}/input_items?order=asc&after={page['last_id']}")
    assert [item["content"] for item in rest["data"]] == [[content[2]]]
    assert not rest["has_more"]
    _, newest = await get(gateway, f"{path}/input_items?limit=1")
    assert newest["data"] == rest["data"]
    deleted = {"id": response["id"], "object": "response", "deleted": True}
    assert await get(gateway, path, "DELETE") == (200, deleted)
    for method, of in (("GET", path), ("DELETE", path), ("GET", f"{path}/input_items")):
        assert (await get(gateway, of, method))[0] == 404


async def test_what_is_not_to_be_stored_is_not(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    upstream.handler = scripted(lambda messages: answers("ok"))
    gateway = await make_gateway(store=f"sqlite:{tmp_path}/store.sqlite3")
    _, response = await ask(gateway, {"input": "go", "store": False})
    assert not os.listdir(tmp_path)
    assert (await get(gateway, f"/responses/{response['id']}"))[0] == 404


async def test_in_the_background_a_run_is_polled_and_streamed(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = held = Held()
    gateway = await make_gateway()
    status, queued = await ask(gateway, {"input": "go", "background": True})
    assert (status, queued["status"]) == (200, "queued")
    check_response(queued)
    async with asyncio.timeout(20):
        await held.begun.wait()
        running = queued
        while running["status"] == "queued":
            _, running = await get(gateway, f"/responses/{queued['id']}")
        assert running["status"] == "in_progress"
        watching = asyncio.create_task(get_events(gateway, queued["id"]))
        held.gate.set()
        events = await watching
    assert [event["type"] for event in events][:3] == [
        *("response.created", "response.queued", "response.in_progress")
    ]
    _, done = await get(gateway, f"/responses/{queued['id']}")
    assert done == events[-1]["response"]
    assert (done["status"], text_of(done)) == ("completed", "done")


async def test_a_background_stream_goes_on_without_its_reader(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = held = Held()
    gateway = await make_gateway()
    body = {"input": "go", "background": True, "stream": True}
    raw = b""
    async with gateway.session.post(f"{gateway.base}/v1/responses", json=body) as response:
        while b"Well." not in raw:
            raw += await response.content.readany()
    before = events_in(raw[: raw.rindex(b"\n\n") + 2] + b"data: [DONE]\n\n")
    held.gate.set()
    after = await get_events(gateway, before[0]["response"]["id"], before[-1]["sequence_number"])
    assert check_stream(before + after)["status"] == "completed"


async def test_a_background_run_is_cancelled(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = held = Held()
    gateway = await make_gateway()
    _, queued = await ask(gateway, {"input": "go", "background": True})
    async with asyncio.timeout(20):
        await held.begun.wait()
        status, told = await get(gateway, f"/responses/{queued['id']}/cancel", "POST")
    assert (status, told["status"]) == (200, "cancelled")
    check_response(told)
    assert await get(gateway, f"/responses/{queued['id']}/cancel", "POST") == (200, told)
    last = (await get_events(gateway, queued["id"]))[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "cancelled")
    await upstream.closed.wait()


async def test_a_response_that_is_deleted_while_it_runs_is_stopped(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = held = Held()
    gateway = await make_gateway()
    _, queued = await ask(gateway, {"input": "go", "background": True})
    async with asyncio.timeout(20):
        await held.begun.wait()
        assert (await get(gateway, f"/responses/{queued['id']}", "DELETE"))[0] == 200
        await upstream.closed.wait()
    assert (await get(gateway, f"/responses/{queued['id']}"))[0] == 404


async def test_one_that_is_not_in_the_background_cannot_be_cancelled(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda messages: answers("ok"))
    gateway = await make_gateway()
    _, told = await ask(gateway, {"input": "go"})
    status, refused = await get(gateway, f"/responses/{told['id']}/cancel", "POST")
    assert (status, refused["error"]["param"]) == (400, "id")


async def test_a_run_under_way_cannot_be_gone_on_from(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = held = Held()
    gateway = await make_gateway()
    _, queued = await ask(gateway, {"input": "go", "background": True})
    body = {"input": "more", "previous_response_id": queued["id"]}
    status, told = await ask(gateway, body)
    assert (status, told["error"]["param"]) == (400, "previous_response_id")
    held.gate.set()
    await get_events(gateway, queued["id"])
    status, told = await ask(gateway, body)
    assert (status, told["status"]) == (200, "completed")


async def test_a_key_sees_only_its_own(upstream: FakeUpstream, make_gateway: MakeGateway) -> None:
    upstream.handler = scripted(lambda messages: answers("ok"))
    gateway = await make_gateway(api_keys=("mine", "yours"))
    mine: dict[str, Any] = {"headers": {"Authorization": "Bearer mine"}}
    yours: dict[str, Any] = {"headers": {"Authorization": "Bearer yours"}}
    _, response = await ask(gateway, {"input": "go"}, **mine)
    _, conversation = await get(gateway, "/conversations", "POST", json={}, **mine)
    for path in (f"/responses/{response['id']}", f"/conversations/{conversation['id']}"):
        assert (await get(gateway, path, **mine))[0] == 200
        for method in ("GET", "DELETE"):
            assert (await get(gateway, path, method, **yours))[0] == 404
    for body, refused in (
        ({"previous_response_id": response["id"]}, (400, "previous_response_not_found")),
        ({"conversation": conversation["id"]}, (404, "conversation_not_found")),
    ):
        status, told = await ask(gateway, body | {"input": "go"}, **yours)
        assert (status, told["error"]["code"]) == refused


async def test_conversations_have_items_and_metadata(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    status, made = await get(gateway, "/conversations", "POST", json={"metadata": {"k": "v"}})
    assert (status, made["object"], made["metadata"]) == (200, "conversation", {"k": "v"})
    path = f"/conversations/{made['id']}"
    changed = made | {"metadata": {"k": "w"}}
    assert await get(gateway, path, "POST", json={"metadata": {"k": "w"}}) == (200, changed)
    assert await get(gateway, path) == (200, changed)
    new = {"items": [{"role": "user", "content": f"{i}"} for i in range(3)]}
    _, added = await get(gateway, f"{path}/items", "POST", json=new)
    ids = [item["id"] for item in added["data"]]
    _, page = await get(gateway, f"{path}/items?limit=2")
    assert [item["id"] for item in page["data"]] == ids[:0:-1]
    assert page["has_more"]
    _, rest = await get(gateway, f"{path}/items?after={page['last_id']}")
    assert [item["id"] for item in rest["data"]] == ids[:1]
    assert await get(gateway, f"{path}/items/{ids[1]}") == (200, added["data"][1])
    assert (await get(gateway, f"{path}/items/nobody"))[0] == 404
    assert (await get(gateway, f"{path}/items?after=nobody"))[0] == 400
    assert (await get(gateway, f"{path}/items", "POST", json={"items": [{"type": "x"}]}))[0] == 400
    assert (await get(gateway, f"{path}/items?limit=0"))[0] == 400
    gone = {"id": made["id"], "object": "conversation.deleted", "deleted": True}
    assert await get(gateway, path, "DELETE") == (200, gone)
    assert (await get(gateway, path))[0] == 404


async def test_a_store_that_cannot_be_had_is_said_before_anything_runs(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    upstream.handler = scripted(lambda messages: answers("ok"))
    gateway = await make_gateway(store=f"sqlite:{blocked}/store.sqlite3")
    for stream in (False, True):
        status, told = await ask(gateway, {"input": "go", "stream": stream})
        assert (status, told["error"]["code"]) == (503, "store_unavailable")
    assert not upstream.requests
    status, told = await ask(gateway, {"input": "go", "store": False})
    assert (status, text_of(told)) == (200, "ok")


async def test_who_reads_by_get_keeps_a_run_going_whose_client_left(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = held = Held()
    gateway = await make_gateway(on_disconnect=0.5)
    body = {"input": "go", "stream": True}
    raw = b""
    async with gateway.session.post(f"{gateway.base}/v1/responses", json=body) as response:
        while b"Well." not in raw:
            raw += await response.content.readany()
        response_id = events_in(raw[: raw.index(b"\n\n") + 2] + b"data: [DONE]\n\n")[0]["response"][
            "id"
        ]
        watching = asyncio.create_task(get_events(gateway, response_id))
        run = next(iter(gateway.app[SUPERVISOR].runs.values()))
        await until(lambda: run.readers == 2)
    await asyncio.sleep(1)  # twice what a run may go on that nobody reads
    held.gate.set()
    assert (await watching)[-1]["response"]["status"] == "completed"


async def test_a_schema_that_is_none_is_refused_by_its_name_here(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    wanted = {"type": "json_schema", "name": "x", "schema": {"type": "nothing"}}
    status, told = await ask(gateway, {"input": "go", "text": {"format": wanted}})
    assert (status, told["error"]["param"]) == (400, "text.format.schema")
    assert "response_format" not in told["error"]["message"]


async def test_turns_of_a_conversation_at_one_time_are_all_told_to_the_next(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    both = asyncio.Barrier(2)

    async def model(request: web.Request) -> web.StreamResponse:
        if len(upstream.requests) <= 2:
            await both.wait()
        return await scripted(lambda messages: answers("ok"))(request)

    upstream.handler = model
    gateway = await make_gateway()
    _, conversation = await get(gateway, "/conversations", "POST")
    body = {"conversation": conversation["id"]}
    async with asyncio.timeout(30):
        await asyncio.gather(
            ask(gateway, body | {"input": "I am Ada."}),
            ask(gateway, body | {"input": "My cat is Bob."}),
        )
    await ask(gateway, body | {"input": "Who are we?"})
    said = json.dumps(upstream.bodies()[-1]["messages"])
    assert "I am Ada." in said
    assert "My cat is Bob." in said


async def test_an_item_that_is_deleted_while_a_run_knows_it_is_not_remembered(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    begun, gate = asyncio.Event(), asyncio.Event()

    async def model(request: web.Request) -> web.StreamResponse:
        begun.set()
        await gate.wait()
        return await scripted(lambda messages: answers("ok"))(request)

    upstream.handler = model
    gateway = await make_gateway()
    items = [{"role": "user", "content": "My secret is 42."}]
    _, conversation = await get(gateway, "/conversations", "POST", json={"items": items})
    path = f"/conversations/{conversation['id']}/items"
    body = {"conversation": conversation["id"]}
    async with asyncio.timeout(30):
        asking = asyncio.create_task(ask(gateway, body | {"input": "Hello."}))
        await begun.wait()
        _, told = await get(gateway, path)
        await get(gateway, f"{path}/{told['data'][0]['id']}", "DELETE")
        gate.set()
        await asking
    await ask(gateway, body | {"input": "What is it?"})
    said = json.dumps(upstream.bodies()[-1]["messages"])
    assert "Hello." in said
    assert "My secret" not in said


async def test_more_than_fits_a_request_is_not_gone_on_from(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda messages: answers("ok"))
    gateway = await make_gateway(max_body_bytes=20_000)
    large = [{"role": "user", "content": "x" * 15_000}]
    _, conversation = await get(gateway, "/conversations", "POST", json={"items": large})
    body = {"conversation": conversation["id"], "input": "go"}
    path = f"/conversations/{conversation['id']}/items"
    assert (await get(gateway, path, "POST", json={"items": large}))[0] == 200
    status, told = await ask(gateway, body)
    assert (status, told["error"]["param"]) == (400, "conversation")
    assert not upstream.requests


async def test_a_chain_without_memories_is_refused_once_it_is_too_large(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    async def broken(request: web.Request) -> web.StreamResponse:
        return web.Response(status=400, text="no")

    upstream.handler = broken
    gateway = await make_gateway(max_body_bytes=20_000)
    body: dict[str, Any] = {"input": "x" * 8_000, "background": True}
    for _ in range(2):
        _, response = await ask(gateway, body)
        await get_events(gateway, response["id"])
        body["previous_response_id"] = response["id"]
    status, told = await ask(gateway, body)
    while status == 200:
        await get_events(gateway, told["id"])
        status, told = await ask(gateway, body | {"previous_response_id": told["id"]})
    assert (status, told["error"]["param"]) == (400, "previous_response_id")
