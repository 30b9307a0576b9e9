"""Whether an upstream's event stream was complete: an end that comes too early is a failure.

In: whole events as they go by. Out: nothing, or UpstreamFailed at the end.
"""

import re
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from streaming.chunk_framing import EVENT_END, LAST_FRAME, frame_of, payload_of
from streaming.failures import UpstreamFailed
from streaming.json_codec import decode_json, encode_json
from streaming.sse_parser import SseParser

# Inside JSON strings quotes are escaped, so that what a model writes never looks like these.
_DONE = re.compile(rb"^data: ?\[DONE\]|^data: ?\{\"error\"\s*:\s*[{\"]", re.MULTILINE)
_FINISHED = re.compile(rb"\"finish_reason\"\s*:\s*\"[^\"]")
# How nearly all streams end. A line feed is never raw in JSON.
_END = b"\ndata: [DONE]" + EVENT_END
_ENDS = (_END, _END + LAST_FRAME)
# How streams of the Responses API end.
_RESPONSE_DONE = re.compile(
    rb"^event: ?(?:response\.(?:completed|incomplete|failed)|error)\s*$"
    rb"|\"type\"\s*:\s*\"(?:response\.(?:completed|incomplete|failed)|error)\"",
    re.MULTILINE,
)
_SEQUENCE = re.compile(rb"\"sequence_number\"\s*:\s*(\d{1,9})")
# The finish stands near the end, with at most a usage chunk behind it.
MAX_TAIL_BYTES = 64 * 1024
# So many small frames wait to be looked at together.
MANY_SMALL = 64


class StreamEnd:
    """Whether a stream that ends here is complete: `[DONE]`, an error, or as many finishes as choices.

    With `finishes` 0 nothing is asked for. One choice is looked for at the end alone, which costs
    nothing on the way; several may finish far apart and are counted as they come.
    """

    _pattern = _DONE

    def __init__(self, finishes: int) -> None:
        self._finishes = finishes
        self._finished: set[Any] = set()  # indexes of choices
        self._done = finishes <= 0
        self._last = b""  # frames that came together
        self._tail: deque[bytes] = deque()  # likewise
        self._tail_bytes = 0
        # Frames not looked at yet: `see_small` once there are MANY_SMALL.
        self.small: list[bytes] = []

    def see(self, events: bytes) -> None:
        """Look at whole events."""
        if events:
            self.see_frames(frame_of(events))

    def see_frames(self, frames: bytes) -> None:
        """Look at whole events in their chunked frames; what follows them may be the last frame."""
        if self.small:
            self.see_small()
        if not frames:
            return
        self._last = frames
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

    def see_small(self) -> None:
        """Look at those that wait."""
        if self.small:
            frames = b"".join(self.small)
            self.small.clear()
            self.see_frames(frames)

    def check(self) -> None:
        """Raises UpstreamFailed where something is missing."""
        if self.is_said:
            return
        if not self._done:
            self._count(b"".join(map(payload_of, self._tail)))
        if not self._done:
            raise UpstreamFailed("The upstream ended its reply before it was complete.")

    @property
    def is_said(self) -> bool:
        """`[DONE]` came last: nothing is missing behind it."""
        self.see_small()
        return self._last.endswith(_ENDS)

    def _count(self, events: bytes) -> None:
        if self._pattern.search(events):
            self._done = True
        elif _FINISHED.search(events):
            self._finished |= _finished_choices(events)
            self._done = len(self._finished) >= self._finishes


class ResponseEnd(StreamEnd):
    """The same for streams of the Responses API."""

    _pattern = _RESPONSE_DONE

    def __init__(self) -> None:
        super().__init__(finishes=1)

    def fault(self, error: Mapping[str, Any]) -> bytes:
        """How a stream ends that went wrong; `error` is OpenAI's error object."""
        self.see_small()
        seen = [number for frame in self._tail for number in _SEQUENCE.findall(payload_of(frame))]
        data = {
            "type": "error",
            "sequence_number": int(seen[-1]) + 1 if seen else 0,
            **{name: error.get(name) for name in ("code", "message", "param")},
        }
        return b"event: error\ndata: " + encode_json(data) + b"\n\n"


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
