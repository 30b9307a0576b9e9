"""The one way to the upstream: a ClientSession with its pool, time-outs, headers and credentials.

In: request bodies. Out: for the relay the upstream's reply as it is; for agents its chat stream as
`ModelChunk`s. Errors from below leave as leaves of `streaming.failures`, never as aiohttp's.
"""

import asyncio
import io
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
from multidict import CIMultiDict

from streaming.failures import (
    DeadlineExceeded,
    SmolgateError,
    UpstreamFailed,
    UpstreamRefused,
    UpstreamUnavailable,
)
from streaming.sse_parser import EventTooLarge, SseEvent, SseParser

log = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
# How long an upstream may be silent before its first token (long prompts on small machines) and
# between two tokens.
FIRST_TOKEN_SECONDS = 300.0
TOKEN_IDLE_SECONDS = 60.0
RETRY_AFTER_SECONDS = 5.0
# A larger body is written piece by piece, so that one upload does not hold up the loop.
WHOLE_WRITE_BYTES = 1 << 20
MAX_ERROR_BYTES = 64 * 1024
# Error statuses that say "not now" rather than "not like this".
NOT_NOW = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class Target:
    """Where the upstream is now: base URL with its `/v1`, bearer token, model id."""

    base_url: str
    token: str | None
    model: str


class ToolFunctionDelta(msgspec.Struct, frozen=True):
    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(msgspec.Struct, frozen=True):
    index: int | None = None
    id: str | None = None
    function: ToolFunctionDelta | None = None


class TokenDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int | None = None


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    completion_tokens_details: TokenDetails | None = None


class Delta(msgspec.Struct, frozen=True):
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class Choice(msgspec.Struct, frozen=True):
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, frozen=True):
    choices: list[Choice] = []
    usage: Usage | None = None
    error: Any = None


class ModelChunk(msgspec.Struct, frozen=True):
    """One piece of a model's reply: text, or reasoning in a field of its own, or tool calls, or usage."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    usage: Usage | None = None
    finish_reason: str | None = None


_NO_CHUNK = frozenset({None, b"", b"[DONE]"})
_decode_chunk = msgspec.json.Decoder(ChatChunk).decode


class Upstream:
    """Calls to one upstream. `target` is asked at every call: an embedded server may move."""

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
    def model(self) -> str:
        return self._target().model

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

        Read the response through `pieces_of`. Raises UpstreamUnavailable where no answer could be had.
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
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise _unreachable(error) from None
        try:
            yield response
        finally:
            # Not release(): what is left unread of a reply that nobody wants must not be waited for.
            response.close()

    async def chat(self, body: dict[str, Any]) -> AsyncGenerator[ModelChunk]:
        """One streamed chat completion; close it (`aclosing`) if you leave before its end.

        Ends only after the upstream said that it is complete.

        Raises UpstreamUnavailable, UpstreamRefused, UpstreamFailed, DeadlineExceeded.
        """
        body = body | {"stream": True, "stream_options": {"include_usage": True}}
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        data = msgspec.json.encode(body)
        loop = asyncio.get_running_loop()
        try:
            async with (
                asyncio.timeout(FIRST_TOKEN_SECONDS) as deadline,
                self.request("POST", "/chat/completions", headers=headers, data=data) as response,
            ):
                await _raise_for_status(response, self._target().token)
                async for chunks in _model_chunks(response):
                    deadline.reschedule(None)  # the reader's time is not the upstream's
                    for chunk in chunks:
                        yield chunk
                    deadline.reschedule(loop.time() + TOKEN_IDLE_SECONDS)
        except TimeoutError:
            raise DeadlineExceeded("The upstream model server was silent for too long.") from None


@asynccontextmanager
async def open_upstream(
    target: Callable[[], Target],
    *,
    wait_ready: Callable[[], Awaitable[None]] | None = None,
    connections: int = 0,
) -> AsyncIterator[Upstream]:
    """An Upstream and the session it owns.

    `wait_ready` is awaited before every request: an upstream of our own may still be starting.
    `connections` bounds the pool, 0 does not.
    """
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=connections, keepalive_timeout=30),
        timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=CONNECT_SECONDS),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=True,
        trust_env=False,
    )
    async with session:
        yield Upstream(session, target, wait_ready)


async def pieces_of(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """A reply's body as it comes. Raises UpstreamFailed where it breaks off."""
    try:
        async for data in response.content.iter_any():
            yield data
    except (aiohttp.ClientError, OSError) as error:
        log.warning("upstream broke off: %s: %s", type(error).__name__, error)
        raise UpstreamFailed("The upstream model server broke off its reply.") from None


async def body_of(response: aiohttp.ClientResponse) -> bytes:
    """A reply's whole body. Raises UpstreamFailed where it breaks off."""
    return b"".join([data async for data in pieces_of(response)])


async def _model_chunks(response: aiohttp.ClientResponse) -> AsyncIterator[list[ModelChunk]]:
    """The chunks of each read. Raises UpstreamFailed where the end came before the finish."""
    if response.content_type != "text/event-stream":
        # Some servers answer with the whole completion where a stream was asked for.
        yield [_model_chunk(await body_of(response))]
        return
    parser = SseParser()
    finished = False

    def chunks_of(events: list[SseEvent]) -> list[ModelChunk]:
        nonlocal finished
        finished = finished or any(event.data == b"[DONE]" for event in events)
        chunks = [_model_chunk(event.data) for event in events if event.data not in _NO_CHUNK]
        finished = finished or any(chunk.finish_reason for chunk in chunks)
        return chunks

    try:
        async for data in pieces_of(response):
            if chunks := chunks_of(parser.feed(data)):
                yield chunks
    except EventTooLarge:
        raise UpstreamFailed("The upstream sent an event that is too large.") from None
    yield chunks_of(parser.flush())
    if not finished:
        raise UpstreamFailed("The upstream ended its reply before it was complete.")


def _model_chunk(data: bytes | None) -> ModelChunk:
    try:
        chunk = _decode_chunk(data or b"")
    except msgspec.DecodeError:
        log.warning("upstream sent what is no chat chunk: %.200r", data)
        raise UpstreamFailed("The upstream sent something that is no chat completion.") from None
    if chunk.error:
        raise UpstreamFailed(f"The upstream failed: {error_text(chunk.error)}")
    if not chunk.choices:
        return ModelChunk(usage=chunk.usage)
    choice = chunk.choices[0]
    delta = choice.delta or choice.message or Delta()
    return ModelChunk(
        text=_text_of(delta.content),
        thinking=delta.reasoning_content or delta.reasoning or "",
        tool_calls=tuple(delta.tool_calls or ()),
        usage=chunk.usage,
        finish_reason=choice.finish_reason or None,  # MiniMax sends "" for null
    )


def _text_of(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content or ""


async def _raise_for_status(response: aiohttp.ClientResponse, token: str | None) -> None:
    if response.status < 300:
        return
    if response.status < 400:
        raise UpstreamFailed("The upstream answered with a redirect, which is not followed.")
    body = await response.content.read(MAX_ERROR_BYTES)
    try:
        said = error_text(msgspec.json.decode(body), token)
    except msgspec.DecodeError:
        said = ""
    log.warning("upstream answered %d: %.500r", response.status, body)
    message = f"The upstream answered with status {response.status}" + (
        f": {said}" if said else "."
    )
    raise UpstreamRefused(
        message, upstream_status=response.status, retry_after=retry_after_seconds(response.headers)
    )


def error_text(error: Any, token: str | None = None) -> str:
    """What an upstream's error body says, in at most 300 characters, without addresses and secrets."""
    if isinstance(error, dict):
        inner = error.get("error", error)
        error = inner.get("message", inner) if isinstance(inner, dict) else inner
    text = re.sub(r"\b[a-z]+://\S+", "(address)", str(error))
    if token:
        text = text.replace(token, "(token)")
    return text[:300]


def retry_after_seconds(headers: Mapping[str, str]) -> float | None:
    value = headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"\d{1,6}(\.\d+)?", value) else None


def _unreachable(error: BaseException) -> SmolgateError:
    log.warning("upstream cannot be reached: %s: %s", type(error).__name__, error)
    return UpstreamUnavailable(
        "The upstream model server cannot be reached.", retry_after=RETRY_AFTER_SECONDS
    )
