"""The Responses API by the SDKs that lead with it: openai for Python, 2.x and 3.x, and for Node."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from client_model import ANSWER, CITY, model, node, python_of, run_program
from conftest import FakeUpstream, MakeGateway, scripted

PROGRAMS = Path(__file__).parent / "clients"
CODE = {
    "set it": "number = 41\nfinal_answer('set')",
    "use it": "final_answer(f'It is {number + 1}')",
    "weather": "final_answer('It is ' + get_weather(town='Oslo'))",
}
KINDS = ["code_interpreter_call", "message"]


async def turns(request: web.Request) -> web.StreamResponse:
    """The clients' model, which can also count, hold on, and ask for the weather."""
    said = (await request.read()).decode().rpartition("New task:\\n")[2]
    if said.startswith("hold on"):
        await asyncio.Event().wait()
    code = next((code for task, code in CODE.items() if said.startswith(task)), None)
    if code is None:
        return await model(request)
    return await scripted(lambda _: f"<code>\n{code}\n</code>")(request)


def check(told: dict[str, Any]) -> None:
    assert told["whole"] == {"text": ANSWER, "kinds": KINDS, "tokens": 15}
    assert told["stream"]["text"] == ANSWER
    assert told["stream"]["status"] == "completed"
    kinds = told["stream"]["kinds"]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert "response.code_interpreter_call_code.delta" in kinds
    assert told["parse"] == CITY["name"]
    assert told["resumed"] == list(range(4, len(kinds)))
    assert told["retrieved"] == told["polled"] == ANSWER
    assert told["items"] == ["user"]
    assert told["queued"] == "queued"
    assert told["cancelled"] == "cancelled"
    assert told["deleted"] == 404
    assert told["conversation"] == "It is 42"
    assert told["kept"] == 9
    assert told["failed"] == {"status": 500, "code": "upstream_refused"}
    assert told["refused"] == "tools.0.type"
    assert told["tool"] == ["get_weather", {"town": "Oslo"}, "It is fair"]


@pytest.mark.parametrize(("environment", "version"), [("openai2", "2."), ("here", "3.")])
async def test_openai_for_python(
    upstream: FakeUpstream, make_gateway: MakeGateway, environment: str, version: str
) -> None:
    upstream.handler = turns
    gateway = await make_gateway()
    source = (PROGRAMS / "agent_responses_python.py").read_text()
    told = json.loads(await run_program([*python_of(environment), "-"], source, gateway))
    assert told["version"].startswith(version)
    check(told)


async def test_openai_for_node(upstream: FakeUpstream, make_gateway: MakeGateway) -> None:
    upstream.handler = turns
    gateway = await make_gateway()
    source = (PROGRAMS / "agent_responses_node.mjs").read_text()
    check(json.loads(await run_program(node(), source, gateway)))
