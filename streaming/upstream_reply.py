"""One exchange with an upstream, from the request sent to the reply closed.

In: a connection's doing. Out: the reply's head, its body whole, in pieces, or as the socket's bytes in the
callback that they come in. `PublicReply` is aiohttp's own; `streaming.direct_exchange` has the other.
Errors leave as leaves of `streaming.failures`.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from functools import lru_cache
from typing import NamedTuple

import aiohttp
from multidict import CIMultiDictProxy

from streaming.failures import UpstreamFailed
from streaming.http_head import has_control

log = logging.getLogger(__name__)

OnData = Callable[[bytes], None]
OnLost = Callable[[Exception], None]


class Taken(NamedTuple):
    """A body to be had as the socket's bytes.

    `start` tells to whom they go, and that no more will come; it returns those that have come already.
    `pause` takes no more from the socket for now, `resume` does again; `finish` it at its end.
    """

    start: Callable[[OnData, OnLost], bytes]
    pause: Callable[[], None]
    resume: Callable[[], None]
    finish: Callable[[], None]


class UpstreamReply(ABC):
    """Await `head`, read the body once in one of its ways, and `close` it in any case."""

    status: int
    headers: CIMultiDictProxy[str]

    _on_close: tuple[Callable[[], None], ...] = ()

    @abstractmethod
    async def head(self) -> None:
        """Wait for `status` and `headers`. Raises UpstreamFailed."""

    @property
    def content_type(self) -> str:
        """In lower case, without parameters."""
        return _media_type(self.headers.get("Content-Type", ""))

    @property
    def content_length(self) -> int | None:
        length = self.headers.get("Content-Length", "")
        return int(length) if length.isascii() and length.isdigit() else None

    @property
    @abstractmethod
    def progress(self) -> int:
        """0 until something of the body has come; then another number than last time if something was read."""

    @property
    @abstractmethod
    def is_paused(self) -> bool:
        """Nothing is read for now: it is the reader who is slow."""

    @abstractmethod
    def pieces(self) -> AsyncIterator[bytes]:
        """The body as it comes. Raises UpstreamFailed where it breaks off."""

    async def body(self) -> bytes:
        """The whole body. Raises UpstreamFailed where it breaks off."""
        return b"".join([data async for data in self.pieces()])

    def take(self) -> Taken | None:
        """A chunked event stream as it comes from the socket, framing and all.

        None where the body has to be read as `pieces`.
        """
        return None

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Whoever waits for the reply, or reads it, gets this."""

    def call_on_close(self, callback: Callable[[], None]) -> None:
        self._on_close += (callback,)

    def close(self) -> None:
        """Give the connection back, or close it where the reply was not read to its end."""
        callbacks, self._on_close = self._on_close, ()
        for callback in callbacks:
            callback()


class PublicReply(UpstreamReply):
    """A reply as aiohttp's session gives it."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.headers = response.headers

    async def head(self) -> None:
        """It is there: aiohttp's session waits for it."""
        if has_control(self.headers):
            raise broken_off(aiohttp.ClientPayloadError("a header holds a control character"))

    @property
    def progress(self) -> int:
        return self._response.content.total_bytes

    @property
    def is_paused(self) -> bool:
        connection = self._response.connection
        return connection is not None and is_held(connection.transport)

    async def pieces(self) -> AsyncIterator[bytes]:
        async for data in read_through(self._response.content):
            yield data

    def fail(self, error: Exception) -> None:
        if not self._response.content.is_eof():
            self._response.content.set_exception(error)

    def close(self) -> None:
        super().close()
        # Not release(): what is left unread of a reply that nobody wants must not be waited for.
        self._response.close()


@lru_cache(64)
def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def is_held(transport: asyncio.Transport | None) -> bool:
    """Whether reading is paused; one that is closing does not read either, but nobody holds it."""
    return transport is not None and not transport.is_reading() and not transport.is_closing()


async def read_through(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """A body as it comes. Raises UpstreamFailed where it breaks off."""
    try:
        async for data in content.iter_any():
            yield data
    except (aiohttp.ClientError, OSError) as error:
        raise broken_off(error) from None


def broken_off(error: BaseException) -> UpstreamFailed:
    """The error for a reply that ends before its end."""
    log.warning("upstream broke off: %s: %s", type(error).__name__, error)
    return UpstreamFailed("The upstream model server broke off its reply.")
