"""Clients that dawdle are closed; those that only wait, or have reason to be slow, are not."""

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from aiohttp import web
from conftest import until
from server_process import ServerProcess, server_process

from server.slow_clients import SlowClients

HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_process(HEAD_SECONDS="0.5") as started:
        yield started


def connect(server: ServerProcess) -> socket.socket:
    host, port = server.base.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def seconds_until_closed(connection: socket.socket) -> float:
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while connection.recv(4096):
            pass
    return time.monotonic() - began


def drip(connection: socket.socket, byte: bytes) -> None:
    """Send a byte now and then for as long as that works."""

    def sending() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(byte)
                time.sleep(0.05)

    threading.Thread(target=sending, daemon=True).start()


@pytest.mark.parametrize("begin", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: "])
def test_who_says_no_whole_head_is_closed(server: ServerProcess, begin: bytes) -> None:
    with connect(server) as connection:
        connection.sendall(begin)
        assert seconds_until_closed(connection) < 20


def test_who_drips_a_head_is_closed(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nX-A: ")
        drip(connection, b"a")
        assert seconds_until_closed(connection) < 20


def test_who_drips_a_body_is_closed(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
        drip(connection, b" ")
        assert seconds_until_closed(connection) < 20


def test_who_drips_chunks_is_closed(server: ServerProcess) -> None:
    with connect(server) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        drip(connection, b"1\r\n \r\n")
        assert seconds_until_closed(connection) < 20


def test_two_hundred_of_them_keep_nobody_else_out(server: ServerProcess) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(server)) for _ in range(200)]
        for connection in slow:
            connection.sendall(b"GET / HTTP/1.1\r\nX-A: ")
        with connect(server) as quick:
            quick.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert b'{"ok": true}' in quick.makefile("rb").read()
        for connection in slow:
            assert seconds_until_closed(connection) < 20


def test_a_connection_may_wait_between_two_requests(server: ServerProcess) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
    with connect(server) as connection:
        for _ in range(2):
            connection.sendall(ask)
            assert b'{"ok": true}' in connection.recv(4096)
            time.sleep(1.5)  # three times what a head may take


def test_a_body_that_comes_fast_enough_may_take_longer(server: ServerProcess) -> None:
    body = json.dumps({"model": 5, "pad": "x" * 24_000}).encode()
    with connect(server) as connection:
        connection.sendall(HEAD + f"Content-Length: {len(body)}\r\n\r\n".encode())
        for begin in range(0, len(body), 2000):
            connection.sendall(body[begin : begin + 2000])
            time.sleep(0.15)  # in all three times what a head may take
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")


class Patient:
    """An application that answers late, or reads late, under a watch."""

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def answer(self, request: web.Request) -> web.Response:
        await request.read()
        await self.go.wait()
        return web.Response(text="late")

    async def leave_unread(self, request: web.Request) -> web.Response:
        await self.go.wait()
        return web.Response(text=str(len(await request.read())))


@pytest.fixture
async def watched() -> AsyncIterator[tuple[Patient, SlowClients, int]]:
    patient = Patient()
    app = web.Application(client_max_size=1 << 30)
    app.router.add_post("/answer", patient.answer)
    app.router.add_post("/unread", patient.leave_unread)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    assert runner.server is not None
    async with SlowClients(runner.server, 0.2) as slow:
        yield patient, slow, runner.addresses[0][1]
    await runner.cleanup()


@pytest.mark.parametrize(("path", "size"), [("/answer", 10), ("/unread", 8 << 20)])
async def test_time_that_the_server_takes_is_not_the_client_s(
    watched: tuple[Patient, SlowClients, int], path: str, size: int
) -> None:
    patient, slow, port = watched
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\nConnection: close\r\n\r\n"
    writer.write(head.encode() + b"x" * size)
    await asyncio.sleep(1.0)  # five times what a body may take
    assert slow.closed == 0
    patient.go.set()
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_only_the_one_that_dawdles_is_closed(
    watched: tuple[Patient, SlowClients, int],
) -> None:
    _, slow, port = watched
    asked, asking = await asyncio.open_connection("127.0.0.1", port)
    asking.write(b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await asked.readline()).startswith(b"HTTP/1.1 404 ")
    silent, mute = await asyncio.open_connection("127.0.0.1", port)
    await until(lambda: slow.closed)
    with contextlib.suppress(ConnectionError):
        assert await silent.read() == b""
    assert slow.closed == 1
    asking.write(b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert (await asked.read()).count(b"HTTP/1.1 404 ") == 1
    asking.close()
    mute.close()
