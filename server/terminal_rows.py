"""Streamed Markdown → rows that a terminal may print, as they come.

In: pieces of text, cut anywhere. Out: whole lines, each known as prose, as code of a language or as what a run
printed (smolgate's longer fence of `text`); `partial` is the line that is still being written. Nothing that comes
out, nor `printable`, holds a character that a terminal would obey.
"""

import re
from typing import Literal, NamedTuple

Kind = Literal["prose", "code", "output", "open", "close"]

# A longer line is cut, so that time stays linear and no screen is filled by one that never ends.
MAX_ROW_CHARACTERS = 4096
OUTPUT_MARKS = 4

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^`]*$")
# C0 but for tab and line feed, DEL, C1, and what turns the direction of writing (CVE-2021-42574).
_OBEYED = dict.fromkeys(
    [
        *(code for code in range(0x20) if chr(code) not in "\t\n"),
        *range(0x7F, 0xA0),
        *range(0x202A, 0x202F),
        *range(0x2066, 0x206A),
        *range(0xD800, 0xE000),
    ]
)


def printable(text: str) -> str:
    """The text without what a terminal obeys; line feeds and tabs stay."""
    return text if text.isascii() and text.isprintable() else text.translate(_OBEYED)


class Row(NamedTuple):
    """One line without its end. `language` is the fence's; a fence itself is `open` or `close`."""

    kind: Kind
    text: str
    language: str = ""


class RowReader:
    """Feed it text, take rows; `flush` gives the last one, and what `closes` a fence left open."""

    def __init__(self) -> None:
        self._held = ""
        self._fence = ""
        self._kind: Kind = "prose"
        self._language = ""
        self._in_line = False  # the line's beginning was cut off already

    @property
    def partial(self) -> Row:
        """What is there of a line that has not ended."""
        return Row(self._kind, self._held, self._language)

    def feed(self, text: str) -> list[Row]:
        *lines, held = (self._held + printable(text)).split("\n")
        rows = [row for line in lines for row in self._rows_of(line)]
        while len(held) > MAX_ROW_CHARACTERS:
            rows.append(Row(self._kind, held[:MAX_ROW_CHARACTERS], self._language))
            held = held[MAX_ROW_CHARACTERS:]
            self._in_line = True
        self._held = held
        return rows

    def flush(self) -> list[Row]:
        rows = self._rows_of(self._held) if self._held else []
        if self._fence:
            rows.append(self._close(""))
        self._held = ""
        return rows

    def _rows_of(self, line: str) -> list[Row]:
        begins, self._in_line = not self._in_line, False
        found = _FENCE.match(line) if begins and len(line) <= MAX_ROW_CHARACTERS else None
        if found is not None and not self._fence:
            return [self._open(found, line)]
        if found is not None and found[1].startswith(self._fence) and not found[2]:
            return [self._close(line)]
        pieces = [
            line[at : at + MAX_ROW_CHARACTERS]
            for at in range(0, len(line) or 1, MAX_ROW_CHARACTERS)
        ]
        return [Row(self._kind, piece, self._language) for piece in pieces]

    def _open(self, found: re.Match[str], line: str) -> Row:
        self._fence, self._language = found[1], found[2].lower()
        is_output = len(self._fence) >= OUTPUT_MARKS and self._language == "text"
        self._kind = "output" if is_output else "code"
        return Row("open", line, "" if is_output else self._language or "text")

    def _close(self, line: str) -> Row:
        kind = self._kind
        self._fence, self._kind, self._language = "", "prose", ""
        return Row("close", line, "" if kind == "output" else "text")
