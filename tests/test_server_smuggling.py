"""Requests that two servers could read in two ways: none hides a second one, behind nginx or without it.

Every case ends in a request for `/smuggled`, which stands where only a server that misread what came before
takes it for one. What the server has handled is read from its log.
"""

import os
import re
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from server_process import ServerProcess, server_process

from bench.relay_servers import Unavailable, free_port, nginx_path

POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: front\r\n"
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: front\r\n\r\n"
CHUNKED_END = b"0\r\n\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(SMUGGLED)

AMBIGUOUS = {
    "length and chunks": POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED_END + SMUGGLED,
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + CHUNKED_END + SMUGGLED,
    "two lengths": POST + b"Content-Length: 0\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "two lengths in one": POST + b"Content-Length: 0, 3\r\n\r\n" + SMUGGLED,
    "a length with a sign": POST + b"Content-Length: +0\r\n\r\n" + SMUGGLED,
    "a negative length": POST + b"Content-Length: -1\r\n\r\n" + SMUGGLED,
    "a hexadecimal length": POST + b"Content-Length: 0x0\r\n\r\n" + SMUGGLED,
    "an empty length": POST + b"Content-Length:\r\n\r\n" + SMUGGLED,
    "a space before the colon": POST + b"Transfer-Encoding : chunked\r\n" + LENGTH + b"\r\n" + CHUNKED_END + SMUGGLED,
    "a folded header": POST + b"X: y\r\n Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "a folded coding": POST + b"Transfer-Encoding:\r\n chunked\r\n" + LENGTH + b"\r\n" + CHUNKED_END + SMUGGLED,
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n" + LENGTH + b"\r\n" + CHUNKED_END + SMUGGLED,
    "identity with a length": POST + b"Transfer-Encoding: identity\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "chunked not last": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED_END + SMUGGLED,
    "chunked twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + CHUNKED_END + SMUGGLED,
    "a vertical tab": POST + b"Transfer-Encoding: \x0bchunked\r\n" + LENGTH + b"\r\n" + CHUNKED_END + SMUGGLED,
    "a null in a name": POST + b"Transfer-Encoding\x00: chunked\r\n" + LENGTH + b"\r\n" + CHUNKED_END + SMUGGLED,
    "a null in a value": POST + b"X: a\x00b\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "a return in a value": POST + b"X: a\rTransfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "HTTP/1.0 with chunks": POST.replace(b"/1.1", b"/1.0") + b"Connection: keep-alive\r\nTransfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + CHUNKED_END + SMUGGLED,
    "a chunk size with 0x": POST + b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n" + SMUGGLED,
    "a negative chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\n-0\r\n\r\n" + SMUGGLED,
    "a chunk size too large": POST + b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n" + SMUGGLED,
    "a chunk longer than it says": POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n" + SMUGGLED,
    "a line feed after a chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\n2;\nxx\r\n0\r\n\r\n" + SMUGGLED,
    "no colon": POST + b"Transfer-Encoding\r\n" + LENGTH + b"\r\n" + SMUGGLED,
}  # fmt: skip
# These say where they end: the request for /smuggled is in their bodies.
BODIES = {
    "a POST": POST + LENGTH + b"\r\n" + SMUGGLED,
    "a GET with a body": b"GET /v1/models HTTP/1.1\r\nHost: front\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "a body for a route that is not": b"POST /nowhere HTTP/1.1\r\nHost: front\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "a body for a method that is not": b"DELETE /v1/models HTTP/1.1\r\nHost: front\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "a body that waits to be asked for": POST + b"Expect: 100-continue\r\n" + LENGTH + b"\r\n" + SMUGGLED,
    "an upgrade": b"GET /v1/models HTTP/1.1\r\nHost: front\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + LENGTH + b"\r\n" + SMUGGLED,
}  # fmt: skip

# A request that is waited for, or that was answered: nothing more comes.
SILENCE_SECONDS = 0.5

NGINX = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream up {{ server {server}; keepalive 1; }}
    server {{
        listen 127.0.0.1:{port};
        client_body_timeout 2s;
        location / {{
            proxy_pass http://up;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_request_buffering off;  # the dangerous way: what comes goes on as it comes
            proxy_buffering off;
        }}
    }}
}}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with server_process() as started:
        yield started


@contextmanager
def nginx(server: ServerProcess) -> Iterator[tuple[str, int]]:
    try:
        binary = nginx_path()
    except Unavailable as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="smuggling-") as folder:
        config = Path(folder, "nginx.conf")
        address = server.base.removeprefix("http://")
        config.write_text(NGINX.format(folder=folder, server=address, port=port))
        command = [binary, "-p", folder, "-c", str(config), "-e", f"{folder}/error.log"]
        with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
            try:
                deadline = time.monotonic() + 30
                while True:
                    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                        break
                    assert process.poll() is None, process.stderr
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                yield "127.0.0.1", port
            finally:
                process.terminate()


@pytest.fixture(scope="module", params=["nginx", "nobody"])
def front(request: pytest.FixtureRequest, server: ServerProcess) -> Iterator[tuple[str, int]]:
    """Where clients connect: nginx in front of the server, or the server itself."""
    if request.param == "nginx":
        with nginx(server) as address:
            yield address
        return
    host, port = server.base.removeprefix("http://").split(":")
    yield host, int(port)


def exchange(front: tuple[str, int], data: bytes) -> bytes:
    """Send, and read what comes back until the connection is closed or nothing more comes."""
    answer = b""
    with socket.create_connection(front, timeout=30) as connection, suppress(OSError):
        connection.settimeout(SILENCE_SECONDS)
        connection.sendall(data)
        while piece := connection.recv(65536):
            answer += piece
    return answer


def handled(server: ServerProcess, front: tuple[str, int], since: int) -> list[str]:
    """What the server has handled since that line of its log: a marked request goes last, on each connection that nginx keeps."""
    mark = f"mark-{secrets.token_hex(8)}"
    head = (
        f"GET /healthz HTTP/1.1\r\nHost: front\r\nX-Request-Id: {mark}\r\nConnection: close\r\n\r\n"
    )
    # A connection of nginx's that was poisoned would give this request another one's answer.
    assert b'{"ok": true}' in exchange(front, head.encode())
    server.line_with(mark)
    return [
        found[1]
        for line in server.lines[since:]
        if (found := re.search(r"INFO [A-Z]+ (/\S*) \d", line))
    ]


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_no_ambiguous_request_hides_another(
    server: ServerProcess, front: tuple[str, int], case: str
) -> None:
    logged = len(server.lines)
    answers = exchange(front, AMBIGUOUS[case]).count(b"HTTP/1.1 ")
    *seen, _ = handled(server, front, logged)
    # nginx may read the last as a request of its own right, and answers it: then both agree.
    assert len(seen) <= answers
    if server.base.endswith(f":{front[1]}"):
        assert "/smuggled" not in seen


@pytest.mark.parametrize("case", BODIES)
def test_no_body_is_taken_for_a_request(
    server: ServerProcess, front: tuple[str, int], case: str
) -> None:
    logged = len(server.lines)
    exchange(front, BODIES[case])
    assert "/smuggled" not in handled(server, front, logged)


def test_two_honest_requests_on_one_connection_are_two(
    server: ServerProcess, front: tuple[str, int]
) -> None:
    """What the other tests look for would be seen."""
    logged = len(server.lines)
    answer = exchange(front, SMUGGLED.replace(b"/smuggled", b"/honest") * 2)
    assert answer.count(b"HTTP/1.1 404") == 2
    assert handled(server, front, logged).count("/honest") >= 2


@pytest.mark.parametrize(
    "host",
    [
        *(b"evil.example", b"evil.example:99999", b"127.0.0.1", b"[::1]", b"a@b", b"", b"a b"),
        *(b"front\r\nHost: evil.example", b"../../etc", b"evil.example/path", b"\xff"),
    ],
)
def test_a_host_header_decides_nothing_and_is_told_to_nobody(
    server: ServerProcess, front: tuple[str, int], host: bytes
) -> None:
    logged = len(server.lines)
    ask = b"GET /v1/models HTTP/1.1\r\nHost: " + host + b"\r\nConnection: close\r\n\r\n"
    answer = exchange(front, ask)
    status = int(answer.split(b" ", 2)[1])
    assert status in {200, 400}
    assert b"evil" not in answer
    assert "evil" not in "\n".join(server.lines[logged:])


@pytest.mark.parametrize("target", [b"http://evil.example/v1/models", b"//evil.example/v1/models"])
def test_a_target_that_names_a_host_leads_nowhere_else(
    server: ServerProcess, front: tuple[str, int], target: bytes
) -> None:
    answer = exchange(
        front, b"GET " + target + b" HTTP/1.1\r\nHost: front\r\nConnection: close\r\n\r\n"
    )
    assert int(answer.split(b" ", 2)[1]) in {200, 400, 404}
    assert b"Location" not in answer
    assert b"evil" not in answer


def test_heads_are_limited_in_lines_and_length(
    server: ServerProcess, front: tuple[str, int]
) -> None:
    logged = len(server.lines)
    line = b"GET /v1/models HTTP/1.1\r\nHost: front\r\n"
    for head in (
        line + b"X: " + b"a" * 100_000 + b"\r\n\r\n",
        line + b"".join(b"X-%d: y\r\n" % number for number in range(5000)) + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: front\r\n\r\n",
    ):
        answer = exchange(front, head)
        assert int(answer.split(b" ", 2)[1]) in {400, 414, 431, 494}
    assert "/smuggled" not in handled(server, front, logged)
