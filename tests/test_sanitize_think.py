"""ThinkScrubber: tags go, text stays, however the text is cut and in time linear in it."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanitize.think import MAX_BLANK, Mode, Segment, ThinkScrubber, scrub, split
from sanitize.think_tag import MAX_ATTRIBUTES, MAX_SPACES

CASES: list[dict[str, Any]] = json.loads(
    (Path(__file__).parent / "data" / "think_cases.json").read_text(encoding="utf-8")
)
MODES: tuple[Mode, ...] = ("tags", "block", "reasoning")

FRAGMENTS = (
    *("<think>", "</think>", "<think/>", "<THANK a='b'>", "< / Think >", "<think", "think>", "</"),
    *("&lt;think&gt;", "&LT;/think>", "\\u003cthink\\u003E", "\\u003c/think>", "&lt", "\\u00"),
    *("<", ">", "/", "&", ";", "\\", " ", "\t", "\n", "\r", "\r\n", "\n\n", "a", "k", "thinker"),
    *("x" * MAX_ATTRIBUTES, " " * MAX_SPACES, "\n" * MAX_BLANK, "é", "思"),
)
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=14).map("".join)
cuts = st.lists(st.integers(0, 5), max_size=60)
modes = st.sampled_from(MODES)


def read(pieces: list[str], mode: Mode, starts_open: bool = False) -> tuple[str, str]:
    """Content and reasoning of what a scrubber makes of the pieces."""
    scrubber = ThinkScrubber(mode, starts_open=starts_open)
    segments = [segment for piece in pieces for segment in scrubber.feed_segments(piece)]
    segments += scrubber.flush_segments()
    return (
        "".join(segment.text for segment in segments if not segment.is_reasoning),
        "".join(segment.text for segment in segments if segment.is_reasoning),
    )


def cut_by(text: str, sizes: list[int]) -> list[str]:
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [*pieces, text]


def ways_to_cut(text: str) -> Iterator[list[str]]:
    yield [text]
    yield list(text)
    for at in range(len(text) + 1):
        yield [text[:at], text[at:]]


LT, GT = r"(?:<|&lt;|\\u003c)", r"(?:>|&gt;|\\u003e)"
REFERENCE_TAG = re.compile(
    rf"{LT}[ \t]{{0,16}}(/[ \t]{{0,16}})?(?:think|thank)"
    rf"((?:[^\S\r\n]|/)(?:(?!{LT}|{GT})[^\r\n]){{0,256}})?{GT}",
    re.IGNORECASE,
)


def reference(text: str, mode: Mode, starts_open: bool) -> tuple[str, str]:
    """The definition, on a whole text and without regard to time."""
    opening, closing, single = "\ue000", "\ue001", "\ue002"

    def mark(tag: re.Match[str]) -> str:
        if tag[1]:
            return closing
        return single if (tag[2] or "").rstrip().endswith("/") else opening

    text = REFERENCE_TAG.sub(mark, text)
    if starts_open and mode != "tags":
        text = re.sub(rf"\A\s{{1,256}}(?={opening})", "", text)
    inside, seen, reasoning = starts_open, "", ""
    while text:
        pair = re.match(rf"{opening}\s{{0,256}}{closing}(?:\r?\n)*", text)
        if pair and not inside:
            text = text[pair.end() :]
            continue
        character, text = text[0], text[1:]
        if character == opening:
            inside = True
        elif character == closing:
            inside = False
        elif character == single:
            pass
        elif inside and mode != "tags":
            reasoning += character
        else:
            seen += character
    return seen, reasoning if mode == "reasoning" else ""


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_a_recorded_case_comes_out_the_same_at_every_cut(case: dict[str, Any]) -> None:
    text = "".join(case["chunks"])
    for pieces in (case["chunks"], *ways_to_cut(text)):
        content, reasoning = read(pieces, case["mode"], case["starts_open"])
        assert content == case["content"]
        assert case["reasoning"] is None or reasoning == case["reasoning"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: str(case["id"]))
def test_the_modes_agree_on_a_recorded_case(case: dict[str, Any]) -> None:
    text = "".join(case["chunks"])
    content, _ = read([text], "reasoning", case["starts_open"])
    assert read([text], "block", case["starts_open"]) == (content, "")
    kept, reasoning = read([text], "tags", case["starts_open"])
    assert not REFERENCE_TAG.search(kept)
    assert reasoning == ""


@settings(deadline=None)
@given(texts, modes, st.booleans())
def test_what_comes_out_is_what_the_definition_says(
    text: str, mode: Mode, starts_open: bool
) -> None:
    assert read([text], mode, starts_open) == reference(text, mode, starts_open)


@settings(deadline=None)
@given(texts, cuts, modes, st.booleans())
def test_no_cut_changes_what_comes_out(
    text: str, sizes: list[int], mode: Mode, starts_open: bool
) -> None:
    whole = read([text], mode, starts_open)
    assert read(cut_by(text, sizes), mode, starts_open) == whole
    assert read(list(text), mode, starts_open) == whole


@settings(deadline=None)
@given(texts, cuts, modes)
def test_no_more_is_held_than_an_unfinished_tag_and_blanks(
    text: str, sizes: list[int], mode: Mode
) -> None:
    scrubber = ThinkScrubber(mode)
    bound = MAX_BLANK + 2 * MAX_SPACES + MAX_ATTRIBUTES + len(r"\u003c/think \u003e")
    for piece in cut_by(text, sizes):
        scrubber.feed(piece)
        assert len(scrubber._held) + len(scrubber._blank) <= bound


@settings(deadline=None)
@given(texts, cuts, modes)
def test_an_idle_scrubber_would_return_any_text_without_openers(
    text: str, sizes: list[int], mode: Mode
) -> None:
    scrubber = ThinkScrubber(mode)
    for piece in cut_by(text, sizes):
        scrubber.feed(piece)
    if scrubber.idle:
        assert scrubber.feed("plain\n\n text > ;") == "plain\n\n text > ;"
        assert scrubber.idle


@pytest.mark.parametrize(
    "tag",
    [
        *("<think>", "</think>", "<THANK>", "<  think>", "</ think>", "< / think >", "<think/>"),
        *("<think />", "</think/>", '<think a="b" c>', "<think\ta>", "&lt;think&gt;", "&LT;/think&GT;"),
        *(r"\u003cthink\u003e", r"\u003C/think\u003E", "<think&gt;", r"&lt;think\u003e"),
        *("<think " + "a" * MAX_ATTRIBUTES + ">", "<think a&b\\c;&lt >", "<" + " " * 16 + "think>"),
    ],
)  # fmt: skip
def test_a_tag_is_removed(tag: str) -> None:
    for pieces in ways_to_cut(f"a{tag}b"):
        assert read(pieces, "tags") == ("ab", "")


@pytest.mark.parametrize(
    "text",
    [
        *("a < think", "<thinker>", "<think-ing>", "x<y", "<thin>", "</random>", "<think", "< <"),
        *("<think\n>", "<think a\r>", "<\nthink>", "<//think>", "&ltthink>", "&amp;lt;think>"),
        *("<" + " " * 17 + "think>", "<think " + "a" * (MAX_ATTRIBUTES + 1) + ">", "\\u003bthink>"),
        *("<\u0074hin\u212a>", "think>", "&lt;&gt;", "\\u003c", "<thinkthink>", "U003cthink>"),
    ],
)  # fmt: skip
def test_what_is_no_tag_passes_unchanged(text: str) -> None:
    for mode in MODES:
        for pieces in ways_to_cut(text):
            assert read(pieces, mode) == (text, "")


@pytest.mark.parametrize(
    ("start", "decider"),
    [("<", "y"), ("a < think", "e"), ("<think", "r"), ("</thin", ">"), ("&l", "a"), ("\\u00", "4")],
)
def test_text_is_released_by_the_character_that_decides(start: str, decider: str) -> None:
    scrubber = ThinkScrubber()
    seen = scrubber.feed(start)
    assert not scrubber.idle
    assert seen + scrubber.feed(decider) == start + decider
    assert scrubber.idle


def test_attributes_are_released_once_they_are_too_many() -> None:
    scrubber = ThinkScrubber()
    text = "<think " + "a" * MAX_ATTRIBUTES
    assert scrubber.feed(text) == ""
    assert scrubber.feed("&g") == ""
    assert scrubber.feed("x") == text + "&gx"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<think>\n\n</think>\n\nHi", "Hi"),
        ("a\n<think> \t</think>\r\n\r\n\nHi", "a\nHi"),
        ("<think></think> Hi", " Hi"),
        ("<think></think>\n Hi\n", " Hi\n"),
        ("<think></think>\r\r\nHi", "\r\r\nHi"),
        ("<think></think>\n<think>\n</think>\nHi", "Hi"),
        ("&lt;think&gt;\n\n\\u003c/think\\u003e\n\nHi", "Hi"),
        ("<think>" + "\n" * MAX_BLANK + "</think>\n\nHi", "Hi"),
        ("<think/>\n\nHi", "\n\nHi"),
        ("</think>\n\nHi", "\n\nHi"),
    ],
)
def test_an_empty_pair_goes_with_its_blank_lines(mode: Mode, text: str, content: str) -> None:
    for pieces in ways_to_cut(text):
        assert read(pieces, mode) == (content, "")


def test_a_self_closing_tag_opens_nothing() -> None:
    assert split("a<think/>b<think x/>c") == ("abc", "")


def test_a_block_ends_at_the_first_closing_tag() -> None:
    assert split("<think>a<think>b</think>c</think>d") == ("cd", "ab")


def test_an_unclosed_block_is_reasoning_to_the_end() -> None:
    assert split("a<think>b") == ("a", "b")
    assert scrub("a<think>b", "block") == "a"
    assert scrub("a<think>b") == "ab"


def test_text_that_starts_open_is_reasoning_until_the_closing_tag() -> None:
    assert split("a</think>b", starts_open=True) == ("b", "a")
    assert split(" \n<think>a</think>b", starts_open=True) == ("b", "a")
    assert scrub(" \n<think>a</think>b", starts_open=True) == " \nab"
    assert not ThinkScrubber("block", starts_open=True).idle


def test_segments_come_in_order_and_merged() -> None:
    scrubber = ThinkScrubber("reasoning")
    assert scrubber.feed_segments("a<think>b<think>c</think>d</think>e<thi") == [
        Segment("a", False),
        Segment("bc", True),
        Segment("de", False),
    ]
    assert scrubber.flush_segments() == [Segment("<thi", False)]
    assert scrubber.feed_segments("") == []


@pytest.mark.parametrize("starts_open", [False, True])
@pytest.mark.parametrize("rest", ["<thi", "<think>\n", "<think></think>\r", "<think>x"])
def test_after_a_flush_the_scrubber_is_as_new(starts_open: bool, rest: str) -> None:
    scrubber = ThinkScrubber("reasoning", starts_open=starts_open)
    scrubber.feed(rest)
    scrubber.flush()
    new = ThinkScrubber("reasoning", starts_open=starts_open)
    assert scrubber.idle == new.idle
    assert scrubber.feed_segments("a</think>b") == new.feed_segments("a</think>b")


def test_other_tag_names_are_found_and_the_default_ones_are_not() -> None:
    names = ("思考", "think-more", "r")
    assert scrub("<思考>a</Think-More>b<R>c<think>", tag_names=names) == "abc<think>"
    assert scrub("<thinking><think>a", tag_names=("think", "thinking")) == "a"


@pytest.mark.parametrize("names", [(), ("",), ("a b",), ("a>",)])
def test_unusable_tag_names_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="tag names must be words"):
        ThinkScrubber(tag_names=names)


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode must be one of"):
        ThinkScrubber("blocks")  # type: ignore[arg-type]


def cpu_seconds(work: Callable[[], object]) -> float:
    """The best of three, since what else the machine does can only add to it."""
    times = []
    for _ in range(3):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize(
    "unit",
    [
        *("<think ", "<", "&", "\\", "&lt;think ", "<think>", "<think>\n", "<think>\n</think>\n"),
        *("<think " + "a" * MAX_ATTRIBUTES, "<think>" + "\n" * MAX_BLANK, " ", "a", "<think&g"),
    ],
)
@pytest.mark.parametrize("by_character", [False, True])
def test_time_is_linear_in_hostile_text(unit: str, by_character: bool) -> None:
    size = 8_000 if by_character else 100_000
    text = "<think" + (unit * (size // len(unit) + 1))[:size]

    def scrub_text(text: str) -> None:
        scrubber = ThinkScrubber("reasoning")
        for piece in text if by_character else [text]:
            scrubber.feed(piece)
        scrubber.flush()

    # A quadratic scrubber would take sixteen times as long.
    short = cpu_seconds(lambda: scrub_text(text))
    assert cpu_seconds(lambda: scrub_text(text * 4)) < 9 * short + 0.02


@pytest.mark.parametrize("unit", ["<think ", "<", " "])
def test_a_megabyte_of_hostile_text_is_read_at_once(unit: str) -> None:
    text = "<think" + unit * (1_000_000 // len(unit))
    assert cpu_seconds(lambda: scrub(text)) < 2
