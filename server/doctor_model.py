"""A model, asked: does it answer, how soon, whole and as a stream, and does it think aloud.

In: a session with the token, a base URL. Out: the list of models and findings; `Refused` and `Unusable` say why there is none.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from sanitize.think import scrub
from server.doctor_report import Finding, failed, ok, warning
from server.terminal_client import MAX_ERROR_BYTES
from server.upstream_settings import DEFAULT_NAME, UpstreamOptions
from streaming.sse_parser import SseParser
from streaming.upstream_errors import error_text

LIST_SECONDS = 10.0
ANSWER_SECONDS = 30.0
QUESTION = "Reply with the word yes."
MAX_TOKENS = 200  # enough for most models to end a thought
SHOWN_CHARACTERS = 200


class Unusable(Exception):
    """What answers is no OpenAI server, or not at this address."""

    def __init__(self, said: str, mend: str) -> None:
        super().__init__(said)
        self.mend = mend


class Refused(Unusable):
    """It does not take the token."""


@dataclass(frozen=True)
class Listed:
    """`ids` is None where it has no list. `date` is its clock's."""

    ids: list[str] | None
    date: str | None


class _Entry(msgspec.Struct):
    id: str


class _List(msgspec.Struct):
    data: list[_Entry]


async def list_models(session: aiohttp.ClientSession, options: UpstreamOptions) -> Listed:
    """Raises Refused, Unusable."""
    assert options.base is not None
    try:
        async with asyncio.timeout(LIST_SECONDS):
            status, body, headers = await _get(session, f"{options.base}/models")
            if status in (404, 405) and not options.base.endswith("/v1"):
                status_below, *_ = await _get(session, f"{options.base}/v1/models")
                if status_below in (200, 401, 403):
                    raise Unusable(
                        "its address lacks the /v1", f"Add /v1 to {_setting_of(options)}"
                    )
    except TimeoutError:
        raise Unusable("it does not list its models in time", "Is it overloaded?") from None
    except (aiohttp.ClientError, OSError) as error:
        raise Unusable(
            f"it breaks the connection off ({type(error).__name__})", "Is it http:// or https://?"
        ) from None
    _check_status(status, body, headers.get("Location", ""), options)
    if status != 200:
        return Listed(None, headers.get("Date"))
    try:
        return Listed(
            [one.id for one in msgspec.json.decode(body, type=_List).data], headers.get("Date")
        )
    except msgspec.DecodeError:
        raise Unusable(
            "what answers there is no OpenAI server: its /models is no list",
            f"Correct {_setting_of(options)}: the base URL, with /v1",
        ) from None


async def _get(session: aiohttp.ClientSession, url: str) -> tuple[int, bytes, Any]:
    async with session.get(url, allow_redirects=False) as response:
        return response.status, await response.read(), response.headers


def _check_status(status: int, body: bytes, location: str, options: UpstreamOptions) -> None:
    token = "HF_TOKEN" if options.name == DEFAULT_NAME else f"token of {options.name} in UPSTREAMS"
    said = _said(body, options.token)
    if status == 401:
        what = "it does not accept the token (401)" if options.token else "it wants a token (401)"
        raise Refused(what + said, f"Set {token} to one that it knows")
    if status == 403:
        raise Refused(
            "it knows the token and does not allow it this (403)" + said,
            f"Give the token the right to inference, or set {token} to another",
        )
    if 300 <= status < 400:
        raise Unusable(
            f"it redirects to {location}, which is not followed", f"Correct {_setting_of(options)}"
        )
    if status == 429 or status >= 500:
        raise Unusable(f"it answers with status {status}{said}", "Look at its own log.")


def served_model(options: UpstreamOptions, listed: Sequence[str] | None) -> str | None:
    """What to ask for: the first id that was written down, else the first listed one that fits."""
    for model in options.models:
        if not model.endswith("*"):
            return model.removeprefix(options.strip_prefix)
    fitting = (own for own in listed or () if options.serves(options.strip_prefix + own))
    return next(fitting, None)


async def check_model(
    session: aiohttp.ClientSession,
    base: str,
    options: UpstreamOptions,
    think_tags: tuple[str, ...],
    model: str,
    most_tokens: int = MAX_TOKENS,
) -> AsyncIterator[Finding]:
    """One question answered as a stream, one whole."""
    limit = {"max_tokens": most_tokens}
    for stream in (True, False):
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                told = await _ask(session, base, model, stream=stream, limit=limit)
                if told.status == 400 and "max_completion_tokens" in told.text:
                    limit = {"max_completion_tokens": most_tokens}
                    told = await _ask(session, base, model, stream=stream, limit=limit)
        except TimeoutError:
            yield failed(
                f"{model} has not answered within {ANSWER_SECONDS:g} s",
                "Is the model loaded? See its log.",
            )
            return
        except (aiohttp.ClientError, OSError) as error:
            yield failed(
                f"{model} breaks off ({type(error).__name__})", "Look at the upstream's own log."
            )
            return
        yield _judged(model, told, options, stream=stream)
        if told.status != 200:
            return
        if stream and (thinking := _thinking(told.text, options, think_tags)) is not None:
            yield thinking


@dataclass(frozen=True)
class _Told:
    """`text` is what the model wrote, or the body of a refusal."""

    status: int
    text: str
    first_seconds: float = 0.0
    events: int = 0
    is_stream: bool = False


async def _ask(
    session: aiohttp.ClientSession, base: str, model: str, *, stream: bool, limit: dict[str, int]
) -> _Told:
    began = time.monotonic()
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": model, "stream": stream, "messages": messages} | limit
    async with session.post(f"{base}/chat/completions", json=body) as response:
        if response.status != 200 or response.content_type != "text/event-stream":
            data = await response.read()
            text = data[:MAX_ERROR_BYTES].decode(errors="replace")
            if response.status == 200:
                text = _written(data)
            return _Told(response.status, text, time.monotonic() - began)
        parser, pieces, first = SseParser(), [], 0.0
        async for data in response.content.iter_any():
            for event in parser.feed(data):
                if event.data and event.data != b"[DONE]" and (piece := _written(event.data)):
                    first = first or time.monotonic() - began
                    pieces.append(piece)
        return _Told(200, "".join(pieces), first, len(pieces), is_stream=True)


def _written(data: bytes) -> str:
    """The content, and where there is none the thoughts, of a chunk or a completion."""
    try:
        choice = msgspec.json.decode(data)["choices"][0]
        said = choice.get("delta") or choice["message"]
        return str(
            said.get("content") or said.get("reasoning_content") or said.get("reasoning") or ""
        )
    except (msgspec.DecodeError, LookupError, TypeError, AttributeError):
        return ""


def _judged(model: str, told: _Told, options: UpstreamOptions, *, stream: bool) -> Finding:
    how = "as a stream" if stream else "whole"
    if told.status != 200:
        said = _said(told.text.encode(), options.token)
        setting = "AGENT_MODEL" if options.name == DEFAULT_NAME else "models in UPSTREAMS"
        return failed(
            f"{model} does not answer {how}: status {told.status}{said}",
            f"If it does not know the model, correct {setting}",
        )
    if stream and not told.is_stream:
        return failed(
            f"{model} does not stream: its reply is no event stream", "Agents need streams."
        )
    if not told.text:
        return warning(f"{model} answers {how} with nothing", "Ask it by hand; see its log.")
    if stream:
        return ok(
            f"{model} answers as a stream: first token after {told.first_seconds:.2f} s, {told.events} events"
        )
    return ok(f"{model} answers whole after {told.first_seconds:.2f} s")


def _thinking(text: str, options: UpstreamOptions, tags: tuple[str, ...]) -> Finding | None:
    """What its think tags ask for."""
    if scrub(text, tag_names=tags) == text:
        return None
    opening = min((at for tag in tags if (at := text.lower().find(f"<{tag}")) != -1), default=-1)
    closing = min((at for tag in tags if (at := text.lower().find(f"</{tag}")) != -1), default=-1)
    if closing != -1 and (opening == -1 or closing < opening) and not options.starts_open:
        return warning(
            "it begins inside a think block: there is an end without a beginning",
            "THINK_STARTS_OPEN=1 (starts_open in UPSTREAMS)",
        )
    return ok(
        "it thinks aloud, in think tags; agents take them out by themselves",
        f"Clients that ask it directly: model …-nothink, and NOTHINK_SCRUB=reasoning (now {options.scrub}) keeps the thoughts apart.",
    )


def _said(body: bytes, token: str | None) -> str:
    try:
        said = error_text(msgspec.json.decode(body), token)
    except (msgspec.DecodeError, ValueError):
        said = ""
    return f": {said[:SHOWN_CHARACTERS]}" if said else ""


def _setting_of(options: UpstreamOptions) -> str:
    return "UPSTREAM_OPENAI_BASE" if options.name == DEFAULT_NAME else f"UPSTREAMS ({options.name})"
