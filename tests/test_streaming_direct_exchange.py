"""The one place that leans on aiohttp's private side: what it needs is there, it reads every kind of reply
as aiohttp does, and it gives way where aiohttp is another."""

import asyncio
import functools
import gc
import gzip
import logging
import ssl
import subprocess
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.client_proto import ResponseHandler
from conftest import FakeUpstream, MakeGateway, events_of, text_of, until

from streaming import direct_connections, direct_exchange
from streaming.direct_connections import DirectConnections, DirectHandler, open_connections
from streaming.failures import InvalidRequest, UpstreamFailed, UpstreamSilent, UpstreamUnavailable
from streaming.pulse import Pulse
from streaming.silence_watch import SilenceLimits, SilenceWatch
from streaming.upstream_reply import Taken, UpstreamReply

ASK: dict[str, Any] = {
    "model": "up/model",
    "stream": True,
    "messages": [{"role": "user", "content": "go"}],
}
STREAM = b'data: {"choices":[{"index":0,"delta":{"content":"hi"},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
OK = b"HTTP/1.1 200 OK\r\n"
EVENTS = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class RawUpstream:
    """Answers each request with the next of `replies`, in pieces; None closes the connection."""

    def __init__(self, replies: list[list[bytes | None]]) -> None:
        self.replies = list(replies)
        self.requests: list[bytes] = []
        self.ports: list[int] = []
        self.base = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                self.ports.append(writer.get_extra_info("peername")[1])
                for piece in self.replies.pop(0):
                    if piece is None:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.001)  # so that it comes alone, mostly
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def connections(
    *replies: list[bytes | None], tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
) -> AsyncIterator[tuple[RawUpstream, Callable[..., Any]]]:
    """An upstream with these replies, and what posts to it."""
    upstream = RawUpstream(list(replies))
    server = await asyncio.start_server(
        upstream.serve, "127.0.0.1", 0, ssl=tls[0] if tls is not None else None
    )
    scheme = "http" if tls is None else "https"
    upstream.base = f"{scheme}://localhost:{server.sockets[0].getsockname()[1]}/v1"
    connector = aiohttp.TCPConnector(limit=0, ssl=tls[1] if tls is not None else True)
    async with aiohttp.ClientSession(connector=connector) as session:
        direct = open_connections(session, connector)
        assert direct is not None

        async def post(raw: bool = False, waits: bool = True) -> UpstreamReply:
            reply = await direct.post(upstream.base, "/x", [("A", "b")], b"{}", raw=raw)
            if not waits:
                return reply
            try:
                async with asyncio.timeout(10):
                    await reply.head()
            except BaseException:
                reply.close()
                raise
            return reply

        yield upstream, post
    server.close()


async def body_of(post: Callable[..., Any], **options: Any) -> tuple[int, bytes]:
    reply = await post(**options)
    try:
        return reply.status, await reply.body()
    finally:
        reply.close()


def sized(body: bytes, head: bytes = b"") -> bytes:
    return OK + head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


async def test_this_aiohttp_is_as_expected() -> None:
    connector = aiohttp.TCPConnector(limit=0)
    factory = connector._factory
    assert isinstance(factory, functools.partial)
    assert factory.func is ResponseHandler
    async with aiohttp.ClientSession(connector=connector) as session:
        assert isinstance(open_connections(session, connector), DirectConnections)
        assert isinstance(connector._factory(), DirectHandler)


async def test_another_aiohttp_is_left_alone() -> None:
    connector = aiohttp.TCPConnector(limit=0)
    connector._factory = ResponseHandler  # type: ignore[assignment]
    async with aiohttp.ClientSession(connector=connector) as session:
        assert open_connections(session, connector) is None
    assert connector._factory is ResponseHandler


async def test_the_request_is_what_http_asks_for() -> None:
    async with connections([sized(b"")]) as (upstream, post):
        await body_of(post)
    host = upstream.base.removeprefix("http://").removesuffix("/v1").encode()
    assert upstream.requests == [
        b"POST /v1/x HTTP/1.1\r\nHost: " + host + b"\r\nA: b\r\nContent-Length: 2\r\n\r\n{}"
    ]


@pytest.mark.parametrize("value", ["a\r\nX: 1", "a\nb", "a\rb", "a\0b"])
async def test_a_header_cannot_hold_another(value: str) -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        direct = open_connections(session, connector)
        assert direct is not None
        with pytest.raises(InvalidRequest):
            await direct.post("http://127.0.0.1:9", "/x", [("A", value)], b"", raw=True)


GZIPPED = sized(gzip.compress(b"hello"), b"Content-Encoding: gzip\r\n")
BODIES: dict[str, tuple[list[bytes | None], int, bytes, bool]] = {
    # what comes; status, body, and whether the connection serves the next exchange
    "sized": ([sized(b"hello")], 200, b"hello", True),
    "sized, in pieces": ([sized(b"hello")[:-3], b"ll", b"o"], 200, b"hello", True),
    "empty": ([sized(b"")], 200, b"", True),
    "byte by byte": ([bytes([byte]) for byte in sized(b"hello")], 200, b"hello", True),
    "no content": ([b"HTTP/1.1 204 No Content\r\n\r\n"], 204, b"", True),
    "an error": ([b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno"], 503, b"no", True),
    "chunked": (
        [OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", b"lo\r\n0\r\n\r\n"],
        200,
        b"hello",
        True,
    ),
    "until the end": ([OK + b"\r\nhel", b"lo", None], 200, b"hello", False),
    "over two MiB": ([sized(b"x" * (2 << 20))], 200, b"x" * (2 << 20), True),
    "gzip": ([GZIPPED], 200, b"hello", True),
    "it closes": ([sized(b"hello", b"Connection: close\r\n")], 200, b"hello", False),
    "more than it said": ([sized(b"hello") + b"x"], 200, b"hello", False),
    "a stream": ([EVENTS + b"5\r\nhello\r\n0\r\n\r\n"], 200, b"hello", True),
    "a stream, then closed": ([EVENTS + b"5\r\nhello\r\n0\r\n\r\n", None], 200, b"hello", False),
    "lines that end in a line feed": (
        [b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello"],
        200,
        b"hello",
        True,
    ),
    "a second reply behind one without a body": (
        [b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\nno"],
        204,
        b"",
        False,
    ),
    "a second reply behind a chunked one": (
        [OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" + sized(b"no")],
        200,
        b"hello",
        False,
    ),
    "many interim replies": (
        [b"HTTP/1.1 100 Continue\r\n\r\n" * 2000 + sized(b"hello")],
        200,
        b"hello",
        True,
    ),
    "interim replies": (
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 102 Processing\r\nA: b\r\n\r\n" + sized(b"hello")],
        200,
        b"hello",
        True,
    ),
}


@pytest.mark.parametrize("kind", BODIES)
async def test_every_kind_of_body_is_read(kind: str) -> None:
    pieces, status, body, stays = BODIES[kind]
    async with connections(pieces, [sized(b"next")]) as (upstream, post):
        reply = await post()
        if pieces[-1] is None:
            await until(lambda: reply._handler.transport is None)
        assert (reply.status, await reply.body()) == (status, body)
        reply.close()
        assert await body_of(post) == (200, b"next")
    assert (upstream.ports[0] == upstream.ports[1]) == stays


async def test_a_connection_that_the_upstream_closed_at_rest_is_not_used_again() -> None:
    async with connections([sized(b"a"), None], [sized(b"b")]) as (upstream, post):
        reply = await post()
        handler = reply._handler
        assert await reply.body() == b"a"
        reply.close()
        await until(lambda: handler.transport is None)
        assert handler.connection is None
        assert await body_of(post) == (200, b"b")
    assert len(upstream.requests) == 2


async def test_many_at_once_have_connections_of_their_own_which_rest_and_are_closed_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    every: list[list[bytes | None]] = [[sized(b"a")]] * 60
    async with connections(*every) as (upstream, post):
        replies = await asyncio.gather(*(post() for _ in range(20)))
        handlers = [reply._handler for reply in replies]
        for reply in replies:
            assert await reply.body() == b"a"
            reply.close()
        assert len(set(upstream.ports)) == 20
        for _ in range(20):
            assert await body_of(post) == (200, b"a")
        assert set(upstream.ports[20:]) == set(upstream.ports[:20])  # who rested longest goes first
        monkeypatch.setattr(direct_connections, "KEEPALIVE_SECONDS", 0.0)
        assert await body_of(post) == (200, b"a")
        assert len(set(upstream.ports)) == 21
        await until(lambda: all(handler.transport is None for handler in handlers))


async def test_what_rests_for_too_long_is_closed_without_being_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_connections, "KEEPALIVE_SECONDS", 0.05)
    async with connections([sized(b"a")], [sized(b"a")], [sized(b"b")]) as (_, post):
        replies = [await post(), await post()]
        handlers = [reply._handler for reply in replies]
        for reply in replies:
            await reply.body()
            reply.close()
            await asyncio.sleep(0.02)
        await until(lambda: all(handler.transport is None for handler in handlers))
        assert await body_of(post) == (200, b"b")


@pytest.mark.parametrize(
    "came", [[], [OK[:9]], [sized(b"hello")[:-2]], [EVENTS + b"5\r\nhel"], [OK + b"\r\nhel"]]
)
async def test_an_abandoned_exchange_leaves_nothing_to_the_next(came: list[bytes | None]) -> None:
    async with connections(came, [sized(b"next")]) as (upstream, post):
        reply = await post(waits=False)
        await until(lambda: upstream.requests and not upstream.replies[1:])
        await asyncio.sleep(0.01)  # until all that came is read, mostly
        reply.close()
        assert await body_of(post) == (200, b"next")
    assert upstream.ports[0] != upstream.ports[1]


async def test_an_exchange_that_is_cancelled_while_it_connects_leaves_no_connection() -> None:
    async with connections([sized(b"next")]) as (upstream, post):
        for turns in range(6):
            task = asyncio.create_task(post(waits=False))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled():
                task.result().close()
        upstream.replies[:] = [[sized(b"next")]]
        assert await body_of(post) == (200, b"next")


async def test_headers_of_one_reply_are_not_those_of_another() -> None:
    every: list[list[bytes | None]] = [
        [sized(b"x" * size, b"X-Turn: %d\r\n" % size)] for size in range(5)
    ]
    async with connections(*every) as (_, post):
        for size in range(5):
            reply = await post()
            assert reply.headers == {"X-Turn": str(size), "Content-Length": str(size)}
            assert await reply.body() == b"x" * size
            reply.close()


@asynccontextmanager
async def deaf_upstream(
    serve: Callable[[asyncio.StreamWriter], None],
) -> AsyncIterator[tuple[DirectConnections, str]]:
    """What posts to an upstream that reads nothing of a request behind its first bytes."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        await reader.read(1)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        serve(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=1024)
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(connector=connector) as session:
            direct = open_connections(session, connector)
            assert direct is not None
            yield direct, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()


async def test_a_connection_that_still_holds_a_request_is_not_used_again() -> None:
    async with deaf_upstream(lambda writer: writer.write(sized(b"no"))) as (direct, base):
        for body in (b"x" * (32 << 20), b"next"):  # more than the kernel takes
            reply = await direct.post(base, "/x", [], body, raw=False)
            async with asyncio.timeout(10):
                await reply.head()
            assert await reply.body() == b"no"
            reply.close()


async def test_silence_counts_where_a_half_closed_upstream_takes_nothing() -> None:
    pulse = Pulse(0.01)
    async with deaf_upstream(lambda writer: writer.write_eof()) as (direct, base):
        reply = await direct.post(base, "/x", [], b"x" * (32 << 20), raw=False)
        watch = SilenceWatch(reply, SilenceLimits(0.05, 0.05), pulse)
        with pytest.raises(UpstreamSilent):
            async with asyncio.timeout(10):
                await reply.head()
        watch.close()
        reply.close()
    pulse.close()


async def test_a_closed_reply_leaves_no_work_to_the_collector() -> None:
    class Taker:
        """Holds what it took, as what carries a stream does."""

        def __init__(self, taken: Taken) -> None:
            self.taken = taken
            taken.start(self.on_data, self.on_lost)

        def on_data(self, data: bytes) -> None: ...

        def on_lost(self, error: Exception) -> None: ...

    async with connections([EVENTS + b"5\r\nhello\r\n"]) as (_, post):
        reply = await post()
        watch = SilenceWatch(reply, SilenceLimits(), Pulse(1))
        reply.call_on_close(watch.close)
        taken = reply.take()
        assert taken is not None
        gc.disable()
        try:
            left = weakref.ref(Taker(taken)), weakref.ref(reply)
            reply.close()
            del reply, taken, watch
            assert [one() for one in left] == [None, None]
        finally:
            gc.enable()


async def test_what_was_to_be_called_on_close_is_called_once() -> None:
    called: list[int] = []
    async with connections([sized(b"a")]) as (_, post):
        reply = await post()
        reply.call_on_close(lambda: called.append(1))
        reply.close()
        reply.close()
    assert called == [1]


async def test_raw_leaves_a_body_compressed() -> None:
    async with connections([GZIPPED]) as (_, post):
        status, body = await body_of(post, raw=True)
    assert (status, gzip.decompress(body)) == (200, b"hello")


@pytest.mark.parametrize(
    "pieces",
    [
        [None],
        [OK[:9], None],
        [OK + b"Content-Le", None],
        [b"SSH-2.0-OpenSSH_9.2\r\n\r\n"],
        [OK + b"A: " + b"x" * 70_000],
        [OK + b"A: " + b"x" * 9_000 + b"\r\n\r\n"],
        [b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n"],
        [sized(b"hello")[:-1], None],
        [OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel", None],
        [OK + b"Transfer-Encoding: chunked\r\n\r\nx\r\n"],
        [EVENTS + b"5\r\nhel", None],
    ],
)
async def test_what_breaks_off_or_is_no_http_is_a_failure(pieces: list[bytes | None]) -> None:
    async with connections(pieces, [sized(b"next")]) as (_, post):
        with pytest.raises(UpstreamFailed):
            await body_of(post)
        assert await body_of(post) == (200, b"next")


async def test_a_connection_that_speaks_unasked_is_not_used_again() -> None:
    async with connections([sized(b"a"), b"HTTP/1.1 200 OK\r\n"], [sized(b"b")]) as (
        upstream,
        post,
    ):
        reply = await post()
        handler = reply._handler
        assert await reply.body() == b"a"
        reply.close()
        await until(lambda: handler.transport is None)
        assert await body_of(post) == (200, b"b")
    assert upstream.ports[0] != upstream.ports[1]


async def test_a_request_on_a_connection_that_was_closed_meanwhile_is_sent_once_more() -> None:
    # The second reply is none: the upstream closes as the request comes, which is what is seen of one
    # that had closed before.
    async with connections([sized(b"a")], [None], [sized(b"b")]) as (upstream, post):
        assert await body_of(post) == (200, b"a")
        assert await body_of(post) == (200, b"b")
    assert upstream.ports[0] == upstream.ports[1] != upstream.ports[2]
    assert len(set(upstream.requests)) == 1


@pytest.mark.parametrize(
    "replies",
    [
        [[None]],  # a new connection
        [[sized(b"a")], [OK, None]],  # a reply had begun
        [[sized(b"a")], [None], [None]],  # and then a new connection
    ],
)
async def test_nothing_else_is_sent_twice(replies: list[list[bytes | None]]) -> None:
    async with connections(*replies, [sized(b"never")]) as (upstream, post):
        if replies[0] != [None]:
            await body_of(post)
        with pytest.raises(UpstreamFailed):
            await body_of(post)
    assert len(upstream.requests) == len(replies)


@pytest.mark.parametrize("at_once", [1, 32])
async def test_the_last_repeat_is_on_a_new_connection_however_many_rest(at_once: int) -> None:
    # As after a restart of which the connections at rest were not told.
    served: set[int] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = generation[0]
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readexactly(len(request))
            while first == generation[0]:
                writer.write(sized(b"a"))
                served.add(writer.get_extra_info("peername")[1])
                await reader.readexactly(len(request))
        writer.close()

    generation = [0]
    async with connections() as (upstream, post):
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        upstream.base = f"http://localhost:{server.sockets[0].getsockname()[1]}/v1"
        host = upstream.base.removeprefix("http://").removesuffix("/v1")
        request = f"POST /v1/x HTTP/1.1\r\nHost: {host}\r\nA: b\r\nContent-Length: 2\r\n\r\n{{}}"
        replies = await asyncio.gather(*(post() for _ in range(32)))
        for reply in replies:
            assert await reply.body() == b"a"
            reply.close()
        assert len(served) == 32
        generation[0] = 1
        for _ in range(3):
            every = await asyncio.gather(*(body_of(post) for _ in range(at_once)))
            assert every == [(200, b"a")] * at_once
        server.close()


async def test_what_the_upstream_thought_about_is_not_sent_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct_exchange, "STALE_SECONDS", 0.0)
    async with connections([sized(b"a")], [None], [sized(b"never")]) as (upstream, post):
        await body_of(post)
        with pytest.raises(UpstreamFailed):
            await body_of(post)
    assert len(upstream.requests) == 2


async def test_a_taken_body_leaves_the_connection_fit_for_the_next_exchange() -> None:
    replies: list[list[bytes | None]] = [[EVENTS, b"5\r\nhello\r\n", b"0\r\n\r\n"]] * 3
    async with connections(*replies) as (upstream, post):
        for _ in range(3):
            reply = await post()
            taken = reply.take()
            assert taken is not None
            got = bytearray()
            got += taken.start(got.extend, lambda error: None)
            await until(lambda: got.endswith(b"0\r\n\r\n"))  # noqa: B023
            taken.finish()
            reply.close()
            assert got == b"5\r\nhello\r\n0\r\n\r\n"
    assert len(set(upstream.ports)) == 1


async def test_a_taken_body_makes_progress_where_something_was_read_since_it_was_last_asked() -> (
    None
):
    async with connections([EVENTS, *[b"5\r\nhello\r\n"] * 30]) as (_, post):
        reply = await post()
        taken = reply.take()
        assert taken is not None
        got = bytearray()
        got += taken.start(got.extend, lambda error: None)
        asked: set[tuple[int, int]] = set()

        def all_is_read() -> bool:
            asked.add((len(got), reply.progress))
            return len(got) == 300

        await until(all_is_read)
        assert all_is_read()
        assert len(asked) > 3
        assert len({size for size, _ in asked}) == len({count for _, count in asked}) == len(asked)
        reply.close()


@pytest.mark.parametrize("turn", ["taken", "read", "closed"])
async def test_a_connection_that_was_tapped_is_as_any_other(turn: str) -> None:
    stream: list[bytes | None] = [EVENTS, *[b"5\r\nhello\r\n"] * 3, b"0\r\n\r\n"]
    async with connections(stream, stream, [sized(b"next"), b"unasked"]) as (upstream, post):
        for index in range(2):
            reply = await post()
            if turn == "read" and index:
                assert await reply.body() == b"hello" * 3
                reply.close()
                continue
            taken = reply.take()
            assert taken is not None
            got = bytearray()
            got += taken.start(got.extend, lambda error: None)
            end = b"hello\r\n" if turn == "closed" else b"0\r\n\r\n"
            await until(lambda: got.endswith(end))  # noqa: B023
            if turn != "closed":
                taken.finish()
            reply.close()
        reply = await post()
        handler = reply._handler
        assert await reply.body() == b"next"
        reply.close()
        await until(lambda: handler.transport is None)
    assert len(set(upstream.ports)) == (3 if turn == "closed" else 1)


async def test_whoever_took_a_body_is_told_of_its_end_after_what_came() -> None:
    async with connections([EVENTS + b"5\r\nhello\r\n", None]) as (_, post):
        reply = await post()
        taken = reply.take()
        assert taken is not None
        await until(lambda: reply._handler.transport is None)
        lost: list[Exception] = []
        assert taken.start(lambda data: None, lost.append) == b"5\r\nhello\r\n"
        assert not lost
        await until(lambda: lost)
        assert isinstance(lost[0], UpstreamFailed)
        reply.close()


@pytest.mark.parametrize(
    "came", [[], [OK], [sized(b"hello")[:-2]], [EVENTS + b"5\r\nhel"], [OK + b"\r\nhel"]]
)
async def test_a_silent_reply_can_be_failed_in_every_state(came: list[bytes | None]) -> None:
    # The upstream goes on waiting for a next request.
    async with connections(came) as (upstream, post):
        reply = await post(waits=False)

        async def read() -> None:
            await reply.head()
            await reply.body()

        reading = asyncio.create_task(read())
        await until(lambda: upstream.requests and not upstream.replies)
        await asyncio.sleep(0.02)  # until all that came is read, mostly
        reply.fail(UpstreamSilent("silent"))
        with pytest.raises(UpstreamSilent):
            await reading
        reply.close()


async def test_a_connection_that_cannot_be_had_is_unavailable() -> None:
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        direct = open_connections(session, connector)
        assert direct is not None
        with pytest.raises(UpstreamUnavailable):
            await direct.post("http://127.0.0.1:1/v1", "/x", [], b"", raw=True)


@pytest.fixture
def certified(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    asked = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost"
    command = ["openssl", *asked.split(), "-addext", "subjectAltName=DNS:localhost"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


async def test_tls_is_the_sessions(certified: tuple[Path, Path]) -> None:
    certificate, key = certified
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=str(certificate))
    stream: list[bytes | None] = [EVENTS, *[b"5\r\nhello\r\n"] * 3]
    async with connections([sized(b"a")], [sized(b"b")], stream, tls=(server, client)) as (
        upstream,
        post,
    ):
        assert await body_of(post) == (200, b"a")
        assert await body_of(post) == (200, b"b")
        reply = await post()
        taken = reply.take()
        assert taken is not None
        got = bytearray()
        got += taken.start(got.extend, lambda error: None)
        await until(lambda: got == b"5\r\nhello\r\n" * 3)
        reply.close()
    assert len(set(upstream.ports)) == 1
    async with connections([sized(b"a")], tls=(server, ssl.create_default_context())) as (_, post):
        with pytest.raises(UpstreamUnavailable):
            await body_of(post)


async def test_without_it_everything_takes_the_public_way(
    upstream: FakeUpstream,
    make_gateway: MakeGateway,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(direct_connections, "ResponseHandler", object())

    async def handler(request: Any) -> Any:
        response = aiohttp.web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(STREAM)
        return response

    upstream.handler = handler
    with caplog.at_level(logging.WARNING):
        gateway = await make_gateway()
    assert "takes the slower way" in caplog.text
    for model in ("up/model", "up/model-nothink"):
        async with gateway.session.post(
            gateway.base + "/v1/chat/completions", json=ASK | {"model": model}
        ) as response:
            raw = await response.read()
        assert raw == STREAM
        assert text_of(events_of(raw), "content") == "hi"
