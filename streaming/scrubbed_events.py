"""An upstream's event stream without think tags: bytes in, whole events out.

`feed(bytes) -> bytes` and `flush() -> bytes`, or whole events in their chunked frames by `feed_frames`. Events
that no tag may touch are as they came, and unread.
"""

from typing import Any

import msgspec

from sanitize.deltas import DeltaScrubber, Openers
from streaming.chunk_framing import LAST_FRAME, frame_of, run_end, whole_frame
from streaming.failures import UpstreamFailed
from streaming.json_codec import decode_json, encode_json
from streaming.sse_parser import EventTooLarge, SseEvent, SseParser
from streaming.stream_end import StreamEnd

# How frames that are whole events end, the last frame behind them.
_FRAME_ENDS = (b"\n\n\r\n", b"\n\n\r\n" + LAST_FRAME)


class ScrubbedEvents:
    """The events without think tags; those that no tag may touch are as they came, and unread."""

    def __init__(self, scrubber: DeltaScrubber, finishes: int) -> None:
        self._scrubber = scrubber
        self._end = StreamEnd(finishes)
        self._parser = SseParser()
        self._plain = True  # no CR has come: a blank line is two LF

    @property
    def holds(self) -> bool:
        """Part of an event is held."""
        return self._parser.holds

    def feed(self, data: bytes) -> bytes:
        """Raises UpstreamFailed."""
        if self._plain and b"\r" in data:
            self._plain = False
        if self._plain and not self._parser.holds and data.endswith(b"\n\n"):
            self._end.see(data)
            return data if self._scrubber.passes(data) else self._some(data, _Bare)[0]
        try:
            events = self._parser.feed(data)
        except EventTooLarge:
            raise UpstreamFailed("The upstream sent an event that is too large.") from None
        return self._read(events)

    def feed_frames(self, data: bytes) -> tuple[bytes, int]:
        """The frames that `data` begins with, each with whole events, scrubbed; and where they end.

        Raises UpstreamFailed.
        """
        if not self._plain:
            return b"", 0
        if not data.endswith(_FRAME_ENDS):  # what is cut waits for its rest
            data = data[: run_end(data, 0, len(data))]
        if self._scrubber.passes(data):
            end = run_end(data, 0, len(data))
            out = data if end == len(data) else data[:end]
        else:
            out, end = self._some(data, _Framed)
        if end:
            self._end.see_frames(data if end == len(data) else data[:end])
        return out, end

    def flush(self) -> bytes:
        last = self._read(self._parser.flush())
        self._end.check()
        return last + b"".join(map(_event_of, self._scrubber.flush()))

    def _read(self, events: list[SseEvent]) -> bytes:
        for event in events:
            self._end.see(event.raw)
        return b"".join([scrubbed_event(event, self._scrubber) for event in events])

    def _some(self, data: bytes, framing: type["_Bare"]) -> tuple[bytes, int]:
        """Whole events, of which only those are read around which a tag may be; and where they end."""
        scrubber = self._scrubber
        openers = Openers(data)
        out: list[bytes] = []
        position, length = 0, len(data)
        while position < length:
            begin = position
            if scrubber.reads_openers_only:  # up to the next one nothing happens
                opener = openers.next(position)
                begin = framing.begin_of(data, position, opener)
                out.append(data[position:begin])
                if begin == length or opener == length:
                    return b"".join(out), begin
            found = framing.first(data, begin)
            if found is None:
                return b"".join(out), begin
            event, position = found
            if scrubber.passes(event):
                out.append(data[begin:position])
            else:
                out.append(framing.wrapped(self._read_some(event)))
        return b"".join(out), position

    def _read_some(self, events: bytes) -> bytes:
        is_plain = events.startswith(b"data: ") and events.find(b"\n") == len(events) - 2
        if is_plain and b"\r" not in events:
            return _scrubbed(events, events[6:-2], self._scrubber)
        return b"".join([scrubbed_event(one, self._scrubber) for one in self._parser.feed(events)])


class _Bare:
    """Events in a row, each with its blank line."""

    @staticmethod
    def begin_of(data: bytes, start: int, at: int) -> int:
        """Where the event begins that holds `at`, or the end; `start` is where some event does."""
        if at == len(data):
            return at
        before = data.rfind(b"\n\n", start, at)
        return start if before == -1 else before + 2

    @staticmethod
    def first(data: bytes, start: int) -> tuple[bytes, int] | None:
        """The event at `start`, and where it ends."""
        end = data.find(b"\n\n", start) + 2
        return data[start:end], end

    @staticmethod
    def wrapped(events: bytes) -> bytes:
        return events


class _Framed(_Bare):
    """Chunked frames in a row, each of one event or more, as far as they are."""

    @staticmethod
    def begin_of(data: bytes, start: int, at: int) -> int:
        if at < len(data):
            at = max(start, data.rfind(b"\n\n\r\n", start, at) + 4)
        # What looks like a frame's end may be payload: then the run goes on beyond it, or ends before.
        return run_end(data, start, at)

    @staticmethod
    def first(data: bytes, start: int) -> tuple[bytes, int] | None:
        return whole_frame(data, start)

    @staticmethod
    def wrapped(events: bytes) -> bytes:
        return frame_of(events)


class _PlainDelta(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    content: str


class _PlainChoice(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    index: int
    delta: _PlainDelta
    finish_reason: None = None
    logprobs: None = None


class _PlainChunk(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A chunk that is a piece of content and nothing else; what it says beside is on every chunk."""

    choices: tuple[_PlainChoice]
    id: Any = None
    object: Any = None
    created: Any = None
    model: Any = None
    system_fingerprint: Any = None
    service_tier: Any = None
    usage: None = None


_plain = msgspec.json.Decoder(_PlainChunk)


def scrubbed_event(event: SseEvent, scrubber: DeltaScrubber) -> bytes:
    """One event, scrubbed. Raises UpstreamFailed for what is no JSON."""
    data = event.data
    if data is None or (data != b"[DONE]" and scrubber.passes(data)):
        return event.raw
    return _scrubbed(event.raw, data, scrubber)


def _scrubbed(raw: bytes, data: bytes, scrubber: DeltaScrubber) -> bytes:
    if data == b"[DONE]":
        return b"".join(map(_event_of, scrubber.flush())) + raw
    read: str | None = None
    try:
        (choice,) = _plain.decode(data).choices
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # it says more, or is no JSON
    else:
        read = scrubber.feed_text(choice.index, choice.delta.content)
        if not read and read is not None:
            return b""
        if read == choice.delta.content:
            return raw
    try:
        chunk = decode_json(data)
    except ValueError:
        raise UpstreamFailed("The upstream sent something that is no JSON.") from None
    if not isinstance(chunk, dict):
        return raw
    if read is not None:
        chunk["choices"][0]["delta"]["content"] = read
        return _event_of(chunk)
    return b"".join(map(_event_of, scrubber.feed(chunk)))


def _event_of(chunk: dict[str, Any]) -> bytes:
    return b"data: " + encode_json(chunk) + b"\n\n"
