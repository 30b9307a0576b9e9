"""Real servers on loopback: a gateway, and an upstream whose replies a test writes."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hypothesis import settings
from store_servers import StoreServers

from bench.ray_cluster import NoNamespaces, RayCluster, open_ray_cluster
from server.app import create_app
from server.http_runner import HttpRunner
from server.keys import RUNNER
from server.registry import Agents, load_agents
from server.settings import make_settings
from streaming.chunk_framing import payload_of
from streaming.direct_connections import DirectHandler, Tap
from streaming.runners import ray_link
from streaming.upstream_reply import OnData

# How long an example takes is the machine's affair.
settings.register_profile("here", deadline=None)
settings.load_profile("here")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Script = Callable[[list[dict[str, Any]]], str]


@asynccontextmanager
async def listening(app: web.Application) -> AsyncIterator[str]:
    """Serve an application as `python -m server` does; yields its address."""
    runner = HttpRunner(app, shutdown_seconds=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass
class Gateway:
    """A gateway that listens; `session` is a client of it."""

    app: web.Application
    base: str
    session: aiohttp.ClientSession

    async def post(self, body: Any, path: str = "/v1/chat/completions", **kwargs: Any) -> Any:
        """POST JSON; returns (status, headers, parsed JSON)."""
        async with self.session.post(self.base + path, json=body, **kwargs) as response:
            return response.status, response.headers, json.loads(await response.read())

    async def stream(self, body: dict[str, Any], **kwargs: Any) -> list[Any]:
        """POST with `stream`; the parsed data of all events, `[DONE]` as text."""
        async with self.session.post(
            self.base + "/v1/chat/completions", json=body | {"stream": True}, **kwargs
        ) as response:
            assert response.status == 200, await response.text()
            return events_of(await response.read())


async def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for something that no event announces; fails after `seconds`."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def events_of(raw: bytes) -> list[Any]:
    """The data of each event of a stream, parsed where it is JSON."""
    events = []
    for block in raw.decode().split("\n\n"):
        for line in block.splitlines():
            if line.startswith("data: "):
                data = line.removeprefix("data: ")
                events.append(data if data == "[DONE]" else json.loads(data))
    return events


def text_of(events: list[Any], name: str) -> str:
    """All of one delta field of a stream."""
    return "".join(
        choice["delta"].get(name) or ""
        for event in events
        if isinstance(event, dict)
        for choice in event.get("choices", [])
    )


class Reads:
    """What gateways of this process read of upstream replies: the pieces, as they came, in order."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.bytes_at_port: Counter[int] = Counter()
        self._moved = asyncio.Event()

    def note(self, handler: DirectHandler, data: bytes) -> None:
        """Called with what every read of a gateway's client socket brought, framing and all."""
        if handler.transport is None:  # aiohttp's parser goes on with what it held back
            return
        self.bytes_at_port[handler.transport.get_extra_info("sockname")[1]] += len(data)
        self._moved.set()
        body = data.partition(b"\r\n\r\n")[2] if data.startswith(b"HTTP/") else data
        with suppress(ValueError):  # a body that is not chunked
            body = payload_of(body.removesuffix(b"0\r\n\r\n"))
        if body:
            self.pieces.append(body)

    async def reach(self, port: int, count: int) -> None:
        """Wait until so many bytes have been read by the client at this port."""
        async with asyncio.timeout(10):
            while self.bytes_at_port[port] < count:
                self._moved.clear()
                await self._moved.wait()


READS: web.AppKey[Reads] = web.AppKey("reads", Reads)


@dataclass
class FakeUpstream:
    """An upstream whose handler a test may replace; it keeps the requests it got."""

    handler: Handler
    base: str = ""
    reads: Reads = field(default_factory=Reads)
    requests: list[tuple[web.Request, bytes]] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request, body))
        try:
            return await self.handler(request)
        except asyncio.CancelledError:
            self.closed.set()
            raise

    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.requests]


def chunk(**delta: Any) -> dict[str, Any]:
    return {"id": "u", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


def scripted(
    script: Script,
    *,
    pieces: int = 4,
    gate: asyncio.Event | None = None,
    finish_reason: str = "stop",
) -> Handler:
    """A model that answers with what `script` says to the messages, `pieces` characters a delta."""

    async def handler(request: web.Request) -> web.StreamResponse:
        text = script(json.loads(await request.read())["messages"])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for begin in range(0, len(text), pieces):
            if gate is not None:
                await gate.wait()
            await _send(response, chunk(content=text[begin : begin + pieces]))
        finish: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": finish_reason}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        await _send(response, {"id": "u", "choices": [finish], "usage": usage})
        await response.write(b"data: [DONE]\n\n")
        return response

    return handler


async def _send(response: web.StreamResponse, data: dict[str, Any]) -> None:
    await response.write(f"data: {json.dumps(data)}\n\n".encode())


def raw_reply(
    pieces: list[bytes], content_type: str = "text/event-stream", status: int = 200
) -> Handler:
    """An upstream that writes just these bytes; each piece once the gateway has read the one before."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"Content-Type": content_type})
        assert request.transport is not None
        port = request.transport.get_extra_info("peername")[1]
        reads = request.app[READS]
        count = reads.bytes_at_port[port]
        writer = await response.prepare(request)
        assert writer is not None
        for piece in pieces:
            await response.write(piece)
            await reads.reach(port, count + writer.output_size)
        return response

    return handler


MakeGateway = Callable[..., Awaitable[Gateway]]

RUNNERS = ("thread", "process", "ray")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What is marked `every_runner` is a promise of each of them."""
    if metafunc.definition.get_closest_marker("every_runner"):
        metafunc.parametrize("runner", RUNNERS, indirect=True)


@pytest.fixture
def runner(request: pytest.FixtureRequest) -> str:
    """Where the runs of `make_gateway` live."""
    kind: str = getattr(request, "param", "thread")
    return kind


@contextmanager
def ray_cluster_or_skip() -> Iterator[RayCluster]:
    """A cluster; without namespaces for it the test is skipped, which in CI is a failure."""
    try:
        with open_ray_cluster() as cluster:
            yield cluster
    except NoNamespaces as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def shared_ray_cluster() -> Iterator[RayCluster]:
    """For tests that leave it as it was."""
    with ray_cluster_or_skip() as cluster:
        yield cluster


@pytest.fixture
def runner_settings(
    runner: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """What a gateway needs to have its runs there."""
    if runner != "ray":
        return {"runner": runner}
    cluster: RayCluster = request.getfixturevalue("shared_ray_cluster")
    monkeypatch.setattr(ray_link, "COMMAND", (*cluster.enter, *ray_link.COMMAND))
    return {"runner": runner, **cluster.settings}


@pytest.fixture
async def upstream(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeUpstream]:
    """A listening upstream; set its `handler`."""
    fake = FakeUpstream(scripted(lambda messages: "<code>\nfinal_answer('hello')\n</code>"))
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/v1/{path:.*}", fake.serve)
    app[READS] = fake.reads
    read, make_tap = DirectHandler.data_received, Tap.__init__

    def noted(handler: DirectHandler, data: bytes) -> None:
        fake.reads.note(handler, data)
        read(handler, data)

    def make_noted_tap(tap: Tap, handler: DirectHandler, on_data: OnData) -> None:
        def noted_by_tap(data: bytes) -> None:
            fake.reads.note(handler, data)
            on_data(data)

        make_tap(tap, handler, on_data)
        tap.data_received = noted_by_tap  # type: ignore[method-assign]

    monkeypatch.setattr(DirectHandler, "data_received", noted)
    monkeypatch.setattr(Tap, "__init__", make_noted_tap)
    async with listening(app) as base:
        fake.base = f"{base}/v1"
        yield fake


@pytest.fixture
async def make_gateway(
    upstream: FakeUpstream, runner_settings: dict[str, Any]
) -> AsyncIterator[MakeGateway]:
    """Makes gateways in front of the fake upstream; settings and agents as keywords."""
    async with AsyncExitStack() as stack:

        async def make(
            agents: dict[str, Any] | None = None, *, is_ready: bool = True, **settings: Any
        ) -> Gateway:
            defaults = {"upstream_base": upstream.base, "model": "up/model", "jail": "off"}
            # A source, as in AGENTS, is served by every runner; a factory by the thread runner alone.
            sources = {name: made for name, made in (agents or {}).items() if isinstance(made, str)}
            settings = defaults | runner_settings | {"agents": sources} | settings
            served = load_agents(sources, embedded=False)
            served.update({n: made for n, made in (agents or {}).items() if n not in sources})
            if isinstance(agents, Agents):
                served.code_imports = agents.code_imports
                served.mcp_servers = agents.mcp_servers
            app = create_app(make_settings(**settings), served)
            base = await stack.enter_async_context(listening(app))
            if is_ready:
                await until(lambda: app[RUNNER].why_not_ready() is None, seconds=60)
            session = await stack.enter_async_context(aiohttp.ClientSession())
            return Gateway(app, base, session)

        yield make


@pytest.fixture(scope="session")
def store_servers() -> Iterator[StoreServers]:
    """PostgreSQL and Redis, where a test needs them."""
    servers = StoreServers()
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def readme() -> str:
    return (Path(__file__).parent.parent / "README.md").read_text()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What is marked `last` waits for something begun earlier, which the other tests outlast."""
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)
