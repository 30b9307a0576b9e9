"""The clients that people use, each as it comes from its registry: whole, streamed, and with errors.

Each program in tests/clients asks a gateway and prints as JSON what the client made of it.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from client_model import (
    ANSWER,
    BROKEN,
    CITY,
    FAILED,
    OUTER,
    PRINTED,
    TOKENS,
    model,
    node,
    python_of,
    run_program,
)
from conftest import FakeUpstream, MakeGateway

PROGRAMS = Path(__file__).parent / "clients"
AGENT_ERROR = {"message": FAILED, "type": "agent_error", "param": None, "code": "upstream_refused"}
UNKNOWN = "The model 'nobody' does not exist."
UNKNOWN_ERROR = {
    "message": UNKNOWN,
    "type": "invalid_request_error",
    "param": "model",
    "code": "model_not_found",
}


async def told_by(
    program: str, command: list[str], upstream: FakeUpstream, make_gateway: MakeGateway
) -> Any:
    """What a program printed."""
    upstream.handler = model
    gateway = await make_gateway(unknown_model="reject")
    source = (PROGRAMS / program).read_text()
    said = await run_program(command, source, gateway)
    return json.loads(said.splitlines()[-1])  # LiteLLM prints advice before


def is_whole(told: dict[str, Any], *, finish: str | None = "stop") -> None:
    """A reply that is no stream: the think block and the answer in its content, and the fields."""
    assert told["content"].startswith("<think>\n")
    assert told["content"].endswith(f"</think>\n\n{ANSWER}")
    assert told.get("finish", finish) == finish
    assert told["tokens"] == TOKENS
    if "reasoning" in told:
        assert PRINTED in told["reasoning"]


def is_streamed(told: dict[str, Any], *, finish: str | None = "stop") -> None:
    assert told["content"] == ANSWER
    assert told.get("finish", finish) == finish
    assert told["tokens"] == TOKENS
    if "reasoning" in told:
        assert told["reasoning"].count(PRINTED) == 2  # in the code, and printed


def has(told: dict[str, Any], **expected: Any) -> None:
    assert {name: told[name] for name in expected} == expected


def agent_calls(upstream: FakeUpstream, task: str) -> int:
    """How often the model was called for a task."""
    return sum(f"New task:\\n{task}" in json.dumps(body["messages"]) for body in upstream.bodies())


@pytest.mark.parametrize(
    ("environment", "version"), [("openai1", "1."), ("openai2", "2."), ("here", "3.")]
)
async def test_openai_for_python(
    upstream: FakeUpstream, make_gateway: MakeGateway, environment: str, version: str
) -> None:
    command = [*python_of(environment), "-"]
    told = await told_by("openai_python.py", command, upstream, make_gateway)
    assert told["version"].startswith(version)
    assert set(told["models"]) == {"code-writing-agent", "up/model", "up/model-nothink"}
    is_whole(told["whole"])
    assert told["whole"]["request_id"].startswith("req-")
    is_streamed(told["stream"])
    assert told["stream"]["roles"] == ["assistant"]
    is_streamed(told["helper"])
    assert told["helper"]["role"] == "assistant"
    assert {"chunk", "content.delta", "content.done"} <= set(told["helper"]["kinds"])
    for name in ("relay_whole", "relay_stream", "relay_helper", "nothink"):
        has(told[name], content=ANSWER, finish="stop", tokens=TOKENS)
    assert told["parse"] == told["parse_relay"] == [CITY["name"]] * 2
    for name in ("unknown", "unknown_stream"):
        has(told[name], kind="NotFoundError", status=404, **UNKNOWN_ERROR)
    has(told["bad"], kind="BadRequestError", status=400, param="n", code=None)
    has(told["failed"], kind="InternalServerError", status=500, **AGENT_ERROR)
    assert told["failed"]["request_id"].startswith("req-")
    for name in ("failed_stream", "failed_helper"):
        has(told[name], kind="APIError", **AGENT_ERROR)
    has(told["failed_relay"], kind="BadRequestError", status=400, message=BROKEN)
    has(told["failed_relay_stream"], kind="APIError", code="upstream_failed")
    # Three failures of two model calls each: nothing was tried again.
    assert agent_calls(upstream, "fail") == 6


async def test_openai_for_node(upstream: FakeUpstream, make_gateway: MakeGateway) -> None:
    told = await told_by("openai_node.mjs", node(), upstream, make_gateway)
    assert set(told["models"]) == {"code-writing-agent", "up/model", "up/model-nothink"}
    is_whole(told["whole"])
    assert told["whole"]["request_id"].startswith("req-")
    is_streamed(told["stream"])
    assert told["stream"]["roles"] == ["assistant"]
    is_streamed(told["helper"])
    for name in ("relay_whole", "relay_stream"):
        has(told[name], content=ANSWER, finish="stop", tokens=TOKENS)
    assert told["parse"] == [CITY["name"]] * 2
    has(told["unknown"], kind="NotFoundError", status=404, **UNKNOWN_ERROR)
    has(told["bad"], kind="BadRequestError", status=400, param="n")
    has(told["failed"], kind="InternalServerError", status=500, **AGENT_ERROR)
    assert told["failed"]["request_id"].startswith("req-")
    for name in ("failed_stream", "failed_helper"):
        has(told[name], kind="APIError", **AGENT_ERROR)
    has(told["failed_relay_stream"], kind="APIError", code="upstream_failed")
    assert agent_calls(upstream, "fail") == 6


async def test_langchain(upstream: FakeUpstream, make_gateway: MakeGateway) -> None:
    command = [*python_of("openai2"), "-"]
    told = await told_by("langchain_openai_client.py", command, upstream, make_gateway)
    is_whole(told["whole"])
    is_streamed(told["stream"])
    has(told["unknown"], status=404, message=UNKNOWN, code="model_not_found")
    has(told["failed"], status=500, message=FAILED)
    has(told["failed_stream"], message=FAILED, code="upstream_refused")
    assert agent_calls(upstream, "fail") == 4


async def test_litellm(upstream: FakeUpstream, make_gateway: MakeGateway) -> None:
    command = [*python_of("openai2"), "-"]
    told = await told_by("litellm_client.py", command, upstream, make_gateway)
    # LiteLLM takes the think block out of the content itself.
    has(told["whole"], finish="stop", tokens=TOKENS)
    assert told["whole"]["content"].endswith(ANSWER)
    assert PRINTED in told["whole"]["reasoning"]
    is_streamed(told["stream"])
    has(told["unknown"], kind="NotFoundError", status=404)
    assert UNKNOWN in told["unknown"]["message"]
    has(told["failed"], kind="InternalServerError", status=500)
    assert BROKEN in told["failed"]["message"]
    # It stops at the finish reason "error" and never reads the error event behind it.
    assert "finish_reason: error" in told["failed_stream"]["message"]
    assert agent_calls(upstream, "fail") == 4


async def test_pydantic_ai(upstream: FakeUpstream, make_gateway: MakeGateway) -> None:
    command = [*python_of("openai2"), "-"]
    told = await told_by("pydantic_ai_client.py", command, upstream, make_gateway)
    assert told["whole"]["content"].endswith(ANSWER)
    assert PRINTED in told["whole"]["reasoning"]
    assert told["whole"]["tokens"] == TOKENS
    is_streamed(told["stream"])
    has(told["unknown"], is_api_error=True, status=404)
    has(told["failed"], is_api_error=True, status=500)
    assert BROKEN in told["failed"]["message"]
    assert BROKEN in told["failed_stream"]["message"]
    assert agent_calls(upstream, "fail") == 4


async def test_the_vercel_ai_sdk(upstream: FakeUpstream, make_gateway: MakeGateway) -> None:
    told = await told_by("vercel_ai.mjs", node(), upstream, make_gateway)
    is_whole(told["whole"])
    is_streamed(told["stream"])
    has(told["unknown"], kind="AI_APICallError", status=404, message=UNKNOWN)
    has(told["failed"], status=500, message=FAILED)
    assert BROKEN in told["failed_stream"]["message"]
    # It does not know x-should-retry: a 500 is repeated twice, a failed stream is not.
    assert told["failed"]["retried"] == 3
    assert agent_calls(upstream, "fail") == 8


async def test_smolagents_agents_that_call_agents(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    command = [*python_of("here"), "-"]
    told = await told_by("smolagents_client.py", command, upstream, make_gateway)
    is_whole(told["whole"])
    is_streamed(told["stream"])
    assert told["agent"] == told["agent_streaming"] == OUTER
    has(told["unknown"], kind="NotFoundError", status=404)
    has(told["failed"], kind="InternalServerError", status=500)
