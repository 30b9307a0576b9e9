"""HTTP's chunked coding, walked and not taken apart (RFC 9112, 7.1): bytes in, whole frames out.

In: a body as it came from the socket, cut anywhere. Out: its frames as they are, where they end together
with a server-sent event, so that something else may be put in between; or their payload. The last frame
(the one of size 0, and trailers, which nobody here wants) is kept back: who writes the body ends it.
"""

import re
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol, cast

# A size line longer than this is an attack, or no chunked coding at all.
MAX_SIZE_LINE = 256
MAX_KNOWN_SIZES = 1024
# Frames below this size are walked by one regular expression, a chat chunk's among them: 200 of them in
# 4 µs rather than 95. Making it takes 17 ms; each doubling of the size doubles that.
RUN_BELOW_BYTES = 0x400
LAST_FRAME = b"0\r\n\r\n"
# How a frame ends whose last is an event's end.
EVENT_END = b"\n\n\r\n"
_EXTENSION_OR_HEX = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")


class FramingError(ValueError):
    """The bytes are not chunked coding, or an event is longer than the limit."""

    before = b""  # the payload of the frames before these bytes


class ChunkedFrames:
    """Feed it a body's bytes. `ended` once the last frame has come; no byte may follow it.

    What came with it, but behind it, is no part of the body: then the connection `is_overrun`.
    """

    def __init__(self, *, max_held_bytes: int) -> None:
        self._max_held = max_held_bytes
        self._held = bytearray()  # an unfinished frame
        self.ended = self.is_overrun = False

    @property
    def is_clear(self) -> bool:
        """What comes next is the beginning of a frame."""
        return not self._held and not self.ended

    def ends(self, data: bytes, end: int) -> bool:
        """Whether the last frame, bare, is what follows `end`: then it was taken."""
        is_last = end + len(LAST_FRAME) == len(data) and data.endswith(LAST_FRAME)
        self.ended = self.ended or is_last
        return is_last

    def missing(self, data: bytes) -> int | None:
        """How many bytes of what comes next belong to the unfinished frame; None where that is not known."""
        held = self._held
        head = held[:MAX_SIZE_LINE] if b"\r\n" in held else held + data[:MAX_SIZE_LINE]
        line_end = head.find(b"\r\n", 0, MAX_SIZE_LINE)
        if line_end == -1:
            return None
        try:
            size = _size_of(bytes(head[:line_end]))
        except FramingError:
            return None  # `feed` says so
        return line_end + size + 4 - len(held) if size else None

    def feed_aligned(self, data: bytes) -> tuple[bytes, bytes]:
        """The whole frames, up to where an event ends with one; and what is left to be fed. Raises FramingError."""
        boundary, walked, ended = self._walk(data, None)
        if ended and walked == boundary:
            self.ended = True
            return data[:boundary], b""
        return data[:boundary], data[boundary:]

    def feed(self, data: bytes) -> bytes:
        """The payload of the frames that are whole. Raises FramingError."""
        payload: list[bytes] = []
        try:
            self._feed(data, payload)
        except FramingError as error:
            error.before = b"".join(payload)
            raise
        return b"".join(payload)

    def _feed(self, data: bytes, payload: list[bytes]) -> None:
        whole: bytes | bytearray = data
        if self._held:
            self._held += data
            whole = self._held
        _, walked, self.ended = self._walk(whole, payload)
        if self.ended:
            self._held.clear()
        elif whole is self._held:
            del self._held[:walked]
        elif walked < len(data):
            self._held += data[walked:]
        if len(self._held) > self._max_held:
            raise FramingError(f"a chunk of more than {self._max_held} bytes")

    def _walk(self, data: bytes | bytearray, payload: list[bytes] | None) -> tuple[int, int, bool]:
        """Where the last whole event ends, where the last whole frame does, and whether it was the last.

        With `payload`, the payload of the whole frames is put there.
        """
        boundary = position = 0
        length, ended = len(data), False
        if self.ended and length:
            raise FramingError("bytes after the last chunk")
        while position < length:
            line_end = data.find(b"\r\n", position, position + MAX_SIZE_LINE)
            if line_end == -1:
                if length - position >= MAX_SIZE_LINE:
                    raise FramingError("a chunk without a size")
                break
            size = _size_of(bytes(data[position:line_end]))
            end = line_end + 2 + size
            if data[end - 2 : end + 2] == b"\n\n\r\n" and size >= 2:  # nearly always
                if payload is not None:
                    payload.append(bytes(data[line_end + 2 : end]))
                boundary = position = end + 2
                continue
            if size == 0:
                ended = self._has_end(data, line_end)
                break
            if end + 2 > length:
                break
            if data[end : end + 2] != b"\r\n":
                raise FramingError("a chunk longer than its size")
            if payload is not None:
                payload.append(bytes(data[line_end + 2 : end]))
            position = end + 2
            if data[end - 4 : end] == b"\r\n\r\n" and size >= 4:
                boundary = position
        return boundary, position, ended

    def _has_end(self, data: bytes | bytearray, line_end: int) -> bool:
        """Whether the last frame, its trailers included, is whole."""
        end = data.find(b"\r\n\r\n", line_end)
        self.is_overrun = end != -1 and end + 4 != len(data)
        return end != -1


def run_end(data: bytes, start: int, end: int) -> int:
    """How far frames go from `start` on, until `end` at most, of which each ends with an event."""
    return run_pattern().match(data, start, end).end()


class RunPattern(Protocol):
    """A pattern that matches nothing at the least."""

    def match(self, data: bytes, start: int = 0, end: int = ..., /) -> re.Match[bytes]: ...


@lru_cache(1)  # made when it is first needed
def run_pattern() -> RunPattern:
    """Frames in a row, each of which ends with an event: sizes are told apart digit by digit, and
    `.{n}` is a step and not a walk. Digits stand alone, as two alternatives are quicker than a set of two.
    """
    by_first: dict[str, dict[str, list[str]]] = {}
    for size in range(2, RUN_BELOW_BYTES):
        for text in dict.fromkeys((f"{size:x}", f"{size:X}")):
            frame = rf"{text[-1]}\r\n.{{{size - 2}}}\n\n\r\n"
            by_first.setdefault(text[:-1][:1], {}).setdefault(text[1:-1], []).append(frame)
    sizes = (
        first + _one_of([rest + _one_of(frames) for rest, frames in by_rest.items()])
        for first, by_rest in sorted(by_first.items(), key=_rareness)
    )
    return cast(RunPattern, re.compile(f"{_one_of(sizes)}{_REPEAT}".encode(), re.DOTALL))


# Before 3.11.5 (Debian 12 has 3.11.2) a possessive repeat also counts what it had matched of the frame that
# fails; the other keeps 600 bytes for each frame, to go back to.
_REPEAT = "*+" if sys.version_info >= (3, 11, 5) else "*"


def _one_of(alternatives: Iterable[str]) -> str:
    return f"(?:{'|'.join(alternatives)})"


def _rareness(row: tuple[str, object]) -> int:
    """By the first digit of a size: a chat chunk has 160 to 511 bytes."""
    return "cdefab19823CDEFAB4567".find(row[0]) if row[0] else 99  # of a size of one digit


@lru_cache(1)
def size_lines() -> tuple[tuple[bytes, ...], ...]:
    """By the length of a whole frame, how one begins that is as long: in either case of its digits."""
    lines: list[tuple[bytes, ...]] = [()] * (RUN_BELOW_BYTES + 7)
    for size in range(2, RUN_BELOW_BYTES):
        line = b"%x\r\n" % size
        lines[len(line) + size + 2] = tuple(dict.fromkeys((line, b"%X\r\n" % size)))
    return tuple(lines)


def frame_of(payload: bytes) -> bytes:
    """One frame, none for nothing."""
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""


def payload_of(frames: bytes) -> bytes:
    """The payload of whole frames."""
    payload = []
    position = 0
    while position < len(frames):
        line_end = frames.index(b"\r\n", position)
        end = line_end + 2 + _size_of(frames[position:line_end])
        payload.append(frames[line_end + 2 : end])
        position = end + 2
    return b"".join(payload)


def whole_frame(data: bytes, start: int) -> tuple[bytes, int] | None:
    """The payload of the frame at `start` and where it ends; None where it is not whole, or its end is
    not an event's, or it is none.
    """
    line_end = data.find(b"\r\n", start, start + MAX_SIZE_LINE)
    if line_end == -1:
        return None
    try:
        end = line_end + 2 + _size_of(data[start:line_end])
    except FramingError:
        return None  # `ChunkedFrames` says so, with what came before
    if data[end - 2 : end + 2] != b"\n\n\r\n" or end < line_end + 4:
        return None
    return data[line_end + 2 : end], end + 2


@lru_cache(MAX_KNOWN_SIZES)  # most sizes come again
def _size_of(line: bytes) -> int:
    """The size in a chunk's first line, extensions aside."""
    found = _EXTENSION_OR_HEX.fullmatch(line)
    if found is None:
        raise FramingError("a chunk without a size")
    return int(found[1], 16)
