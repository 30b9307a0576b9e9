"""Runs on a real Ray cluster of two nodes, and what becomes of them when parts of it die."""

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    FakeUpstream,
    Gateway,
    MakeGateway,
    ray_cluster_or_skip,
    scripted,
    text_of,
    until,
)

from bench.ray_cluster import RayCluster
from server.keys import RUNNER, SUPERVISOR
from streaming.runners import ray_link
from streaming.runners.frame_socket import FrameSocket
from streaming.runners.ray_driver import Driver
from streaming.runners.ray_wire import (
    MOST_FRAME_BYTES,
    Batch,
    Called,
    DriverSettings,
    FromDriver,
    from_driver,
)
from streaming.runners.run_wire import WIRE_VERSION, Hello, encode_frame

ABLE = {"able": "runner_agents:able"}
ASK: dict[str, Any] = {"model": "able", "messages": [{"role": "user", "content": "go"}]}
RUNS = 50
DEATH_SECONDS = 2.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """One that tests may kill parts of, and start them again."""
    with ray_cluster_or_skip() as cluster:
        yield cluster


@pytest.fixture
def runner_settings(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Gateways of this module have their runs there."""
    monkeypatch.setattr(ray_link, "COMMAND", (*cluster.enter, *ray_link.COMMAND))
    return {"runner": "ray", **cluster.settings}


async def readiness(gateway: Gateway) -> tuple[int, dict[str, Any]]:
    async with gateway.session.get(gateway.base + "/readyz") as response:
        return response.status, await response.json()


@pytest.mark.timeout(400)
async def test_a_node_that_dies_ends_its_runs_clearly_and_no_others(
    upstream: FakeUpstream, make_gateway: MakeGateway, cluster: RayCluster
) -> None:
    gate = asyncio.Event()
    upstream.handler = scripted(
        lambda m: "<code>\nfinal_answer('finished')\n</code>", pieces=1000, gate=gate
    )
    gateway = await make_gateway(ABLE, max_running=RUNS, heartbeat_seconds=0.2, queue_seconds=300)
    status, told = await readiness(gateway)
    assert (status, told["cluster"]["nodes"], told["cluster"]["cpus"]) == (200, 2, 60)

    ended: dict[int, float] = {}

    async def one(number: int) -> list[Any]:
        events = await gateway.stream(ASK)
        ended[number] = time.monotonic()
        return events

    asking = [asyncio.ensure_future(one(number)) for number in range(RUNS)]
    await until(lambda: len(upstream.requests) == RUNS, seconds=300)
    workers = await asyncio.to_thread(cluster.workers)
    there = {name: len(pids) for name, pids in workers.items()}
    assert sum(there.values()) == RUNS
    assert min(there.values()) > RUNS // 5  # spread over both

    began = time.monotonic()
    await asyncio.to_thread(cluster.kill, "other")
    await until(lambda: len(ended) >= there["other"], seconds=30)
    assert len(ended) == there["other"]
    assert max(ended.values()) - began < DEATH_SECONDS
    gate.set()
    replies = await asyncio.gather(*asking)
    lost = [events for events in replies if "error" in events[-2]]
    assert len(lost) == there["other"]
    for events in lost:
        assert events[-3]["choices"][0]["finish_reason"] == "error"
        assert events[-2]["error"]["code"] == "worker_lost"
        assert "The agent's worker on the cluster is gone" in events[-2]["error"]["message"]
        assert text_of(events, "content") == ""
    finished = [events for events in replies if "error" not in events[-2]]
    assert {text_of(events, "content") for events in finished} == {"finished"}
    await until(lambda: not gateway.app[SUPERVISOR].runs, seconds=60)
    assert len(upstream.requests) == RUNS  # none began a second time
    assert gateway.app[RUNNER].numbers["lost"] == there["other"]

    for events in await asyncio.gather(*(gateway.stream(ASK) for _ in range(4))):
        assert text_of(events, "content") == "finished"
    await asyncio.to_thread(cluster.start, "other")
    await until(lambda: gateway.app[RUNNER].numbers["nodes"] == 2, seconds=60)


async def test_an_agents_resources_say_where_it_runs(
    make_gateway: MakeGateway, upstream: FakeUpstream, cluster: RayCluster, tmp_path: Path
) -> None:
    begun, released = tmp_path / "pid", tmp_path / "released"
    upstream.handler = scripted(
        lambda m: (
            f"<code>\ntell_pid('{begun}')\nwait_for_file('{released}')\nfinal_answer('x')\n</code>"
        )
    )
    for node in ("other", "head"):
        gateway = await make_gateway(
            ABLE, ray_options={"*": {"num_cpus": 1}, "able": {"resources": {node: 1}}}
        )
        asking = asyncio.ensure_future(gateway.post(ASK))
        await until(begun.exists, seconds=60)
        workers = await asyncio.to_thread(cluster.workers)
        assert int(begun.read_text()) in workers[node]
        released.touch()
        assert (await asking)[0] == 200
        begun.unlink()
        released.unlink()


async def test_what_no_machine_has_room_for_is_told_in_time_and_taken_back(
    upstream: FakeUpstream, make_gateway: MakeGateway
) -> None:
    gateway = await make_gateway(
        ABLE, ray_options={"able": {"resources": {"nowhere": 1}}}, queue_seconds=0.5
    )
    status, headers, reply = await gateway.post(ASK)
    assert (status, reply["error"]["code"]) == (429, "queue_timeout")
    assert headers["Retry-After"]
    asking = asyncio.ensure_future(gateway.post(ASK))
    runner = gateway.app[RUNNER]
    await until(lambda: runner.numbers["waiting_for_a_worker"] == 1)
    asking.cancel()  # a client that leaves a run which waits for its worker
    await until(lambda: not gateway.app[SUPERVISOR].runs)
    assert (runner.numbers["alive"], len(upstream.requests)) == (0, 0)
    await until(lambda: runner.numbers["cpus_free"] == runner.numbers["cpus"], seconds=60)


@pytest.mark.timeout(300)
async def test_a_head_that_comes_again_is_joined_again(
    upstream: FakeUpstream, make_gateway: MakeGateway, cluster: RayCluster
) -> None:
    never = asyncio.Event()
    upstream.handler = scripted(lambda m: "x", gate=never)
    gateway = await make_gateway(ABLE)
    asking = asyncio.ensure_future(gateway.post(ASK))
    await until(lambda: len(upstream.requests) == 1, seconds=60)
    for node in ("head", "other"):
        await asyncio.to_thread(cluster.kill, node)
    began = time.monotonic()
    status, _, reply = await asyncio.wait_for(asking, 30)
    assert (status, reply["error"]["code"]) == (500, "worker_lost")
    assert time.monotonic() - began < DEATH_SECONDS
    await until(gateway.app[RUNNER].why_not_ready, seconds=60)
    status, told = await readiness(gateway)
    assert status == 503
    assert "Ray cluster" in told["reasons"]["runner"]
    status, headers, reply = await gateway.post(ASK)
    assert (status, reply["error"]["message"]) == (503, "The Ray cluster cannot be reached.")
    assert headers["Retry-After"]

    for node in ("head", "other"):
        await asyncio.to_thread(cluster.start, node)
    runner = gateway.app[RUNNER]
    await until(lambda: runner.why_not_ready() is None, seconds=120)
    assert runner.numbers["driver_restarts"] > 0
    upstream.handler = scripted(lambda m: "<code>\nfinal_answer('again')\n</code>")
    assert text_of(await gateway.stream(ASK), "content") == "again"


async def test_a_wrong_token_is_not_let_in_and_said(
    make_gateway: MakeGateway, upstream: FakeUpstream
) -> None:
    gateway = await make_gateway(ABLE, is_ready=False, ray_auth_token="a-wrong-token-of-tests")
    runner = gateway.app[RUNNER]
    await until(lambda: "joined:" in (runner.why_not_ready() or ""), seconds=60)
    assert "does not take RAY_AUTH_TOKEN" in (runner.why_not_ready() or "")
    assert (await gateway.post(ASK))[0] == 503
    assert not upstream.requests


async def call(port: int, hello: Hello) -> socket.socket:
    link = socket.socket()
    link.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(link, ("127.0.0.1", port))
    await loop.sock_sendall(link, encode_frame(hello))
    return link


async def test_a_runs_token_lets_one_worker_in_and_no_second_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever Ray repeats, the second worker finds its run taken."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    server = FrameSocket(ours, MOST_FRAME_BYTES)
    driver = Driver(FrameSocket(theirs, MOST_FRAME_BYTES), DriverSettings("", "", {}, {}))
    driver.tokens["secret"] = 7
    with socket.create_server(("127.0.0.1", 0)) as listener, caplog.at_level(logging.WARNING):
        listener.setblocking(False)
        port = listener.getsockname()[1]
        welcoming = asyncio.ensure_future(driver.welcome(listener))
        for hello in (Hello("guessed", WIRE_VERSION), Hello("secret", WIRE_VERSION + 1)):
            with await call(port, hello) as turned_away:
                assert await loop.sock_recv(turned_away, 1) == b""
        with (
            await call(port, Hello("secret", WIRE_VERSION)) as first,
            await call(port, Hello("secret", WIRE_VERSION)) as second,
        ):
            assert await loop.sock_recv(second, 1) == b""
            frame = await server.receive()
            assert frame is not None
            assert from_driver.decode(frame) == Called(7, "127.0.0.1")
            with socket.socket(fileno=server.fds.popleft()) as handed_on:
                await loop.sock_sendall(first, b"x")
                handed_on.setblocking(False)
                assert await loop.sock_recv(handed_on, 1) == b"x"
        welcoming.cancel()
    assert "another release" in caplog.text
    server.close()
    theirs.close()


async def test_a_connection_goes_to_the_call_that_it_came_with_and_drivers_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = (sys.executable, str(Path(__file__).parent / "fake_ray_driver.py"))
    monkeypatch.setattr(ray_link, "COMMAND", command)
    monkeypatch.setattr(ray_link, "_FIRST_BACKOFF_SECONDS", 0.01)
    told: list[tuple[FromDriver, bytes | None]] = []
    gone: list[bool] = []

    def on_message(message: FromDriver, fd: int | None) -> None:
        told.append((message, os.read(fd, 100) if fd is not None else None))
        if fd is not None:
            os.close(fd)
            raise RuntimeError("what is wrong with one message ends the driver, and not the server")

    link = ray_link.RayLink(
        DriverSettings("", "", {}, {}),
        environment={},
        on_message=on_message,
        on_gone=lambda: gone.append(True),
    )
    running = asyncio.ensure_future(link.run())
    await until(lambda: len(gone) == 2, seconds=60)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert told[:4] == [(Batch(1, b"events"), None), (Called(2, "host"), b"handed on")] * 2
    assert link.restarts >= 1


def test_the_server_does_not_import_ray() -> None:
    code = (
        "import sys, server.listen, server.registry, streaming.runners.ray\n"
        "sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run((sys.executable, "-c", code), check=False).returncode == 0
