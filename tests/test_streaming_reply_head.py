"""What is read without a parser is what aiohttp's parser makes of it; all else is left to that."""

import asyncio
from typing import Any

import pytest
from aiohttp.client_proto import ResponseHandler
from hypothesis import example, given
from hypothesis import strategies as st

from streaming.reply_head import MAX_BYTES, MAX_LINES, ordinary_head

OK = b"HTTP/1.1 200 OK\r\n"
LENGTH = b"Content-Length: 5\r\n"
LINES = [
    *(b"Content-Length: 5", b"content-length:  0\t", b"Content-Length: 007", b"Content-Length: 6"),
    *(b"Content-Length: 5, 5", b"Content-Length: +5", b"Content-Length: -1", b"Content-Length:"),
    *(b"Content-Length: 99999999999999999999", b"Content-Length : 5", b"Content-Length: 0x5"),
    *(b"Transfer-Encoding: chunked", b"transfer-encoding: Chunked", b"Transfer-Encoding: gzip"),
    *(b"Transfer-Encoding: gzip, chunked", b"Transfer-Encoding: chunked, identity", b"TE: chunked"),
    *(b"Transfer-Encoding: \x0bchunked", b"Transfer-Encoding:", b"Transfer_Encoding: chunked"),
    *(b"Connection: close", b"connection: Keep-Alive", b"Connection: close, x", b"Connection: x"),
    *(b"Connection: upgrade", b"Upgrade: websocket", b"Proxy-Connection: close", b"Upgrade: h2c"),
    *(b"Content-Type: text/event-stream; charset=utf-8", b"Date: now", b"Set-Cookie: a=b", b"X:"),
    *(b"Content-Encoding: gzip", b"Content-Encoding: identity", b"Sec-WebSocket-Key1: x"),
    *(
        b"X-Tab: a\tb",
        b"X-Latin: \xe9",
        b"X-Utf: \xc3\xa9",
        b"X-Nul: a\0b",
        b"X-Cr: a\rb",
        b"X-Lf: a\nb",
    ),
    *(
        b" folded",
        b"\tfolded",
        b"",
        b":",
        b": x",
        b"no colon",
        b"Na me: x",
        b"N\xe4me: x",
        b"A\0: x",
    ),
    *(
        b"x-request-id: 1",
        b"X-Long: " + b"x" * 3000,
        b"HTTP/1.1 500 No",
        b"Trailer: X",
        b"\r",
        b"\n",
    ),
]
FIRST_LINES = [
    *(b"HTTP/1.1 200 OK", b"HTTP/1.1 200 ", b"HTTP/1.1 200", b"HTTP/1.1 404 Not Found"),
    *(b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 100 Continue"),
    *(
        b"HTTP/1.1 101 Switching Protocols",
        b"HTTP/1.0 200 OK",
        b"HTTP/2.0 200 OK",
        b"HTTP/1.1 099 X",
    ),
    *(
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1  200 OK",
        b"http/1.1 200 OK",
        b"ICY 200 OK",
        b" HTTP/1.1 200 OK",
    ),
    *(b"HTTP/1.1 200 \xff", b"HTTP/1.1 200 a\rb", b"\r\nHTTP/1.1 200 OK", b"HTTP/1.1 599 x", b""),
]
some_heads = st.builds(
    lambda first, lines: b"\r\n".join([first, *lines, b"", b""]),
    st.sampled_from(FIRST_LINES[:4]) | st.sampled_from(FIRST_LINES),
    st.lists(st.sampled_from(LINES) | st.binary(max_size=20), max_size=6),
)


def parsed(data: bytes) -> Any:
    """What aiohttp makes of it, in the same words; None where it is not one whole head."""
    loop = asyncio.new_event_loop()
    try:
        handler = ResponseHandler(loop)
        handler.set_response_params(auto_decompress=False, read_until_eof=True)
        handler.data_received(data)
        if handler.exception() is not None or len(handler) != 1:
            return None
        message, _ = loop.run_until_complete(handler.read())
    finally:
        loop.close()
    length = None if message.chunked else int(message.headers["Content-Length"])
    return (
        *(message.code, list(message.headers.items()), length, not message.should_close),
        *(message.upgrade, message.compression),
    )


def check(data: bytes) -> None:
    head = ordinary_head(data)
    if head is not None:
        status, headers, length, stays_open, end = head
        mine = (status, list(headers.items()), length, stays_open, False, None)
        assert mine == parsed(data[:end])


@given(some_heads)
@example(OK + LENGTH + LENGTH + b"\r\n")
@example(OK + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n")
def test_it_reads_a_head_as_the_parser_does(data: bytes) -> None:
    check(data)
    check(data + b"hello")


@given(some_heads, st.integers(0, 200), st.binary(min_size=1, max_size=2), st.booleans())
def test_it_reads_a_mangled_head_as_the_parser_does(
    data: bytes, position: int, put: bytes, over: bool
) -> None:
    position %= len(data)
    check(data[:position] + put + data[position + (len(put) if over else 0) :])


@pytest.mark.parametrize(
    "head",
    [
        OK + LENGTH,  # a line
        OK + b"Transfer-Encoding: chunked\r\n",
        b"HTTP/1.1 503 Not now\r\n"
        + LENGTH
        + b"Connection: close\r\nSet-Cookie: a\r\nSet-Cookie: b\r\n",
        OK + b"server: uvicorn\r\nX-Empty:\r\nconnection: keep-alive\r\n" + LENGTH,
    ],
)
def test_ordinary_heads_are_read(head: bytes) -> None:
    data = head + b"\r\n"
    read = ordinary_head(data + b"hello")
    assert read is not None
    assert read[-1] == len(data)
    check(data)
    assert all(ordinary_head(data[:end]) is None for end in range(len(data)))


@pytest.mark.parametrize(
    "head",
    [
        *(OK, OK + LENGTH + LENGTH, OK + LENGTH + b"Transfer-Encoding: chunked\r\n"),
        *(
            OK + LENGTH + line + b"\r\n"
            for line in (b" folded", b"A : b", b"A: \xe9", b"A: \0", b"A")
        ),
        *(
            OK + LENGTH + line
            for line in (b"A: b\n", b"A: b\rC: d\r\n", b"Content-Encoding: gzip\r\n")
        ),
        OK + b"Connection: close\r\nConnection: keep-alive\r\n" + LENGTH,
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        *(first + b"\r\n" + LENGTH for first in FIRST_LINES[4:-2]),
        OK + LENGTH + b"A: b\r\n" * MAX_LINES,
        OK + LENGTH + b"A: " + b"b" * MAX_BYTES + b"\r\n",
    ],
)
def test_anything_else_is_left_to_the_parser(head: bytes) -> None:
    assert ordinary_head(head + b"\r\n") is None
