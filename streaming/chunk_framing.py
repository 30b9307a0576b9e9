"""HTTP's chunked coding, walked and not taken apart (RFC 9112, 7.1): bytes in, whole frames out.

In: a body as it came from the socket, cut anywhere. Out: its frames as they are, where they end together
with a server-sent event, so that something else may be put in between; or their payload. The last frame
(the one of size 0, and trailers, which nobody here wants) is kept back: who writes the body ends it.
"""

import re
from functools import lru_cache

# A size line longer than this is an attack, or no chunked coding at all.
MAX_SIZE_LINE = 256
MAX_KNOWN_SIZES = 1024
_EXTENSION_OR_HEX = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?", re.DOTALL)


class FramingError(ValueError):
    """The bytes are not chunked coding, or an event is longer than the limit."""


class ChunkedFrames:
    """Feed it a body's bytes. `ended` once the last frame has come; no byte may follow it."""

    def __init__(self, *, max_held_bytes: int) -> None:
        self._max_held = max_held_bytes
        self._held = bytearray()  # an unfinished frame
        self.ended = False

    def feed_aligned(self, data: bytes) -> bytes | None:
        """The frames themselves, where all are whole and end with an event; else None, and nothing
        was taken. Raises FramingError.
        """
        if self._held or self.ended:
            return None
        line_end = data.find(b"\r\n", 0, MAX_SIZE_LINE)
        size = _size_of(data[:line_end]) if line_end > 0 else 0
        if size >= 2 and size == len(data) - line_end - 4 and data.endswith(b"\n\n\r\n"):
            return data  # one event in one frame
        boundary, walked, ended = self._walk(data, None)
        if walked != boundary or not (ended or boundary == len(data)):
            return None
        self.ended = ended
        return data if boundary == len(data) else data[:boundary]

    def feed(self, data: bytes) -> bytes:
        """The payload of the frames that are whole. Raises FramingError."""
        payload: list[bytes] = []
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
        return b"".join(payload)

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
        """Whether the last frame, its trailers included, is whole; raises where bytes follow it."""
        end = data.find(b"\r\n\r\n", line_end)
        if end == -1:
            return False
        if end + 4 != len(data):
            raise FramingError("bytes after the last chunk")
        return True


def frame_of(payload: bytes) -> bytes:
    """One frame, none for nothing."""
    return b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""


def payload_of(frames: bytes) -> bytes:
    """The payload of whole frames."""
    payload = []
    position = 0
    while position < len(frames):
        line_end = frames.index(b"\r\n", position)
        size = _size_of(frames[position:line_end])
        payload.append(frames[line_end + 2 : line_end + 2 + size])
        position = line_end + 4 + size
    return b"".join(payload)


@lru_cache(MAX_KNOWN_SIZES)  # most sizes come again
def _size_of(line: bytes) -> int:
    """The size in a chunk's first line, extensions aside."""
    found = _EXTENSION_OR_HEX.fullmatch(line)
    if found is None:
        raise FramingError("a chunk without a size")
    return int(found[1], 16)
