"""Chat streams with `X-Conversation-Id` are kept, and can be read again from any event, whatever happened."""

import asyncio
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from conftest import (
    FakeUpstream,
    Gateway,
    MakeGateway,
    chunk,
    events_of,
    scripted,
    text_of,
    until,
)
from openai import AsyncOpenAI
from server_process import server_process
from wire_rules import broken_rules

from server.keys import PRESENCE, STORE, SUPERVISOR
from streaming.store import StoreFailed

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "go"}], "stream": True}
NAMED = {"X-Conversation-Id": "chat 1"}
ANSWER = "<code>\nfinal_answer('hello')\n</code>"


def chat_url(base: str) -> str:
    return f"{base}/v1/chat/completions"


async def halting(request: web.Request) -> web.StreamResponse:
    """A model that says a few words, and then nothing for ever."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(5):
        data = json.dumps(chunk(content=f"thought {number}\n"))
        await response.write(f"data: {data}\n\n".encode())
        await asyncio.sleep(0.01)
    await asyncio.Event().wait()
    return response


async def post(gateway: Gateway, **headers: str) -> bytes:
    url, given = chat_url(gateway.base), NAMED | headers
    async with gateway.session.post(url, json=ASK, headers=given) as response:
        assert response.status == 200, await response.text()
        return await response.read()


async def resumed(
    gateway: Gateway, start: int = 0, name: str = "chat%201", **headers: str
) -> bytes:
    url = f"{gateway.base}/v1/stream/{name}?from={start}"
    async with gateway.session.get(url, headers=headers) as response:
        assert response.status == 200, await response.text()
        return await response.read()


def without_numbers(raw: bytes) -> bytes:
    return re.sub(rb"(?m)^id: \d+\n|^: ping\n", b"", raw)


def numbers_of(raw: bytes) -> list[int]:
    return [int(number) for number in re.findall(rb"(?m)^id: (\d+)$", raw)]


@asynccontextmanager
async def reading(session: aiohttp.ClientSession, base: str) -> AsyncIterator[list[bytes]]:
    """A named stream under way: its blocks as they come; on the way out the client leaves."""
    blocks: list[bytes] = []

    async def read() -> None:
        async with session.post(chat_url(base), json=ASK, headers=NAMED) as response:
            while block := await response.content.readuntil(b"\n\n"):
                blocks.append(block)

    task = asyncio.create_task(read())
    try:
        yield blocks
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_kept_stream_is_the_plain_one_with_numbers_and_is_read_again_from_each(
    make_gateway: MakeGateway,
) -> None:
    gateway = await make_gateway()
    raw = await post(gateway)
    assert not broken_rules(200, "text/event-stream", without_numbers(raw), streamed=True)
    count = without_numbers(raw).count(b"data: ")
    assert numbers_of(raw) == list(range(count))
    blocks = re.findall(rb"id: .*?\n\n", raw, re.DOTALL)
    for start in range(count + 1):
        assert await resumed(gateway, start) == b"".join(blocks[start:])
    last = {"Last-Event-ID": "1"}
    async with gateway.session.get(
        f"{gateway.base}/stream?conv_id=chat%201", headers=last
    ) as reply:
        assert await reply.read() == b"".join(blocks[2:])


async def test_without_the_header_nothing_is_stored(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    await gateway.stream(ASK)
    assert (await gateway.app[STORE].numbers()).records == 0


async def test_a_run_goes_on_without_its_client_and_is_followed_live_by_another(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    gate = asyncio.Event()
    upstream.handler = scripted(lambda messages: ANSWER, gate=gate)
    gateway = await make_gateway()
    async with reading(gateway.session, gateway.base) as blocks:
        gate.set()
        await until(lambda: len(blocks) >= 2)
        gate.clear()
    seen = b"".join(blocks)
    following = asyncio.create_task(resumed(gateway, numbers_of(seen)[-1] + 1))
    gate.set()
    raw = seen + await following
    assert numbers_of(raw) == list(range(len(numbers_of(raw))))
    assert text_of(events_of(raw), "content") == "hello"
    assert raw.endswith(b"data: [DONE]\n\n")


async def test_a_run_that_nobody_comes_back_for_is_stopped(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    upstream.handler = scripted(lambda messages: ANSWER, gate=asyncio.Event())
    gateway = await make_gateway(resume_seconds=0.1, heartbeat_seconds=0.01)
    async with reading(gateway.session, gateway.base):
        await until(lambda: gateway.app[SUPERVISOR].runs)
        (run,) = gateway.app[SUPERVISOR].runs.values()
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    assert run.ending == "client_gone"
    events = events_of(await resumed(gateway))
    assert events[-2]["error"]["code"] == "client_gone"


async def test_a_name_is_its_keys_own(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway(api_keys=("one", "two"))
    mine, theirs = {"Authorization": "Bearer one"}, {"Authorization": "Bearer two"}
    first = await post(gateway, **mine)
    url = f"{gateway.base}/v1/stream/chat%201"
    async with gateway.session.get(url, headers=theirs) as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "stream_not_found"
    second = await post(gateway, **theirs)
    assert await resumed(gateway, 0, **mine) == first
    assert await resumed(gateway, 0, **theirs) == second
    async with gateway.session.delete(url, headers=theirs) as response:
        assert response.status == 204
    assert await resumed(gateway, 0, **mine) == first


@pytest.mark.parametrize(
    ("query", "param"),
    [("from=-1", "from"), ("from=x", "from"), ("from=99999", "from"), ("from=²", "from")],
)
async def test_a_number_that_is_none_is_refused(
    make_gateway: MakeGateway, query: str, param: str
) -> None:
    gateway = await make_gateway()
    await post(gateway)
    async with gateway.session.get(f"{gateway.base}/v1/stream/chat%201?{query}") as response:
        assert response.status == 400
        assert (await response.json())["error"]["param"] == param


async def test_a_name_that_is_none_is_refused(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    for name in ("", "x" * 257):
        status, _, body = await gateway.post(ASK, headers={"X-Conversation-Id": name})
        assert (status, body["error"]["param"]) == (400, "X-Conversation-Id")
    async with gateway.session.get(f"{gateway.base}/v1/stream") as response:
        assert response.status == 400


async def test_streams_are_looked_up_by_the_names_that_one_knows(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    raw = await post(gateway)
    asked = {"conversation_ids": ["chat 1", "no such"]}
    status, _, found = await gateway.post(asked, "/v1/streams/lookup")
    assert status == 200
    assert [each["conversation_id"] for each in found] == ["chat 1"]
    assert (found[0]["is_done"], found[0]["status"]) == (True, "completed")
    assert found[0]["total_events"] == len(numbers_of(raw))
    assert found[0]["run"] == events_of(raw)[0]["id"]
    status, _, _ = await gateway.post({"conversation_ids": 1}, "/v1/streams/lookup")
    assert status == 400


async def test_a_deleted_stream_ends_its_run_and_tells_its_readers(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    upstream.handler = scripted(lambda messages: ANSWER, gate=asyncio.Event())
    gateway = await make_gateway(heartbeat_seconds=0.01)
    posting = asyncio.create_task(post(gateway))
    await until(lambda: gateway.app[SUPERVISOR].runs)
    await asyncio.sleep(0.05)
    async with gateway.session.delete(f"{gateway.base}/v1/stream/chat%201") as response:
        assert response.status == 204
    assert events_of(await posting)[-2]["error"]["code"] == "stream_gone"
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    async with gateway.session.delete(f"{gateway.base}/v1/stream/chat%201") as response:
        assert response.status == 204
    async with gateway.session.get(f"{gateway.base}/v1/stream/chat%201") as response:
        assert response.status == 404


async def test_a_new_stream_of_a_name_ends_the_run_of_the_old_one(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    gate = asyncio.Event()
    upstream.handler = scripted(lambda messages: ANSWER, gate=gate)
    gateway = await make_gateway(heartbeat_seconds=0.01)
    old = asyncio.create_task(post(gateway))
    await until(lambda: gateway.app[SUPERVISOR].runs)
    (first,) = gateway.app[SUPERVISOR].runs.values()
    await asyncio.sleep(0.05)
    new = asyncio.create_task(post(gateway))
    assert events_of(await old)[-2]["error"]["code"] == "stream_gone"
    await until(lambda: first.ending)
    assert first.ending == "cancelled"
    gate.set()
    assert text_of(events_of(await new), "content") == "hello"
    assert await resumed(gateway) == await resumed(gateway)


async def test_a_repeated_request_reads_the_stream_that_is_kept_already(
    make_gateway: MakeGateway,
) -> None:
    gateway = await make_gateway()
    key = {"Idempotency-Key": "one"}
    assert await post(gateway, **key) == await post(gateway, **key)
    assert (await gateway.app[STORE].numbers()).records == 1


async def test_a_run_that_is_refused_has_a_status_and_leaves_nothing(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    upstream.handler = scripted(lambda messages: ANSWER, gate=asyncio.Event())
    gateway = await make_gateway(max_running=1, queue_seconds=0.05)
    async with reading(gateway.session, gateway.base):
        await until(lambda: gateway.app[SUPERVISOR].running)
        async with gateway.session.post(
            chat_url(gateway.base), json=ASK, headers={"X-Conversation-Id": "second"}
        ) as response:
            assert response.status == 429
            assert (await response.json())["error"]["code"] == "queue_timeout"
        async with gateway.session.get(f"{gateway.base}/v1/stream/second") as response:
            assert response.status == 404


async def test_the_sdk_reads_a_kept_stream_with_heartbeats_between_its_events(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    gate = asyncio.Event()
    upstream.handler = scripted(lambda messages: ANSWER, gate=gate)
    gateway = await make_gateway(heartbeat_seconds=0.01)
    text = ""
    async with AsyncOpenAI(base_url=f"{gateway.base}/v1", api_key="-") as client:
        stream = await client.chat.completions.create(
            model="code-writing-agent",
            messages=[{"role": "user", "content": "go"}],
            stream=True,
            extra_headers=NAMED,
        )
        async for chunk in stream:
            text += chunk.choices[0].delta.content or ""
            await asyncio.sleep(0.03)  # heartbeats come between the events
            gate.set()
    assert text == "hello"
    raw = await resumed(gateway)
    assert numbers_of(raw)


async def test_a_store_that_fails_in_the_middle_ends_the_run_and_says_so(
    make_gateway: MakeGateway, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()
    upstream.handler = scripted(lambda messages: ANSWER, gate=gate)
    gateway = await make_gateway(heartbeat_seconds=0.01, front_end_seconds=0.5)
    posting = asyncio.create_task(post(gateway))
    await until(lambda: gateway.app[SUPERVISOR].runs)
    (run,) = gateway.app[SUPERVISOR].runs.values()
    await asyncio.sleep(0.05)

    async def fail(*_: object, **__: object) -> None:
        raise StoreFailed("The store's disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(gateway.app[STORE], "append", fail)
        patch.setattr(gateway.app[STORE], "finish", fail)
        gate.set()
        await until(lambda: run.ending)
    assert run.ending == "store_unavailable"
    events = events_of(await posting)  # once the store is back, its end is told
    assert events[-2]["error"]["code"] == "store_unavailable"
    assert events[-1] == "[DONE]"
    assert not gateway.app[PRESENCE]._held


async def test_a_store_that_cannot_be_written_is_a_503_and_the_server_goes_on(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    gateway = await make_gateway(store=f"sqlite:{blocked}/store.sqlite3")
    async with gateway.session.post(chat_url(gateway.base), json=ASK, headers=NAMED) as response:
        assert response.status == 503
        assert response.headers["Retry-After"]
        error = (await response.json())["error"]
    assert error["code"] == "store_unavailable"
    assert str(tmp_path) not in error["message"]
    assert not gateway.app[SUPERVISOR].runs
    assert text_of(await gateway.stream(ASK), "content") == "hello"


@pytest.mark.parametrize("address", ["redis://127.0.0.1:1/0", "postgresql://u@127.0.0.1:1/db"])
async def test_without_its_shared_store_a_server_goes_on_by_itself(
    make_gateway: MakeGateway, tmp_path: Path, address: str
) -> None:
    keys = tmp_path / "keys.json"
    keys.write_text(json.dumps([{"name": "me", "key": "mine", "requests_per_minute": 5}]))
    gateway = await make_gateway(store=address, api_keys_file=str(keys))
    mine = {"Authorization": "Bearer mine"}
    url, named = chat_url(gateway.base), mine | NAMED
    async with gateway.session.post(url, json=ASK, headers=named) as response:
        assert response.status == 503
        assert (await response.json())["error"]["code"] == "store_unavailable"
    again = mine | {"Idempotency-Key": "one"}
    told = [await gateway.stream(ASK, headers=again) for _ in range(2)]
    assert [text_of(events, "content") for events in told] == ["hello", "hello"]
    assert told[0][0]["id"] == told[1][0]["id"]
    async with gateway.session.get(f"{gateway.base}/v1/runs", headers=mine) as response:
        assert (response.status, (await response.json())["data"]) == (200, [])
    async with gateway.session.get(f"{gateway.base}/v1/stream/x", headers=mine) as response:
        assert response.status == 503
    async with gateway.session.get(f"{gateway.base}/v1/models", headers=mine) as response:
        assert response.status == 429  # counted here


async def test_what_a_client_has_seen_outlives_a_killed_server_and_ends_with_an_error(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.handler = halting
    values: dict[str, Any] = {
        "UPSTREAM_OPENAI_BASE": upstream.base,
        "AGENT_MODEL": "up",
        "STORE": f"sqlite:{tmp_path}/store.sqlite3",
        "FRONT_END_SECONDS": "1",
    }
    async with aiohttp.ClientSession() as session:
        with server_process(**values) as server:
            async with reading(session, server.base) as blocks:
                await until(lambda: len(blocks) >= 4, seconds=60)
                os.kill(server.process.pid, signal.SIGKILL)
        seen = b"".join(blocks)
        assert not (tmp_path / "store.sqlite3").stat().st_mode & 0o077
        with server_process(**values) as server:
            url = f"{server.base}/v1/stream/chat%201"
            async with session.get(url) as response:
                raw = await response.read()
            assert raw.startswith(seen)
            assert numbers_of(raw) == list(range(len(numbers_of(raw))))
            events = events_of(raw)
            assert events[-2]["error"]["code"] == "server_lost"
            assert events[-3]["choices"][0]["finish_reason"] == "error"
            assert events[-1] == "[DONE]"
            lookup = {"conversation_ids": ["chat 1"]}
            async with session.post(f"{server.base}/v1/streams/lookup", json=lookup) as response:
                (told,) = json.loads(await response.read())
            assert (told["is_done"], told["status"]) == (True, "failed")


def test_a_damaged_store_is_said_at_start_up(tmp_path: Path) -> None:
    import subprocess
    import sys

    from server_process import ROOT, environment

    (tmp_path / "store.sqlite3").write_bytes(b"no database" * 1000)
    done = subprocess.run(
        [sys.executable, "-m", "server", "--port", "0"],
        env=environment(
            UPSTREAM_OPENAI_BASE="http://127.0.0.1:1/v1",
            JAIL="off",
            STORE=f"sqlite:{tmp_path}/store.sqlite3",
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "STORE cannot be used: it is damaged" in done.stderr


async def test_a_lookup_nested_too_deep_is_a_bad_request(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    body = f'{{"conversation_ids": [], "x": {"[" * 5000}{"]" * 5000}}}'
    async with gateway.session.post(f"{gateway.base}/v1/streams/lookup", data=body) as response:
        assert response.status == 400
        assert (await response.json())["error"]["type"] == "invalid_request_error"
