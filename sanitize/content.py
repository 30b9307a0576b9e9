"""What a message's `content` may be, a string or a list of parts, in; runs of one kind out.

One scrubber reads through all parts, since a tag may begin in one and end in the next. Parts
that are not text pass untouched where they stand; a text part that only held tags goes.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeGuard

from sanitize.think import DEFAULT_TAG_NAMES, Mode, Segment, ThinkScrubber


class ContentRun(NamedTuple):
    """Content of one kind: a string, or parts as they came. Reasoning is always a string."""

    value: str | list[Any]
    is_reasoning: bool


class ContentScrubber:
    """A ThinkScrubber for the values of one content field; parameters and errors are its own."""

    def __init__(
        self,
        mode: Mode = "tags",
        tag_names: Sequence[str] = DEFAULT_TAG_NAMES,
        starts_open: bool = False,
    ) -> None:
        self._scrubber = ThinkScrubber(mode, tag_names, starts_open)

    @property
    def idle(self) -> bool:
        """As ThinkScrubber's."""
        return self._scrubber.idle

    def feed_text(self, text: str) -> str:
        """A string: the visible text."""
        return self._scrubber.feed(text)

    def feed(self, value: object, ends: bool = False) -> list[ContentRun]:
        """Take the next value; with `ends` the last one, which may be empty.

        Neighbouring runs are of unlike kind. A value that is neither a string nor a list counts
        as empty.
        """
        pieces: list[tuple[Any, bool]] = []
        if isinstance(value, list):
            for part in value:
                if _is_text_part(part) and part["text"]:
                    pieces += _as_parts(self._scrubber.feed_segments(part["text"]), part)
                else:
                    pieces.append((part, False))
            if ends:
                pieces += _as_parts(self._scrubber.flush_segments(), {"type": "text"})
        else:
            pieces += self._scrubber.feed_segments(value if isinstance(value, str) else "")
            if ends:
                pieces += self._scrubber.flush_segments()

        runs = []
        for is_reasoning, group in groupby(pieces, key=lambda piece: piece[1]):
            values = [value for value, _ in group]
            is_text = is_reasoning or not isinstance(value, list)
            runs.append(ContentRun("".join(values) if is_text else values, is_reasoning))
        return runs


def has_text(value: object) -> bool:
    """True when the content holds text to scrub."""
    if isinstance(value, list):
        return any(_is_text_part(part) and part["text"] for part in value)
    return isinstance(value, str) and value != ""


def _is_text_part(part: object) -> TypeGuard[dict[str, Any]]:
    return (
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
    )


def _as_parts(segments: list[Segment], part: dict[str, Any]) -> list[tuple[Any, bool]]:
    return [
        (text if is_reasoning else {**part, "text": text}, is_reasoning)
        for text, is_reasoning in segments
    ]
