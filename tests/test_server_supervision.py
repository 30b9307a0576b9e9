"""Supervision as a client meets it: refusals, lists, cancels, repeats, leavers, slow readers, the drain."""

import asyncio
import json
import socket
import threading
from typing import Any

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

from server import finished_runs
from server.drain import drain
from server.keys import SUPERVISOR

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "go"}]}
ANSWER = "<code>\nprint('working')\nfinal_answer('done')\n</code>"


class Gated:
    """A model that waits for `open` before it answers."""

    def __init__(self, upstream: FakeUpstream, text: str = ANSWER) -> None:
        self.gate = asyncio.Event()
        self.upstream = upstream
        upstream.handler = scripted(lambda m: text, pieces=1000, gate=self.gate)

    async def called(self, times: int = 1) -> None:
        await until(lambda: len(self.upstream.requests) >= times)


async def test_a_full_queue_is_a_429_at_once_and_nothing_is_started(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    model = Gated(upstream)
    gateway = await make_gateway(max_running=1, max_queued=1)
    asking = [asyncio.ensure_future(gateway.post(ASK)) for _ in range(2)]
    await until(lambda: gateway.app[SUPERVISOR].queued == 1)
    status, headers, reply = await gateway.post(ASK | {"stream": True})
    assert (status, headers["Retry-After"]) == (429, "5")
    assert "x-should-retry" not in headers
    assert reply["error"]["type"] == "rate_limit_error"
    assert reply["error"]["code"] == "queue_full"
    async with gateway.session.get(gateway.base + "/readyz") as response:
        assert response.status == 503
        assert await response.json() == {
            "ready": False,
            "reasons": {"runs": "the queue is full"},
            "upstreams": {"default": "ok"},
        }
    model.gate.set()
    assert [reply[0] for reply in await asyncio.gather(*asking)] == [200, 200]


async def test_waiting_too_long_is_a_429_too(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    model = Gated(upstream)
    gateway = await make_gateway(max_running=1, queue_seconds=0.05)
    first = asyncio.ensure_future(gateway.post(ASK))
    await model.called()
    status, headers, reply = await gateway.post(ASK)
    assert (status, reply["error"]["code"]) == (429, "queue_timeout")
    assert headers["Retry-After"]
    assert "x-should-retry" not in headers
    model.gate.set()
    assert (await first)[0] == 200


@pytest.mark.every_runner
async def test_runs_are_listed_and_cancelled_by_the_completions_id(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    model = Gated(upstream)
    gateway = await make_gateway(heartbeat_seconds=0.02)
    asking = await gateway.session.post(
        gateway.base + "/v1/chat/completions", json=ASK | {"stream": True}
    )
    await model.called()
    async with gateway.session.get(gateway.base + "/v1/runs") as response:
        (run,) = (await response.json())["data"]
    assert run["status"] == "running"
    assert run["agent"] == "code-writing-agent"
    assert run["step"] == 0
    url = f"{gateway.base}/v1/runs/{run['id']}"
    async with gateway.session.get(url) as response:
        assert (await response.json())["id"] == run["id"]
    async with gateway.session.post(f"{url}/cancel") as response:
        assert (await response.json())["outcome"] == "cancelled"
    events = events_of(await asking.read())
    assert events[0]["id"] == run["id"]
    assert events[-3]["choices"][0]["finish_reason"] == "error"
    assert events[-2]["error"]["code"] == "cancelled"
    assert events[-1] == "[DONE]"
    await upstream.closed.wait()
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    async with gateway.session.post(f"{url}/cancel") as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "run_not_found"


async def test_a_key_sees_and_cancels_only_its_own_runs(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    model = Gated(upstream)
    gateway = await make_gateway(api_keys=("mine", "yours"), max_per_key=1)
    mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours"))
    asking = asyncio.ensure_future(gateway.post(ASK, headers=mine))
    await model.called()
    async with gateway.session.get(gateway.base + "/v1/runs", headers=mine) as response:
        (run,) = (await response.json())["data"]
    async with gateway.session.get(gateway.base + "/v1/runs", headers=yours) as response:
        assert (await response.json())["data"] == []
    url = f"{gateway.base}/v1/runs/{run['id']}/cancel"
    async with gateway.session.post(url, headers=yours) as response:
        assert response.status == 404
    status, _, reply = await gateway.post(ASK, headers=mine)
    assert (status, reply["error"]["code"]) == (429, "key_limit")
    async with gateway.session.post(url, headers=mine) as response:
        assert response.status == 200
    assert (await asking)[0] == 500


async def test_an_idempotency_key_joins_the_run_in_flight_and_replays_its_end(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    model = Gated(upstream)
    gateway = await make_gateway()
    headers = {"Idempotency-Key": "k1"}
    first = asyncio.ensure_future(gateway.post(ASK, headers=headers))
    await model.called()
    second = asyncio.ensure_future(gateway.post(ASK, headers=headers))
    await until(lambda: [run.readers for run in gateway.app[SUPERVISOR].runs.values()] == [2])
    first.cancel()  # the one that began it leaves; the other still wants it
    await until(lambda: [run.readers for run in gateway.app[SUPERVISOR].runs.values()] == [1])
    model.gate.set()
    joined = await second
    replayed = await gateway.post(ASK, headers=headers)
    assert joined[0] == 200
    assert replayed[2] == joined[2]
    assert len(upstream.requests) == 1
    status, _, reply = await gateway.post(ASK | {"seed": 1}, headers=headers)
    assert (status, reply["error"]["code"]) == (400, "idempotency_key_reused")
    await gateway.post(ASK, headers={"Idempotency-Key": "k2"})
    assert len(upstream.requests) == 2


async def test_an_sdks_retry_joins_the_run_that_is_still_going_but_not_an_ended_one(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    model = Gated(upstream)
    gateway = await make_gateway()

    def ask(count: int) -> "asyncio.Future[Any]":
        headers = {"x-stainless-retry-count": str(count)}
        return asyncio.ensure_future(gateway.post(ASK, headers=headers))

    first = ask(0)
    await model.called()
    retry, another = ask(1), ask(0)
    await model.called(2)  # the one that is no retry is a run of its own
    await until(
        lambda: sorted(run.readers for run in gateway.app[SUPERVISOR].runs.values()) == [1, 2]
    )
    model.gate.set()
    replies = [(await asked)[2] for asked in (first, retry, another)]
    ids = [reply["id"] for reply in replies]
    assert len(set(ids)) == 2
    assert ids[1] in (ids[0], ids[2])
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    assert (await ask(2))[2]["id"] not in ids
    assert len(upstream.requests) == 3


async def test_a_run_that_everybody_left_is_not_replayed(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    model = Gated(upstream)
    gateway = await make_gateway()
    headers = {"Idempotency-Key": "k1"}
    first = asyncio.ensure_future(gateway.post(ASK, headers=headers))
    await model.called()
    first.cancel()
    await upstream.closed.wait()
    model.gate.set()
    assert (await gateway.post(ASK, headers=headers))[0] == 200
    assert len(upstream.requests) == 2


@pytest.mark.parametrize(("policy", "answers"), [("finish", 1), ("60", 1), ("cancel", 0)])
async def test_a_request_may_say_what_becomes_of_it_when_its_client_leaves(
    upstream: FakeUpstream, make_gateway: MakeGateway, policy: str, answers: int
) -> None:
    model = Gated(upstream)
    gateway = await make_gateway()
    headers = {"X-On-Disconnect": policy, "Idempotency-Key": "k"}
    asking = asyncio.ensure_future(gateway.post(ASK, headers=headers))
    await model.called()
    asking.cancel()
    supervisor = gateway.app[SUPERVISOR]
    if answers:
        await until(lambda: [run.readers for run in supervisor.runs.values()] == [0])
    else:
        await upstream.closed.wait()
    model.gate.set()
    await until(lambda: not supervisor.runs)
    await gateway.post(ASK, headers=headers)
    assert len(upstream.requests) == 2 - answers


@pytest.mark.every_runner
async def test_a_client_that_leaves_the_queue_is_never_started(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    model = Gated(upstream)
    gateway = await make_gateway(max_running=1)
    supervisor = gateway.app[SUPERVISOR]
    first = asyncio.ensure_future(gateway.post(ASK))
    await model.called()
    waiting = asyncio.ensure_future(gateway.post(ASK))
    await until(lambda: supervisor.queued == 1)
    waiting.cancel()
    await until(lambda: supervisor.queued == 0)
    model.gate.set()
    assert (await first)[0] == 200
    await until(lambda: not supervisor.runs)
    assert len(upstream.requests) == 1


async def test_a_client_that_leaves_while_a_tool_sleeps_is_let_go_and_the_slot_follows(
    upstream: FakeUpstream, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streaming.supervisor.GRACE_SECONDS", 0.05)
    begun, may_end = threading.Event(), threading.Event()

    @tool
    def hang() -> str:
        """Waits in a C call that no signal ends."""
        begun.set()
        may_end.wait(30)
        return "ended"

    upstream.handler = scripted(lambda m: "<code>\nhang()\n</code>")
    gateway = await make_gateway(
        {"hanging": lambda context: CodeAgent(tools=[hang], model=context.model)}, max_running=1
    )
    supervisor = gateway.app[SUPERVISOR]
    asking = asyncio.ensure_future(gateway.post(ASK | {"model": "hanging"}))
    await asyncio.to_thread(begun.wait)
    asking.cancel()
    await until(lambda: supervisor.stuck == 1)
    assert supervisor.running == 1  # the work goes on, so its slot stays taken
    async with gateway.session.get(gateway.base + "/readyz") as response:
        assert (await response.json())["reasons"] == {"runs": "1 runs do not stop"}
    may_end.set()
    await until(lambda: not supervisor.runs)
    assert (supervisor.running, supervisor.stuck) == (0, 0)


async def test_a_policy_that_is_none_is_a_400(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    status, _, reply = await gateway.post(ASK, headers={"X-On-Disconnect": "maybe"})
    assert (status, reply["error"]["param"]) == (400, "X-On-Disconnect")


@pytest.mark.parametrize(
    ("settings", "status", "code"),
    [
        ({"run_seconds": 0.05}, 504, "deadline_exceeded"),
        ({"first_token_seconds": 0.05}, 500, "deadline_exceeded"),
    ],
)
@pytest.mark.every_runner
async def test_deadlines_before_the_first_byte(
    upstream: FakeUpstream,
    make_gateway: MakeGateway,
    settings: dict[str, float],
    status: int,
    code: str,
) -> None:
    Gated(upstream)
    gateway = await make_gateway(**settings)
    got, headers, reply = await gateway.post(ASK)
    assert (got, reply["error"]["code"]) == (status, code)
    assert headers["x-should-retry"] == "false"
    if upstream.requests:  # a run that takes longer to begin never came that far
        await upstream.closed.wait()


@pytest.mark.every_runner
async def test_a_model_that_falls_silent_ends_the_run(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    async def handler(request: Any) -> Any:
        first = f"data: {json.dumps(chunk(content='I think '))}\n\n".encode()
        response = await raw_reply([first])(request)
        await asyncio.Event().wait()
        return response

    upstream.handler = handler
    gateway = await make_gateway(token_idle_seconds=0.05)
    events = await gateway.stream(ASK)
    assert text_of(events, "reasoning") == "I think "
    assert events[-2]["error"]["code"] == "deadline_exceeded"


async def test_silence_is_filled_with_heartbeats_from_before_the_first_event(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    model = Gated(upstream)
    gateway = await make_gateway(heartbeat_seconds=0.02)
    async with gateway.session.post(
        gateway.base + "/v1/chat/completions", json=ASK | {"stream": True}
    ) as response:
        raw = b""
        while raw.count(b": ping\n\n") < 3:
            raw += await response.content.readany()
        model.gate.set()
        raw += await response.content.read()
    assert text_of(events_of(raw), "content") == "done"
    assert raw.startswith(b'data: {"id"')


def flood(rows: int) -> str:
    return f"<code>\nfor i in range({rows}):\n    print('row', i, 'x' * 200)\nfinal_answer('end')\n</code>"


async def raw_client(gateway: Gateway) -> socket.socket:
    """A client of small buffers that has sent its request and reads nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    client.setblocking(False)
    port = int(gateway.base.rpartition(":")[2])
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port))
    body = json.dumps(ASK | {"stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    await loop.sock_sendall(client, head.encode() + body)
    return client


@pytest.mark.every_runner
async def test_a_slow_client_costs_bounded_memory_and_loses_nothing(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    rows = 35_000
    upstream.handler = scripted(lambda m: flood(rows), pieces=1000)
    gateway = await make_gateway()
    client = await raw_client(gateway)
    supervisor = gateway.app[SUPERVISOR]
    await until(lambda: supervisor.runs)
    (run,) = supervisor.runs.values()
    held: set[int] = set()
    while not held or run.channel.statistics().bytes < 900_000:
        await asyncio.sleep(0.01)
        held.add(run.channel.statistics().bytes)
        assert max(held) < 1_200_000
        assert run.state == "running"
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    loop = asyncio.get_running_loop()
    received = bytearray()
    while data := await loop.sock_recv(client, 1 << 16):
        received += data
    client.close()
    pieces = [line for line in received.split(b"\r\n") if line.startswith(b"data: ")]
    text = "".join(text_of(events_of(bytes(piece)), "reasoning") for piece in pieces)
    lines = [line for line in text.splitlines() if line.startswith("row ")]
    assert lines == [f"row {i} {'x' * 200}" for i in range(rows)]


@pytest.mark.every_runner
async def test_a_client_that_stalls_past_the_limit_is_given_up(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda m: flood(1_000_000), pieces=1000)
    gateway = await make_gateway(stall_seconds=0.2)
    client = await raw_client(gateway)
    supervisor = gateway.app[SUPERVISOR]
    await until(lambda: supervisor.runs)
    await until(lambda: not supervisor.runs, seconds=30)
    client.close()


@pytest.mark.every_runner
async def test_a_drain_ends_agents_and_relayed_streams_with_an_error_event(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    never = asyncio.Event()
    upstream.handler = scripted(lambda m: "x" * 8, pieces=4, gate=never)
    gateway = await make_gateway(heartbeat_seconds=0.02)
    agent = asyncio.ensure_future(gateway.stream(ASK))
    relayed = asyncio.ensure_future(gateway.stream(ASK | {"model": "up/model"}))
    await until(lambda: len(upstream.requests) == 2)
    draining = asyncio.ensure_future(drain(gateway.app, 0.1))
    await asyncio.sleep(0)
    async with gateway.session.get(gateway.base + "/readyz") as response:
        assert response.status == 503
    for body in (ASK, ASK | {"model": "up/model"}):
        status, headers, reply = await gateway.post(body)
        assert (status, reply["error"]["code"]) == (503, "draining")
        assert headers["Retry-After"]
    await draining
    for events in (await agent, await relayed):
        assert events[-2]["error"]["code"] == "draining"
        assert events[-1] == "[DONE]"


async def test_a_run_can_be_asked_for_after_its_end_by_its_own_key(
    make_gateway: MakeGateway,
) -> None:
    gateway = await make_gateway(api_keys=("mine", "yours"))
    mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours"))
    status, _, body = await gateway.post(ASK, headers=mine)
    assert status == 200
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    url = f"{gateway.base}/v1/runs/{body['id']}"
    async with gateway.session.get(url, headers=mine) as response:
        run = await response.json()
    assert (run["status"], run["outcome"], run["step"]) == ("done", "ok", 1)
    assert run["usage"] == {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    assert run["created"] <= run["started"] <= run["ended"]
    assert 0 < run["first_token_seconds"] <= run["queue_seconds"] + run["seconds"] + 0.01
    async with gateway.session.get(url, headers=yours) as response:
        assert response.status == 404


async def test_a_run_whose_client_left_says_so_afterwards(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    model = Gated(upstream)
    gateway = await make_gateway()
    asking = asyncio.ensure_future(gateway.post(ASK))
    await model.called()
    (run_id,) = gateway.app[SUPERVISOR].runs
    asking.cancel()
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    async with gateway.session.get(f"{gateway.base}/v1/runs/{run_id}") as response:
        run = await response.json()
    assert (run["status"], run["outcome"]) == ("done", "client_gone")


async def test_ended_runs_are_kept_for_a_while_and_not_without_end(
    make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finished_runs, "MAX_KEPT", 2)
    gateway = await make_gateway()
    ids = [(await gateway.post(ASK))[2]["id"] for _ in range(3)]
    await until(lambda: not gateway.app[SUPERVISOR].runs)

    async def statuses() -> list[int]:
        seen = []
        for run_id in ids:
            async with gateway.session.get(f"{gateway.base}/v1/runs/{run_id}") as response:
                seen.append(response.status)
        return seen

    assert await statuses() == [404, 200, 200]
    monkeypatch.setattr(finished_runs, "KEPT_SECONDS", 0.0)
    assert await statuses() == [404, 404, 404]
