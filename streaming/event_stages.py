"""An upstream's event stream on its way to the client: bytes in, whole events out.

A stage is `feed(bytes) -> bytes` and `flush() -> bytes`: `VerbatimEvents` here, `ScrubbedEvents` beside it. What
comes out is always whole events, so that a heartbeat or an error may follow; `flush` raises `UpstreamFailed`
where the stream was not complete. `DirectEvents` is a stage on chunked frames.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from streaming.chunk_framing import (
    EVENT_END,
    ChunkedFrames,
    FramingError,
    frame_of,
    run_pattern,
    size_lines,
)
from streaming.failures import UpstreamFailed
from streaming.scrubbed_events import NoJson, ScrubbedEvents
from streaming.sse_parser import MAX_EVENT_BYTES
from streaming.stream_end import MANY_SMALL, StreamEnd
from streaming.upstream_reply import OnData


class EventStage(Protocol):
    """Any stage; `holds`: what comes must not go past it."""

    @property
    def holds(self) -> bool: ...

    def feed(self, data: bytes) -> bytes: ...

    def flush(self) -> bytes: ...


class VerbatimEvents:
    """The very bytes, cut only between events."""

    def __init__(self, finishes: int = 0, *, end: StreamEnd | None = None) -> None:
        self.end = end or StreamEnd(finishes)
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
        self.end.see(whole)
        return whole

    def flush(self) -> bytes:
        """What is left. Raises UpstreamFailed where the stream is not complete."""
        rest = b"".join(self._held)
        self.end.see(rest)
        self.end.check()
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


class DirectEvents:
    """A chunked body as it comes from a socket → frames for a connection that is chunked itself.

    Verbatim, frames that end with an event go on as they are. `flush` it once `ended`. The last frame is
    kept back, unless all that was read with it goes on as it is: then it `has_last`. What is no frame ends it, too.
    """

    def __init__(self, stage: EventStage) -> None:
        self.stage = stage
        self.ended = False  # nothing more can be read
        self.has_last = False
        self.has_passed = False  # the tap wrote something
        self._fault: UpstreamFailed | None = None
        self._frames = ChunkedFrames(max_held_bytes=MAX_EVENT_BYTES)
        self._framed: VerbatimEvents | ScrubbedEvents | None = None
        self._passes: Callable[[bytes], bool] | None = None  # not to be asked verbatim
        if isinstance(stage, VerbatimEvents):
            self._framed = stage
        elif isinstance(stage, ScrubbedEvents):
            self._framed, self._passes = stage, stage.passes
        self._aligned = self._framed  # None also where something is held, of a frame or an event
        self._run = run_pattern().match

    def tap(
        self, transport: asyncio.WriteTransport, on_many: Callable[[], None], on_data: OnData
    ) -> OnData:
        """What to call with each read: one event alone that goes on as it is is written at once, all else is for
        `on_data`, which feeds it. `on_many` is called after each MANY_SMALL that were written, to see whether the
        client reads.

        Nearly every read of a stream is one event, so these are as few steps as can be.
        """
        if self._framed is None:
            return on_data
        end, passes, lines = self._framed.end, self._passes, size_lines()
        small, longest = end.small, len(lines)

        def on_read(data: bytes) -> None:
            length = len(data)
            if (
                self._aligned is None
                or length >= longest
                or not data.startswith(lines[length])
                or data[-4:] != EVENT_END
                or (passes is not None and not passes(data))
                or transport.is_closing()
            ):
                on_data(data)
                return
            small.append(data)
            self.has_passed = True
            transport.write(data)
            if len(small) == MANY_SMALL:
                end.see_small()
                on_many()

        return on_read

    def feed(self, data: bytes) -> bytes:
        """What goes on of it. What is wrong ends the stream: `flush` raises it."""
        run_end = 0
        if self._aligned is not None and (self._passes is None or self._passes(data)):
            run_end = self._run(data).end()
            self.ended = self.has_last = run_end > 0 and self._frames.ends(data, run_end)
            if self.ended or run_end == len(data):  # nearly every read of a stream
                self._aligned.end.see_frames(data)
                self._aligned = None if self.ended else self._aligned
                return data
        out = self._feed(data, run_end)
        self.ended = self._frames.ended or self._fault is not None
        is_aligned = self._frames.is_clear and not self.stage.holds
        self._aligned = self._framed if is_aligned else None
        return out

    def close(self) -> None:
        """The tap writes nothing any more."""
        self._aligned = self._framed = None

    @property
    def ended_cleanly(self) -> bool:
        """Nothing came behind the last frame: the connection is fit for another reply."""
        return self._frames.ended and not self._frames.is_overrun

    @property
    def is_said(self) -> bool:
        """What has come says that it is the whole stream; the last frame may be missing."""
        return self._framed is not None and not self.stage.holds and self._framed.end.is_said

    def _feed(self, data: bytes, run_end: int) -> bytes:
        """`run_end`: so far it passes in whole events."""
        aligned = self._aligned
        if aligned is None:
            return self._feed_cut(data)
        out, rest = b"", data
        if run_end:
            out, rest = data[:run_end], data[run_end:]
            aligned.end.see_frames(out)
        if isinstance(aligned, ScrubbedEvents):
            try:
                frames, end = aligned.feed_frames(rest)
            except NoJson as error:
                self._fault = error
                return out + error.before
            out, rest = out + frames, rest[end:]
        else:
            with suppress(FramingError):  # with what came before it, below
                frames, rest = self._frames.feed_aligned(rest)
                aligned.end.see_frames(frames)
                out += frames
        return out + self._payload(rest) if rest else out

    def _feed_cut(self, data: bytes) -> bytes:
        """What follows a read that ended within a frame, or a frame that ended within an event: once they are whole,
        the rest is as usual.
        """
        cut = self._frames.missing(data) if self._framed is not None else None
        if cut is None or cut >= len(data):
            return self._payload(data)
        out = self._payload(data[:cut])
        if self._fault is not None:
            return out
        rest = data[cut:]
        if self._frames.is_clear and not self.stage.holds:
            self._aligned = self._framed
            return out + self.feed(rest)
        return out + self._payload(rest)

    def _payload(self, data: bytes) -> bytes:
        """What becomes of the frames' payload, in one frame."""
        try:
            payload = self._frames.feed(data)
        except FramingError as error:
            self._fault = UpstreamFailed(f"The upstream sent what cannot be read: {error}.")
            payload = error.before
        if not payload:
            return b""
        try:
            return frame_of(self.stage.feed(payload))
        except UpstreamFailed as error:
            self._fault = error
            return frame_of(error.before) if isinstance(error, NoJson) else b""

    def flush(self) -> bytes:
        """What is left at the end. Raises UpstreamFailed where it cannot be read, or is not complete."""
        if self._fault is not None:
            raise self._fault
        return frame_of(self.stage.flush())
