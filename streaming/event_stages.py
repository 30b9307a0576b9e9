"""An upstream's event stream, as it is or scrubbed: bytes in, whole events out.

Both stages are `feed(bytes) -> bytes` and `flush() -> bytes`. What comes out is always whole events, so
that a heartbeat or an error may follow; `flush` raises `UpstreamFailed` where the stream was not complete.
"""

import re
from collections import deque
from contextlib import suppress
from typing import Any

import msgspec

from sanitize.deltas import DeltaScrubber, Openers
from streaming.chunk_framing import (
    ChunkedFrames,
    FramingError,
    first_frame,
    frame_of,
    payload_of,
    run_end,
)
from streaming.failures import UpstreamFailed
from streaming.json_codec import decode_json, encode_json
from streaming.sse_parser import MAX_EVENT_BYTES, EventTooLarge, SseEvent, SseParser

# Inside JSON strings quotes are escaped, so that what a model writes never looks like these.
_DONE = re.compile(rb"^data: ?\[DONE\]|^data: ?\{\"error\"\s*:\s*[{\"]", re.MULTILINE)
_FINISHED = re.compile(rb"\"finish_reason\"\s*:\s*\"[^\"]")
# How nearly all streams end. A line feed is never raw in JSON.
_END = b"\ndata: [DONE]\n\n\r\n"
# The finish stands near the end, with at most a usage chunk behind it.
MAX_TAIL_BYTES = 64 * 1024


class StreamEnd:
    """Whether a stream that ends here is complete: `[DONE]`, an error, or as many finishes as choices.

    With `finishes` 0 nothing is asked for. One choice is looked for at the end alone, which costs
    nothing on the way; several may finish far apart and are counted as they come.
    """

    def __init__(self, finishes: int) -> None:
        self._finishes = finishes
        self._finished: set[Any] = set()  # indexes of choices
        self._done = finishes <= 0
        self._tail: deque[bytes] = deque()  # frames
        self._tail_bytes = 0

    def see(self, events: bytes) -> None:
        """Look at whole events."""
        if events:
            self.see_frames(frame_of(events))

    def see_frames(self, frames: bytes) -> None:
        """Look at whole events in their chunked frames."""
        if self._done:
            return
        if self._finishes > 1:
            self._count(payload_of(frames))
            return
        self._tail.append(frames)
        self._tail_bytes += len(frames)
        if self._tail_bytes > 2 * MAX_TAIL_BYTES:
            while self._tail_bytes - len(self._tail[0]) > MAX_TAIL_BYTES:
                self._tail_bytes -= len(self._tail.popleft())

    def check(self) -> None:
        """Raises UpstreamFailed where something is missing."""
        if not self._done and self._tail and self._tail[-1].endswith(_END):
            return
        if not self._done:
            self._count(b"".join(map(payload_of, self._tail)))
        if not self._done:
            raise UpstreamFailed("The upstream ended its reply before it was complete.")

    def _count(self, events: bytes) -> None:
        if _DONE.search(events):
            self._done = True
        elif _FINISHED.search(events):
            self._finished |= _finished_choices(events)
            self._done = len(self._finished) >= self._finishes


def _finished_choices(events: bytes) -> set[Any]:
    """The indexes of the choices that finish in these events; some finish one twice."""
    parser = SseParser()
    finished = set()
    for event in parser.feed(events) + parser.flush():
        if event.data is None or not _FINISHED.search(event.data):
            continue
        with suppress(ValueError, TypeError, KeyError, AttributeError):
            for choice in decode_json(event.data)["choices"]:
                if choice.get("finish_reason"):
                    finished.add(choice.get("index"))
    return finished


class VerbatimEvents:
    """The very bytes, cut only between events."""

    def __init__(self, finishes: int) -> None:
        self._end = StreamEnd(finishes)
        self._see_frames = self._end.see_frames
        self._held: list[bytes] = []  # an unfinished event, in pieces: it may be very long
        self._held_bytes = 0
        self._seam = b""  # its last bytes, in which a blank line may have begun

    @property
    def holds(self) -> bool:
        """Part of an event is held."""
        return bool(self._held)

    def feed(self, data: bytes) -> bytes:
        """Raises UpstreamFailed for an event that is too large."""
        if not self._held:
            end = _last_boundary(data)
        else:
            end = _last_boundary(self._seam + data) - len(self._seam)
        if end <= 0:
            self._hold(data)
            return b""
        whole = b"".join((*self._held, data[:end])) if self._held else data[:end]
        self._held, self._held_bytes, self._seam = [], 0, b""
        if end < len(data):
            self._hold(data[end:])
        self._end.see(whole)
        return whole

    def feed_frames(self, frames: bytes, *, each: bool) -> bytes:
        """Whole events in their chunked frames, which stay as they are."""
        self._see_frames(frames)
        return frames

    def flush(self) -> bytes:
        """What is left. Raises UpstreamFailed where the stream is not complete."""
        rest = b"".join(self._held)
        self._end.see(rest)
        self._end.check()
        return rest

    def _hold(self, data: bytes) -> None:
        self._held.append(data)
        self._held_bytes += len(data)
        self._seam = (self._seam + data)[-3:]
        if self._held_bytes > MAX_EVENT_BYTES:
            raise UpstreamFailed("The upstream sent an event that is too large.")


def _last_boundary(data: bytes) -> int:
    """Where the last complete event ends, 0 where none does."""
    if data.endswith((b"\n\n", b"\r\n\r\n")):
        return len(data)
    line_feeds, both = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(line_feeds + 2 if line_feeds != -1 else 0, both + 4 if both != -1 else 0)


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
            return data if self._scrubber.passes(data) else self._some(data, _Bare)
        try:
            events = self._parser.feed(data)
        except EventTooLarge:
            raise UpstreamFailed("The upstream sent an event that is too large.") from None
        return self._read(events)

    def feed_frames(self, frames: bytes, *, each: bool) -> bytes:
        """Whole events in their chunked frames → the same; `each`: every frame ends with an event.

        Raises UpstreamFailed.
        """
        if not (each and self._plain):
            return frame_of(self.feed(payload_of(frames)))
        self._end.see_frames(frames)
        return frames if self._scrubber.passes(frames) else self._some(frames, _Framed)

    def flush(self) -> bytes:
        last = self._read(self._parser.flush())
        self._end.check()
        return last + b"".join(map(_event_of, self._scrubber.flush()))

    def _read(self, events: list[SseEvent]) -> bytes:
        for event in events:
            self._end.see(event.raw)
        return b"".join([scrubbed_event(event, self._scrubber) for event in events])

    def _some(self, data: bytes, framing: type["_Bare"]) -> bytes:
        """Whole events: only those are read around which a tag may be."""
        scrubber = self._scrubber
        openers = Openers(data)
        out: list[bytes] = []
        position = 0
        while position < len(data):
            begin = position
            if scrubber.reads_openers_only:  # up to the next one nothing happens
                opener = openers.next(position)
                if opener == len(data):
                    break
                begin = framing.begin_of(data, position, opener)
                out.append(data[position:begin])
            event, position = framing.first(data, begin)
            if scrubber.passes(event):
                out.append(data[begin:position])
            else:
                out.append(framing.wrapped(self._read_some(event)))
        out.append(data[position:])
        return b"".join(out)

    def _read_some(self, events: bytes) -> bytes:
        is_plain = events.startswith(b"data: ") and events.find(b"\n") == len(events) - 2
        if is_plain and b"\r" not in events:
            return _scrubbed(events, events[6:-2], self._scrubber)
        return b"".join([scrubbed_event(one, self._scrubber) for one in self._parser.feed(events)])


class _Bare:
    """Events in a row, each with its blank line."""

    @staticmethod
    def begin_of(data: bytes, start: int, at: int) -> int:
        """Where the event begins that holds `at`; `start` is where some event does."""
        before = data.rfind(b"\n\n", start, at)
        return start if before == -1 else before + 2

    @staticmethod
    def first(data: bytes, start: int) -> tuple[bytes, int]:
        """The event at `start`, and where it ends."""
        end = data.find(b"\n\n", start) + 2
        return data[start:end], end

    @staticmethod
    def wrapped(events: bytes) -> bytes:
        return events


class _Framed(_Bare):
    """Chunked frames in a row, each of one event or more."""

    @staticmethod
    def begin_of(data: bytes, start: int, at: int) -> int:
        before = data.rfind(b"\n\n\r\n", start, at) + 4
        if before > 3 and run_end(data, start, before) == before:
            return before
        end = start
        while end <= at:  # what looked like a frame's end was none
            start = end
            _, end = first_frame(data, start)
        return start

    @staticmethod
    def first(data: bytes, start: int) -> tuple[bytes, int]:
        return first_frame(data, start)

    @staticmethod
    def wrapped(events: bytes) -> bytes:
        return frame_of(events)


class _PlainDelta(msgspec.Struct, forbid_unknown_fields=True):
    content: str


class _PlainChoice(msgspec.Struct, forbid_unknown_fields=True):
    index: int
    delta: _PlainDelta
    finish_reason: None = None
    logprobs: None = None


class _PlainChunk(msgspec.Struct, forbid_unknown_fields=True):
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


class DirectEvents:
    """A chunked body as it comes from a socket → frames for a connection that is chunked itself.

    Verbatim, frames that end with an event go on as they are. `flush` it once `ended`.
    """

    def __init__(self, stage: VerbatimEvents | ScrubbedEvents) -> None:
        self.stage = stage
        self._frames = ChunkedFrames(max_held_bytes=MAX_EVENT_BYTES)

    @property
    def ended(self) -> bool:
        """The last frame has come."""
        return self._frames.ended

    def feed(self, data: bytes) -> bytes:
        """Raises UpstreamFailed."""
        stage, walker = self.stage, self._frames
        try:
            if not stage.holds:
                frames = walker.feed_aligned(data)
                if frames is not None:
                    return stage.feed_frames(frames, each=walker.each_ends_an_event)
            payload = walker.feed(data)
        except FramingError as error:
            raise UpstreamFailed(f"The upstream sent what cannot be read: {error}.") from None
        return frame_of(stage.feed(payload)) if payload else b""

    def flush(self) -> bytes:
        """What is left at the end. Raises UpstreamFailed where the stream is not complete."""
        return frame_of(self.stage.flush())
