"""A server's chat API for the terminal: questions in, pieces of replies out, errors in words.

All text that comes out has passed `printable`. Whatever goes wrong is a `ChatProblem`, which says what to do.
"""

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import aiohttp
import msgspec

from server.terminal_rows import printable
from streaming.json_codec import decode_typed, encode_json
from streaming.sse_parser import EventTooLarge, SseParser

CONNECT_SECONDS = 10.0
# Above RELAY_FIRST_BYTE_SECONDS; a smolgate sends heartbeats.
SILENT_SECONDS = 660.0
SHORT_SECONDS = 10.0
UNIX = "unix:"
# Exit codes.
FAILED, BAD_FLAGS, UNREACHABLE, REFUSED, INTERRUPTED = 1, 2, 3, 4, 130
MAX_ERROR_BYTES = 65_536


class ChatProblem(Exception):
    """`advice` says what to do; `code` is the exit code that it stands for."""

    def __init__(self, message: str, advice: str = "", code: int = FAILED) -> None:
        super().__init__(message)
        self.message, self.advice, self.code = printable(message), printable(advice), code


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    id: str = ""
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_CHUNKS = msgspec.json.Decoder(_Chunk)


class Piece(msgspec.Struct):
    """What one event brings; `id` is the run's."""

    id: str = ""
    reasoning: str = ""
    answer: str = ""
    finish: str = ""
    usage: Usage | None = None


class Model(msgspec.Struct):
    id: str
    owned_by: str = ""


class _Models(msgspec.Struct):
    data: list[Model]


class ChatClient:
    """Owned by `open_client`. A connection a request: who types is slower than any keep-alive."""

    def __init__(self, session: aiohttp.ClientSession, place: str, base: str) -> None:
        self._session = session
        self._base = base
        self.place = printable(place)

    async def models(self) -> list[Model]:
        """Raises ChatProblem."""
        data = await self._whole("GET", "/models")
        try:
            found = msgspec.json.decode(data, type=_Models).data
        except msgspec.DecodeError:
            raise ChatProblem(
                f"What answers at {self.place} is no OpenAI server.", "Is it the right --base-url?"
            ) from None
        return [Model(printable(model.id), printable(model.owned_by)) for model in found]

    async def ask(self, model: str, messages: Sequence[Any]) -> AsyncGenerator[Piece]:
        """The reply as it comes; close it if you leave before its end. Raises ChatProblem."""
        body = {
            "model": model,
            "messages": messages,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        with _in_words(self.place):
            async with self._session.post(
                f"{self._base}/chat/completions",
                data=encode_json(body),
                headers={"Content-Type": "application/json", "X-On-Disconnect": "cancel"},
                timeout=aiohttp.ClientTimeout(
                    total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENT_SECONDS
                ),
            ) as response:
                if response.status != 200:
                    raise _refusal(response, await response.content.read(MAX_ERROR_BYTES))
                if response.content_type != "text/event-stream":
                    yield _piece(await response.read())
                    return
                async for piece in _pieces(response):
                    yield piece

    async def cancel(self, run_id: str) -> None:
        """End a run; it may have ended, or be none of a smolgate."""
        with suppress(ChatProblem):
            await self._whole("POST", f"/runs/{run_id}/cancel")

    async def _whole(self, method: str, path: str) -> bytes:
        with _in_words(self.place):
            async with self._session.request(
                method, self._base + path, timeout=aiohttp.ClientTimeout(total=SHORT_SECONDS)
            ) as response:
                data = await response.read()
                if response.status != 200:
                    raise _refusal(response, data[:MAX_ERROR_BYTES])
                return data


@asynccontextmanager
async def open_client(place: str, key: str | None) -> AsyncIterator[ChatClient]:
    """A client of `http(s)://…/v1` or `unix:/path`, as the server's log says where it listens."""
    base = place.rstrip("/")
    connector: aiohttp.BaseConnector
    if place.startswith(UNIX):
        connector = aiohttp.UnixConnector(place.removeprefix(UNIX), force_close=True)
        base = "http://smolgate/v1"
    else:
        connector = aiohttp.TCPConnector(force_close=True)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with aiohttp.ClientSession(
        connector=connector, headers=headers, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield ChatClient(session, place, base)


async def _pieces(response: aiohttp.ClientResponse) -> AsyncIterator[Piece]:
    parser = SseParser()
    is_done = False
    async for data in response.content.iter_any():
        for event in parser.feed(data):
            if event.data == b"[DONE]":
                is_done = True
            elif event.data is not None:
                yield _piece(event.data)
    if not is_done:
        raise ChatProblem(
            "The reply broke off before its end.",
            "What there is of it may be incomplete: ask again.",
        )


def _piece(data: bytes) -> Piece:
    """Raises ChatProblem for an error event, and for what is none of OpenAI's."""
    try:
        chunk = decode_typed(_CHUNKS, data)
    except (ValueError, msgspec.DecodeError):
        raise ChatProblem("The server sent what is no chat chunk.") from None
    if chunk.error is not None:
        raise ChatProblem(_said(chunk.error))
    piece = Piece(printable(chunk.id), usage=chunk.usage)
    for choice in chunk.choices[:1]:
        delta = choice.delta or choice.message or _Delta()
        piece.reasoning = printable(delta.reasoning_content or delta.reasoning or "")
        piece.answer = printable(delta.content or delta.refusal or "")
        piece.finish = printable(choice.finish_reason or "")
    return piece


def _said(error: Any) -> str:
    if isinstance(error, dict) and isinstance(error.get("message"), str):
        return str(error["message"])
    return error if isinstance(error, str) else "The server says that it failed, not why."


def _refusal(response: aiohttp.ClientResponse, body: bytes) -> ChatProblem:
    status = response.status
    try:
        said = _said(msgspec.json.decode(body)["error"])
    except (msgspec.DecodeError, TypeError, KeyError):
        said = f"The answer was status {status}, with no error in OpenAI's shape."
        if status not in (401, 403, 404):
            return ChatProblem(said, "A proxy may have written it: smolgate doctor --through URL")
    advice = {
        401: "Give a key that the server has: SMOLGATE_API_KEY, or --api-key-file.",
        403: "This key may not do that; ask who runs the server for another.",
        404: "/models (or smolgate chat --list-models) says what there is.",
        413: "Ask with less text, or a smaller picture.",
        429: f"Try again in {response.headers.get('Retry-After', 'some')} s.",
        503: f"Try again in {response.headers.get('Retry-After', 'some')} s.",
    }.get(status, "The server's log says more, under request id ")
    if advice.endswith("id "):
        advice += response.headers.get("X-Request-Id", "unknown") + "."
    return ChatProblem(said, advice, REFUSED if status in (401, 403) else FAILED)


@contextmanager
def _in_words(place: str) -> Iterator[None]:
    """Errors of the network leave as ChatProblem."""
    try:
        yield
    except (aiohttp.ClientError, OSError, EventTooLarge) as error:
        raise _problem(error, place) from None


def _problem(error: Exception, place: str) -> ChatProblem:
    match error:
        case aiohttp.ClientConnectorCertificateError():
            reason = getattr(error.certificate_error, "verify_message", "") or "it is not trusted"
            return ChatProblem(
                f"The certificate of {place} cannot be used: {reason}.",
                "Trust who signed it: SSL_CERT_FILE=/path/to/ca.pem smolgate chat …",
                UNREACHABLE,
            )
        case aiohttp.ClientConnectorDNSError():
            return ChatProblem(
                f"There is no host of this name: {place}", "Look at --base-url.", UNREACHABLE
            )
        case aiohttp.ClientSSLError() | ssl.SSLError():
            return ChatProblem(
                f"{place} does not speak TLS as expected.", "Is it http:// instead?", UNREACHABLE
            )
        case aiohttp.ClientConnectorError() | aiohttp.ConnectionTimeoutError():
            return ChatProblem(
                f"No server answers at {place}.",
                "Start one (smolgate, or make run), or name it: --base-url URL",
                UNREACHABLE,
            )
        case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
            return ChatProblem(f"This is no address: {place}", "Look at --base-url.", UNREACHABLE)
        case TimeoutError():
            return ChatProblem(
                f"{place} was silent for too long.", "Is it overloaded? smolgate doctor"
            )
        case EventTooLarge():
            return ChatProblem("The server sent an event that is too large.")
    return ChatProblem(
        f"The connection to {place} broke off.", "What there is of the reply may be incomplete."
    )
