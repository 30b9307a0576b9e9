"""An upstream's event stream, as it is or scrubbed: bytes in, whole events out.

Both stages are `feed(bytes) -> bytes` and `flush() -> bytes`. What comes out is always whole events, so
that a heartbeat or an error may follow; `flush` raises `UpstreamFailed` where the stream was not complete.
"""

import re
from collections import deque
from contextlib import suppress
from typing import Any

from sanitize.deltas import DeltaScrubber
from streaming.chunk_framing import ChunkedFrames, FramingError, frame_of, payload_of
from streaming.failures import UpstreamFailed
from streaming.json_codec import decode_json, encode_json
from streaming.sse_parser import MAX_EVENT_BYTES, EventTooLarge, SseEvent, SseParser

# Inside JSON strings quotes are escaped, so that what a model writes never looks like these.
_DONE = re.compile(rb"^data: ?\[DONE\]|^data: ?\{\"error\"\s*:\s*[{\"]", re.MULTILINE)
_FINISHED = re.compile(rb"\"finish_reason\"\s*:\s*\"[^\"]")
# How nearly all streams end, plain and in a chunked frame of its own. A line feed is never raw in JSON.
_ENDS = (b"\ndata: [DONE]\n\n", b"\ndata: [DONE]\n\n\r\n")
# Where a tag may begin; DeltaScrubber.passes says whether one really might.
_OPENER = re.compile(rb"[<&\\]")
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
        self._tail: deque[tuple[bytes, bool]] = deque()
        self._tail_bytes = 0

    def see(self, events: bytes, *, framed: bool = False) -> None:
        """Look at whole events, or whole chunked frames of them."""
        if self._done or not events:
            return
        if self._finishes > 1:
            self._count(payload_of(events) if framed else events)
            return
        self._tail.append((events, framed))
        self._tail_bytes += len(events)
        if self._tail_bytes > 2 * MAX_TAIL_BYTES:
            while self._tail_bytes - len(self._tail[0][0]) > MAX_TAIL_BYTES:
                self._tail_bytes -= len(self._tail.popleft()[0])

    def check(self) -> None:
        """Raises UpstreamFailed where something is missing."""
        if not self._done and self._tail and self._tail[-1][0].endswith(_ENDS):
            return
        if not self._done:
            tail = [payload_of(data) if framed else data for data, framed in self._tail]
            self._count(b"".join(tail))
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

    def see_frames(self, frames: bytes) -> None:
        """Whole events go on beside this stage, in their chunked frames."""
        self._end.see(frames, framed=True)

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

    def feed(self, data: bytes) -> bytes:
        if self._plain and b"\r" in data:
            self._plain = False
        if self._plain and not self._parser.holds and data.endswith(b"\n\n"):
            self._end.see(data)
            return self._whole(data)
        try:
            events = self._parser.feed(data)
        except EventTooLarge:
            raise UpstreamFailed("The upstream sent an event that is too large.") from None
        return self._read(events)

    def flush(self) -> bytes:
        last = self._read(self._parser.flush())
        self._end.check()
        return last + b"".join(map(_event_of, self._scrubber.flush()))

    def _read(self, events: list[SseEvent]) -> bytes:
        for event in events:
            self._end.see(event.raw)
        return b"".join([scrubbed_event(event, self._scrubber) for event in events])

    def _whole(self, data: bytes) -> bytes:
        """Whole events: only those around a `<`, `&` or backslash are looked at one by one."""
        scrubber = self._scrubber
        if scrubber.passes(data):
            return data
        out: list[bytes] = []
        position = 0
        while position < len(data):
            begin = position
            if scrubber.passes(b""):  # nothing is held: up to the next opener nothing happens
                opener = _OPENER.search(data, position)
                if opener is None:
                    break
                blank_line = data.rfind(b"\n\n", position, opener.start())
                begin = position if blank_line == -1 else blank_line + 2
                out.append(data[position:begin])
            position = data.find(b"\n\n", begin) + 2
            event = data[begin:position]
            if scrubber.passes(event):
                out.append(event)
            else:
                out += [scrubbed_event(one, scrubber) for one in self._parser.feed(event)]
        out.append(data[position:])
        return b"".join(out)


def scrubbed_event(event: SseEvent, scrubber: DeltaScrubber) -> bytes:
    """One event, scrubbed. Raises UpstreamFailed for what is no JSON."""
    if event.data is None or (event.data != b"[DONE]" and scrubber.passes(event.data)):
        return event.raw
    if event.data == b"[DONE]":
        return b"".join(map(_event_of, scrubber.flush())) + event.raw
    try:
        chunk = decode_json(event.data)
    except ValueError:
        raise UpstreamFailed("The upstream sent something that is no JSON.") from None
    if not isinstance(chunk, dict):
        return event.raw
    return b"".join(map(_event_of, scrubber.feed(chunk)))


def _event_of(chunk: dict[str, Any]) -> bytes:
    return b"data: " + encode_json(chunk) + b"\n\n"


class DirectEvents:
    """A chunked body as it comes from a socket → frames for a connection that is chunked itself.

    Verbatim, frames that end with an event go on as they are. `flush` it once `ended`.
    """

    def __init__(self, stage: VerbatimEvents | ScrubbedEvents) -> None:
        self._stage = stage
        self._frames = ChunkedFrames(max_held_bytes=MAX_EVENT_BYTES)

    @property
    def ended(self) -> bool:
        """The last frame has come."""
        return self._frames.ended

    def feed(self, data: bytes) -> bytes:
        """Raises UpstreamFailed."""
        stage = self._stage
        try:
            if isinstance(stage, VerbatimEvents) and not stage.holds:
                frames = self._frames.feed_aligned(data)
                if frames is not None:
                    stage.see_frames(frames)
                    return frames
            payload = self._frames.feed(data)
        except FramingError as error:
            raise UpstreamFailed(f"The upstream sent what cannot be read: {error}.") from None
        return frame_of(stage.feed(payload)) if payload else b""

    def flush(self) -> bytes:
        """What is left at the end. Raises UpstreamFailed where the stream is not complete."""
        return frame_of(self._stage.flush())
