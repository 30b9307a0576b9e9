"""A stream's chat.completion.chunk objects in, the same without think tags out.

What holds:
 1. one scrubber per choice and field: a tag split over chunks is found, choices never mix;
 2. text for the reader alone is read (content, text, reasoning fields, refusal); all else, key
    order included, goes on as it came, and once: the role on the first of the chunks made of
    one, everything but its text on the last;
 3. moved reasoning never shares a delta with content;
 4. what is held comes out before its choice's finish, before the usage chunk, and on flush;
    a reasoning field's also before content that follows it. Text after that is a new text
    that begins outside every block;
 5. while `passes` is true for an event's bytes, `feed` would at most part its finish from its
    text, and neither would change what becomes of the events after it.
"""

import re
from collections.abc import Sequence
from typing import Any

from sanitize.content import ContentRun, ContentScrubber, has_text
from sanitize.think import DEFAULT_TAG_NAMES, Mode, ThinkScrubber

Json = dict[str, Any]

REASONING_FIELDS = ("reasoning_content", "reasoning")

# Keys that say whose chunk it is. Any other key speaks of the chunk it stands on, and is given
# to one only when a chunk is made into several.
_ENVELOPE = frozenset(
    ("id", "object", "created", "model", "system_fingerprint", "service_tier", "choices", "usage")
)
_CHOICE_SHAPE = frozenset(("index", "delta", "text", "finish_reason", "logprobs"))

# JSON's other spellings of `<`, `&` and a backslash. A backslash counts only where a `u` may
# follow it: next, at the string's end, or spelt with an escape.
_ESCAPED_OPENER = re.compile(rb'\\(?:u00(?:3[cC]|26|5[cC])|\\["u\\])')
MAX_ESCAPED_OPENER = 6
# The pattern reads byte by byte, `find` many at once: it is tried on so many from each backslash on.
ESCAPED_STRIDE = 64
_OTHER_ESCAPES = frozenset((b"n", b'"', b"t", b"r", b"/"))
# As numbers: looking for bytes in bytes costs six times as much.
_LESS, _AMPERSAND, _BACKSLASH = b"<&\\"
# Null or text; what is cut there, be it by a chunk's framing, says nothing.
_FINISH = re.compile(rb'"finish_reason"\s*:\s*(?:("")|"[^"\r]|n)')
_INDEX = re.compile(rb'"index"\s*:\s*(\d{1,9})')


class Openers:
    """Where a tag may begin in the bytes of events, each looked for once."""

    __slots__ = ("_data", "_next")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._next = [-1, -1, -1]

    def next(self, start: int) -> int:
        """The first at or after `start`, or else the length; `start` may only grow."""
        for kind, at in enumerate(self._next):
            if at < start:
                self._next[kind] = self._find(kind, start)
        return min(self._next)

    def _find(self, kind: int, start: int) -> int:
        data = self._data
        if kind == 2:
            at = _find_escaped_opener(data, start)
        else:
            at = data.find(_AMPERSAND if kind else _LESS, start)
        return len(data) if at == -1 else at


def _find_escaped_opener(data: bytes, start: int) -> int:
    while (start := data.find(_BACKSLASH, start)) != -1:
        if data[start + 1 : start + 2] in _OTHER_ESCAPES:
            start += 2
            continue
        if found := _ESCAPED_OPENER.search(data, start, start + ESCAPED_STRIDE):
            return found.start()
        start += ESCAPED_STRIDE - MAX_ESCAPED_OPENER + 1
    return -1


class DeltaScrubber:
    """Takes think tags out of one stream of parsed chunks; never changes what it is given.

    Parameters and errors are ThinkScrubber's; `mode` and `starts_open` are for content, while
    reasoning fields and refusals are in mode `tags` and never start open. Legacy completion
    chunks are read too, their `text` as content.
    """

    def __init__(
        self,
        mode: Mode = "tags",
        tag_names: Sequence[str] = DEFAULT_TAG_NAMES,
        starts_open: bool = False,
    ) -> None:
        self._mode = mode
        self._tag_names = tag_names
        self._starts_open = starts_open
        self._contents: dict[int, ContentScrubber] = {}
        self._fields: dict[tuple[int, str], ThinkScrubber] = {}
        self._last_chunk: Json = {}
        self._is_legacy = False
        # Some write "" for null, then on every chunk from the first: it is looked for once.
        self._writes_empty_finish: bool | None = None
        self._spare: ContentScrubber | None = ContentScrubber(mode, tag_names, starts_open)
        # False where unread text must be read even though nothing is held.
        self._new_passes = self._spare.idle
        self._idle = self._new_passes

    def passes(self, data: bytes) -> bool:
        """True when the bytes of whole events may go on unread, framing and all."""
        if not self._idle or _LESS in data or _AMPERSAND in data:
            return False
        if _BACKSLASH in data and _find_escaped_opener(data, 0) != -1:
            return False
        if self._writes_empty_finish is None and (finish := _FINISH.search(data)):
            self._writes_empty_finish = finish[1] is not None
        if self._writes_empty_finish:
            return False
        return self._new_passes or all(int(i) in self._contents for i in _INDEX.findall(data))

    @property
    def reads_openers_only(self) -> bool:
        """True when `passes` asks for nothing else any more."""
        return self._idle and self._new_passes and self._writes_empty_finish is False

    def feed(self, chunk: Json) -> list[Json]:
        """Take the next chunk, return those to send for it: often itself, none, or several."""
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            return [chunk]
        self._last_chunk = chunk
        tails = self._read_tails() if not choices and chunk.get("usage") else []
        rows = [self._read_choice(choice) for choice in choices]
        self._note_idle()
        if all(len(row) == 1 and row[0] is old for row, old in zip(rows, choices, strict=True)):
            return [*tails, chunk]
        read = [choice for row in rows for choice in row]
        if not read:
            return tails
        if all(len(row) <= 1 for row in rows):
            return [*tails, {**chunk, "choices": read}]
        return [*tails, *map(self._wrap, read[:-1]), {**chunk, "choices": read[-1:]}]

    def feed_text(self, index: int, text: str) -> list[Json] | None:
        """What nearly all chunks are: one choice whose delta is a piece of content and nothing else.

        Returns the deltas to send for it, each in a chunk like it, or None: then `feed` the chunk.
        """
        content = self._contents.get(index)
        if self._fields or not text or len(self._contents) != (0 if content is None else 1):
            return None
        scrubber = (content or self._new_content(index)).scrubber
        segments = scrubber.feed_segments(text)
        self._idle = scrubber.idle
        if not segments:
            return []
        return [
            dict.fromkeys(REASONING_FIELDS, text) if is_reasoning else {"content": text}
            for text, is_reasoning in segments
        ]

    @property
    def idle(self) -> bool:
        """Nothing is held, and text in which no tag may begin would be sent as it is."""
        return self._idle

    def flush(self, last: Json | None = None) -> list[Json]:
        """Return what is held, at the end of a stream that did not finish all its choices.

        In chunks modelled on `last`, or else on the last one fed.
        """
        if last is not None:
            self._last_chunk = last
        tails = self._read_tails()
        self._note_idle()
        return tails

    def _note_idle(self) -> None:
        is_first = not self._contents and not self._new_passes
        self._idle = (
            not is_first
            and all(scrubber.idle for scrubber in self._contents.values())
            and all(scrubber.idle for scrubber in self._fields.values())
        )

    def _read_choice(self, choice: Any) -> list[Any]:
        if not isinstance(choice, dict):
            return [choice]
        finish = choice.get("finish_reason")
        if finish == "":
            self._writes_empty_finish = True
            choice = {**choice, "finish_reason": None}
        self._is_legacy = "delta" not in choice and isinstance(choice.get("text"), str)
        delta = {"text": choice["text"]} if self._is_legacy else choice.get("delta")
        if not isinstance(delta, dict):
            delta = {}
        texts = {key: delta[key] for key in self._text_fields() if has_text(delta.get(key))}
        fragments = self._read_texts(_index_of(choice), texts, ends=bool(finish))

        is_unchanged = sum(map(len, fragments)) == len(texts) and _merged(fragments) == texts
        if is_unchanged and not (finish and texts):
            return [choice]
        rest = {key: value for key, value in delta.items() if key not in texts}
        if not fragments and not finish:
            is_wanted = _carries(self._last_chunk, _ENVELOPE, "usage")
            if not (is_wanted or _carries(rest) or _carries(choice, _CHOICE_SHAPE, "logprobs")):
                return []
            fragments.append({key: type(value)() for key, value in texts.items()})
        elif finish:
            fragments.append({})
        first = {"role": rest.pop("role")} if len(fragments) > 1 and "role" in rest else {}
        *before, last = fragments
        before[:1] = [{**first, **fragment} for fragment in before[:1]]
        order = dict.fromkeys(key for key in delta if key in rest or key in last)
        last = {**order, **rest, **last}
        shape = {key: value for key, value in choice.items() if key in _CHOICE_SHAPE}
        shape |= {key: None for key in ("finish_reason", "logprobs") if key in shape}
        return [
            *(self._with_delta(shape, delta) for delta in before),
            self._with_delta(choice, last),
        ]

    def _text_fields(self) -> tuple[str, ...]:
        return (*REASONING_FIELDS, "text" if self._is_legacy else "content", "refusal")

    def _read_texts(self, index: int, texts: Json, ends: bool) -> list[Json]:
        """Scrub a delta's text fields; return what is to be seen, as deltas in order."""
        *reasoning_fields, content_field, refusal_field = self._text_fields()
        reasoning = {}
        for field in reasoning_fields:
            is_over = ends or (content_field in texts and field not in texts)
            reasoning[field] = self._read_field(index, field, texts.get(field), is_over)
        runs = self._read_content(index, texts.get(content_field), ends)
        refusal = self._read_field(index, refusal_field, texts.get(refusal_field), ends)
        fragments: list[Json] = [{field: text for field, text in reasoning.items() if text}]
        for value, is_reasoning in runs:
            fields = REASONING_FIELDS if is_reasoning else (content_field,)
            fragments.append(dict.fromkeys(fields, value))
        fragments.append({refusal_field: refusal} if refusal else {})
        return [fragment for fragment in fragments if fragment]

    def _read_field(self, index: int, field: str, text: Any, ends: bool) -> str:
        scrubber = self._fields.get((index, field))
        if scrubber is None:
            if not isinstance(text, str):
                return ""
            scrubber = self._fields[index, field] = ThinkScrubber("tags", self._tag_names)
        read = scrubber.feed(text) if isinstance(text, str) else ""
        return read + scrubber.flush() if ends else read

    def _read_content(self, index: int, value: Any, ends: bool) -> list[ContentRun]:
        scrubber = self._contents.get(index)
        if scrubber is None:
            if value is None and not ends:
                return []
            scrubber = self._new_content(index)
        runs = scrubber.feed(value, ends)
        if ends:
            self._contents[index] = ContentScrubber(self._mode, self._tag_names)
        return runs

    def _new_content(self, index: int) -> ContentScrubber:
        scrubber = self._spare
        if scrubber is None:
            scrubber = ContentScrubber(self._mode, self._tag_names, self._starts_open)
        self._spare = None
        self._contents[index] = scrubber
        return scrubber

    def _read_tails(self) -> list[Json]:
        indexes = sorted({*self._contents, *(index for index, _ in self._fields)})
        shape: Json = {
            "index": 0,
            "text" if self._is_legacy else "delta": {},
            "finish_reason": None,
        }
        return [
            self._wrap(self._with_delta({**shape, "index": index}, delta))
            for index in indexes
            for delta in self._read_texts(index, {}, ends=True)
        ]

    def _with_delta(self, choice: Json, delta: Json) -> Json:
        if self._is_legacy:
            return {**choice, "text": "", **delta}
        return {**choice, "delta": delta}

    def _wrap(self, choice: Json) -> Json:
        """A chunk like the last one seen, with this choice and none of what is said once."""
        kept = {key: value for key, value in self._last_chunk.items() if key in _ENVELOPE}
        unsaid = {"usage": None} if "usage" in kept else {}
        return {**kept, "choices": [choice], **unsaid}


def _index_of(choice: Json) -> int:
    index = choice.get("index")
    return index if isinstance(index, int) else 0


def _merged(fragments: list[Json]) -> Json:
    return {key: value for fragment in fragments for key, value in fragment.items()}


def _carries(item: Json, known: frozenset[str] = frozenset(), *but: str) -> bool:
    """True when a key that is not `known`, or is one of `but`, has something to say."""
    return any(
        value is not None and value not in ("", [], {})
        for key, value in item.items()
        if key not in known or key in but
    )
