"""Traces, as a real collector on loopback gets them from the real server."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from conftest import FakeUpstream, listening, scripted
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from server_process import ROOT, server_process

PROMPT = "a-prompt-that-nobody-else-must-see"
KEY, TOKEN = "sk-caller-secret", "hf-upstream-secret"
ASK = {"model": "finder", "messages": [{"role": "user", "content": PROMPT}]}


class Collector:
    """Keeps the spans that it is sent, as they are on the wire too."""

    def __init__(self) -> None:
        self.raw = b""
        self.spans: list[Any] = []
        self.resources: list[Any] = []

    async def serve(self, request: web.Request) -> web.Response:
        self.raw += (body := await request.read())
        for part in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.resources.append(part.resource)
            for scope in part.scope_spans:
                self.spans += scope.spans
        return web.Response(content_type="application/x-protobuf")

    def attributes(self, span: Any) -> dict[str, Any]:
        return {pair.key: pair.value for pair in span.attributes}

    def one(self, name: str) -> Any:
        (span,) = [span for span in self.spans if span.name == name]
        return span

    def parents(self, span: Any) -> list[str]:
        """Names from a span's parent up."""
        by_id = {one.span_id: one for one in self.spans}
        names = []
        while span := by_id.get(span.parent_span_id):
            names.append(span.name)
        return names


@pytest.fixture
async def collector() -> AsyncIterator[tuple[Collector, str]]:
    collector = Collector()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/traces", collector.serve)
    async with listening(app) as base:
        yield collector, base


def script(messages: list[dict[str, Any]]) -> str:
    return "<code>\nfinal_answer(lookup('argument-of-the-tool'))\n</code>"


async def run_traced(upstream: FakeUpstream, endpoint: str, **environment: str) -> list[str]:
    """One agent's run and one relayed request; returns the server's log once all is sent."""
    upstream.handler = scripted(script)

    def serve(asked: "asyncio.Future[str]", done: "asyncio.Event", loop: Any) -> list[str]:
        with server_process(
            UPSTREAM_OPENAI_BASE=upstream.base,
            AGENT_MODEL="up/model",
            AGENTS="finder=traced_agents:make_agent",
            OTEL_EXPORTER_OTLP_ENDPOINT=endpoint,
            API_KEYS=KEY,
            HF_TOKEN=TOKEN,
            **environment,
        ) as server:
            loop.call_soon_threadsafe(asked.set_result, server.base)
            asyncio.run_coroutine_threadsafe(done.wait(), loop).result(60)
            assert server.stop() == 0
            return server.lines

    loop = asyncio.get_running_loop()
    asked: asyncio.Future[str] = loop.create_future()
    done = asyncio.Event()
    serving = loop.run_in_executor(None, serve, asked, done, loop)
    try:
        base = await asyncio.wait_for(asked, 60)
        headers = {"Authorization": f"Bearer {KEY}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            for body in (ASK, ASK | {"model": "up/model"}):
                url = f"{base}/v1/chat/completions?query-of-the-caller=1"
                async with session.post(url, json=body) as response:
                    assert response.status == 200
                    await response.read()
    finally:
        done.set()
        lines = await serving
    return lines


async def test_a_run_is_one_trace_from_the_request_to_the_upstream(
    upstream: FakeUpstream, collector: tuple[Collector, str]
) -> None:
    seen, endpoint = collector
    lines = await run_traced(upstream, endpoint)
    agent = seen.one("CodeAgent.run")
    request, relayed = sorted(
        (span for span in seen.spans if "chat/completions" in span.name),
        key=lambda span: span.start_time_unix_nano,
    )
    assert seen.parents(agent) == [request.name]
    call = seen.one("LoopModel.generate")
    assert seen.parents(call) == ["Step 1", "CodeAgent.run", request.name]
    tokens = seen.attributes(call)
    assert tokens["llm.token_count.prompt"].int_value == 10
    assert tokens["llm.token_count.completion"].int_value == 5
    assert tokens["llm.model_name"].string_value == "up/model"
    tools = [span for span in seen.spans if span.name == "SimpleTool"]
    assert "lookup" in {seen.attributes(span)["tool.name"].string_value for span in tools}
    assert {seen.parents(span)[0] for span in tools} == {"Step 1"}
    upstream_calls = [span for span in seen.spans if span.name == "POST"]
    assert [seen.parents(span)[0] for span in upstream_calls] == [
        "LoopModel.generate",
        relayed.name,
    ]
    # The upstream can go on with the trace.
    sent = upstream.requests[0][0].headers["traceparent"].split("-")
    assert sent[1] == agent.trace_id.hex()
    names = {
        pair.key: pair.value.string_value
        for resource in seen.resources
        for pair in resource.attributes
    }
    assert names["service.name"] == "smolgate"
    assert not [line for line in lines if " ERROR " in line]


async def test_traces_hold_no_prompt_and_no_key(
    upstream: FakeUpstream, collector: tuple[Collector, str]
) -> None:
    seen, endpoint = collector
    everything = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST"
    await run_traced(upstream, endpoint, **{everything: ".*"})
    assert len(seen.spans) >= 6
    for secret in (
        *(PROMPT, KEY, TOKEN, "argument-of-the-tool", "final_answer(", "query-of-the-caller"),
        "Bearer",
    ):
        assert secret.encode() not in seen.raw, secret


async def test_traces_hold_prompts_where_they_are_asked_for_but_never_a_key(
    upstream: FakeUpstream, collector: tuple[Collector, str]
) -> None:
    seen, endpoint = collector
    everything = "OTEL_INSTRUMENTATION_HTTP_CAPTURE_HEADERS_SERVER_REQUEST"
    await run_traced(upstream, endpoint, **{everything: ".*"}, TRACE_CONTENT="1")
    for content in (PROMPT, "argument-of-the-tool", "query-of-the-caller"):
        assert content.encode() in seen.raw, content
    for secret in (KEY, TOKEN):
        assert secret.encode() not in seen.raw, secret


async def test_a_collector_that_is_down_harms_no_request(upstream: FakeUpstream) -> None:
    await run_traced(upstream, "http://127.0.0.1:1", OTEL_EXPORTER_OTLP_TIMEOUT="1")


def test_without_the_extra_the_setting_is_refused() -> None:
    program = (
        "import sys; sys.modules['openinference'] = None\n"
        "from server.__main__ import main\n"
        "sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--otel-exporter-otlp-endpoint", "http://127.0.0.1:1"],
        cwd=ROOT,
        env={"UPSTREAM_OPENAI_BASE": "http://127.0.0.1:1/v1", "JAIL": "off"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "smolgate[otel]" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_without_the_setting_nothing_of_it_is_loaded() -> None:
    with server_process() as server:
        mapped = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "msgspec" in mapped
    assert "google/_upb" not in mapped  # protobuf's, which the exporter needs
