"""An upstream's chat reply → the pieces of one model call.

In: bytes, as they come. Out: `ModelChunk`s, per piece of input. Tolerates what upstreams do: the whole
completion where a stream was asked for, `finish_reason: ""`, usage on any chunk, content in parts.
Raises `UpstreamFailed` for an error in a 200, for what is no chat completion, and for a stream that
ends before its finish.
"""

import logging
import re
from typing import Any

import msgspec

from streaming.failures import UpstreamFailed
from streaming.json_codec import decode_typed
from streaming.sse_parser import EventTooLarge, SseEvent, SseParser
from streaming.upstream_errors import error_text

log = logging.getLogger(__name__)


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
    prompt_tokens_details: Any = None  # of no use to agents, and so not theirs to fail at


class Delta(msgspec.Struct, frozen=True):
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: Any = None  # likewise
    tool_calls: list[ToolCallDelta] | None = None


class Choice(msgspec.Struct, frozen=True):
    delta: Delta | None = None
    message: Delta | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct, frozen=True):
    choices: list[Choice] | None = None
    usage: Usage | None = None
    error: Any = None
    object: str | None = None
    message: Any = None
    detail: Any = None


class ModelChunk(msgspec.Struct, frozen=True):
    """One piece of a model's reply: text, or reasoning in a field of its own, or tool calls, or usage."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()
    usage: Usage | None = None
    finish_reason: str | None = None


chunk_decoder = msgspec.json.Decoder(ChatChunk)
_HALF = re.compile("[\ud800-\udfff]")
_NO_CHUNK = frozenset({None, b"", b"[DONE]"})


class ModelChunkReader:
    """Feed it a reply's bytes. `token` is a secret that no error message may hold."""

    def __init__(self, *, is_event_stream: bool, token: str | None) -> None:
        self._parser = SseParser() if is_event_stream else None
        self._whole = bytearray()
        self._token = token
        self._finished = False
        self._has_choice = False
        self._text = CharacterMender()
        self._thinking = CharacterMender()

    def feed(self, data: bytes) -> list[ModelChunk]:
        """The chunks that are complete by now. Raises UpstreamFailed."""
        if self._parser is None:
            self._whole += data
            return []
        try:
            return self._chunks(self._parser.feed(data))
        except EventTooLarge:
            raise UpstreamFailed("The upstream sent an event that is too large.") from None

    def flush(self) -> list[ModelChunk]:
        """The last chunks. Raises UpstreamFailed where the reply is not complete."""
        if self._parser is None:
            chunks = [self._chunk(bytes(self._whole))]
            self._finished = True
        else:
            chunks = self._chunks(self._parser.flush())
        if not self._finished:
            raise UpstreamFailed("The upstream ended its reply before it was complete.")
        if not self._has_choice:
            raise UpstreamFailed("The upstream sent something that is no chat completion.")
        return [*chunks, ModelChunk(text=self._text.flush(), thinking=self._thinking.flush())]

    def _chunks(self, events: list[SseEvent]) -> list[ModelChunk]:
        if any(event.data == b"[DONE]" for event in events):
            self._finished = True
        chunks = [self._chunk(event.data or b"") for event in events if event.data not in _NO_CHUNK]
        if any(chunk.finish_reason for chunk in chunks):
            self._finished = True
        return chunks

    def _chunk(self, data: bytes) -> ModelChunk:
        try:
            chunk = decode_typed(chunk_decoder, data)
        except ValueError:
            log.warning("upstream sent %d bytes that are no chat chunk", len(data))
            log.debug("upstream sent: %.500r", data)
            raise UpstreamFailed(
                "The upstream sent something that is no chat completion."
            ) from None
        if chunk.error or chunk.object == "error":
            said = error_text(chunk.error or chunk.message or chunk.detail, self._token)
            raise UpstreamFailed(f"The upstream failed: {said}")
        if not chunk.choices:
            return ModelChunk(usage=chunk.usage)
        self._has_choice = True
        choice = chunk.choices[0]
        delta = choice.delta or choice.message or Delta()
        return ModelChunk(
            text=self._text.feed(text_of(delta.content)),
            thinking=self._thinking.feed(delta.reasoning_content or delta.reasoning or ""),
            tool_calls=tuple(delta.tool_calls or ()),
            usage=chunk.usage,
            finish_reason=choice.finish_reason or None,  # MiniMax sends "" for null
        )


class CharacterMender:
    """Makes whole a character beyond U+FFFF whose halves came in two deltas, which tokenizers do.

    A half that stays alone becomes U+FFFD: there is no code, no file and no terminal that takes it.
    """

    def __init__(self) -> None:
        self._half = ""

    def feed(self, text: str) -> str:
        """The text so far, without a first half at its end."""
        text = self._half + text
        self._half = text[-1:] if "\ud800" <= text[-1:] <= "\udbff" else ""
        return _mended(text.removesuffix(self._half))

    def flush(self) -> str:
        half, self._half = self._half, ""
        return _mended(half)


def _mended(text: str) -> str:
    if text.isascii() or not _HALF.search(text):
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def text_of(content: str | list[dict[str, Any]] | None) -> str:
    """The text of a delta's content, which some send in parts."""
    if isinstance(content, list):
        return "".join(part["text"] for part in content if isinstance(part.get("text"), str))
    return content or ""
