"""Whatever goes wrong, in whichever phase: the raw bytes keep the rules of the wire.

tests/data/openai_client_behaviour.json holds what the OpenAI SDK does with each kind of reply; the
check is held against it first, then the server against the check.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import FakeUpstream, Gateway, MakeGateway, chunk, raw_reply, scripted, until
from smolagents import CodeAgent
from wire_rules import broken_rules

from server.keys import SUPERVISOR
from streaming.failures import RunStopped

CASES = json.loads((Path(__file__).parent / "data" / "openai_client_behaviour.json").read_text())[
    "openai_client_behaviour"
]
BAD = ("BREAKS", "BAD", "surfaces", "message lost", "text after", "passes but")
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "go"}]}
CODE = "<code>\nprint('begun')\nfinal_answer('done')\n</code>"
HEADERS = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


def rules_broken_by(case: dict[str, Any]) -> list[str]:
    content_type = case["headers"]["content-type"]
    body = case["body"].encode()
    return broken_rules(case["status"], content_type, body, streamed=True, strict=False)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case["verdict"].startswith(BAD)], ids=lambda c: c["name"]
)
def test_the_check_knows_every_shape_that_breaks_a_client(case: dict[str, Any]) -> None:
    assert rules_broken_by(case)


@pytest.mark.parametrize(
    "name",
    [
        *("ok", "comment_blank", "comment_single", "comment_before_first", "extra_blank_lines"),
        *("err_obj", "usage_then_more", "reasoning", "e400", "e401", "e404", "e500"),
    ],
)
def test_the_check_takes_what_is_good(name: str) -> None:
    case = next(case for case in CASES if case["name"] == name)
    assert rules_broken_by(case) == (["a chunk after usage"] if name == "usage_then_more" else [])


class Told:
    """One reply, read raw and held against the rules."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def code(self) -> str | None:
        """The error's code, in a body or an event; None where there is no error."""
        for line in self.body.splitlines():
            if b'"error":{' in line:
                code: str = json.loads(line.removeprefix(b"data: "))["error"]["code"]
                return code
        return None

    @property
    def answer(self) -> str:
        chunks = [json.loads(line[6:]) for line in self.body.splitlines() if line[:7] == b"data: {"]
        deltas = [choice["delta"] for chunk in chunks for choice in chunk.get("choices", [])]
        return "".join(delta.get("content") or "" for delta in deltas)


async def tell(gateway: Gateway, *, streamed: bool, strict: bool = True, **more: Any) -> Told:
    body = ASK | {"stream": streamed, "stream_options": {"include_usage": True}} | more
    async with gateway.session.post(gateway.base + "/v1/chat/completions", json=body) as response:
        raw = await response.read()
    kind = response.headers["Content-Type"].split(";")[0]
    assert not broken_rules(response.status, kind, raw, streamed=streamed, strict=strict), raw
    assert response.headers["x-request-id"]
    if streamed and response.status == 200:
        assert {name: response.headers[name] for name in HEADERS} == HEADERS
    return Told(response.status, response.headers, raw)


def failing_after(pieces: list[str]) -> Any:
    """A model that writes so much and then breaks off."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in pieces:
            await response.write(f"data: {json.dumps(chunk(content=piece))}\n\n".encode())
        assert request.transport is not None
        request.transport.close()
        return response

    return handler


def refusing(after_seconds: float = 0.0) -> Any:
    async def handler(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(after_seconds)
        return web.json_response({"error": {"message": "no"}}, status=400)

    return handler


STREAMED = pytest.mark.parametrize("streamed", [True, False])


@STREAMED
@pytest.mark.parametrize("heartbeat", [0.02, 30.0])
async def test_a_run_that_waits_too_long_in_the_queue(
    upstream: FakeUpstream, make_gateway: MakeGateway, streamed: bool, heartbeat: float
) -> None:
    gate = asyncio.Event()
    upstream.handler = scripted(lambda m: CODE, gate=gate)
    gateway = await make_gateway(max_running=1, queue_seconds=1.0, heartbeat_seconds=heartbeat)
    first = asyncio.ensure_future(tell(gateway, streamed=True))
    await until(lambda: upstream.requests)
    told = await tell(gateway, streamed=streamed)
    assert told.code == "queue_timeout"
    assert told.answer == ""
    if streamed and heartbeat < 1:
        assert told.status == 200
        assert told.body.startswith(b'data: {"id":"chatcmpl-')
        assert b"\n: ping\n" in told.body
    else:
        assert told.status == 429
        assert told.headers["Retry-After"]
        assert "x-should-retry" not in told.headers
    gate.set()
    assert (await first).answer == "done"


@STREAMED
@pytest.mark.parametrize("where", ["queued", "running"])
async def test_a_run_that_is_cancelled(
    upstream: FakeUpstream, make_gateway: MakeGateway, streamed: bool, where: str
) -> None:
    gate = asyncio.Event()
    upstream.handler = scripted(lambda m: CODE, gate=gate)
    gateway = await make_gateway(max_running=1, heartbeat_seconds=0.02)
    supervisor = gateway.app[SUPERVISOR]
    telling = [asyncio.ensure_future(tell(gateway, streamed=streamed))]
    await until(lambda: upstream.requests)
    telling.append(asyncio.ensure_future(tell(gateway, streamed=streamed)))
    await until(lambda: len(supervisor.runs) == 2)
    index = 1 if where == "queued" else 0
    await asyncio.sleep(0.1)  # so that a stream has begun
    supervisor.stop(
        list(supervisor.runs.values())[index], RunStopped("It was cancelled.", code="cancelled")
    )
    told = await telling[index]
    assert told.code == "cancelled"
    assert told.answer == ""
    gate.set()
    other = await telling[1 - index]
    assert other.code is None


@STREAMED
@pytest.mark.parametrize("after_seconds", [0.0, 0.3])
async def test_a_model_that_fails_before_the_first_event(
    upstream: FakeUpstream, make_gateway: MakeGateway, streamed: bool, after_seconds: float
) -> None:
    upstream.handler = refusing(after_seconds)
    gateway = await make_gateway(heartbeat_seconds=0.1)
    told = await tell(gateway, streamed=streamed)
    assert told.code == "upstream_refused"
    if streamed and after_seconds:
        assert told.status == 200
    else:
        assert told.status == 500
        assert told.headers["x-should-retry"] == "false"


@STREAMED
async def test_a_model_that_breaks_off_in_its_text(
    upstream: FakeUpstream, make_gateway: MakeGateway, streamed: bool
) -> None:
    upstream.handler = failing_after(["I think", " about \u2028 it\n", "<co"])
    told = await tell(await make_gateway(), streamed=streamed)
    assert told.code == "upstream_failed"
    assert told.answer == ""
    assert told.status == (200 if streamed else 500)
    assert (b"I think" in told.body) == streamed


@STREAMED
@pytest.mark.parametrize(("jail", "seconds"), [("off", 2.0), ("auto", 5.0)])
async def test_a_run_that_ends_in_the_middle_of_a_step(
    upstream: FakeUpstream, make_gateway: MakeGateway, streamed: bool, jail: str, seconds: float
) -> None:
    endless = "<code>\nprint('begun')\nn = 0\nwhile n < 10**9:\n    n += 1\n</code>"
    upstream.handler = scripted(lambda m: endless, pieces=1000)
    gateway = await make_gateway(run_seconds=seconds, jail=jail)
    told = await tell(gateway, streamed=streamed)
    assert told.code == "deadline_exceeded"
    assert told.answer == ""
    assert told.status == (200 if streamed else 504)
    await until(lambda: not gateway.app[SUPERVISOR].runs, seconds=30)


@STREAMED
async def test_an_agent_that_fails_after_its_answer(
    upstream: FakeUpstream, make_gateway: MakeGateway, streamed: bool
) -> None:
    class Untidy(CodeAgent):  # type: ignore[misc]
        def cleanup(self) -> None:
            raise RuntimeError("a secret of the author's")

    upstream.handler = scripted(lambda m: CODE)
    gateway = await make_gateway({"untidy": lambda context: Untidy([], context.model)})
    told = await tell(gateway, streamed=streamed, model="untidy")
    assert told.code == "agent_failed"
    assert told.answer == ""
    assert b"secret" not in told.body


async def test_a_defect_in_the_reply_itself_is_an_error_event(
    upstream: FakeUpstream, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr("server.agent_reply._tokens", broken)
    upstream.handler = scripted(lambda m: CODE)
    told = await tell(await make_gateway(), streamed=True)
    assert told.code == "internal_error"
    assert told.answer == ""


def sse(*chunks: Any) -> bytes:
    head = {"id": "u", "object": "chat.completion.chunk", "created": 1, "model": "up/model"}
    return b"".join(f"data: {json.dumps(head | one)}\n\n".encode() for one in chunks)


ROLE = chunk(role="assistant", content="")
TEXT = chunk(content="hi <think>x</think>")


@pytest.mark.parametrize("model", ["up/model", "up/model-nothink"])
@pytest.mark.parametrize(
    ("pieces", "code"),
    [
        ([], "upstream_failed"),
        ([sse(ROLE)], "upstream_failed"),
        ([sse(ROLE, TEXT)], "upstream_failed"),
        ([sse(ROLE, TEXT), b'data: {"id":"u","choi'], "upstream_failed"),
        ([sse(ROLE, TEXT), b": ping\n\n"], "upstream_failed"),
    ],
    ids=["nothing", "after the role", "in the text", "in an event", "after a comment"],
)
async def test_a_relayed_stream_that_ends_too_soon(
    upstream: FakeUpstream, make_gateway: MakeGateway, model: str, pieces: list[bytes], code: str
) -> None:
    upstream.handler = raw_reply(pieces)
    told = await tell(await make_gateway(), streamed=True, strict=False, model=model)
    assert told.code == code


@pytest.mark.parametrize("model", ["up/model", "up/model-nothink"])
async def test_a_relayed_stream_that_falls_silent(
    upstream: FakeUpstream, make_gateway: MakeGateway, model: str
) -> None:
    async def silent(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(sse(ROLE, TEXT))
        await asyncio.Event().wait()
        return response

    upstream.handler = silent
    limits = {"relay_first_byte_seconds": 0.5, "relay_idle_seconds": 0.5}
    gateway = await make_gateway(heartbeat_seconds=0.05, **limits)
    told = await tell(gateway, streamed=True, strict=False, model=model)
    assert told.code == "deadline_exceeded"
    assert b": ping" in told.body


@STREAMED
async def test_an_upstream_that_is_not_there(make_gateway: MakeGateway, streamed: bool) -> None:
    gateway = await make_gateway(upstream_base="http://127.0.0.1:9/v1")
    for model, status in (("up/model", 503), ("code-writing-agent", 503)):
        told = await tell(gateway, streamed=streamed, model=model)
        assert told.status == status
        assert told.code == "upstream_unavailable"
    # Only where nothing was begun may it be tried again.
    assert told.headers["x-should-retry"] == "false"


async def test_without_being_asked_for_there_is_no_usage(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(lambda m: CODE)
    gateway = await make_gateway()
    asked = await tell(gateway, streamed=True)
    unasked = await tell(gateway, streamed=True, stream_options=None)
    assert b"usage" not in unasked.body
    *chunks, usage, done, _ = asked.body.split(b"\n\n")
    assert done == b"data: [DONE]"
    assert all(event.endswith(b'"usage":null}') for event in chunks)
    assert (
        b'"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":5,"total_tokens":15' in usage
    )
