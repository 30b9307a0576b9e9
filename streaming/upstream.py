"""The one way to the upstream: a ClientSession with its pool, time-outs, headers and credentials.

In: request bodies. Out: an `UpstreamReply`; for agents its chat stream as `ModelChunk`s. Errors from below
leave as leaves of `streaming.failures`, never as aiohttp's. A body that is there as a whole is posted on the
session's connections directly; anything else goes through the session.
"""

import asyncio
import io
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from streaming.direct_connections import (
    KEEPALIVE_SECONDS,
    DirectConnections,
    open_connections,
)
from streaming.failures import DeadlineExceeded, UpstreamFailed, UpstreamRefused
from streaming.json_codec import decode_json
from streaming.model_chunks import ModelChunk, ModelChunkReader
from streaming.upstream_errors import error_text, retry_after_seconds, unreachable
from streaming.upstream_reply import PublicReply, UpstreamReply, broken_off

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
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
        direct: DirectConnections | None,
        target: Callable[[], Target],
        wait_ready: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._session = session
        self._direct = direct
        self._target = target
        self._wait_ready = wait_ready

    @property
    def target(self) -> Target:
        """Where it is now."""
        return self._target()

    @property
    def token(self) -> str | None:
        return self._target().token

    async def send(
        self,
        method: str,
        path: str,
        *,
        headers: Iterable[tuple[str, str]] = (),
        data: Any = None,
        raw: bool = False,
        head_seconds: float | None = None,
    ) -> UpstreamReply:
        """Send a request; await the reply's `head`, and `close` it.

        `path` begins with a slash, after the `/v1`. `headers` hold no credentials: the upstream's are
        added. Redirects are not followed. `raw` leaves a compressed reply compressed. `head_seconds`
        bounds what cannot be bounded at `head`: an exchange through the session.

        Raises UpstreamUnavailable where no connection could be had, UpstreamFailed where it broke before
        an answer, TimeoutError.
        """
        if self._wait_ready is not None:
            await self._wait_ready()
        target = self._target()
        headers = list(headers)
        if target.token:
            headers.append(("Authorization", f"Bearer {target.token}"))
        if (
            self._direct is not None
            and method == "POST"
            and isinstance(data, bytes)
            and len(data) <= WHOLE_WRITE_BYTES
            and "@" not in target.base_url  # credentials in an address are the session's to read
        ):
            return await self._direct.post(target.base_url, path, headers, data, raw=raw)
        if isinstance(data, bytes) and len(data) > WHOLE_WRITE_BYTES:
            data = io.BytesIO(data)
        try:
            async with asyncio.timeout(head_seconds):
                response = await self._session.request(
                    method,
                    target.base_url + path,
                    headers=headers,
                    data=data,
                    allow_redirects=False,
                    auto_decompress=not raw,
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise unreachable(error) from None
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error, TimeoutError):
                raise
            raise broken_off(error) from None
        return PublicReply(response)


@asynccontextmanager
async def open_upstream(
    target: Callable[[], Target],
    *,
    wait_ready: Callable[[], Awaitable[None]] | None = None,
    connect_seconds: float = CONNECT_SECONDS,
    direct: bool = True,
) -> AsyncIterator[Upstream]:
    """An Upstream and the session it owns.

    `wait_ready` is awaited before every request: an upstream of our own may still be starting.
    `direct` lets exchanges go past the session.
    """
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_SECONDS)
    session = aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=connect_seconds),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=True,
        trust_env=False,
    )
    shortcut = open_connections(session, connector) if direct else None
    if direct and shortcut is None:
        log.warning("this aiohttp is not as expected: the relay takes the slower way")
    async with session:
        yield Upstream(session, shortcut, target, wait_ready)


async def chat_chunks(
    exchange: AbstractAsyncContextManager[tuple[UpstreamReply, str | None]],
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
            exchange as (reply, token),
        ):
            await _raise_for_status(reply, token)
            is_event_stream = reply.content_type == "text/event-stream"
            reader = ModelChunkReader(is_event_stream=is_event_stream, token=token)
            async for data in reply.pieces():
                deadline.reschedule(None)  # the reader's time is not the upstream's
                for chunk in reader.feed(data):
                    yield chunk
                deadline.reschedule(loop.time() + patience.token_idle_seconds)
            deadline.reschedule(None)
            for chunk in reader.flush():
                yield chunk
    except TimeoutError:
        raise DeadlineExceeded("The upstream model server was silent for too long.") from None


async def _raise_for_status(reply: UpstreamReply, token: str | None) -> None:
    if reply.status < 300:
        return
    if reply.status < 400:
        raise UpstreamFailed("The upstream answered with a redirect, which is not followed.")
    body = bytearray()
    with suppress(UpstreamFailed):  # what came of it has to do
        async for data in reply.pieces():
            body += data
            if len(body) > MAX_ERROR_BYTES:
                break
    try:
        said = error_text(decode_json(bytes(body)), token)
    except ValueError:
        said = ""
    log.warning("upstream answered %d with %d bytes", reply.status, len(body))
    log.debug("upstream answered: %.500r", bytes(body))
    message = f"The upstream answered with status {reply.status}" + (f": {said}" if said else ".")
    raise UpstreamRefused(
        message, upstream_status=reply.status, retry_after=retry_after_seconds(reply.headers)
    )
