"""Many workers behind one address: limits, runs and wishes are those of all together, whoever is killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import FakeUpstream, Handler, events_of, scripted, text_of, until
from openai import OpenAI
from server_process import (
    ROOT,
    ServerProcess,
    alive,
    command_of,
    descendants,
    environment,
    server_process,
    wait_for,
)

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "go"}], "stream": True}
CHAT = "http://worker/v1/chat/completions"
RUNS = "http://worker/v1/runs"


@contextmanager
def two_workers(upstream: FakeUpstream, *flags: str, **values: Any) -> Iterator[ServerProcess]:
    values = {"UPSTREAM_OPENAI_BASE": upstream.base, "JAIL": "off", "AGENT_MODEL": "up"} | values
    with server_process("--workers", "2", *flags, **values) as server:
        yield server


def at(path: Path) -> aiohttp.ClientSession:
    """A client of just this worker."""
    return aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path), limit=0))


@asynccontextmanager
async def at_both(server: ServerProcess) -> AsyncIterator[list[aiohttp.ClientSession]]:
    one, two = server.sockets()
    async with at(one) as first, at(two) as second:
        yield [first, second]


async def read(session: aiohttp.ClientSession, url: str = CHAT, **kwargs: Any) -> tuple[int, Any]:
    """The status, and a stream's events or an error's body."""
    async with session.post(url, json=ASK, **kwargs) as response:
        raw = await response.read()
        streamed = response.content_type == "text/event-stream"
        return response.status, events_of(raw) if streamed else json.loads(raw)


def run_told(reply: tuple[int, Any]) -> tuple[str, str, str]:
    """The id, answer and reasoning of a run's stream, however it was cut."""
    status, events = reply
    assert status == 200
    return events[0]["id"], text_of(events, "content"), text_of(events, "reasoning")


async def listed(session: aiohttp.ClientSession, **kwargs: Any) -> list[dict[str, Any]]:
    async with session.get(RUNS, **kwargs) as response:
        runs: list[dict[str, Any]] = (await response.json())["data"]
        return runs


async def until_so(condition: Callable[[], Awaitable[object]]) -> None:
    """Wait for what has to be asked for."""
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def until_listed(session: aiohttp.ClientSession, *states: str) -> list[dict[str, Any]]:
    """Wait until the runs are in just these states."""
    runs: list[dict[str, Any]] = []

    async def is_so() -> bool:
        runs[:] = await listed(session)
        return sorted(run["status"] for run in runs) == sorted(states)

    await until_so(is_so)
    return runs


@pytest.fixture
def gate(upstream: FakeUpstream) -> asyncio.Event:
    """The agents' model says nothing until it is set."""
    opened = asyncio.Event()
    upstream.handler = scripted(lambda _: "<code>\nfinal_answer('hello')\n</code>", gate=opened)
    return opened


async def test_limits_hold_for_all_workers_together(
    upstream: FakeUpstream, gate: asyncio.Event
) -> None:
    with two_workers(upstream, "--max-running", "3", "--max-queued", "1") as server:
        async with at_both(server) as workers:
            asking = [asyncio.create_task(read(workers[n % 2])) for n in range(10)]
            await until(lambda: sum(task.done() for task in asking) == 6, 30)
            refused = [task.result() for task in asking if task.done()]
            assert {status for status, _ in refused} == {429}
            assert {body["error"]["code"] for _, body in refused} == {"queue_full"}
            for worker in workers:
                await until_listed(worker, "queued", "running", "running", "running")

            async def is_full() -> bool:  # as of some milliseconds ago
                async with workers[0].get("http://worker/readyz") as response:
                    reasons = (await response.json())["reasons"]
                    return bool(reasons == {"runs": "the queue is full"})

            await until_so(is_full)
            gate.set()
            answers = [
                text_of(body, "content")
                for status, body in await asyncio.gather(*asking)
                if status == 200
            ]
            assert answers == ["hello"] * 4
            await until_listed(workers[0])


async def test_one_keys_limit_holds_for_all_workers_together(
    upstream: FakeUpstream, gate: asyncio.Event
) -> None:
    values: dict[str, Any] = {"API_KEYS": "mine,yours", "MAX_PER_KEY": "2"}
    mine: Any = {"headers": {"Authorization": "Bearer mine"}}
    yours: Any = {"headers": {"Authorization": "Bearer yours"}}
    with two_workers(upstream, **values) as server:
        async with at_both(server) as (first, second):
            kept = [asyncio.create_task(read(worker, **mine)) for worker in (first, second)]

            async def are_two() -> bool:
                return len(await listed(first, **mine)) == 2

            await until_so(are_two)
            for worker in (first, second):
                status, body = await read(worker, **mine)
                assert (status, body["error"]["code"]) == (429, "key_limit")
            assert await listed(second, **yours) == []
            gate.set()
            assert (await read(second, **yours))[0] == 200
            assert [(await task)[0] for task in kept] == [200, 200]


async def test_what_a_killed_worker_held_is_free_and_another_takes_its_place(
    upstream: FakeUpstream, gate: asyncio.Event
) -> None:
    with two_workers(upstream, "--max-running", "2") as server:
        victim, _ = server.workers()
        async with at_both(server) as (first, second):
            lost = [asyncio.create_task(read(first)) for _ in range(2)]
            await until_listed(second, "running", "running")
            waiting = asyncio.create_task(read(second))
            await until_listed(second, "queued", "running", "running")
            os.kill(victim, signal.SIGKILL)
            for task in lost:
                with pytest.raises(aiohttp.ClientError):
                    await task
            await until_listed(second, "running")
            gate.set()
            assert (await waiting)[0] == 200
        await until(lambda: len(server.workers()) == 2 and victim not in server.workers(), 30)
        await until(lambda: [path.stem for path in server.sockets()] == ["2", "3"], 30)
        async with at(server.sockets()[1]) as third:

            async def answers() -> bool:
                try:
                    return (await read(third))[0] == 200
                except aiohttp.ClientConnectionError:
                    return False  # a socket is bound a moment before it listens

            await until_so(answers)
        assert f"worker {victim} ended with -9; starting another" in server.log


async def test_runs_of_other_workers_are_listed_read_and_cancelled(
    upstream: FakeUpstream, gate: asyncio.Event
) -> None:
    with two_workers(upstream) as server:
        async with at_both(server) as (first, second):
            asking = asyncio.create_task(read(first))
            (run,) = await until_listed(second, "running")
            async with second.get(f"{RUNS}/{run['id']}") as response:
                assert (await response.json())["id"] == run["id"]
            async with second.post(f"{RUNS}/{run['id']}/cancel") as response:
                assert (await response.json())["outcome"] == "cancelled"
            _, told = await asking
            assert told["error"]["code"] == "cancelled"
            await until_listed(second)
            async with second.post(f"{RUNS}/{run['id']}/cancel") as response:
                assert response.status == 404
                assert (await response.json())["error"]["code"] == "run_not_found"
            async with second.get(f"{RUNS}/{run['id']}") as response:
                assert (await response.json())["outcome"] == "cancelled"


@pytest.mark.parametrize(
    ("first_headers", "then_headers"),
    [
        ({"Idempotency-Key": "one"}, {"Idempotency-Key": "one"}),
        ({"x-stainless-retry-count": "0"}, {"x-stainless-retry-count": "1"}),
    ],
    ids=["key", "retry of the SDK"],
)
async def test_a_repeated_request_joins_the_run_of_another_worker(
    upstream: FakeUpstream,
    gate: asyncio.Event,
    first_headers: dict[str, str],
    then_headers: dict[str, str],
) -> None:
    with two_workers(upstream, "--heartbeat-seconds", "0.05") as server:
        async with at_both(server) as (first, second):
            once = asyncio.create_task(read(first, headers=first_headers))
            await until_listed(first, "running")
            again = [
                asyncio.create_task(read(worker, headers=then_headers))
                for worker in (second, second, first)
            ]
            await asyncio.sleep(0.3)
            assert len(await listed(second)) == 1
            gate.set()
            told = run_told(await once)
            assert told[1] == "hello"
            assert [run_told(await task) for task in again] == [told] * 3
    assert len(upstream.requests) == 1


async def test_an_ended_run_is_replayed_by_any_worker_and_made_anew_when_its_worker_is_gone(
    upstream: FakeUpstream,
) -> None:
    key: Any = {"headers": {"Idempotency-Key": "one"}}
    with two_workers(upstream) as server:
        first_pid, _ = server.workers()
        async with at_both(server) as (first, second):
            told = run_told(await read(first, **key))
            assert run_told(await read(second, **key)) == told
            assert run_told(await read(first, **key)) == told
            other = ASK | {"temperature": 1}
            async with second.post(CHAT, json=other, **key) as response:
                assert response.status == 400
                assert (await response.json())["error"]["code"] == "idempotency_key_reused"
            os.kill(first_pid, signal.SIGKILL)
            await until(lambda: f"worker {first_pid} ended" in server.log, 30)
            again = run_told(await read(second, **key))
            assert again[1] == "hello"
            assert again[0] != told[0]
    assert len(upstream.requests) == 2


async def test_the_same_key_at_all_workers_at_once_makes_one_run(upstream: FakeUpstream) -> None:
    with two_workers(upstream) as server:
        async with at_both(server) as workers:
            for name in range(10):
                headers = {"Idempotency-Key": f"key {name}"}
                told = await asyncio.gather(
                    *(read(workers[n % 2], headers=headers) for n in range(6))
                )
                assert len({run_told(each) for each in told}) == 1, name
    assert len(upstream.requests) == 10


async def test_only_a_worker_may_ask_for_a_run_alone(upstream: FakeUpstream) -> None:
    headers = {"Idempotency-Key": "one", "X-Smolgate-Join": "1"}
    with two_workers(upstream) as server:
        async with aiohttp.ClientSession() as session:
            url = f"{server.base}/v1/chat/completions"
            assert (await read(session, url, headers=headers))[0] == 200


def slow(deltas: int, gap_seconds: float) -> Handler:
    """A stream of numbers for the relay."""

    async def handler(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        response = aiohttp.web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number in range(deltas):
            choice = {"index": 0, "delta": {"content": f"{number} "}, "finish_reason": None}
            await response.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
            await asyncio.sleep(gap_seconds)
        choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
        await response.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    return handler


async def test_a_rolling_restart_loses_no_stream_and_no_request(upstream: FakeUpstream) -> None:
    agents = scripted(lambda _: "<code>\nfinal_answer('hello')\n</code>")
    relayed = slow(40, 0.1)

    async def both(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        is_agents = b"New task" in await request.read()
        return await (agents if is_agents else relayed)(request)

    upstream.handler = both
    with two_workers(upstream) as server:
        url = f"{server.base}/v1/chat/completions"
        over, asked = asyncio.Event(), 0
        old = server.workers()

        async def keep_asking(session: aiohttp.ClientSession) -> None:
            nonlocal asked
            while not over.is_set():
                status, events = await read(session, url)
                assert status == 200
                assert text_of(events, "content") == "hello"
                asked += 1

        async def relay_one(session: aiohttp.ClientSession) -> None:
            async with session.post(url, json=ASK | {"model": "up"}) as response:
                events = events_of(await response.read())
            assert text_of(events, "content") == "".join(f"{number} " for number in range(40))
            assert events[-1] == "[DONE]"

        async with aiohttp.ClientSession() as session:
            streams = [asyncio.create_task(relay_one(session)) for _ in range(20)]
            askers = [asyncio.create_task(keep_asking(session)) for _ in range(4)]
            for round_ in (1, 2):
                before = asked
                server.process.send_signal(signal.SIGHUP)
                await until(lambda: server.log.count("new workers serve") == round_, 60)  # noqa: B023
                await until(lambda: asked > before + 20, 60)  # noqa: B023
                streams += [asyncio.create_task(relay_one(session)) for _ in range(5)]
            over.set()
            await asyncio.gather(*streams, *askers)
        await until(lambda: not any(map(alive, old)) and len(server.workers()) == 2, 60)


async def test_a_restart_that_cannot_work_leaves_the_old_workers(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    module = tmp_path / "shop.py"
    module.write_text(
        "from smolagents import CodeAgent\n\n"
        "def make(context):\n    return CodeAgent(tools=[], model=context.model)\n"
    )
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    with two_workers(upstream, "--agents", "shop=shop:make", PYTHONPATH=path) as server:
        old = server.workers()
        module.write_text("nonsense = ")
        server.process.send_signal(signal.SIGHUP)
        await until(lambda: "the old workers go on" in server.log, 60)
        assert server.workers() == old
        async with aiohttp.ClientSession() as session:
            assert (await read(session, f"{server.base}/v1/chat/completions"))[0] == 200


async def test_sigterm_lets_runs_finish_and_leaves_no_process(
    upstream: FakeUpstream, gate: asyncio.Event
) -> None:
    with two_workers(upstream, "--drain-seconds", "30") as server:
        everybody = [server.process.pid, *descendants(server.process.pid)]
        async with at_both(server) as workers:
            asking = [asyncio.create_task(read(worker)) for worker in workers]
            await until_listed(workers[0], "running", "running")
            server.process.send_signal(signal.SIGTERM)

            async def refuses() -> bool:
                async with workers[1].get("http://worker/readyz") as response:
                    return response.status == 503

            await until_so(refuses)
            gate.set()
            assert [(await task)[0] for task in asking] == [200, 200]
        assert await asyncio.to_thread(server.process.wait, 30) == 0
        await until(lambda: not any(map(alive, everybody)))
        assert server.sockets() == []


async def test_workers_whose_parent_was_killed_finish_their_streams_and_end(
    upstream: FakeUpstream, gate: asyncio.Event
) -> None:
    with two_workers(upstream, "--drain-seconds", "30") as server:
        workers = server.workers()
        async with at_both(server) as sessions:
            asking = [asyncio.create_task(read(session)) for session in sessions]
            await until_listed(sessions[0], "running", "running")
            server.process.kill()
            await until(lambda: "the parent process is gone" in server.log)
            gate.set()
            assert [(await task)[0] for task in asking] == [200, 200]
        await until(lambda: not any(map(alive, workers)), 30)


def test_what_is_wrong_with_a_setting_is_said_once() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "server", "--workers", "3", "--agents", "x=nowhere:make"],
        env=environment(UPSTREAM_OPENAI_BASE="http://127.0.0.1:1/v1", LOG_LEVEL="ERROR"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("AGENTS has x=nowhere:make, which cannot work") == 1
    assert done.stderr.count("\n") == 1


def test_a_port_that_other_workers_have_is_refused(upstream: FakeUpstream) -> None:
    with two_workers(upstream) as server:
        port = server.base.rpartition(":")[2]
        done = subprocess.run(
            [sys.executable, "-m", "server", "--workers", "2", "--port", port],
            env=environment(UPSTREAM_OPENAI_BASE="http://127.0.0.1:1/v1", LOG_LEVEL="ERROR"),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert "cannot listen" in done.stderr
    assert done.stderr.count("\n") == 1


async def test_workers_share_a_unix_socket_and_leave_none_behind(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    path = tmp_path / "smolgate.sock"
    with two_workers(upstream, "--unix-socket", str(path)) as server:
        assert server.base == f"unix:{path}"
        async with at(path) as session:
            for _ in range(4):
                assert (await read(session))[0] == 200
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 30) == 0
    assert not path.exists()


def test_one_embedded_model_serves_all_workers() -> None:
    with server_process("--workers", "2", UPSTREAM_OPENAI_BASE="") as server:
        models = [
            pid for pid in descendants(server.process.pid) if "embedded_child" in command_of(pid)
        ]
        assert len(models) == 1
        assert len(server.workers()) == 2
        with OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0) as sdk:

            def answer() -> str:
                reply = sdk.chat.completions.create(
                    messages=[{"role": "user", "content": "What is 6 * 7?"}],
                    model="code-writing-agent",
                )
                return reply.choices[0].message.content or ""

            assert answer().endswith("42")
            os.kill(models[0], signal.SIGKILL)
            wait_for(lambda: "the embedded model was ended by SIGKILL" in server.log)
            assert answer().endswith("42")
