"""docs/threat-model.md: every claim has its tests; those that belong nowhere else are here."""

import ast
import configparser
import json
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from conftest import FakeUpstream, MakeGateway
from server_process import ServerProcess, server_process

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "threat-model.md").read_text()
ASK = {"messages": [{"role": "user", "content": "hello"}]}


def claims() -> list[str]:
    begin, end = PAGE.index("## Boundaries and claims"), PAGE.index("## What an operator must do")
    return [line for line in PAGE[begin:end].splitlines() if line.startswith("- ")]


def test_every_claim_names_tests_that_are_there() -> None:
    there = {
        node.name
        for path in (ROOT / "tests").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert len(claims()) > 25
    for claim in claims():
        named = re.findall(r"`(test_\w+)`", claim)
        assert named, f"no test proves: {claim}"
        assert not [name for name in named if name not in there], claim


def test_the_pages_that_it_links_to_are_there() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target


def test_every_dependency_has_its_reason() -> None:
    page = (ROOT / "docs" / "dependencies.md").read_text()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = dict(config["options.extras_require"])
    extras.pop("test")
    needed = "\n".join([config["options"]["install_requires"], *extras.values()]).split()
    names = {re.split(r"[<>=\[]", requirement)[0] for requirement in needed}
    assert len(names) > 8
    rows = re.findall(r"^\| (?:`\w+` \| )?([\w-]+) \| \S.*\|$", page, re.MULTILINE)
    assert names <= set(rows), names - set(rows)


@pytest.mark.parametrize("model", ["up/model", "up/model-nothink", "code-writing-agent"])
@pytest.mark.parametrize("where", ["model", "messages", "content", "part", "field"])
async def test_json_of_any_depth_is_taken_or_refused(
    make_gateway: MakeGateway, model: str, where: str
) -> None:
    gateway = await make_gateway()
    for depth in (100, 900, 980, 1000, 1020, 100_000):
        for deep in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
            plain = '{"role":"user","content":"hi"}'
            body = {
                "model": f'{{"model":{deep},"messages":[{plain}]}}',
                "messages": f'{{"model":"{model}","messages":{deep}}}',
                "content": f'{{"model":"{model}","messages":[{{"role":"user","content":{deep}}}]}}',
                "part": f'{{"model":"{model}","messages":[{{"role":"user","content":[{deep}]}}]}}',
                "field": f'{{"model":"{model}","x":{deep},"messages":[{plain}]}}',
            }[where]
            async with gateway.session.post(
                gateway.base + "/v1/chat/completions",
                data=body,
                headers={"Content-Type": "application/json"},
            ) as response:
                assert response.status in {200, 400}, (depth, await response.text())
                if response.status == 400:
                    error = json.loads(await response.read())["error"]
                    assert error["type"] == "invalid_request_error"


KEY, TOKEN = "sk-caller-secret-1", "hf-upstream-secret-1"


def replied(server: ServerProcess, method: str, path: str, body: Any, **headers: str) -> str:
    """All of a reply: status, headers and body."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        server.base + path,
        data=data,
        method=method,
        headers={"Content-Type": "application/json"} | headers,
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return f"{response.status} {response.headers} {response.read()!r}"
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.code} {error.headers} {error.read()!r}"


def test_secrets_are_in_no_reply_log_metric_or_process_list(tmp_path: Path) -> None:
    """With everything on that could tell, and failures of each kind."""
    host = "inner-host.invalid"
    module = tmp_path / "leaky_agents.py"
    module.write_text(
        "import os\n"
        "from smolagents import CodeAgent, Model\n"
        "class Leaky(Model):\n"
        "    def generate(self, *args, **kwargs):\n"
        "        raise RuntimeError('at /srv/private with ' + os.environ['HF_TOKEN'])\n"
        "def make_agent(context):\n"
        "    return CodeAgent(tools=[], model=Leaky())\n"
    )
    environment = {
        "UPSTREAM_OPENAI_BASE": f"http://{host}:1/v1",
        "AGENT_MODEL": "up/model",
        "AGENTS": "leaky=leaky_agents:make_agent",
        "HF_TOKEN": TOKEN,
        "LOG_LEVEL": "DEBUG",
        "METRICS_PUBLIC": "1",
        "RETRIES": "0",
        "PYTHONPATH": str(tmp_path),
    }
    good = {"Authorization": f"Bearer {KEY}"}
    with server_process("--api-keys", KEY, **environment) as server:
        replies = [
            replied(server, "POST", "/v1/chat/completions", ASK | {"model": model}, **headers)
            for model in ("leaky", "up/model", "up/model-nothink", "code-writing-agent")
            for headers in (good, {"Authorization": f"Bearer {KEY}x"}, {"Authorization": KEY})
        ]
        replies += [
            replied(server, "GET", path, None, **good)
            for path in ("/metrics", "/v1/models", "/v1/runs", "/readyz", "/nowhere", "/healthz")
        ]
        shown = Path(f"/proc/{server.process.pid}/cmdline").read_text()
        assert server.stop() == 0
        log = "\n".join(server.lines)
    told = "\n".join(replies)
    assert {reply[:3] for reply in replies} >= {"200", "401", "404", "500", "503"}
    for secret in (KEY, TOKEN):
        assert secret not in told
        assert secret not in log
        assert secret not in shown
    for inner in (host, "/srv/private", str(ROOT), "Traceback"):
        assert inner not in told
    assert "hello" not in log


async def test_an_upstream_s_error_text_does_not_tell_its_token(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    async def tells(request: web.Request) -> web.Response:
        said = request.headers["Authorization"]
        return web.json_response({"error": {"message": f"bad credentials {said}"}}, status=401)

    upstream.handler = tells
    gateway = await make_gateway(token=TOKEN)
    status, _, body = await gateway.post(ASK)
    assert status == 500
    assert TOKEN not in json.dumps(body)
