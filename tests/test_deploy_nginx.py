"""The shipped nginx site in a real nginx, before real server processes, over TLS and HTTP/2."""

import asyncio
import json
import os
import signal
import socket
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from aiohttp import web
from conftest import FakeUpstream, chunk, events_of, until
from openai import OpenAI
from server_process import ServerProcess, server_process

from bench.debian_packages import Unavailable
from bench.nginx_site import NginxSite, nginx_site
from bench.processes import scripted_upstream

ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "go"}], "stream": True}
SILENT_SECONDS = 70


@contextmanager
def site(server: str, **changes: str) -> Iterator[NginxSite]:
    with ExitStack() as stack:
        try:
            nginx = stack.enter_context(nginx_site(server, changes))
        except Unavailable as error:
            pytest.skip(str(error))
        yield nginx


@contextmanager
def deployed(
    upstream: str, *flags: str, changes: dict[str, str] | None = None, **values: Any
) -> Iterator[tuple[ServerProcess, NginxSite]]:
    """The server on a unix socket, as deploy/systemd starts it, and nginx before it."""
    values = {"UPSTREAM_OPENAI_BASE": upstream, "JAIL": "off", "AGENT_MODEL": "up"} | values
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        path = f"{folder}/s.sock"
        server = stack.enter_context(
            server_process("--unix-socket", path, "--trusted-proxies", "unix", *flags, **values)
        )
        yield server, stack.enter_context(site(f"unix:{path}", **(changes or {})))


@contextmanager
def short_folder() -> Iterator[str]:
    """A unix socket's path has at most 107 bytes."""

    with tempfile.TemporaryDirectory(prefix="sg-") as folder:
        yield folder


def tls(nginx: NginxSite) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(nginx.authority))


@asynccontextmanager
async def client_of(nginx: NginxSite, *, http2: bool = True) -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(
        base_url=nginx.base, http2=http2, verify=tls(nginx), timeout=60
    ) as client:
        yield client


@contextmanager
def sdk_of(nginx: NginxSite) -> Iterator[OpenAI]:
    http_client = httpx2.Client(http2=True, verify=tls(nginx), timeout=120)
    with OpenAI(base_url=nginx.base, api_key="none", max_retries=0, http_client=http_client) as sdk:
        yield sdk


@pytest.fixture(scope="session")
def silent_run() -> Iterator[Future[tuple[float, str]]]:
    """A run that says nothing for 70 seconds, begun now: how long it takes, and its answer."""
    with ExitStack() as stack:
        port = stack.enter_context(scripted_upstream())
        _, nginx = stack.enter_context(deployed(f"http://127.0.0.1:{port}/v1"))
        sdk = stack.enter_context(sdk_of(nginx))
        pool = ThreadPoolExecutor(1)
        stack.callback(pool.shutdown, wait=False)

        def ask() -> tuple[float, str]:
            began = time.monotonic()
            reply = sdk.chat.completions.create(
                messages=[{"role": "user", "content": f"wait {SILENT_SECONDS}"}],
                model="code-writing-agent",
                extra_body={"reasoning_format": "none"},
            )
            return time.monotonic() - began, reply.choices[0].message.content or ""

        yield pool.submit(ask)


def test_a_long_silent_run_begins(silent_run: Future[tuple[float, str]]) -> None:
    """Its end is the last test's matter: the others run meanwhile."""
    assert not silent_run.done()


class LockStep:
    """An upstream that sends a delta only when the client has seen the one before."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.seen = 0
        self.moved = asyncio.Condition()

    async def see(self, count: int) -> None:
        async with self.moved:
            self.seen = count
            self.moved.notify_all()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for number, text in enumerate(self.texts):
            async with self.moved:
                await self.moved.wait_for(lambda: self.seen >= number)  # noqa: B023
            await response.write(f"data: {json.dumps(chunk(content=text))}\n\n".encode())
        choice: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": "stop"}
        await response.write(f"data: {json.dumps({'choices': [choice]})}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response


@pytest.mark.parametrize("model", ["up", "up-nothink", "code-writing-agent"])
async def test_events_arrive_one_by_one_over_http2(upstream: FakeUpstream, model: str) -> None:
    """Were two of them held back together, the second would never have been sent."""
    words = [f"word{number} " for number in range(8)]
    is_agent = model == "code-writing-agent"
    texts = [*words, "\n<code>\nfinal_answer('hello')\n</code>"] if is_agent else words
    step = LockStep(texts)
    upstream.handler = step.serve
    with deployed(upstream.base) as (_, nginx):
        async with (
            asyncio.timeout(60),
            client_of(nginx) as client,
            client.stream("POST", "/chat/completions", json=ASK | {"model": model}) as response,
        ):
            assert response.status_code == 200
            assert response.http_version == "HTTP/2"
            told = ""
            async for data in response.aiter_text():
                told += data
                await step.see(sum(word in told for word in words))
    assert all(word in told for word in words)
    assert told.endswith("data: [DONE]\n\n")


async def test_a_client_that_leaves_ends_its_run_and_the_upstreams_work(
    upstream: FakeUpstream,
) -> None:
    step = LockStep(["begun ", "never"])
    upstream.handler = step.serve
    with deployed(upstream.base) as (server, nginx):
        for model in ("code-writing-agent", "up"):
            upstream.closed.clear()
            step.seen = 0
            async with (
                client_of(nginx) as client,
                client.stream("POST", "/chat/completions", json=ASK | {"model": model}) as reply,
            ):
                async for data in reply.aiter_text():
                    if "begun" in data:
                        break
            async with asyncio.timeout(20):
                await upstream.closed.wait()
        await until(lambda: "is stopped: client_gone" in server.log)


def error_of(response: httpx2.Response) -> tuple[int, dict[str, Any]]:
    assert response.headers["content-type"].startswith("application/json")
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error


async def test_a_body_too_large_is_told_so_by_either(upstream: FakeUpstream) -> None:
    changes = {"client_max_body_size 16m;": "client_max_body_size 64k;"}
    with deployed(upstream.base, "--max-body-bytes", "4096", changes=changes) as (_, nginx):
        # On HTTP/2 this client waits for leave to send the rest, and does not see the answer.
        async with client_of(nginx, http2=False) as client:
            for size in (8_000, 80_000):  # the server's limit, nginx's limit
                body = {"messages": [{"role": "user", "content": "x" * size}]}
                status, error = error_of(await client.post("/chat/completions", json=body))
                assert (status, error["code"]) == (413, "body_too_large")
                assert error["type"] == "invalid_request_error"
        with sdk_of(nginx) as sdk, pytest.raises(openai.APIStatusError) as raised:
            sdk.chat.completions.create(
                model="x", messages=[{"role": "user", "content": "x" * 8_000}]
            )
        assert raised.value.code == "body_too_large"


async def test_what_takes_too_long_is_told_so_by_either(upstream: FakeUpstream) -> None:
    upstream.handler = LockStep(["begun ", "never"]).serve
    changes = {"proxy_read_timeout 700s;": "proxy_read_timeout 2s;"}
    with deployed(upstream.base, changes=changes) as (_, nginx):
        async with client_of(nginx) as client:
            reply = await client.post("/chat/completions", json=ASK | {"stream": False})
            assert reply.headers["x-should-retry"] == "false"
            assert error_of(reply)[1]["code"] == "deadline_exceeded"
            assert reply.status_code == 504
    with deployed(upstream.base, "--run-seconds", "0.5") as (_, nginx):
        async with client_of(nginx) as client:
            reply = await client.post("/chat/completions", json=ASK | {"stream": False})
            assert reply.headers["x-should-retry"] == "false"
            assert error_of(reply)[1]["code"] == "deadline_exceeded"
            assert reply.status_code == 504


async def test_a_server_that_is_not_there_is_told_in_openais_shape() -> None:
    with short_folder() as folder, site(f"unix:{folder}/nobody.sock") as nginx:
        async with client_of(nginx) as client:
            reply = await client.get("/models")
            assert reply.headers["retry-after"] == "5"
            status, error = error_of(reply)
            assert (status, error["code"], error["type"]) == (503, "unavailable", "server_error")


async def test_too_many_requests_of_one_address_are_told_so(upstream: FakeUpstream) -> None:
    changes = {"burst=40 nodelay": "burst=3 nodelay", "rate=20r/s": "rate=1r/m"}
    with deployed(upstream.base, changes=changes) as (_, nginx):
        async with client_of(nginx) as client:
            replies = [await client.get("/models") for _ in range(6)]
            assert [reply.status_code for reply in replies] == [200] * 4 + [429] * 2
            assert error_of(replies[-1])[1]["type"] == "rate_limit_error"
            assert replies[-1].headers["retry-after"] == "1"


def raw_reply(nginx: NginxSite, request: bytes) -> bytes:
    """What nginx says to these bytes, until it closes."""
    with (
        socket.create_connection(("127.0.0.1", nginx.https_port), timeout=20) as plain,
        tls(nginx).wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        wrapped.sendall(request)
        told = b""
        while data := wrapped.recv(65536):
            told += data
    return told


def test_a_request_that_is_none_is_told_so_in_openais_shape() -> None:
    with short_folder() as folder, site(f"unix:{folder}/nobody.sock") as nginx:
        for request in (b"GET / HTTP/1.1\r\n\r\n", b"nonsense\r\n\r\n"):
            head, _, body = raw_reply(nginx, request).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 400")
            assert json.loads(body)["error"]["code"] == "bad_request"
        long = b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n"
        head, _, body = raw_reply(nginx, long).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 414")
        assert json.loads(body)["error"]["code"] == "uri_too_long"


def test_plain_http_is_sent_to_https() -> None:
    with short_folder() as folder, site(f"unix:{folder}/nobody.sock") as nginx:
        reply = httpx2.get(f"http://127.0.0.1:{nginx.http_port}/v1/models?x=1")
        assert reply.status_code == 308
        assert reply.headers["location"] == "https://127.0.0.1/v1/models?x=1"


FORGED = {"X-Forwarded-For": "203.0.113.7"}


async def logged(server: ServerProcess, path: str) -> str:
    """The address in the line of a request to this path."""
    await until(lambda: f" GET {path} " in server.log, 20)
    (line,) = [line for line in server.lines if f" GET {path} " in line]
    return line.partition(" INFO ")[2].split()[0]


async def test_forwarded_addresses_are_believed_of_trusted_proxies_alone(
    upstream: FakeUpstream,
) -> None:
    balancer = {
        "# set_real_ip_from 10.0.0.0/8;": "set_real_ip_from 127.0.0.0/8;",
        "# real_ip_header": "real_ip_header",
        "# real_ip_recursive": "real_ip_recursive",
    }
    with deployed(upstream.base) as (server, nginx):
        async with client_of(nginx) as client:
            await client.get("/models/forged", headers=FORGED)
        assert await logged(server, "/v1/models/forged") == "127.0.0.1"
        path = server.base.removeprefix("unix:")
        with site(f"unix:{path}", **balancer) as behind_a_balancer:
            async with client_of(behind_a_balancer) as client:
                await client.get("/models/balanced", headers=FORGED)
        assert await logged(server, "/v1/models/balanced") == "203.0.113.7"
    with deployed(upstream.base, "--trusted-proxies", "10.0.0.0/8") as (server, nginx):
        async with client_of(nginx) as client:
            await client.get("/models/untrusted", headers=FORGED)
        assert await logged(server, "/v1/models/untrusted") == "unix"


async def test_the_tcp_variant_works(upstream: FakeUpstream) -> None:
    values: dict[str, Any] = {
        "UPSTREAM_OPENAI_BASE": upstream.base,
        "JAIL": "off",
        "AGENT_MODEL": "up",
    }
    with server_process("--trusted-proxies", "127.0.0.1", **values) as server:
        address = server.base.removeprefix("http://")
        with site(address) as nginx:
            async with client_of(nginx) as client:
                reply = await client.post("/chat/completions", json=ASK)
                assert events_of(reply.content)[-1] == "[DONE]"
                await client.get("/models/there", headers=FORGED)
        assert await logged(server, "/v1/models/there") == "127.0.0.1"


# For clients that ask without a pause.
UNLIMITED = {"rate=20r/s": "rate=10000r/s", "burst=40": "burst=10000"}


async def test_a_connection_bears_more_than_a_thousand_requests(upstream: FakeUpstream) -> None:
    """By itself nginx ends it then, and httpx loses what is under way on it."""
    with deployed(upstream.base, changes=UNLIMITED) as (_, nginx):
        left = iter(range(2100))

        async def keep_asking(client: httpx2.AsyncClient) -> None:
            for _ in left:
                assert (await client.get("/models")).status_code == 200

        async with client_of(nginx) as client:
            await asyncio.gather(*(keep_asking(client) for _ in range(4)))


async def test_a_rolling_restart_is_not_felt_behind_nginx(upstream: FakeUpstream) -> None:
    with deployed(upstream.base, "--workers", "2", changes=UNLIMITED) as (server, nginx):
        over, asked = asyncio.Event(), 0

        async def keep_asking(client: httpx2.AsyncClient) -> None:
            nonlocal asked
            while not over.is_set():
                reply = await client.post("/chat/completions", json=ASK)
                assert reply.status_code == 200, reply.text
                assert events_of(reply.content)[-1] == "[DONE]"
                asked += 1

        async with client_of(nginx) as client:
            askers = [asyncio.create_task(keep_asking(client)) for _ in range(4)]
            for round_ in (1, 2):
                os.kill(server.process.pid, signal.SIGHUP)
                await until(lambda: server.log.count("new workers serve") == round_, 60)  # noqa: B023
                before = asked
                await until(lambda: asked > before + 20, 60)  # noqa: B023
            over.set()
            await asyncio.gather(*askers)


@pytest.mark.last
@pytest.mark.timeout(SILENT_SECONDS + 110)
def test_seventy_silent_seconds_are_survived(
    silent_run: Future[tuple[float, str]],
) -> None:
    seconds, answer = silent_run.result(SILENT_SECONDS + 40)
    assert seconds > SILENT_SECONDS
    assert answer == "waited"


def test_the_site_file_has_no_absolute_paths_but_those_to_change() -> None:
    lines = Path("deploy/nginx/smolgate.conf").read_text().splitlines()
    paths = [line for line in lines if " /etc/" in line or "unix:/" in line]
    assert [line for line in paths if "CHANGE" not in line and "#" not in line] == []
