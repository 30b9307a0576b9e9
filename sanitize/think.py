"""Text with think tags in, text without them out, however the text is cut.

What comes out, and where, is settled by the whole text alone: tags are found from the left,
never overlapping; an opening tag outside a block opens it, the next closing tag ends it (no
depth is counted: models repeat the opening tag but close once); an opening tag, blank space
and a closing tag are an empty pair and go with the line breaks right after them. A feed
returns all that no later text can change, and holds back no more than the rest: at most one
unfinished tag and MAX_BLANK of white space. Time is linear in the text.
"""

import re
from collections.abc import Sequence
from enum import Enum
from typing import Literal, NamedTuple, get_args

from sanitize.think_tag import kind_of, make_pattern

Mode = Literal["tags", "block", "reasoning"]
MODES = get_args(Mode)

DEFAULT_TAG_NAMES = ("think", "thank")

# White space of an empty pair. Templates and models write one to four characters.
MAX_BLANK = 256

_LINE_BREAKS = re.compile(r"(?:\r?\n)*")


class Segment(NamedTuple):
    """A stretch of text without tags, and whether it stood inside a think block."""

    text: str
    is_reasoning: bool


class _Lead(Enum):
    """What white space means where the text stands."""

    NONE = "text like any other"
    START = "before the tag that a model repeats although its block starts open"
    OPENED = "perhaps an empty pair's"
    PAIR = "line breaks that go with the pair before them"


class ThinkScrubber:
    """Takes think tags out of a text that comes in pieces.

    Modes: `tags` keeps the text between tags, `block` drops it, `reasoning` sets it apart (see
    `feed_segments`). `starts_open` says that the text begins inside a block whose opening tag
    the prompt already held. Raises ValueError for an unknown mode or unusable tag names.

    `idle` is True when text with no `<`, `&` or backslash would come back as it is, and change nothing.
    So inside a block only in mode `tags`, where its text is kept.
    """

    def __init__(
        self,
        mode: Mode = "tags",
        tag_names: Sequence[str] = DEFAULT_TAG_NAMES,
        starts_open: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode must be one of {MODES}, not {mode!r}")
        self._mode = mode
        self._starts_open = starts_open
        self._pattern = make_pattern(tuple(tag_names))
        self._segments: list[Segment] = []
        self._start()

    def feed(self, text: str) -> str:
        """Take the next piece, return the visible text that is settled by now."""
        if self.idle and not _may_open(text):
            return text
        return _visible(self._read(text))

    def flush(self) -> str:
        """Return what was held, as the text it is; the scrubber is then as new."""
        return _visible(self.flush_segments())

    def feed_segments(self, text: str) -> list[Segment]:
        """Like `feed`, in order and with the reasoning: non-empty, neighbours of unlike kind.

        Only mode `reasoning` gives segments that are reasoning.
        """
        if self.idle and not _may_open(text):
            return [Segment(text, False)] if text else []
        return self._read(text)

    def flush_segments(self) -> list[Segment]:
        """Like `flush`, in segments."""
        if self._held:
            self._take_text(self._held)
        self._emit_blank()
        segments, self._segments = self._segments, []
        self._start()
        return segments

    def _start(self) -> None:
        self._held = ""  # an unfinished tag
        self._blank = ""  # white space that `_lead` may yet take away
        self._inside = self._starts_open
        # Only `tags` promises to lose no text, so there it makes no difference.
        drops_start = self._starts_open and self._mode != "tags"
        self._lead = _Lead.START if drops_start else _Lead.NONE
        self.idle = not drops_start

    def _read(self, text: str) -> list[Segment]:
        text = self._held + text
        if self._held or _may_open(text):
            done = 0
            while (tag := self._pattern.search(text, done)) is not None:
                start, end = tag.span()
                if start > done:
                    self._take_text(text[done:start])
                self._take_tag(tag)
                done = end
            undecided = self._pattern.find_unfinished(text, done)
            self._held = text[undecided:]
            text = text[done:undecided]
        if text:
            self._take_text(text)
        is_kept = self._mode == "tags" or not self._inside
        self.idle = is_kept and not self._held and self._lead is _Lead.NONE
        segments, self._segments = self._segments, []
        return segments

    def _take_text(self, text: str) -> None:
        if self._lead is _Lead.NONE:
            self._emit(text)
            return
        text = self._blank + text
        self._blank = ""
        if self._lead is _Lead.PAIR:
            breaks = _LINE_BREAKS.match(text)
            text = text[breaks.end() :] if breaks else text
            still_blank = text in ("", "\r")
        else:
            still_blank = len(text) <= MAX_BLANK and text.isspace()
        if still_blank:
            self._blank = text
        else:
            self._lead = _Lead.NONE
            self._emit(text)

    def _take_tag(self, tag: re.Match[str]) -> None:
        closes, opens = kind_of(tag)
        is_pair = closes and self._lead is _Lead.OPENED
        is_repeated = opens and self._lead is _Lead.START
        if is_pair or is_repeated:
            self._blank = ""
        if self._blank:
            self._emit_blank()
        self._lead = _Lead.PAIR if is_pair else _Lead.NONE
        if opens and not self._inside:
            self._lead = _Lead.OPENED
        self._inside = (self._inside or opens) and not closes

    def _emit_blank(self) -> None:
        self._emit(self._blank)
        self._blank = ""

    def _emit(self, text: str) -> None:
        set_apart = self._inside and self._mode != "tags"
        if not text or (set_apart and self._mode == "block"):
            return
        if self._segments and self._segments[-1].is_reasoning == set_apart:
            text = self._segments.pop().text + text
        self._segments.append(Segment(text, set_apart))


def _may_open(text: str) -> bool:
    return "<" in text or "&" in text or "\\" in text


def _visible(segments: list[Segment]) -> str:
    if not segments:
        return ""
    if len(segments) == 1:
        text, is_reasoning = segments[0]
        return "" if is_reasoning else text
    return "".join([segment.text for segment in segments if not segment.is_reasoning])


def scrub(
    text: str,
    mode: Mode = "tags",
    tag_names: Sequence[str] = DEFAULT_TAG_NAMES,
    starts_open: bool = False,
) -> str:
    """Return the visible part of a whole text; see ThinkScrubber."""
    scrubber = ThinkScrubber(mode, tag_names, starts_open)
    return scrubber.feed(text) + scrubber.flush()


def split(
    text: str, tag_names: Sequence[str] = DEFAULT_TAG_NAMES, starts_open: bool = False
) -> tuple[str, str]:
    """Return a whole text's content and its reasoning, both without tags."""
    scrubber = ThinkScrubber("reasoning", tag_names, starts_open)
    segments = scrubber.feed_segments(text) + scrubber.flush_segments()
    reasoning = "".join([segment.text for segment in segments if segment.is_reasoning])
    return _visible(segments), reasoning
