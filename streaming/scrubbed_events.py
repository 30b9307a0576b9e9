"""An upstream's event stream without think tags: bytes in, whole events out.

`feed(bytes) -> bytes` and `flush() -> bytes`, or whole events in their chunked frames by `feed_frames`. Events
that no tag may touch are as they came, and unread.
"""

from typing import Any

import msgspec

from sanitize.deltas import DeltaScrubber, Openers
from streaming.chunk_framing import frame_of, run_end, whole_frame
from streaming.failures import UpstreamFailed
from streaming.json_codec import decode_json, encode_json
from streaming.sse_parser import EventTooLarge, SseEvent, SseParser
from streaming.stream_end import StreamEnd

# As numbers: looking for bytes in bytes costs six times as much.
_CARRIAGE_RETURN, _LINE_FEED = b"\r\n"


class NoJson(UpstreamFailed):
    """An event's data is no JSON. `before`: what comes of those that came with it, before it."""

    before = b""

    def __init__(self) -> None:
        super().__init__("The upstream sent something that is no JSON.")


class ScrubbedEvents:
    """The events without think tags; those that no tag may touch are as they came, and unread."""

    def __init__(self, scrubber: DeltaScrubber, finishes: int) -> None:
        self._scrubber = scrubber
        self.end = StreamEnd(finishes)
        self.passes = scrubber.passes  # bytes as they are, of events or of frames
        self._parser = SseParser()
        self._plain = True  # no CR has come: a blank line is two LF
        # Data of the last event read, where the scrubber has been told but its text.
        self._last_read = b""

    @property
    def holds(self) -> bool:
        """Part of an event is held."""
        return self._parser.holds

    def feed(self, data: bytes) -> bytes:
        """Raises NoJson, UpstreamFailed."""
        if self._plain and _CARRIAGE_RETURN in data:
            self._plain = False
        if self._plain and not self._parser.holds and data.endswith(b"\n\n"):
            self.end.see(data)
            return data if self._scrubber.passes(data) else self._some(data, _Bare)[0]
        try:
            events = self._parser.feed(data)
        except EventTooLarge:
            raise UpstreamFailed("The upstream sent an event that is too large.") from None
        return self._read(events)

    def feed_frames(self, data: bytes) -> tuple[bytes, int]:
        """The frames that `data` begins with, each with whole events, scrubbed; and where they end.

        Raises NoJson, with frames before it.
        """
        if not self._plain:
            return b"", 0
        out, end = self._some(data, _Framed)
        if end:
            self.end.see_frames(data if end == len(data) else data[:end])
        return out, end

    def flush(self) -> bytes:
        last = self._read(self._parser.flush())
        self.end.check()
        return last + self._tails()

    def _read(self, events: list[SseEvent]) -> bytes:
        for event in events:
            self.end.see(event.raw)
        return self._scrubbed_events(events)

    def _some(self, data: bytes, framing: type["_Bare"]) -> tuple[bytes, int]:
        """Whole events, of which only those are read around which a tag may be; and where they end."""
        scrubber = self._scrubber
        openers = Openers(data)
        out: list[bytes] = []
        position, length = 0, len(data)
        while position < length:
            begin, opener = position, -1
            if scrubber.reads_openers_only:  # up to the next one nothing happens
                opener = openers.next(position)
                begin = framing.begin_of(data, position, opener)
                out.append(data[position:begin])
                if begin == length:
                    return b"".join(out), begin
            found = framing.first(data, begin)
            if found is None:
                return b"".join(out), begin
            event, position = found
            if not begin <= opener < position and scrubber.passes(event):
                out.append(data[begin:position])
            else:
                try:
                    read = self._read_some(event)
                except NoJson as error:
                    error.before = b"".join((*out, framing.wrapped(error.before)))
                    raise
                out.append(framing.wrapped(read))
        return b"".join(out), position

    def _read_some(self, events: bytes) -> bytes:
        data = events[6:-2]
        if events[:6] == b"data: " and _LINE_FEED not in data and _CARRIAGE_RETURN not in data:
            return self._scrubbed(events, data)
        rest = events.rstrip(b"\n")
        if not rest:  # more blank lines than are needed
            return events
        more = b"\n" * (len(events) - len(rest) - 2)
        return self._scrubbed_events(self._parser.feed(rest + b"\n\n")) + more

    def _scrubbed_events(self, events: list[SseEvent]) -> bytes:
        out: list[bytes] = []
        try:
            out.extend(map(self._scrubbed_event, events))  # as far as it gets
        except NoJson as error:
            error.before = b"".join(out)
            raise
        return b"".join(out)

    def _scrubbed_event(self, event: SseEvent) -> bytes:
        data = event.data
        if data is None or (data != b"[DONE]" and self._scrubber.passes(data)):
            return event.raw
        return self._scrubbed(event.raw, data)

    def _scrubbed(self, raw: bytes, data: bytes) -> bytes:
        """One event, scrubbed. Raises NoJson."""
        if data == b"[DONE]":
            return self._tails() + raw
        try:
            (choice,) = _plain.decode(data).choices
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # it says more, or is no JSON
        else:
            text = choice.delta.content
            deltas = self._scrubber.feed_text(choice.index, text)
            if deltas is not None:
                self._last_read = data
                if not deltas:
                    return b""
                return raw if deltas == [{"content": text}] else _with_deltas(data, deltas)
        try:
            chunk = decode_json(data)
        except ValueError:
            raise NoJson from None
        if not isinstance(chunk, dict):
            return raw
        self._last_read = b""
        read = self._scrubber.feed(chunk)
        if len(read) == 1 and read[0] is chunk:
            return raw
        return b"".join(map(_event_of, read))

    def _tails(self) -> bytes:
        """What is held, in events of its own."""
        if self._scrubber.idle:
            return b""
        last = decode_json(self._last_read) if self._last_read else None
        return b"".join(map(_event_of, self._scrubber.flush(last)))


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
        """The event at `start`, and where it ends; or a line feed more than a blank line needs, at the end."""
        at = data.find(b"\n\n", start)
        end = at + 2 if at != -1 else len(data)
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


def _with_deltas(data: bytes, deltas: list[dict[str, Any]]) -> bytes:
    """An event for each, otherwise like that of the plain chunk `data`."""
    chunk = decode_json(data)
    (choice,) = chunk["choices"]
    events = []
    for delta in deltas:
        choice["delta"] = delta
        events.append(_event_of(chunk))
    return b"".join(events)


def _event_of(chunk: dict[str, Any]) -> bytes:
    return b"data: " + encode_json(chunk) + b"\n\n"
