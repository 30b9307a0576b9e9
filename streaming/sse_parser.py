"""Bytes → server-sent events, incrementally and without I/O (the standard's section 9.2.6).

In: pieces of a stream, cut anywhere. Out: per event its `data` and the very bytes it came in, so that
an event nobody needs to change can go on untouched. LF, CRLF and CR end a line; comments, unknown
fields and a byte order mark are tolerated; several `data` lines are joined by a line feed; a last
event without its blank line still counts. The concatenation of all `raw` is the input.
"""

import re
from typing import NamedTuple

# An event larger than this is no chat chunk; OpenAI's largest (base64 images) stay below 32 MiB.
MAX_EVENT_BYTES = 64 << 20

_CARRIAGE_RETURN = ord("\r")  # looking for bytes in bytes costs six times as much

# A CR at the very end has to wait for the next byte: an LF might belong to it.
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?=[^\n])){2}")


class EventTooLarge(ValueError):
    """The upstream sent an event over the limit; the stream cannot be followed any further."""


class SseEvent(NamedTuple):
    """`data` is None where the block held none (a comment, say)."""

    raw: bytes
    data: bytes | None


class SseParser:
    """Feed it bytes, take events. After `flush` it is as new."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._buffer = bytearray()
        self._searched = 0
        self._start = True
        self._carriage_returns = False

    @property
    def holds(self) -> bool:
        """Part of an event is held."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> list[SseEvent]:
        """All events that end within what has come so far. Raises EventTooLarge."""
        if _CARRIAGE_RETURN in data:
            self._carriage_returns = True
        self._buffer += data
        events: list[SseEvent] = []
        begin = 0
        while (end := self._block_end(begin)) != -1:
            events.append(self._event(bytes(self._buffer[begin:end])))
            begin = self._searched = end
        if begin:
            del self._buffer[:begin]
            self._searched -= begin
        if len(self._buffer) > self._max:
            raise EventTooLarge(f"an event of more than {self._max} bytes")
        return events

    def flush(self) -> list[SseEvent]:
        """The last event, if the stream ended without its blank line."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self._searched = 0
        events = [self._event(rest)] if rest else []
        self._start = True
        self._carriage_returns = False
        return events

    def _block_end(self, begin: int) -> int:
        """Where the block that starts at `begin` ends, its blank line included, or -1."""
        start = max(begin, self._searched - 3)
        if self._carriage_returns:
            found = _BLANK_LINE.search(self._buffer, start)
            end = found.end() if found else -1
        else:
            at = self._buffer.find(b"\n\n", start)
            end = -1 if at == -1 else at + 2
        if end == -1:
            self._searched = max(begin, len(self._buffer))
        return end

    def _event(self, raw: bytes) -> SseEvent:
        text = raw
        if self._start:
            self._start = False
            text = raw.removeprefix(b"\xef\xbb\xbf")
        if text.startswith(b"data: ") and text.endswith(b"\n\n") and text.count(b"\n") == 2:
            return SseEvent(raw, text[6:-2].removesuffix(b"\r"))  # what nearly all events are
        lines = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        data = [value for line in lines if (value := _data_value(line)) is not None]
        return SseEvent(raw, b"\n".join(data) if data else None)


def _data_value(line: bytes) -> bytes | None:
    field, colon, value = line.partition(b":")
    if field != b"data":
        return None
    return value.removeprefix(b" ") if colon else b""
