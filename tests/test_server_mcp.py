"""Agents with the tools of real MCP servers, over stdin and stdout and over HTTP."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import FakeUpstream, Gateway, MakeGateway, scripted, text_of, until
from server_process import ROOT, environment

from bench.relay_servers import await_port, free_port
from server.app import create_app
from server.keys import MCP_TOOLS, SUPERVISOR
from server.registry import load_agents
from server.setting_values import BadSetting
from server.settings import make_settings
from streaming.mcp_server import McpUnavailable
from streaming.mcp_tool import inputs_of, tool_name

SCRIPT = str(Path(__file__).parent / "mcp_server_script.py")
STDIO: dict[str, Any] = {"command": sys.executable, "args": [SCRIPT, "stdio"]}
ASK: dict[str, Any] = {"model": "numbers", "messages": [{"role": "user", "content": "go"}]}


@contextmanager
def http_server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, SCRIPT, "http", str(port)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            await_port(port)
            yield process
        finally:
            process.kill()


def written(folder: Path, **settings: Any) -> str:
    path = folder / "agent.json"
    path.write_text(json.dumps(settings))
    return str(path)


async def make(
    make_gateway: MakeGateway, folder: Path, servers: dict[str, Any], **more: Any
) -> Gateway:
    """A gateway whose agent `numbers` has these MCP servers."""
    source = written(folder, mcp_servers=servers)
    return await make_gateway(load_agents({"numbers": source}, embedded=False), **more)


async def said(upstream: FakeUpstream, gateway: Gateway, code: str) -> tuple[str, str]:
    """The answer and the reasoning of a run whose code is this."""
    upstream.handler = scripted(lambda _: f"<code>\n{code}\n</code>", pieces=4000)
    events = await gateway.stream(ASK | {"stream": True})
    return text_of(events, "content"), text_of(events, "reasoning")


@pytest.mark.parametrize("transport", ["stdio", "http"])
@pytest.mark.parametrize("jail", ["off", "required"])
async def test_an_agent_calls_the_tools_of_an_mcp_server(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path, transport: str, jail: str
) -> None:
    port = free_port()
    with http_server(port):
        url = {"url": f"http://127.0.0.1:{port}/mcp"}
        servers = {"numbers": STDIO if transport == "stdio" else url}
        gateway = await make(make_gateway, tmp_path, servers, jail=jail)
        code = "final_answer([add(20, 22), add(a=1), paint_it(colour='red'), process()['pid'] > 0])"
        answer, _ = await said(upstream, gateway, code)
    assert json.loads(answer) == [42, 2, "red, None", True]
    prompt = json.dumps(upstream.bodies()[0])
    assert "Adds two numbers." in prompt
    assert "one of 'red', 'blue'" in prompt


async def test_it_is_started_once_for_all_runs_and_ends_with_the_gateway(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    gateway = await make(make_gateway, tmp_path, {"numbers": STDIO})
    code = "final_answer(process()['pid'])"
    answers = await asyncio.gather(*(said(upstream, gateway, code) for _ in range(5)))
    (pid,) = {int(answer) for answer, _ in answers}
    os.kill(pid, 0)
    await gateway.app.cleanup()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("transport", ["stdio", "http"])
async def test_a_server_that_died_is_reached_again(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path, transport: str
) -> None:
    port = free_port()
    code = "final_answer(process()['pid'])"
    with http_server(port) as process:
        url = {"url": f"http://127.0.0.1:{port}/mcp", "start_seconds": 5}
        servers = {"numbers": STDIO if transport == "stdio" else url}
        gateway = await make(make_gateway, tmp_path, servers)
        first, _ = await said(upstream, gateway, code)
        os.kill(int(first), signal.SIGKILL)
        if transport == "http":
            process.wait()
            answer, reasoning = await said(
                upstream,
                gateway,
                "try:\n    add(1, 1)\nexcept Exception as e:\n    final_answer(str(e))",
            )
            assert "the MCP server 'numbers'" in answer, reasoning
    with http_server(port):
        second, _ = await said(upstream, gateway, code)
    assert int(second) != int(first)


async def test_what_goes_wrong_in_a_tool_is_told_to_the_model_and_the_run_goes_on(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    gateway = await make(make_gateway, tmp_path, {"numbers": STDIO | {"call_seconds": 1}})
    for call, words in {
        "fail()": "the tool's own words",
        "sleep(30)": "did not answer within 1 seconds",
        "die()": "broke off; it may have done its work",
        "add('x', 'y')": "add failed",
    }.items():
        code = f"try:\n    {call}\nexcept Exception as e:\n    final_answer(str(e))"
        answer, reasoning = await said(upstream, gateway, code)
        assert words in answer, reasoning
        if call.startswith("sleep"):
            await until(lambda: not gateway.app[SUPERVISOR].runs)
    answer, _ = await said(upstream, gateway, "final_answer(add(1, 1))")
    assert answer == "2"


async def test_a_client_that_leaves_ends_a_run_that_waits_for_a_tool(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    upstream.handler = scripted(lambda _: "<code>\nprint('begun')\nsleep(5)\n</code>")
    gateway = await make(make_gateway, tmp_path, {"numbers": STDIO})
    supervisor = gateway.app[SUPERVISOR]
    async with gateway.session.post(
        f"{gateway.base}/v1/chat/completions", json=ASK | {"stream": True}
    ) as response:
        async for line in response.content:
            if b"begun" in line and b"print" not in line:
                break
        began = time.monotonic()
    await until(lambda: not supervisor.runs)
    assert time.monotonic() - began < 1.5
    assert supervisor.stuck == 0


async def test_a_command_sees_only_the_variables_that_it_is_given(
    upstream: FakeUpstream,
    make_gateway: MakeGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHOP_TOKEN", "from the environment")
    monkeypatch.setenv("HF_TOKEN", "never to be seen")
    server = STDIO | {"env": {"TOKEN": "${SHOP_TOKEN}!"}}
    gateway = await make(make_gateway, tmp_path, {"numbers": server})
    code = "final_answer([variable('TOKEN'), variable('HF_TOKEN'), variable('SHOP_TOKEN')])"
    answer, _ = await said(upstream, gateway, code)
    assert json.loads(answer) == ["from the environment!", "unset", "unset"]


async def test_only_the_tools_that_are_named_are_given(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    gateway = await make(make_gateway, tmp_path, {"numbers": STDIO | {"tools": ["add"]}})
    answer, _ = await said(upstream, gateway, "final_answer(add(1))")
    assert answer == "2"
    assert "def process(" not in json.dumps(upstream.bodies()[0])


async def test_an_agent_of_ones_own_gets_them_too(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    source = written(
        tmp_path,
        agent="test_server_registry:takes_the_context",
        instructions="Be kind.",
        max_steps=2,
        mcp_servers={"numbers": STDIO},
    )
    gateway = await make_gateway(load_agents({"numbers": source}, embedded=False))
    answer, _ = await said(upstream, gateway, "final_answer(add(1))")
    assert answer == "2"
    assert "Be kind." in json.dumps(upstream.bodies()[0])


async def refusal(
    servers: dict[str, Any], folder: Path, upstream: FakeUpstream, **settings: Any
) -> str:
    """Why an application with these MCP servers does not start."""
    agents = load_agents({"numbers": written(folder, mcp_servers=servers)}, embedded=False)
    defaults = {"upstream_base": upstream.base, "model": "up", "jail": "off"}
    app = create_app(make_settings(**defaults, **settings), agents)
    with pytest.raises(McpUnavailable) as raised:
        await web.AppRunner(app).setup()
    await app.cleanup()
    assert MCP_TOOLS not in app
    return str(raised.value)


async def test_a_server_that_cannot_be_used_is_said_at_the_start(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    for server, words in (
        ({"command": "/nowhere/mcp"}, "cannot be used"),
        ({"command": "/bin/true"}, "cannot be used"),
        ({"command": "/bin/sleep", "args": ["60"], "start_seconds": 0.5}, "did not answer"),
        ({"url": f"http://127.0.0.1:{free_port()}/mcp", "start_seconds": 5}, "'numbers'"),
        (STDIO | {"tools": ["nothing"]}, "has no tool nothing"),
    ):
        assert words in await refusal({"numbers": server}, tmp_path, upstream), server
    assert "has the tool 'add' of two MCP servers, 'a' and 'b'" in await refusal(
        {"a": STDIO, "b": STDIO}, tmp_path, upstream
    )


async def test_runs_away_from_the_server_cannot_have_them(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    said = await refusal({"numbers": STDIO}, tmp_path, upstream, runner="process")
    assert "RUNNER is 'process'" in said
    assert "allowed is 'thread'" in said


def test_the_process_says_it_in_one_line_and_ends(tmp_path: Path) -> None:
    source = written(tmp_path, mcp_servers={"numbers": {"command": "/nowhere/mcp"}})
    done = subprocess.run(
        [sys.executable, "-m", "server", "--port", "0", "--agents", f"numbers={source}"],
        env=environment(
            UPSTREAM_OPENAI_BASE="http://127.0.0.1:1/v1", LOG_LEVEL="ERROR", JAIL="off"
        ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "smolgate: the MCP server 'numbers' cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"mcp_servers": {"a": {}}}, "either a command or a url"),
        (
            {"mcp_servers": {"a": {"url": "http://x", "headers": {"x": "${NO_SUCH_NAME}"}}}},
            "NO_SUCH",
        ),
        ({"agent": "nowhere:make"}, "nowhere"),
        ({"agent": "test_server_registry:takes_the_context", "imports": ["numpy"]}, "imports"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(BadSetting, match=words):
        load_agents({"mine": written(tmp_path, **settings)}, embedded=False)


def test_toml_will_do(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(
        'max_steps = 3\nimports = ["fractions"]\n[mcp_servers.a]\nurl = "http://x/mcp"\n'
    )
    agents = load_agents({"mine": str(path)}, embedded=False)
    assert agents.mcp_servers["mine"]["a"].url == "http://x/mcp"
    assert agents.code_imports == {"fractions"}


@pytest.mark.parametrize(
    ("name", "python"),
    [("paint-it", "paint_it"), ("2d", "_2d"), ("class", "class_"), ("über", "_ber"), ("ok", "ok")],
)
def test_names_become_pythons(name: str, python: str) -> None:
    assert tool_name(name) == python


def test_schemas_become_inputs() -> None:
    schema = {
        "properties": {
            "a": {"type": "integer", "description": "one"},
            "b": {"anyOf": [{"type": "string"}, {"type": "null"}], "title": "B"},
            "c": {"$ref": "#/$defs/C"},
            "d": {"type": ["number", "date"]},
            "e": True,
        },
        "required": ["a"],
    }
    assert inputs_of(schema) == {
        "a": {"type": "integer", "description": "one"},
        "b": {"type": ["string", "null"], "description": "B", "nullable": True},
        "c": {"type": "object", "description": "c", "nullable": True},
        "d": {"type": "number", "description": "d", "nullable": True},
        "e": {"type": "any", "description": "e", "nullable": True},
    }
