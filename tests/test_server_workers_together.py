"""Many workers: tools' results, keys' limits, metrics and ended runs are those of all together, too."""

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from conftest import FakeUpstream, scripted, until
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess
from test_server_chat_agent import by_turn
from test_server_client_tools import ONE_CALL, USER, WEATHER, with_results
from test_server_workers import CHAT, RUNS, at_both, listed, two_workers, until_so

from server.worker_post import TELL_COUNTS_EVERY_SECONDS

ASK: dict[str, Any] = {"messages": USER, "tools": [WEATHER]}


@pytest.fixture(autouse=True)
def calling(upstream: FakeUpstream) -> None:
    """The agents' model calls the client's tool, and then answers."""
    upstream.handler = scripted(by_turn(*ONE_CALL))


async def post(
    session: aiohttp.ClientSession, body: dict[str, Any], **headers: str
) -> tuple[int, Any]:
    async with session.post(CHAT, json=body, headers=headers) as response:
        return response.status, await response.json()


async def paused(session: aiohttp.ClientSession, **headers: str) -> tuple[str, dict[str, Any]]:
    """A run that waits for its client: its id, and the message with the calls."""
    status, reply = await post(session, ASK, **headers)
    assert (status, reply["choices"][0]["finish_reason"]) == (200, "tool_calls")
    return reply["id"], reply["choices"][0]["message"]


def code_of(reply: tuple[int, Any]) -> tuple[int, str]:
    return reply[0], reply[1]["error"]["code"]


@pytest.mark.parametrize("count", [None, "0"], ids=["plain", "OpenAI SDK"])
async def test_results_of_tools_reach_the_run_in_another_worker(
    upstream: FakeUpstream, count: str | None
) -> None:
    headers = {"x-stainless-retry-count": count} if count else {}
    with two_workers(upstream) as server:
        async with at_both(server) as (first, second):
            run, message = await paused(first, **headers)
            body = ASK | {"messages": with_results(message, "warm")}
            status, reply = await post(second, body, **headers)
            assert status == 200
            assert reply["choices"][0]["message"]["content"].endswith("sunny: warm")
            # Once more: the worker that has the run says what became of the call.
            for worker in (first, second):
                status, refused = await post(worker, body)
                assert (status, refused["error"]["code"]) == (400, "tool_call_not_found")
                assert "answered already" in refused["error"]["message"]
            for worker in (first, second):
                async with worker.get(f"{RUNS}/{reply['id']}") as response:
                    assert response.status == 200
                    ended = await response.json()
                assert (ended["id"], ended["outcome"]) == (run, "ok")
    assert len(upstream.requests) == 2


async def test_an_sdks_retry_of_results_gets_the_same_part_of_the_run_at_any_worker(
    upstream: FakeUpstream,
) -> None:
    with two_workers(upstream) as server:
        async with at_both(server) as (first, second):
            _, message = await paused(first)
            body = ASK | {"messages": with_results(message, "warm")}
            key = {"Idempotency-Key": "one"}
            told = [await post(worker, body, **key) for worker in (second, first, second)]
            assert told[0][0] == 200
            assert told == [told[0]] * 3


async def test_a_call_that_nobody_made_is_refused_and_so_is_that_of_a_killed_worker(
    upstream: FakeUpstream,
) -> None:
    with two_workers(upstream) as server:
        pid, _ = server.workers()
        async with at_both(server) as (first, second):
            _, message = await paused(first)
            results = ASK | {"messages": with_results(message, "warm")}
            unknown = json.loads(json.dumps(results).replace(message["tool_calls"][0]["id"], "x"))
            assert code_of(await post(second, unknown)) == (400, "tool_call_not_found")
            os.kill(pid, signal.SIGKILL)
            await until(lambda: f"worker {pid} ended" in server.log, 30)
            assert code_of(await post(second, results)) == (400, "tool_call_not_found")


async def test_a_paused_run_gives_its_place_to_any_worker_and_still_counts_for_its_key(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    keys = keys_file(tmp_path, {"name": "mine", "key": "mine", "concurrent_runs": 1}, {"key": "x"})
    mine, others = bearer("mine"), bearer("x")
    with two_workers(upstream, "--max-running", "1", API_KEYS_FILE=keys) as server:
        pid, _ = server.workers()
        async with at_both(server) as (first, second):
            await paused(first, **mine)
            for worker in (first, second):
                assert code_of(await post(worker, ASK, **mine)) == (429, "key_limit")
            await paused(second, **others)
            assert [run["status"] for run in await listed(second, headers=mine)] == ["paused"]
            os.kill(pid, signal.SIGKILL)
            await until(lambda: f"worker {pid} ended" in server.log, 30)
            await paused(second, **mine)


async def test_only_so_many_runs_are_paused_in_all_workers_together(
    upstream: FakeUpstream,
) -> None:
    with two_workers(upstream, MAX_PAUSED="1") as server:
        async with at_both(server) as (first, second):
            await paused(first)

            async def refused() -> bool:  # as of some milliseconds ago
                status, reply = await post(second, ASK)
                return status == 429 and bool(reply["error"]["code"] == "too_many_paused")

            await until_so(refused)


async def test_a_keys_requests_and_tokens_are_counted_together_and_passed_on_ones_once(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    few = {"name": "few", "key": "few", "requests_per_minute": 4}
    poor = {"name": "poor", "key": "poor", "tokens_per_day": 1}
    with two_workers(upstream, API_KEYS_FILE=keys_file(tmp_path, few, poor)) as server:
        async with at_both(server) as (first, second):
            began = time.monotonic()
            _, message = await paused(first, **bearer("few"))
            body = ASK | {"messages": with_results(message, "warm")}
            assert (await post(second, body, **bearer("few")))[0] == 200  # passed on: one, not two
            allowed = 0
            for number in range(8):
                worker = (first, second)[number % 2]
                async with worker.get(RUNS, headers=bearer("few")) as response:
                    allowed += response.status == 200
            # One may slip through while another worker is being told; one more comes every 15 s.
            assert 2 <= allowed <= 3 + (time.monotonic() - began) // 15

            _, message = await paused(first, **bearer("poor"))
            body = ASK | {"messages": with_results(message, "warm")}
            assert (await post(first, body, **bearer("poor")))[0] == 200

            async def is_spent() -> bool:
                reply = await post(second, ASK, **bearer("poor"))
                return reply[0] == 429

            await until_so(is_spent)
            server.process.send_signal(signal.SIGHUP)
            await until(lambda: "new workers serve" in server.log, 60)
        async with aiohttp.ClientSession() as session:
            url = f"{server.base}/v1/chat/completions"
            async with session.post(url, json=ASK, headers=bearer("poor")) as response:
                assert response.status == 429  # the day is not forgotten


async def test_metrics_are_those_of_all_workers_whichever_is_asked(upstream: FakeUpstream) -> None:
    with two_workers(upstream, "--max-running", "3") as server:
        async with at_both(server) as (first, second):
            _, message = await paused(first)
            body = ASK | {"messages": with_results(message, "warm")}
            assert (await post(second, body))[0] == 200
            await paused(second)
            for worker in (first, second):
                value = await metrics(worker)
                route = {"route": "/chat/completions", "status": "200", "outcome": "ok"}
                assert value("smolgate_requests_total", route) == 3  # the passed on one once
                assert value("smolgate_runs_most", {}) == 3
                assert value("smolgate_runs", {"state": "paused"}) == 1
                agent = {"agent": "code-writing-agent", "outcome": "ok"}
                assert value("smolgate_runs_ended_total", agent) == 1


async def test_what_a_worker_counted_outlives_it(upstream: FakeUpstream) -> None:
    route = {"route": "/models", "status": "200", "outcome": "ok"}
    with two_workers(upstream) as server:
        old = server.sockets()
        async with at_both(server) as (first, second):
            await look(first)
            assert (await metrics(second))("smolgate_requests_total", route) == 1
        server.process.send_signal(signal.SIGHUP)  # each goes in good order
        await replaced(server, old)
        async with at_both(server) as (first, second):
            assert (await metrics(first))("smolgate_requests_total", route) == 1
            # What was so at the time is not added up.
            assert (await metrics(first))("smolgate_runs_most", {}) == 32
            await look(second)
            await asyncio.sleep(TELL_COUNTS_EVERY_SECONDS + 0.5)
            old = server.sockets()
            for pid in server.workers():
                os.kill(pid, signal.SIGKILL)
        await replaced(server, old)
        async with at_both(server) as (first, second):
            assert (await metrics(second))("smolgate_requests_total", route) == 2


async def replaced(server: ServerProcess, old: list[Path]) -> None:
    """Two new workers serve, and the old ones are gone."""
    await until(lambda: len(server.sockets()) == 2 and not {*old} & {*server.sockets()}, 60)
    await until(lambda: all(map(listens, server.sockets())), 60)


def listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


async def look(session: aiohttp.ClientSession) -> None:
    async with session.get("http://worker/v1/models") as response:
        assert response.status == 200


async def test_a_run_that_the_parent_refuses_is_counted_as_refused(upstream: FakeUpstream) -> None:
    with two_workers(upstream, "--max-per-key", "1") as server:
        async with at_both(server) as (first, second):
            await paused(first)
            assert code_of(await post(second, ASK)) == (429, "key_limit")
            value = await metrics(first)
            assert value("smolgate_runs_refused_total", {"reason": "key_limit"}) == 1
            agent = {"agent": "code-writing-agent", "outcome": "key_limit"}
            assert value("smolgate_runs_ended_total", agent) is None


async def metrics(session: aiohttp.ClientSession) -> Callable[[str, dict[str, str]], float | None]:
    async with session.get("http://worker/metrics") as response:
        assert response.status == 200
        families = list(text_string_to_metric_families(await response.text()))

    def value(name: str, labels: dict[str, str]) -> float | None:
        found = [
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and sample.labels == labels
        ]
        return found[0] if found else None

    return value


def keys_file(folder: Path, *entries: dict[str, Any]) -> str:
    path = folder / "keys.json"
    path.write_text(json.dumps(entries))
    return str(path)


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
