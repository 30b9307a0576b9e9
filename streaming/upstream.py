"""The one way to the upstream: a ClientSession with its pool, time-outs, headers and credentials.

In: request bodies. Out: for the relay the upstream's reply as it is; for agents its chat stream as
`ModelChunk`s. Errors from below leave as leaves of `streaming.failures`, never as aiohttp's.
"""

import asyncio
import io
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from multidict import CIMultiDict

from streaming.direct_body import direct_handler, install
from streaming.failures import DeadlineExceeded, UpstreamFailed, UpstreamRefused
from streaming.json_codec import decode_json
from streaming.model_chunks import ModelChunk, ModelChunkReader
from streaming.upstream_errors import error_text, retry_after_seconds, unreachable

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
# Below the five seconds after which uvicorn (vLLM, sglang) and llama.cpp close an idle connection.
KEEPALIVE_SECONDS = 4.0
# A larger body is written piece by piece, so that one upload does not hold up the loop.
WHOLE_WRITE_BYTES = 1 << 20
MAX_ERROR_BYTES = 64 * 1024
# Error statuses that say "not now" rather than "not like this".
NOT_NOW = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class Patience:
    """How long an agent's model call may be silent: before its first token (long prompts on small
    machines), and between two."""

    first_token_seconds: float = 300.0
    token_idle_seconds: float = 60.0


@dataclass(frozen=True)
class Target:
    """Where the upstream is now: base URL with its `/v1`, bearer token."""

    base_url: str
    token: str | None = field(repr=False)


class Upstream:
    """Exchanges with one upstream. `target` is asked at every call: an embedded server may move."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        target: Callable[[], Target],
        wait_ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._session = session
        self._target = target
        self._wait_ready = wait_ready

    @property
    def token(self) -> str | None:
        return self._target().token

    def headers(self, extra: Mapping[str, str] | None = None) -> CIMultiDict[str]:
        """`extra` with the upstream's credentials in place of any others."""
        headers = CIMultiDict(extra or {})
        headers.popall("Authorization", None)
        if token := self._target().token:
            headers["Authorization"] = f"Bearer {token}"
        return headers

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str],
        data: Any = None,
        raw: bool = False,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One exchange; `path` begins with a slash, after the `/v1`. Redirects are not followed.

        `raw` leaves a compressed reply compressed.

        Read the response through `pieces_of`. Raises UpstreamUnavailable where no connection could be
        had, UpstreamFailed where it broke before an answer.
        """
        if self._wait_ready is not None:
            await self._wait_ready()
        url = self._target().base_url + path
        if isinstance(data, bytes) and len(data) > WHOLE_WRITE_BYTES:
            data = io.BytesIO(data)
        try:
            response = await self._session.request(
                method,
                url,
                headers=self.headers(headers),
                data=data,
                allow_redirects=False,
                auto_decompress=not raw,
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise unreachable(error) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _broken_off(error) from None
        try:
            yield response
        finally:
            # Not release(): what is left unread of a reply that nobody wants must not be waited for.
            response.close()


@asynccontextmanager
async def open_upstream(
    target: Callable[[], Target],
    *,
    wait_ready: Callable[[], Awaitable[None]] | None = None,
    connections: int = 0,
    connect_seconds: float = CONNECT_SECONDS,
    reuse: bool = True,
) -> AsyncIterator[Upstream]:
    """An Upstream and the session it owns.

    `wait_ready` is awaited before every request: an upstream of our own may still be starting.
    `connections` bounds the pool, 0 does not. Without `reuse` every request has a connection of its own.
    """
    connector = aiohttp.TCPConnector(
        limit=connections,
        keepalive_timeout=KEEPALIVE_SECONDS if reuse else None,
        force_close=not reuse,
    )
    session = aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=connect_seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=True,
        trust_env=False,
    )
    if not install(connector):
        log.warning("this aiohttp is not as expected: streams take the slower way")
    async with session:
        yield Upstream(session, target, wait_ready)


async def pieces_of(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """A reply's body as it comes. Raises UpstreamFailed where it breaks off."""
    if (handler := direct_handler(response)) is not None:
        handler.go_public()
    try:
        async for data in response.content.iter_any():
            yield data
    except (aiohttp.ClientError, OSError) as error:
        raise _broken_off(error) from None


async def body_of(response: aiohttp.ClientResponse) -> bytes:
    """A reply's whole body. Raises UpstreamFailed where it breaks off."""
    return b"".join([data async for data in pieces_of(response)])


async def chat_chunks(
    exchange: AbstractAsyncContextManager[tuple[aiohttp.ClientResponse, str | None]],
    patience: Patience,
) -> AsyncGenerator[ModelChunk]:
    """One streamed chat completion; close it (`aclosing`) if you leave before its end.

    `exchange` gives the reply, and the token that no message may hold. Ends only after the upstream
    said that it is complete.

    Raises UpstreamUnavailable, UpstreamRefused, UpstreamFailed, DeadlineExceeded.
    """
    loop = asyncio.get_running_loop()
    try:
        async with (
            asyncio.timeout(patience.first_token_seconds) as deadline,
            exchange as (response, token),
        ):
            await _raise_for_status(response, token)
            is_event_stream = response.content_type == "text/event-stream"
            reader = ModelChunkReader(is_event_stream=is_event_stream, token=token)
            async for data in pieces_of(response):
                deadline.reschedule(None)  # the reader's time is not the upstream's
                for chunk in reader.feed(data):
                    yield chunk
                deadline.reschedule(loop.time() + patience.token_idle_seconds)
            deadline.reschedule(None)
            for chunk in reader.flush():
                yield chunk
    except TimeoutError:
        raise DeadlineExceeded("The upstream model server was silent for too long.") from None


async def _raise_for_status(response: aiohttp.ClientResponse, token: str | None) -> None:
    if response.status < 300:
        return
    if response.status < 400:
        raise UpstreamFailed("The upstream answered with a redirect, which is not followed.")
    body = bytearray()
    with suppress(UpstreamFailed):  # what came of it has to do
        async for data in pieces_of(response):
            body += data
            if len(body) > MAX_ERROR_BYTES:
                break
    try:
        said = error_text(decode_json(bytes(body)), token)
    except ValueError:
        said = ""
    log.warning("upstream answered %d with %d bytes", response.status, len(body))
    log.debug("upstream answered: %.500r", bytes(body))
    message = f"The upstream answered with status {response.status}" + (
        f": {said}" if said else "."
    )
    raise UpstreamRefused(
        message, upstream_status=response.status, retry_after=retry_after_seconds(response.headers)
    )


def _broken_off(error: BaseException) -> UpstreamFailed:
    log.warning("upstream broke off: %s: %s", type(error).__name__, error)
    return UpstreamFailed("The upstream model server broke off its reply.")
