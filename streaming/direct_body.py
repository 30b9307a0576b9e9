"""An event stream's bytes handed on in the very callback that the socket's data comes in.

In: aiohttp's client protocol. Out: for a chunked event stream, the raw bytes of its body to whoever takes
them, without aiohttp's body parser and without waking a task per read: that is most of what relaying a
stream costs. Everything else, and every stream that nobody takes, goes the public way.

This is the one file that leans on aiohttp's private side: `TCPConnector._factory`, and that
`ResponseHandler.data_received` may be given a head and its body apart. `install` checks the former and
does nothing where it is not as expected; tests/test_streaming_direct_body.py pins both.
"""

import functools
import re
from collections.abc import Callable
from enum import Enum
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

# Heads are small; a longer one goes to aiohttp, which knows its own limits.
MAX_HEAD_BYTES = 64 * 1024
# What may come before anybody takes the stream; more waits in the kernel.
MAX_WAITING_BYTES = 256 * 1024
LAST_CHUNK = b"0\r\n\r\n"

_INTERIM = re.compile(rb"HTTP/1\.[01] 1\d\d ")
_STREAM_HEAD = re.compile(
    rb"HTTP/1\.1 200 "
    rb"(?=.*\r\ncontent-type:[ \t]*text/event-stream[ \t]*[;\r])"
    rb"(?=.*\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r)"
    rb"(?!.*\r\ncontent-encoding:)",
    re.IGNORECASE | re.DOTALL,
)

OnData = Callable[[bytes], None]
OnLost = Callable[[Exception | None], None]


class _State(Enum):
    HEAD = "the head is being read"
    WAITING = "an event stream waits to be taken"
    TAKEN = "its bytes go to whoever took it"
    PUBLIC = "aiohttp reads the body"


class DirectHandler(ResponseHandler):
    """aiohttp's client protocol, with bodies that can be taken from it."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._state = _State.PUBLIC
        self._bytes = b""
        self._on_data: OnData | None = None
        self._on_lost: OnLost | None = None
        self._is_held = False  # we paused the transport
        self.reads = 0  # of bodies that were taken

    def set_response_params(self, **params: object) -> None:
        """Called by aiohttp for every exchange."""
        self._state = _State.HEAD
        self._bytes = b""
        super().set_response_params(**params)  # type: ignore[arg-type]

    def data_received(self, data: bytes) -> None:
        if self._state is _State.TAKEN:
            assert self._on_data is not None
            self.reads += 1
            self._on_data(data)
        elif self._state is _State.PUBLIC:
            super().data_received(data)
        elif self._state is _State.WAITING:
            self._bytes += data
            if len(self._bytes) > MAX_WAITING_BYTES:
                self.pause()
        else:
            self._read_head(data)

    def connection_lost(self, exc: BaseException | None) -> None:
        on_lost = self._on_lost if self._state is _State.TAKEN else None
        self.go_public()
        super().connection_lost(exc)
        if on_lost is not None:
            on_lost(None)

    def take(self, on_data: OnData, on_lost: OnLost) -> bytes | None:
        """From now on the body's bytes go to `on_data`; returns those that have come already.

        None where this is no chunked event stream: then aiohttp reads it.
        """
        if self._state is not _State.WAITING:
            return None
        self._state = _State.TAKEN
        self._on_data, self._on_lost = on_data, on_lost
        data, self._bytes = self._bytes, b""
        self.resume()
        return data

    def go_public(self) -> None:
        """Let aiohttp read a body that nobody took."""
        if self._state in (_State.WAITING, _State.HEAD):
            self._state = _State.PUBLIC
            data, self._bytes = self._bytes, b""
            if data:
                super().data_received(data)
            self.resume()

    def fail(self, error: Exception) -> None:
        """Tell whoever took the body that no more of it will come; else nothing."""
        if self._state is _State.TAKEN and self._on_lost is not None:
            self._on_lost(error)

    def finish(self) -> None:
        """The body has been read to its end: the connection may serve the next exchange."""
        self._on_data = self._on_lost = None
        self._state = _State.PUBLIC
        super().data_received(LAST_CHUNK)

    def pause(self) -> None:
        """Take no more bytes from the socket for now."""
        if not self._is_held and self.transport is not None and not self.transport.is_closing():
            self._is_held = True
            self.transport.pause_reading()

    def resume(self) -> None:
        if self._is_held:
            self._is_held = False
            if self.transport is not None and not self.transport.is_closing():
                self.transport.resume_reading()

    def _read_head(self, data: bytes) -> None:
        self._bytes += data
        end = self._bytes.find(b"\r\n\r\n") + 4
        if end == 3:
            if len(self._bytes) > MAX_HEAD_BYTES:
                self.go_public()
            return
        head, rest = self._bytes[:end], self._bytes[end:]
        if _INTERIM.match(head):
            self._bytes = b""
            super().data_received(head)
            if rest:
                self._read_head(rest)
        elif _STREAM_HEAD.match(head) and not self._skip_payload:
            self._state = _State.WAITING
            self._bytes = rest
            super().data_received(head)
        else:
            self.go_public()


def install(connector: aiohttp.TCPConnector) -> bool:
    """Make this connector's connections direct ones; False where this aiohttp is not as expected."""
    factory = getattr(connector, "_factory", None)
    if not isinstance(factory, functools.partial) or factory.func is not ResponseHandler:
        return False
    direct: functools.partial[Any] = functools.partial(
        DirectHandler, *factory.args, **factory.keywords
    )
    connector._factory = direct
    return True


def direct_handler(response: aiohttp.ClientResponse) -> DirectHandler | None:
    """The handler of a reply whose body can be taken, or None."""
    connection = response.connection
    handler = connection.protocol if connection is not None else None
    return handler if isinstance(handler, DirectHandler) else None
