"""An upstream's chat completion on its way to a client of the Responses API: bytes in, whole events out.

A stage as those of `event_stages`: `feed(bytes) -> bytes`, `flush() -> bytes`, the same events however the bytes
were cut. A chat completion that comes whole where a stream was asked for becomes a stream, too, and one that
comes as a stream where none was asked for a whole response.
"""

from collections.abc import Mapping
from typing import Any

from streaming.chat_response import ChatResponse
from streaming.failures import UpstreamFailed
from streaming.json_codec import decode_typed, encode_json
from streaming.model_chunks import chunk_decoder
from streaming.sse_parser import MAX_EVENT_BYTES, EventTooLarge, SseEvent, SseParser


class TranslatedEvents:
    """The events of one response. `is_event_stream`: what comes is one."""

    # Its events are never the upstream's own, so that none may go by.
    holds = True

    def __init__(self, response: ChatResponse, *, is_event_stream: bool) -> None:
        self._response = response
        self._events = response.events
        self._parser = SseParser() if is_event_stream else None
        self._whole = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Raises UpstreamFailed; then `fail` gives the events up to there, too."""
        if self._parser is None:
            self._whole += data
            if len(self._whole) > MAX_EVENT_BYTES:
                raise UpstreamFailed("The upstream's reply is too large.")
            return b""
        if _is_one_event(data) and not self._parser.holds:
            self._read_data(data[6:-2])
            return self._events.take()
        try:
            events = self._parser.feed(data)
        except EventTooLarge:
            raise UpstreamFailed("The upstream sent an event that is too large.") from None
        self._read(events)
        return self._events.take()

    def flush(self) -> bytes:
        """Raises UpstreamFailed where the reply was not complete."""
        if self._parser is None:
            self._read_chunk(bytes(self._whole))
            self._response.end(is_done=True)
        else:
            self._read(self._parser.flush())
            self._response.end()
        return self._events.take()

    def fail(self, error: Mapping[str, Any]) -> bytes:
        """How the stream ends that went wrong; `error` is OpenAI's error object."""
        self._events.fail(error)
        return self._events.take()

    @property
    def held(self) -> Mapping[str, Any] | None:
        """The response object, where its end waits to be told."""
        return self._events.response if self._events.holds else None

    def tell_end(self, *, store: bool) -> bytes:
        """The end that waited, and whether the response is kept."""
        self._events.tell_end(store=store)
        return self._events.take()

    @property
    def response(self) -> bytes:
        """The response as one JSON object, as it is by now."""
        return encode_json(self._events.response)

    def _read(self, events: list[SseEvent]) -> None:
        for event in events:
            if event.data:
                self._read_data(event.data)

    def _read_data(self, data: bytes) -> None:
        if data == b"[DONE]":
            self._response.end(is_done=True)
        elif data:
            self._read_chunk(data)

    def _read_chunk(self, data: bytes) -> None:
        if self._events.ended:
            return
        try:
            chunk = decode_typed(chunk_decoder, data)
        except ValueError:
            raise UpstreamFailed(
                "The upstream sent something that is no chat completion."
            ) from None
        self._response.feed(chunk)


def _is_one_event(data: bytes) -> bool:
    """What nearly all reads of a slow stream are: one event, of one line."""
    return (
        data.startswith(b"data: ")
        and data.find(b"\n") == len(data) - 2
        and data.endswith(b"\n\n")
        and b"\r" not in data
    )
