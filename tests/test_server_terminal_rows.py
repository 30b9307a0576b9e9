"""Streamed Markdown as rows: the same however it was cut, and never a character that a terminal obeys."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from server.terminal_rows import MAX_ROW_CHARACTERS, Row, RowReader, printable

TEXT = """\
I think.
```python
print("```")
```
````text
printed ``` here
```
````
**Step 1** (0.1 s)
"""
ROWS = [
    Row("prose", "I think."),
    Row("open", "```python", "python"),
    Row("code", 'print("```")', "python"),
    Row("close", "```", "text"),
    Row("open", "````text", ""),
    Row("output", "printed ``` here", "text"),
    Row("output", "```", "text"),
    Row("close", "````", ""),
    Row("prose", "**Step 1** (0.1 s)"),
]


def rows_of(*pieces: str) -> list[Row]:
    reader = RowReader()
    rows = [row for piece in pieces for row in reader.feed(piece)]
    return rows + reader.flush()


def test_prose_code_and_output_are_told_apart_wherever_the_text_is_cut() -> None:
    assert rows_of(TEXT) == ROWS
    assert rows_of(*TEXT) == ROWS
    for at in range(len(TEXT)):
        assert rows_of(TEXT[:at], TEXT[at:]) == ROWS


def test_a_fence_that_is_left_open_is_closed_at_the_end() -> None:
    assert rows_of("~~~\ncode") == [
        Row("open", "~~~", "text"),
        Row("code", "code"),
        Row("close", "", "text"),
    ]


@given(st.text(max_size=30), st.text(max_size=30))
def test_no_row_holds_what_a_terminal_obeys(one: str, two: str) -> None:
    reader = RowReader()
    rows = reader.feed(one + "\x1b[2J\x9b" + two)
    shown = "".join(row.text for row in [*rows, reader.partial, *reader.flush()])
    assert not [c for c in shown if unicodedata.category(c) in ("Cc", "Cs") and c != "\t"]
    assert "\x1b" not in printable(one)


def test_a_line_without_an_end_is_cut_and_loses_nothing() -> None:
    reader = RowReader()
    rows = [row for _ in range(5000) for row in reader.feed("word ")]
    assert len(reader.partial.text) <= MAX_ROW_CHARACTERS
    rows += reader.flush()
    assert "".join(row.text for row in rows) == "word " * 5000
    assert rows_of("x" * 10_000) == rows_of("x" * 5000, "x" * 5000)
