"""`/metrics`: what happened is what it says; who may read it; several workers as one; the dashboard."""

import asyncio
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import FakeUpstream, Gateway, MakeGateway, scripted, until
from prometheus_client.parser import text_string_to_metric_families
from runner_agents import double
from smolagents import ToolCallingAgent

from server.api_keys import digest_of
from server.keys import SUPERVISOR
from server.metrics_text import merged
from server.request_counts import RequestCounts
from streaming.histogram import Histogram

DASHBOARD = Path(__file__).parent.parent / "deploy" / "grafana.json"
ASK = {"messages": [{"role": "user", "content": "hello"}]}
PLAIN = ASK | {"model": "up/model"}

Samples = Mapping[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def scraped(gateway: Gateway, **kwargs: Any) -> Samples:
    async with gateway.session.get(gateway.base + "/metrics", **kwargs) as response:
        assert response.status == 200
        assert response.content_type == "text/plain"
        return parsed(await response.text())


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)


def tool_script(messages: list[dict[str, Any]]) -> str:
    code = "try:\n    double(1000)\nexcept Exception:\n    pass\nfinal_answer(double(21))"
    return f"<code>\n{code}\n</code>"


@pytest.mark.every_runner
async def test_a_run_s_work_is_counted(
    make_gateway: MakeGateway, upstream: FakeUpstream, runner: str
) -> None:
    upstream.handler = scripted(tool_script)
    gateway = await make_gateway({"doubler": "runner_agents:doubler"})
    before = await scraped(gateway)
    assert value(before, "smolgate_runs_ended_total", agent="doubler", outcome="ok") == 0
    status, _, body = await gateway.post(ASK | {"model": "doubler"})
    assert (status, body["choices"][0]["message"]["content"].endswith("42")) == (200, True)
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    after = await scraped(gateway)
    expected = {
        ("smolgate_runs_ended_total", "agent=doubler outcome=ok"): 1,
        ("smolgate_tool_seconds_count", "tool=double"): 2,
        ("smolgate_tool_failures_total", "tool=double"): 1,
        ("smolgate_step_seconds_count", ""): 1,
        ("smolgate_model_call_seconds_count", ""): 1,
        ("smolgate_first_token_seconds_count", ""): 1,
        ("smolgate_queue_seconds_count", ""): 1,
        ("smolgate_run_seconds_count", ""): 1,
        ("smolgate_tokens_total", "kind=prompt"): 10,
        ("smolgate_tokens_total", "kind=completion"): 5,
        ("smolgate_upstream_exchanges_total", "upstream=default result=ok"): 1,
        ("smolgate_upstream_state", "upstream=default state=ok"): 1,
        ("smolgate_upstream_state", "upstream=default state=open"): 0,
        ("smolgate_requests_total", "route=/chat/completions status=200 outcome=ok"): 1,
        ("smolgate_request_seconds_count", "route=/chat/completions"): 1,
        ("smolgate_runs", "state=running"): 0,
        ("smolgate_runs_most", ""): 32,
    }
    if runner != "thread":
        begun = {"process": "spawned", "ray": "submitted"}[runner]
        expected[f"smolgate_runner_{begun}", ""] = 1
    seen = {
        (name, text): value(after, name, **dict(part.split("=", 1) for part in text.split()))
        for name, text in expected
    }
    assert seen == expected


async def test_tools_called_by_name_are_timed_and_invented_ones_are_no_label(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    def script(messages: list[dict[str, Any]]) -> str:
        said = json.dumps(messages)
        if "No Tool" not in said and "invented" not in said:
            return 'Action:\n{"name": "invented", "arguments": {"number": 1}}'
        if "42" not in said:
            return 'Action:\n{"name": "double", "arguments": {"number": 21}}'
        return 'Action:\n{"name": "final_answer", "arguments": {"answer": "42"}}'

    upstream.handler = scripted(script)
    agents = {"caller": lambda context: ToolCallingAgent(tools=[double], model=context.model)}
    gateway = await make_gateway(agents)
    status, _, _ = await gateway.post(ASK | {"model": "caller"})
    assert status == 200
    samples = await scraped(gateway)
    assert value(samples, "smolgate_tool_seconds_count", tool="double") == 1
    tools = {dict(labels)["tool"] for name, labels in samples if name.startswith("smolgate_tool_")}
    assert tools == {"double"}


async def test_runs_are_seen_in_their_states_and_cancels_by_reason(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    gate = asyncio.Event()
    upstream.handler = scripted(lambda _: "<code>\nfinal_answer(1)\n</code>", gate=gate)
    gateway = await make_gateway(max_running=1, max_queued=1)
    supervisor = gateway.app[SUPERVISOR]
    first = asyncio.create_task(gateway.post(ASK))
    await until(lambda: upstream.requests)
    second = asyncio.create_task(gateway.post(ASK))
    await until(lambda: supervisor.queued == 1)
    assert (await gateway.post(ASK))[0] == 429
    samples = await scraped(gateway)
    assert value(samples, "smolgate_runs", state="running") == 1
    assert value(samples, "smolgate_runs", state="queued") == 1
    assert value(samples, "smolgate_runs_refused_total", reason="queue_full") == 1
    (running, _) = supervisor.runs
    async with gateway.session.post(f"{gateway.base}/v1/runs/{running}/cancel"):
        pass
    await first
    second.cancel()
    await until(lambda: not supervisor.runs)
    samples = await scraped(gateway)
    for reason in ("cancelled", "client_gone"):
        assert value(samples, "smolgate_runs_stopped_total", reason=reason) == 1
        labels = {"agent": "code-writing-agent", "outcome": reason}
        assert value(samples, "smolgate_runs_ended_total", **labels) == 1


async def test_the_relay_and_an_upstream_that_is_down_are_counted(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    gateway = await make_gateway(breaker_failures=1, retries=0)
    await gateway.stream(PLAIN)
    samples = await scraped(gateway)
    assert value(samples, "smolgate_relay_first_byte_seconds_count") == 1
    down = await make_gateway(upstream_base="http://127.0.0.1:1/v1", breaker_failures=1, retries=0)
    assert (await down.post(PLAIN))[0] == 503
    samples = await scraped(down)
    labels = {"route": "/chat/completions", "status": "503", "outcome": "upstream"}
    assert value(samples, "smolgate_requests_total", **labels) == 1
    assert value(samples, "smolgate_upstream_state", upstream="default", state="open") == 1
    failed = {"upstream": "default", "result": "failed"}
    assert value(samples, "smolgate_upstream_exchanges_total", **failed) == 1


@pytest.mark.parametrize("runner", ["thread", "process"], indirect=True)
async def test_jails_that_die_under_code_are_counted(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    def script(messages: list[dict[str, Any]]) -> str:
        if "was killed" in json.dumps(messages):
            return "<code>\nfinal_answer('done')\n</code>"
        # In C: smolagents itself ends a loop of a million rounds, on a fast machine within the time.
        return "<code>\nsum(range(10**12))\n</code>"

    upstream.handler = scripted(script)
    gateway = await make_gateway(jail="auto", step_seconds=3)
    assert (await gateway.post(ASK))[0] == 200
    samples = await scraped(gateway)
    assert value(samples, "smolgate_jail_kills_total", reason="time") == 1
    assert value(samples, "smolgate_jails_started_total") >= 1


async def test_a_loop_that_is_held_up_shows(make_gateway: MakeGateway) -> None:
    import time

    gateway = await make_gateway()
    loop = asyncio.get_running_loop()
    held_until = loop.time() + 0.8
    while loop.time() < held_until:
        time.sleep(0.1)  # noqa: ASYNC251 - the fault that is to be seen
    await asyncio.sleep(0.01)
    samples = await scraped(gateway)
    late = value(samples, "smolgate_loop_lag_seconds_count")
    in_time = value(samples, "smolgate_loop_lag_seconds_bucket", le="0.1")
    assert late - in_time >= 1


def bearer(key: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {key}"}}


async def test_with_keys_only_a_key_that_may_reads_the_metrics(
    make_gateway: MakeGateway, tmp_path: Path
) -> None:
    path = tmp_path / "keys.json"
    entries = [
        {"name": name, "key": "sha256:" + digest_of(name).hex(), "metrics": name == "scraper"}
        for name in ("scraper", "caller")
    ]
    path.write_text(json.dumps(entries))
    gateway = await make_gateway(api_keys_file=str(path))
    await scraped(gateway, **bearer("scraper"))
    for path_of in ("/metrics", "/v1/metrics"):
        async with gateway.session.get(gateway.base + path_of) as response:
            assert response.status == 401
        async with gateway.session.get(gateway.base + path_of, **bearer("caller")) as response:
            assert response.status == 403
            assert (await response.json())["error"]["code"] == "forbidden"
    public = await make_gateway(api_keys=("k",), metrics_public=True)
    await scraped(public)


async def test_ids_that_callers_make_up_become_no_labels(make_gateway: MakeGateway) -> None:
    gateway = await make_gateway()
    for number in range(20):
        for path in (f"/made/up/{number}", f"/v1/models/{number}", f"/v1/runs/{number}"):
            async with gateway.session.get(gateway.base + path):
                pass
        await gateway.post(ASK | {"model": f"model-{number}"})
    samples = await scraped(gateway)
    routes = {dict(labels).get("route") for _, labels in samples} - {None}
    assert routes <= {"other", "/models", "/runs", "/chat/completions", "/metrics"}
    agents = {dict(labels).get("agent") for _, labels in samples} - {None}
    assert agents == {"code-writing-agent"}


async def test_the_texts_of_two_workers_merge_into_their_sum(make_gateway: MakeGateway) -> None:
    texts = []
    for count in (1, 2):
        gateway = await make_gateway()
        for _ in range(count):
            assert (await gateway.post(ASK))[0] == 200
        async with gateway.session.get(gateway.base + "/metrics") as response:
            texts.append(await response.read())
    samples = parsed(merged(texts).decode())
    labels = {"route": "/chat/completions", "status": "200", "outcome": "ok"}
    assert value(samples, "smolgate_requests_total", **labels) == 3
    assert value(samples, "smolgate_runs_most") == 32
    assert value(samples, "smolgate_step_seconds_count") == 3
    assert value(samples, "smolgate_step_seconds_bucket", le="+Inf") == 3
    first = parsed(texts[0].decode())
    assert set(first) <= set(samples)


def test_a_histogram_counts_what_is_at_most_each_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for seen in (0.5, 1.0, 1.5, 2.5):
        histogram.observe(seen)
    assert histogram.buckets() == [("1.0", 2.0), ("2.0", 3.0), ("+Inf", 4.0)]
    assert (histogram.count, histogram.total) == (4, 5.5)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/chat/completions", "/chat/completions"),
        ("/embeddings", "/embeddings"),
        ("/v1/files/abc/content", "/files"),
        ("/v1/models/Qwen/Qwen3", "/models"),
        ("/v1/chat/completions/../x", "other"),
        ("//", "other"),
        ("*", "other"),
    ],
)
def test_routes_are_few(path: str, route: str) -> None:
    counts = RequestCounts()
    counts.note(path, 200, "ok", 0.1)
    assert list(counts.requests) == [(route, 200, "ok")]


async def test_the_dashboard_asks_only_for_what_is_exported(make_gateway: MakeGateway) -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [
        target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])
    ]
    wanted = {name for text in expressions for name in re.findall(r"smolgate_\w+", text)}
    assert len(wanted) >= 15
    gateway = await make_gateway(jail="auto")
    async with gateway.session.get(gateway.base + "/metrics") as response:
        text = await response.text()
    exported = set()
    for family in text_string_to_metric_families(text):
        suffixes = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_count", "_sum"),
            "gauge": ("",),
        }[family.type]
        exported |= {family.name + suffix for suffix in suffixes}
    assert wanted - exported == set()
    labels = {
        name
        for text in expressions
        for group in re.findall(r"by \(([^)]*)\)", text)
        for name in group.replace(" ", "").split(",")
    }
    assert labels <= {
        "le",
        "route",
        "status",
        "outcome",
        "agent",
        "state",
        "reason",
        "tool",
        "kind",
        "upstream",
        "result",
    }
