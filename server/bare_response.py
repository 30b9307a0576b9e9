"""A response that writes its head itself, in one write with what follows it.

In: a status, headers and, where it is whole, a body. Out: bytes on the client's transport. It is what the
relay answers with where it can: aiohttp's own response and its stream writer cost a request 40 µs more.
"""

from collections.abc import Iterable
from functools import lru_cache
from http import HTTPStatus

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http_writer import HttpVersion11

from streaming.http_head import head_of

# RFC 9110, 8.6: these tell none.
_NO_LENGTH = frozenset({204, 304})


def has_body(request: web.BaseRequest, status: int) -> bool:
    """Whether the reply to this request tells a length and has a body, which may be empty; else aiohttp knows
    what its head holds.
    """
    return request.method != "HEAD" and status >= 200 and status not in _NO_LENGTH


class BareResponse(web.StreamResponse):
    """A whole response; its headers can be added to until it is prepared."""

    def __init__(self, status: int, headers: Iterable[tuple[str, str]], body: bytes = b"") -> None:
        super().__init__(status=status, headers=headers)
        self._whole = body
        self._is_sent = False
        self._stays_open = True

    @property
    def prepared(self) -> bool:
        return self._is_sent

    def set_head(self, status: int, headers: Iterable[tuple[str, str]]) -> None:
        """Another status, and more headers, which win."""
        self.set_status(status)
        self.headers.update(headers)

    @property
    def keep_alive(self) -> bool:
        return self._stays_open

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        if not self._is_sent:
            self.headers["Content-Length"] = str(len(self._whole))
            await self.tell_application(request)
            self.write_bare(request, self.bare_head(request) + self._whole)
            # The next request of this connection waits until the client takes the reply to this one.
            if request.protocol.writing_paused:
                await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Everything has been written."""

    async def tell_application(self, request: web.BaseRequest) -> None:
        """What an application may add to a response as it is prepared."""
        if isinstance(request, web.Request) and request.app.on_response_prepare:
            await request.app.on_response_prepare.send(request, self)

    def bare_head(self, request: web.BaseRequest) -> bytes:
        """The head; from here on it counts as sent."""
        headers = self.headers
        if "Date" not in headers:
            headers["Date"] = rfc822_formatted_time()  # made once a second
        is_new = request.version >= HttpVersion11
        # Before 1.1 a body whose length is not told ends with its connection.
        may_stay = self._keep_alive is not False and request.keep_alive
        self._stays_open = may_stay and (is_new or "Content-Length" in headers)
        if not self._stays_open:
            headers["Connection"] = "close"
        elif not is_new:
            headers["Connection"] = "keep-alive"
        head = head_of(_status_line(is_new, self.status), headers.items())
        self._is_sent = True
        request.writer.output_size += len(head)  # so aiohttp writes no other response behind it
        return head

    def write_bare(self, request: web.BaseRequest, data: bytes) -> None:
        """Write what has to go out as it is. Raises ConnectionResetError where the client is gone."""
        transport = request.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("the client left")
        transport.write(data)


@lru_cache(64)
def _status_line(is_new: bool, status: int) -> str:
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = ""
    return f"HTTP/1.{1 if is_new else 0} {status} {reason}\r\n"
