"""Prose lines with console noise in, without it out, as they come.

Frames are taken off; lines of nothing but box drawing go, and so do titled rules (box drawing
at both ends), smolagents' step statistics, and lines over MAX_NOISE characters with no run of
three letters or digits. Box drawing inside a line becomes `|` or `-`. A line goes out as soon
as nothing that may follow can take it away, an ordinary one with its first word; until then at
most MAX_LINE characters of it are held.
"""

import re
from enum import Enum

# A line longer than this without a word is noise, as the product says.
MAX_NOISE = 240

# A line is judged by this many characters at most. Wider than any console.
MAX_LINE = 4096

# What smolagents' monitor prints after a step, every number in it made a 0, and the length by
# which a line must have shown that it is that.
_STATISTICS = "[Step 0: Duration "
_STATISTICS_LENGTH = 40

_BLANKS = " \t\r"
_BOX = "".join(map(chr, range(0x2500, 0x2580)))
_VERTICALS = frozenset("│┃┆┇┊┋╎╏║╵╷╹╻╽╿")
_FRAME_SIDE = _VERTICALS | frozenset(_BLANKS)
_PLAIN = str.maketrans("│─", "|-")

_BOX_CHARACTER = re.compile(f"[{_BOX}]")
_BOX_RUN = re.compile(f"[{_BOX}][{_BOX}{_BLANKS}]*+")
_NUMBER = re.compile(r"\d+")
# Vowel signs of Indic and South-East Asian scripts are no letters to `re` but stand in words.
_WORD = re.compile(r"(?:[^\W_]|[\u0300-\u036f\u0900-\u109f\u1780-\u17ff]){3}")
# Whole lines, of ASCII, that go out as they are: a word is soon there, and no blank, frame or statistics before it.
_PLAIN_LINES = re.compile(r"(?:(?![ \[])(?>[ -~]{0,99}?[A-Za-z0-9]{3})[ -~\t]*+\n)+")


class _Line(Enum):
    """What is known of the current line."""

    INDENT = "blanks and frame so far"
    HEAD = "text that may yet be dropped"
    FRAMED = "in a frame, which is taken off when the line is whole"
    LIVE = "goes out"
    DROPPED = "does not"


class LineDenoiser:
    """Takes console noise off lines that come in pieces, as `feed` and `flush` of text."""

    def __init__(self) -> None:
        self._start_line()

    def feed(self, text: str) -> str:
        """Take the next piece, return the text that is settled by now."""
        cleaned = []
        at_line_start = self._state is _Line.INDENT and not self._indent_size
        if at_line_start and (plain := _PLAIN_LINES.match(text)) is not None:
            if plain.end() == len(text):
                return text
            cleaned.append(plain[0])
            text = text[plain.end() :]
        first, *others = text.split("\n")
        cleaned.append(self._extend(first))
        for other in others:
            cleaned += (self._end_line("\n"), self._extend(other))
        return "".join(cleaned)

    def flush(self) -> str:
        """Return what was held of the last line; the denoiser is then as new."""
        return self._end_line("")

    def _start_line(self) -> None:
        self._state = _Line.INDENT
        self._held = ""
        self._run = ""  # box drawing that text may follow, boiled down
        self._indent_size = 0
        self._is_framed = False
        self._is_ruled = False  # its frame has more than vertical strokes
        self._has_word = False

    def _extend(self, piece: str) -> str:
        if self._state is _Line.LIVE:
            return self._boil_down(piece)
        if self._state is _Line.INDENT:
            piece = self._read_indent(piece)
        if not piece or self._state is _Line.DROPPED:
            return ""
        if self._state is _Line.FRAMED:
            self._held += piece
            if len(self._held) <= MAX_LINE:
                return ""
            piece, self._held = self._held, ""
            self._state = _Line.HEAD
        return self._read_head(self._boil_down(piece))

    def _read_indent(self, piece: str) -> str:
        """Take blanks and frame off the line's beginning, return what is left."""
        text = piece.lstrip(_BLANKS + _BOX)
        indent = piece[: len(piece) - len(text)]
        self._indent_size += len(indent)
        if self._indent_size > MAX_LINE:
            self._state = _Line.DROPPED
            return ""
        frame = indent.rstrip(_BLANKS)
        if frame:
            self._is_framed = True
            self._is_ruled |= not _FRAME_SIDE.issuperset(frame)
            self._held = indent[len(frame) :]
        else:
            self._held += indent
        if text and self._is_framed:
            self._held = self._held.removeprefix(" ")
            self._state = _Line.FRAMED
        elif text:
            self._state = _Line.HEAD
        return text

    def _read_head(self, text: str) -> str:
        searched = max(0, len(self._held) - 2)
        self._held += text
        self._has_word = self._has_word or bool(_WORD.search(self._held, searched, MAX_LINE))
        if not self._has_word:
            self._state = _Line.DROPPED if len(self._held) > MAX_LINE else _Line.HEAD
            return ""
        start = self._held.lstrip(_BLANKS)[:_STATISTICS_LENGTH]
        if _is_statistics(start):
            self._state = _Line.DROPPED
            return ""
        if len(start) < _STATISTICS_LENGTH and _STATISTICS.startswith(_NUMBER.sub("0", start)):
            return ""
        self._state = _Line.LIVE
        return self._held

    def _end_line(self, newline: str) -> str:
        line = self._judge_line()
        self._start_line()
        return "" if line is None else line + newline

    def _judge_line(self) -> str | None:
        """What is yet to go out of the line now whole, None if it is dropped."""
        if self._state is _Line.LIVE:
            return ""
        is_empty_frame = self._is_framed and self._state is _Line.INDENT
        if is_empty_frame or self._state is _Line.DROPPED:
            return None
        line = self._held
        if self._state is _Line.FRAMED:
            line = line.rstrip(_BLANKS + _BOX)
            if self._is_ruled and _BOX_CHARACTER.search(self._held, len(line)):
                return None
            line = self._boil_down(line)
            if _is_statistics(line.lstrip(_BLANKS)[:_STATISTICS_LENGTH]):
                return None
        return line if len(line) <= MAX_NOISE or _WORD.search(line) else None

    def _boil_down(self, piece: str) -> str:
        """Make box drawing plain, and hold it while the line may end with it."""
        if not self._run and not _BOX_CHARACTER.search(piece):
            return piece
        text = self._run + piece
        edge = _BOX_CHARACTER.search(text, len(text.rstrip(_BLANKS + _BOX)))
        end = edge.start() if edge else len(text)
        self._run = _boiled(text[end:])
        return _BOX_RUN.sub(lambda run: _boiled(run[0]).translate(_PLAIN), text[:end])


def _boiled(run: str) -> str:
    """A run of box drawing as one stroke, and a blank if it ends in one."""
    if not run:
        return ""
    stroke = "─" if _VERTICALS.isdisjoint(run) else "│"
    return stroke + (" " if run[-1] in _BLANKS else "")


def _is_statistics(start: str) -> bool:
    return _NUMBER.sub("0", start).startswith(_STATISTICS)
