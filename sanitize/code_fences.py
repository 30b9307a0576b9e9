"""Markdown with an agent's code tags in, markdown with python fences out, as (text, is_code).

A pair of code tags becomes a fence with its marks on lines of their own; white space between a
tag and its line's end goes, and so does a fence that the model itself wrote inside the tags. A
closing tag that closes nothing goes. Between tags only the closing tag ends the code (or the end of
a fence the model wrote right there): a line of it that would end the shown fence is indented by
four blanks, which Markdown takes as text. Fences the model wrote pass as they are; inside them
tags are code. What is code, its fence lines included, is told from what is prose.
"""

import re
from collections.abc import Callable, Sequence

# Indentation and trailing blanks of a fence line, and white space between a tag and a fence.
MAX_BLANK = 64

# A fence's last line has at most three blanks before its marks (CommonMark 4.5).
INDENT = "    "
MAX_FENCE_INDENT = 3

# Fence marks in a row, and characters after them that are looked through for a backtick: the
# one thing that makes the line an inline code span. Longer lines are no fences, or surely are.
MAX_MARKS = 100
MAX_INFO = 100

_BLANK = re.compile(rf"[ \t]{{0,{MAX_BLANK}}}+")
_SPACE = re.compile(rf"[ \t\r\n]{{0,{MAX_BLANK}}}+")
_REST_OF_OPENING = re.compile(rf"[ \t]{{0,{MAX_BLANK}}}+(?:\r?\n)?")
_REST_OF_CLOSING = re.compile(r"[ \t]*+(?:\r?\n)?")
_MARKS = re.compile(r"`+|~+")

_UNDECIDED = -1


def _find_also(*tags: str) -> tuple[tuple[str, ...], re.Pattern[str]]:
    # One pattern for all, lest a line of many tags be searched anew for each.
    return tags, re.compile("|".join(map(re.escape, ("\n", *tags))))


_NO_TAGS = _find_also()


class CodeFencer:
    """Turns code tags in a text that comes in pieces into fences; closes the last one.

    `code_block_tags` is the pair the agent's prompt asks for; a pair that is a fence itself needs
    no turning. Raises ValueError if one is empty.
    """

    def __init__(self, code_block_tags: Sequence[str] = ("<code>", "</code>")) -> None:
        self._opening, self._closing = code_block_tags
        if not (self._opening and self._closing):
            raise ValueError(f"code block tags must not be empty: {code_block_tags!r}")
        is_markdown = any(_MARKS.match(tag) for tag in code_block_tags)
        self._prose_stops = _NO_TAGS if is_markdown else _find_also(self._opening, self._closing)
        self._code_stops = _find_also(self._closing)
        self._start()

    @property
    def in_fence(self) -> bool:
        """True when a fence is open in what was returned so far."""
        return bool(self._fence)

    def feed(self, text: str) -> list[tuple[str, bool]]:
        """Take the next piece, return what is settled: text and whether it is code, in order."""
        return self._read(text, is_last=False)

    def flush(self) -> list[tuple[str, bool]]:
        """Return what was held and close an open fence; the fencer is then as new."""
        read = self._read("", is_last=True)
        if self._fence:
            self._break_line()
            self._emit(f"{self._fence}\n")
        read += self._take_output()
        self._start()
        return read

    def _start(self) -> None:
        self._held = ""
        self._output: list[tuple[str, bool]] = []
        self._fence = ""  # marks that the open fence began with
        self._marks = ""  # marks that will end it: inside a tag those the model wrote, if any
        self._is_tagged = False  # it stands for a code tag
        self._is_line_empty = True  # nothing of this line was emitted
        self._next: Callable[[str, int, bool], int] = self._read_line_start

    def _read(self, text: str, is_last: bool) -> list[tuple[str, bool]]:
        text = self._held + text
        at = 0
        while at < len(text):
            after = self._next(text, at, is_last)
            if after == _UNDECIDED:
                break
            at = after
        self._held = text[at:]
        return self._take_output()

    def _read_line_start(self, text: str, at: int, is_last: bool) -> int:
        if self._is_tagged and not self._marks:
            return self._read_tagged_line_start(text, at, is_last)
        if self._fence:
            tag = self._closing if self._is_tagged else ""
            end = _find_closing_end(text, at, self._marks, tag, is_last)
            if end == at and self._is_tagged:
                return self._read_tagged_line_start(text, at, is_last)
        else:
            end = _find_opening_end(text, at, is_last)
        if end == _UNDECIDED:
            return _UNDECIDED
        self._next = self._read_line
        if end == at:
            return at
        if text[end - 1] == "\n":
            self._next = self._read_line_start
        if self._fence:
            self._emit(f"{self._fence}\n" if self._is_tagged else text[at:end])
            self._close()
        else:
            self._open(_marks_at(text, at))
            self._emit(text[at:end])
        return end

    def _read_tagged_line_start(self, text: str, at: int, is_last: bool) -> int:
        """Keep a line of code from ending the fence around it."""
        end = _find_closing_end(text, at, self._fence, self._closing, is_last)
        if end == _UNDECIDED:
            return _UNDECIDED
        self._next = self._read_line
        if end > at and text.find("`", at) - at <= MAX_FENCE_INDENT:
            self._emit(INDENT)
        return at

    def _read_line(self, text: str, at: int, is_last: bool) -> int:
        if self._fence:
            tags, stops = self._code_stops if self._is_tagged else _NO_TAGS
        else:
            tags, stops = self._prose_stops
        stop = stops.search(text, at)
        if stop and stop[0] != "\n":
            return self._read_tag(text[at : stop.start()], stop[0], stop.start())
        if stop:
            self._emit(text[at : stop.end()])
            self._next = self._read_line_start
            return stop.end()
        end = len(text)
        if not is_last:
            end -= max((_overlap(text, at, tag) for tag in tags), default=0)
            if end == at or (end < len(text) and self._is_skippable(text[at:end])):
                return _UNDECIDED
        self._emit(text[at:end])
        return end

    def _read_tag(self, before: str, tag: str, start: int) -> int:
        had_line = not self._is_skippable(before)
        self._emit(before if had_line else "")
        if tag == self._opening:
            self._break_line()
            self._fence = "```"
            self._is_tagged = True
            self._emit("```python\n")
            self._next = self._read_after_opening
        elif self._fence:
            self._break_line()
            self._emit(f"{self._fence}\n")
            self._close()
            self._next = self._read_after_closing
        else:
            self._next = self._read_line if had_line else self._read_after_closing
        return start + len(tag)

    def _read_after_opening(self, text: str, at: int, is_last: bool) -> int:
        space_end = _end(_SPACE, text, at)
        end = _find_opening_end(text, space_end, is_last)
        if end == _UNDECIDED:
            return _UNDECIDED
        self._next = self._read_line_start
        if end > space_end:
            self._marks = _marks_at(text, space_end)
            return end
        return _end(_REST_OF_OPENING, text, at)

    def _read_after_closing(self, text: str, at: int, is_last: bool) -> int:
        end = _end(_REST_OF_CLOSING, text, at)
        if not is_last and end == len(text) - 1 and text[end] == "\r":
            return _UNDECIDED
        if end < len(text) or text[end - 1] == "\n":
            self._next = self._read_line_start
        return end

    def _open(self, marks: str) -> None:
        self._fence = self._marks = marks

    def _close(self) -> None:
        self._fence = self._marks = ""
        self._is_tagged = False

    def _is_skippable(self, before: str) -> bool:
        """True for blanks that begin a line, which a tag's fence line does not need."""
        return self._is_line_empty and len(before) <= MAX_BLANK and not before.strip(" \t")

    def _break_line(self) -> None:
        if not self._is_line_empty:
            self._emit("\n")

    def _emit(self, text: str) -> None:
        if text:
            self._output.append((text, bool(self._fence)))
            self._is_line_empty = text.endswith("\n")

    def _take_output(self) -> list[tuple[str, bool]]:
        output, self._output = self._output, []
        return output


def _find_opening_end(text: str, at: int, is_last: bool) -> int:
    """Where the fence's first line at `at` ends, as far as it matters; `at` if it is none."""
    marks, is_settled = _read_marks(text, at, is_last)
    if not marks:
        return at if is_settled else _UNDECIDED
    limit = marks.end() + MAX_INFO
    line_end = text.find("\n", marks.end(), limit) + 1
    end = line_end or min(limit, len(text))
    if len(marks[0]) < 3 or (marks[0][0] == "`" and "`" in text[marks.end() : end]):
        return at
    return end if line_end or end == limit or is_last else _UNDECIDED


def _find_closing_end(text: str, at: int, opened: str, tag: str, is_last: bool) -> int:
    """Where the fence's last line at `at` ends, or the closing `tag` on it; `at` if it is none."""
    marks, is_settled = _read_marks(text, at, is_last)
    if not marks:
        return at if is_settled else _UNDECIDED
    if marks[0][0] != opened[0] or len(marks[0]) < len(opened):
        return at
    end = _end(_BLANK, text, marks.end())
    for ending in filter(None, ("\n", "\r\n", tag)):
        rest = text[end : end + len(ending)]
        if rest == ending:
            return end + len(ending) if ending != tag else end
        if not is_last and ending.startswith(rest):
            return _UNDECIDED
    return end if end == len(text) else at


def _read_marks(text: str, at: int, is_last: bool) -> tuple[re.Match[str] | None, bool]:
    """The marks that begin the line at `at`, None if there are none; whether that is settled."""
    start = _end(_BLANK, text, at)
    marks = _MARKS.match(text, start)
    if marks and len(marks[0]) > MAX_MARKS:
        return None, True
    if not is_last and len(text) == (marks.end() if marks else start):
        return None, False
    return marks, True


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _marks_at(text: str, at: int) -> str:
    marks = _MARKS.match(text, _end(_BLANK, text, at))
    return marks[0] if marks else ""


def _overlap(text: str, at: int, tag: str) -> int:
    """Length of the longest end of `text[at:]` that begins `tag` and is not all of it."""
    sizes = range(len(tag) - 1, 0, -1)
    return next((size for size in sizes if text.endswith(tag[:size], at)), 0)
