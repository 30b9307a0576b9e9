"""LineCleaner: reasoning without console noise, live, with code in fences of its own."""

import io
import re
import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from smolagents.monitoring import AgentLogger, LogLevel

from sanitize.code_fences import MAX_BLANK, MAX_INFO, MAX_MARKS
from sanitize.line_noise import MAX_LINE, MAX_NOISE
from sanitize.reasoning_lines import LineCleaner, clean_lines

FENCE, BOX = "`" * 3, re.compile("[\u2500-\u257f]")

FRAGMENTS = (
    *("<code>", "</code>", "<co", "de>", "</", "<", ">", FENCE, "`", "~~~", "python", "py`"),
    *("\n", "\n", "\n", "\r\n", "\r", " ", "    ", "\t", "a", "ab", "abc", "1", "é", "में", "-", "="),
    *("─", "━━", "│", "│ ", " │", "╭─", "─╮", "┼", "[", "[Step ", "12", ": Duration ", " x"),
    *("<think>", "</think>", "=" * MAX_NOISE, " " * MAX_BLANK, "`" * MAX_MARKS, "." * MAX_INFO),
    *("*" * (MAX_LINE - 1), "─" * MAX_LINE),
)
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)
cuts = st.lists(st.integers(0, 6), max_size=60)


def read(pieces: list[str], tags: tuple[str, str] = ("<code>", "</code>")) -> str:
    cleaner = LineCleaner(tags)
    return "".join([cleaner.feed(piece) for piece in pieces]) + cleaner.flush()


def cut_by(text: str, sizes: list[int]) -> list[str]:
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]


def assert_cleaned(text: str, cleaned: str) -> None:
    """The text comes out so, whole, by characters and in every two pieces."""
    assert clean_lines(text) == cleaned
    assert read(list(text)) == cleaned
    for at in range(len(text)):
        assert read([text[:at], text[at:]]) == cleaned


@settings(deadline=None)
@given(texts, cuts)
def test_no_cut_changes_what_comes_out(text: str, sizes: list[int]) -> None:
    assert read(cut_by(text, sizes)) == clean_lines(text)


@settings(deadline=None, max_examples=50)
@given(texts)
def test_one_character_at_a_time_is_as_good_as_the_whole(text: str) -> None:
    assert read(list(text)) == clean_lines(text)


@settings(deadline=None)
@given(texts)
def test_fences_are_balanced_and_prose_has_no_box_drawing(text: str) -> None:
    # Fences of the model's own may be of any kind; those made here are judged.
    cleaned = clean_lines(text.replace("`", "").replace("~", ""))
    lines = cleaned.split("\n")
    marks = [line for line in lines if line.startswith(FENCE)]
    assert marks == [f"{FENCE}python", FENCE] * (len(marks) // 2)
    prose = re.sub(rf"(?ms)^{FENCE}python\n.*?^{FENCE}\n", "", cleaned)
    assert not BOX.search(prose)


@settings(deadline=None)
@given(st.lists(st.sampled_from(("abc", " ", "x = 1", "\n", "- ", "# é")), max_size=12))
def test_ordinary_text_passes_unchanged(pieces: list[str]) -> None:
    assert read(pieces) == "".join(pieces)


@settings(deadline=None)
@given(texts, cuts)
def test_after_a_flush_the_cleaner_is_as_new(text: str, sizes: list[int]) -> None:
    cleaner = LineCleaner()
    for piece in cut_by(text, sizes):
        cleaner.feed(piece)
    cleaner.flush()
    assert not cleaner.in_fence
    again = "".join([cleaner.feed(piece) for piece in cut_by(text, sizes)]) + cleaner.flush()
    assert again == clean_lines(text)


@pytest.mark.parametrize(
    ("pieces", "sent"),
    [
        (["The", " answer", " is", "\n"], ["The", " answer", " is", "\n"]),
        (["I", " am", " well"], ["", "", "I am well"]),
        (["[Step", " 1", " of", " 2]"], ["", "", "[Step 1 of", " 2]"]),
        (["a <", "think"], ["", ""]),
        (["abc <", "b"], ["abc ", "<b"]),
        (["abc ─", " ", "d"], ["abc ", "", "- d"]),
        (["abc", " ─\n"], ["abc", " \n"]),
        (["<co", "de>", "\nx", " = 1"], ["", f"{FENCE}python\n", "x", " = 1"]),
        (["── a word", "\n"], ["", "a word\n"]),
        ([FENCE, "py", "\n", "  ", "x"], ["", "", f"{FENCE}py\n", "", "  x"]),
        (["    indented", " text"], ["    indented", " text"]),
    ],
)
def test_text_goes_out_as_soon_as_it_is_settled(pieces: list[str], sent: list[str]) -> None:
    cleaner = LineCleaner()
    assert [cleaner.feed(piece) for piece in pieces] == sent


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a\n━━━━━━━ Step 1 ━━━━━━━\nb", "a\nb"),
        (" ─ Executing parsed code: ──── \n  x = 1 \n ─────── \n", "  x = 1 \n"),
        ("[Step 1: Duration 0.02 seconds| Input tokens: 1,000 | Output tokens: 5]\nb\n", "b\n"),
        ("  [Step 12: Duration 3.00 seconds]\r\nb", "b"),
        ("╭── New run ──╮\n│             │\n│ the task    │\n╰─ a model ───╯\n", "the task\n"),
        ("│     indented │\n", "    indented\n"),
        ("┃ [Step 1: Duration 0.02 seconds] ┃\n", ""),
        ("Output of the model: ───────\nb", "Output of the model: \nb"),
        ("┏━━━┳━━━┓\n┃ a ┃ b ┃\n┡━━━╇━━━┩\n│ 1 │ 2 │\n└───┴───┘\n", "a | b\n1 | 2\n"),
        ("├── src\n│   └── a.py\n", "src\na.py\n"),
        ("a ── b\n", "a - b\n"),
        ("│ a\r\nb", "a\nb"),
        ("───", ""),
        ("  │  ", ""),
    ],
)
def test_what_consoles_draw_is_taken_off(text: str, cleaned: str) -> None:
    assert_cleaned(text, cleaned)


@pytest.mark.parametrize(
    "text",
    [
        "| a | b |\n|---|---|\n| 1 | 2 |\n",
        "# Title\n\n---\n\n- a\n  - b\n\n> c\n\n1. d\n",
        "[Step 1] is done\n[link](url)\n[Step 1: Dura",
        "x < y and <codec> and a `<b>`\n",
        f"use {FENCE}x{FENCE} inline\n{FENCE}x{FENCE} first\n``\n",
        "\n\n   \nab\n",
        "",
    ],
)
def test_readable_markdown_stays(text: str) -> None:
    assert_cleaned(text, text)


def test_what_smolagents_logs_loses_its_drawing() -> None:
    file = io.StringIO()
    logger = AgentLogger(LogLevel.DEBUG, Console(file=file, width=100))
    logger.log_task("What is six times seven?", "a model", title="my run")
    logger.log_rule("Step 1")
    logger.log_code("Executing parsed code:", "print(6 * 7)")
    logger.log_markdown("So **42**.", title="Output message of the LLM:")
    lines = [line.strip() for line in clean_lines(file.getvalue()).split("\n")]
    kept = ["What is six times seven?", "print(6 * 7)", "Output message of the LLM:", "So **42**."]
    assert [line for line in lines if line] == kept


def test_a_long_line_without_a_word_goes() -> None:
    noise = "=" * (MAX_NOISE + 1)
    assert_cleaned(f"{noise}\nab\n", "ab\n")
    assert clean_lines("=" * MAX_NOISE) == "=" * MAX_NOISE
    assert clean_lines("a1 - " * 100) == ""
    assert clean_lines(f"│ {noise} │\n{' ' * 300}\n") == ""


@pytest.mark.parametrize("word", ["abc", "a1b", "123", "思考中", "में"])
def test_a_long_line_with_a_word_stays(word: str) -> None:
    line = "=" * 1_000 + word
    assert clean_lines(line) == line
    assert read(list(line)) == line


def test_a_line_is_judged_by_its_first_characters() -> None:
    cleaner = LineCleaner()
    assert cleaner.feed("=" * (MAX_LINE + 1)) == ""
    assert cleaner.feed("abc" * 10) == ""
    assert cleaner.feed("\nabc") == "abc"


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Thought: so\n<code>\nx = 1\n</code>\nDone", "Thought: so\n{}python\nx = 1\n{}\nDone"),
        ("so <code>x = 1</code> then", "so \n{}python\nx = 1\n{}\nthen"),
        ("  <code>\n    x = 1\n  </code>  \nDone", "{}python\n    x = 1\n{}\nDone"),
        ("a\n\n<code>\r\nx\r\n</code>\r\nb", "a\n\n{}python\nx\r\n{}\nb"),
        ("<code></code>", "{}python\n{}\n"),
        ("<code>\n{}python\nx\n{}\n</code>\nDone", "{}python\nx\n{}\nDone"),
        ("<code>{}py\nx{}\n\n</code>", "{}python\nx{}\n\n{}\n"),
        ("<code>\n\n  {}python\nx\n{}</code>Done", "{}python\nx\n{}\nDone"),
        ("<code>\n~~~\nx\n~~~\n</code>", "{}python\nx\n{}\n"),
        ("<code>\nx\n{}\nDone </code>so", "{}python\nx\n    {}\nDone \n{}\nso"),
        ("<code>\nx\n  {}`\n{}py\n    {}\n</code>", "{}python\nx\n      {}`\n{}py\n    {}\n{}\n"),
        ("<code>\n~~~\nx\n{}\n~~~\n</code>", "{}python\nx\n    {}\n{}\n"),
        ("<code>\nx\n{}", "{}python\nx\n    {}\n{}\n"),
        ("a </code> b\n</code>\nc", "a  b\nc"),
        ("<code>\n<code>x\n", "{}python\n<code>x\n{}\n"),
        (
            "<code>\n═══ │\n[Step 1: Duration 1\n</code>",
            "{}python\n═══ │\n[Step 1: Duration 1\n{}\n",
        ),
        ("{}python\n<code>x</code>\n│\n{}\n│ a", "{}python\n<code>x</code>\n│\n{}\na"),
        ("~~~\n{}\n─\n~~~~\n─", "~~~\n{}\n─\n~~~~\n"),
        ("{}`\n{}\n─\n{}`  ", "{}`\n{}\n─\n{}`  "),
        ("  {}py\n  x\n  {}\n─", "  {}py\n  x\n  {}\n"),
        ("<think>\n\n</think>\n\n<code>a<think>b</code>", "{}python\nab\n{}\n"),
    ],
)
def test_code_stands_in_one_fence(text: str, cleaned: str) -> None:
    assert_cleaned(text.replace("{}", FENCE), cleaned.replace("{}", FENCE))


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("<code>\nx = 1", "{}python\nx = 1\n{}\n"),
        ("<code>\nx = 1\n", "{}python\nx = 1\n{}\n"),
        ("<code>\nx </cod", "{}python\nx </cod\n{}\n"),
        ("<code>", "{}python\n{}\n"),
        ("{}py\nx\n{}", "{}py\nx\n{}"),
        ("~~~~\nx\n~~~", "~~~~\nx\n~~~\n~~~~\n"),
        ("{}python", "{}python\n{}\n"),
        ("a <cod", "a <cod"),
    ],
)
def test_a_flush_closes_an_open_fence_on_a_line_of_its_own(text: str, cleaned: str) -> None:
    assert_cleaned(text.replace("{}", FENCE), cleaned.replace("{}", FENCE))


def test_in_fence_tells_of_what_was_returned() -> None:
    cleaner = LineCleaner()
    told = []
    for piece in ("abc <co", "de>", "x", "</code", ">", "\n"):
        cleaner.feed(piece)
        told.append(cleaner.in_fence)
    assert told == [False, True, True, True, False, False]


def test_tags_that_are_fences_need_no_turning() -> None:
    text = f"abc <code>\n{FENCE}python\nx\n{FENCE}\n"
    assert clean_lines(text, (f"{FENCE}python", FENCE)) == text


def test_other_code_tags_are_turned() -> None:
    cleaned = f"{FENCE}python\nx\n{FENCE}\n<code>"
    assert clean_lines("[[py]]x[[end]]<code>", ("[[py]]", "[[end]]")) == cleaned


def test_empty_code_tags_are_refused() -> None:
    with pytest.raises(ValueError, match="must not be empty"):
        LineCleaner(("", "</code>"))


def cpu_seconds(work: Callable[[], object]) -> float:
    """The best of two, since what else the machine does can only add to it."""
    times = []
    for _ in range(2):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize(
    "unit",
    [
        *("─", "abc ─ ", "│ a", "=", " ", "`", "<code>", "</code>", "<code></code>", "<code", "\n"),
        *(f"{FENCE}\n", "[Step 1", "─\n", "abc\n", "<code>\n", "~~~", "<code>```\n"),
    ],
)
@pytest.mark.parametrize("by_character", [False, True])
def test_time_is_linear_in_hostile_text(unit: str, by_character: bool) -> None:
    size = 3_000 if by_character else 12_000
    text = (unit * (size // len(unit) + 1))[:size]

    def clean(text: str) -> None:
        read(list(text) if by_character else [text])

    # A quadratic cleaner would take sixteen times as long.
    short = cpu_seconds(lambda: clean(text))
    assert cpu_seconds(lambda: clean(text * 4)) < 9 * short + 0.02
