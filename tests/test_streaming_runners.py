"""What a runner of processes promises beyond the suites that run over every runner."""

import asyncio
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import FakeUpstream, MakeGateway, scripted, text_of, until

from bench.ray_nodes import below
from server.keys import RUNNER, SUPERVISOR
from streaming.runners.process import ProcessRunner

ROOT = Path(__file__).parent.parent
ABLE = {"able": "runner_agents:able"}
ASK: dict[str, Any] = {"model": "able", "messages": [{"role": "user", "content": "go"}]}

in_processes = pytest.mark.parametrize("runner", ["process"], indirect=True)
# Where force ends a process, and not a thread at most.
by_force = pytest.mark.parametrize("runner", ["process", "ray"], indirect=True)


def code(*lines: str) -> Callable[[list[dict[str, Any]]], str]:
    return lambda messages: "<code>\n" + "\n".join(lines) + "\n</code>"


def is_alive(pid: int) -> bool:
    """Zombies are not."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@by_force
@pytest.mark.parametrize(
    ("how", "said"),
    [("segfault", "SIGSEGV"), ("exit", "by itself with status 7"), ("kill", "SIGKILL")],
)
async def test_a_crash_is_a_clear_failure_of_that_run_alone(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path, how: str, said: str
) -> None:
    released = tmp_path / "released"

    def script(messages: list[dict[str, Any]]) -> str:
        if "crash" in str(messages[-1]):
            return code("print('before')", f"crash('{how}')")(messages)
        return code(f"wait_for_file('{released}')", "final_answer('fine')")(messages)

    upstream.handler = scripted(script)
    gateway = await make_gateway(ABLE)
    other = asyncio.ensure_future(gateway.stream(ASK))
    await until(lambda: len(upstream.requests) == 1)
    crash = ASK | {"messages": [{"role": "user", "content": "crash"}]}
    events = await gateway.stream(crash)
    assert "before" in text_of(events, "reasoning")
    assert events[-3]["choices"][0]["finish_reason"] == "error"
    error = events[-2]["error"]
    assert (error["type"], error["code"]) == ("agent_error", "worker_lost")
    if gateway.app[RUNNER].numbers.get("crashed"):
        assert said in error["message"]
    else:
        assert "its worker process ended" in error["message"]
    released.touch()
    assert text_of(await other, "content") == "fine"
    await until(lambda: not gateway.app[SUPERVISOR].runs)


@by_force
@pytest.mark.parametrize("call", ["hang('{path}')", "tell_pid('{path}')\ncompute()"])
async def test_a_tool_that_takes_no_notice_is_ended_by_force(
    upstream: FakeUpstream,
    make_gateway: MakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    call: str,
) -> None:
    monkeypatch.setattr("streaming.supervisor.GRACE_SECONDS", 0.2)
    begun = tmp_path / "pid"
    upstream.handler = scripted(code(*call.format(path=begun).splitlines()))
    gateway = await make_gateway(ABLE, max_running=1)
    supervisor = gateway.app[SUPERVISOR]
    asking = asyncio.ensure_future(gateway.post(ASK))
    await until(begun.exists, seconds=30)
    asking.cancel()
    await until(lambda: not supervisor.runs, seconds=30)
    assert (supervisor.running, supervisor.stuck) == (0, 0)
    upstream.handler = scripted(code("final_answer('next')"))
    assert (await gateway.post(ASK))[0] == 200


@in_processes
async def test_nothing_that_a_run_started_outlives_it(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    upstream.handler = scripted(code(f"leave_processes('{tmp_path}')", "final_answer('left')"))
    gateway = await make_gateway(ABLE)
    assert text_of(await gateway.stream(ASK), "content") == "left"
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    pids = [int(name) for name in os.listdir(tmp_path)]
    assert len(pids) == 2
    assert [pid for pid in pids if is_alive(pid)] == []


@in_processes
async def test_a_run_has_limits_of_its_own(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway(
        ABLE, process_memory_bytes=2 << 30, process_cpu_seconds=2, jail="off"
    )
    upstream.handler = scripted(
        code(
            "try:\n    eat_memory(4096)\nexcept Exception as error:\n    print(type(error))",
            "final_answer(eat_memory(64))",
        )
    )
    events = await gateway.stream(ASK)
    assert text_of(events, "content") == "64"
    assert "MemoryError" in text_of(events, "reasoning")
    upstream.handler = scripted(code("compute()"))
    events = await gateway.stream(ASK)
    assert "it had used up its CPU time" in events[-2]["error"]["message"]


@in_processes
async def test_what_is_written_below_python_is_the_runs_output(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    upstream.handler = scripted(code("write_below_python()", "final_answer('written')"))
    gateway = await make_gateway(ABLE)
    lines = text_of(await gateway.stream(ASK), "reasoning").splitlines()
    for line in ("from C", "from a process", "and an error"):
        assert lines.count(line) == 1


@by_force
async def test_secrets_and_settings_stay_in_the_server(
    upstream: FakeUpstream, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_server")
    monkeypatch.setenv("ELSEWHERE", "also hf_of_the_server")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=of_the_traces")
    monkeypatch.setenv("FOR_TOOLS", "tools may know")
    upstream.handler = scripted(
        code(
            "secrets = ['hf_of_the_server', 'of_the_traces']",
            "final_answer([any(map(look_for, secrets)), look_for('tools may know')])",
        )
    )
    gateway = await make_gateway(ABLE, token="hf_of_the_server")
    _, _, reply = await gateway.post(ASK | {"reasoning_format": "none"})
    in_process = isinstance(gateway.app[RUNNER], ProcessRunner)
    # A cluster's workers have the environment of their own machines.
    expected = "[false, true]" if in_process else "[false, false]"
    assert reply["choices"][0]["message"]["content"] == expected
    assert upstream.requests[0][0].headers["Authorization"] == "Bearer hf_of_the_server"


@in_processes
async def test_when_the_zygote_dies_its_runs_end_clearly_and_new_ones_work(
    upstream: FakeUpstream, make_gateway: MakeGateway, tmp_path: Path
) -> None:
    begun = tmp_path / "pid"
    upstream.handler = scripted(code(f"hang('{begun}')"))
    gateway = await make_gateway(ABLE)
    runner = gateway.app[RUNNER]
    asking = asyncio.ensure_future(gateway.stream(ASK))
    await until(begun.exists)
    pid = int(begun.read_text())
    (zygote,) = (child for child in below(os.getpid()) if pid in below(child))
    os.kill(zygote, signal.SIGKILL)
    events = await asking
    assert events[-2]["error"]["code"] == "worker_lost"
    assert "the process that starts runs died" in events[-2]["error"]["message"]
    await until(lambda: not is_alive(pid))
    upstream.handler = scripted(code("final_answer('back')"))
    assert text_of(await gateway.stream(ASK), "content") == "back"
    assert runner.numbers["zygote_restarts"] == 1


async def test_when_the_server_is_killed_its_runs_go_with_it(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    begun = tmp_path / "pid"
    upstream.handler = scripted(code(f"leave_processes('{tmp_path}')", f"hang('{begun}')"))
    flags = ("--port", "0", "--runner", "process", "--agents", "able=runner_agents:able")
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "server", *flags),
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
            "UPSTREAM_OPENAI_BASE": upstream.base,
            "AGENT_MODEL": "up/model",
        },
        stderr=asyncio.subprocess.PIPE,
    )
    assert server.stderr is not None
    try:
        async with asyncio.timeout(60):
            while not (found := re.search(rb"listening on (\S+)", await server.stderr.readline())):
                assert server.returncode is None
        async with aiohttp.ClientSession() as session:
            url = f"{found[1].decode()}/chat/completions"
            asking = asyncio.ensure_future(session.post(url, json=ASK))
            await until(begun.exists, seconds=60)
            all_of_them = below(server.pid)
            assert int(begun.read_text()) in all_of_them
            server.kill()
            await asyncio.gather(asking, return_exceptions=True)
    finally:
        if server.returncode is None:
            server.kill()
        await server.communicate()
    await until(lambda: not any(map(is_alive, all_of_them)), seconds=30)


@in_processes
async def test_an_agent_that_a_worker_cannot_load_fails_its_own_runs_alone(
    upstream: FakeUpstream, make_gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.handler = scripted(code("final_answer('fine')"))
    monkeypatch.setattr("server.runner_choice.LOADER", "runner_agents:with_a_broken_one")
    gateway = await make_gateway(ABLE)
    status, _, reply = await gateway.post(ASK)
    assert (status, reply["error"]["message"]) == (500, "The agent failed: ModuleNotFoundError.")
    events = await gateway.stream(ASK | {"model": "code-writing-agent"})
    assert text_of(events, "content") == "fine"


@in_processes
async def test_memory_that_a_run_takes_is_given_back(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    """A leak ends with its process: the zygote's own memory stays what it was."""
    gateway = await make_gateway(ABLE)
    upstream.handler = scripted(code("final_answer(eat_memory(200))"))
    before = memory_below_kib()
    for _ in range(5):
        assert text_of(await gateway.stream(ASK), "content") == "200"
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    assert memory_below_kib() - before < 20_000


def memory_below_kib() -> int:
    """Of all processes below this one."""
    total = 0
    for pid in below(os.getpid()):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                total += int(line.split()[1])
    return total
