"""A scrubbed stream is the one-shot scrub of the whole, however it is made, framed and cut."""

import asyncio
import json
import random
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sanitize.deltas import DeltaScrubber
from sanitize.think import Mode, scrub, split
from streaming.chunk_framing import frame_of, payload_of
from streaming.event_stages import DirectEvents, VerbatimEvents
from streaming.failures import UpstreamFailed
from streaming.scrubbed_events import ScrubbedEvents
from streaming.sse_parser import SseParser
from streaming.stream_end import MANY_SMALL

WORDS = (
    *("<think>", "</think>", "<", "think", ">", " a ", "\n", "é", "&lt;", "&gt;", "<thinker>", "b"),
    *("\\u003c", "x < y", "<THINK >", "\u2028", "\\", '"', "</", "thank", "/>"),
)
TEXT = st.lists(st.sampled_from(WORDS), max_size=12).map("".join)


def event(value: Any, *, escaped: bool) -> bytes:
    data = json.dumps(value, ensure_ascii=escaped)
    return f"data: {data}\n\n".encode()


def stream_of(texts: list[str], rng: random.Random) -> bytes:
    """All choices' texts in deltas, interleaved; then finishes and the end."""
    rest = dict(enumerate(texts))
    out = b""
    while rest:
        index = rng.choice(list(rest))
        size = rng.randint(1, 5)
        delta = {"content": rest[index][:size]}
        rest[index] = rest[index][size:]
        choice = {"index": index, "delta": delta, "finish_reason": None}
        out += event({"id": "u", "choices": [choice]}, escaped=rng.random() < 0.5)
        if not rest[index]:
            del rest[index]
            finish = {"index": index, "delta": {}, "finish_reason": "stop"}
            out += event({"id": "u", "choices": [finish]}, escaped=True)
    return out + b"data: [DONE]\n\n"


def texts_of(raw: bytes, count: int, field: str = "content") -> list[str]:
    texts = [""] * count
    parser = SseParser()
    for one in parser.feed(raw) + parser.flush():
        if one.data and one.data != b"[DONE]":
            for choice in json.loads(one.data)["choices"]:
                texts[choice["index"]] += choice["delta"].get(field) or ""
    return texts


def pieces_of(data: bytes, rng: random.Random) -> list[bytes]:
    pieces = []
    while data:
        size = rng.choice([1, 2, 7, 50, 400, len(data)])
        pieces.append(data[:size])
        data = data[size:]
    return pieces


def framed(data: bytes, rng: random.Random, *, by_event: bool) -> bytes:
    if by_event:
        parts = [part + b"\n\n" for part in data.split(b"\n\n")[:-1]]
    else:
        parts = pieces_of(data, rng)
    return b"".join(map(frame_of, parts)) + b"0\r\n\r\n"


@settings(max_examples=1000)
@given(st.sampled_from([1, 2, 8]), st.data(), st.randoms(use_true_random=False))
def test_a_scrubbed_stream_is_the_one_shot_scrub(
    count: int, data: st.DataObject, rng: random.Random
) -> None:
    texts = data.draw(st.lists(TEXT, min_size=count, max_size=count))
    expected = [scrub(text) for text in texts]
    raw = stream_of(texts, rng)

    stage = ScrubbedEvents(DeltaScrubber(), finishes=count)
    out = b"".join(stage.feed(piece) for piece in pieces_of(raw, rng)) + stage.flush()
    assert texts_of(out, count) == expected

    direct = DirectEvents(ScrubbedEvents(DeltaScrubber(), finishes=count))
    socket_bytes = framed(raw, rng, by_event=rng.random() < 0.5)
    frames = b"".join(direct.feed(piece) for piece in pieces_of(socket_bytes, rng))
    assert direct.ended
    assert texts_of(payload_of(frames + direct.flush()), count) == expected


@settings(max_examples=300)
@given(st.sampled_from(["block", "reasoning"]), TEXT, st.booleans(), st.data())
def test_thoughts_are_told_apart_in_a_stream_as_in_its_text(
    mode: Mode, text: str, starts_open: bool, data: st.DataObject
) -> None:
    rng = data.draw(st.randoms(use_true_random=False))
    content, thoughts = split(text, starts_open=starts_open)
    scrubber = DeltaScrubber(mode, starts_open=starts_open)
    direct = DirectEvents(ScrubbedEvents(scrubber, finishes=1))
    framed_bytes = framed(stream_of([text], rng), rng, by_event=rng.random() < 0.8)
    frames = b"".join(direct.feed(piece) for piece in pieces_of(framed_bytes, rng))
    out = payload_of(frames + direct.flush())
    assert texts_of(out, 1) == [content]
    wanted = [thoughts if mode == "reasoning" else ""]
    assert texts_of(out, 1, "reasoning_content") == texts_of(out, 1, "reasoning") == wanted


@settings(max_examples=200)
@given(st.lists(TEXT, min_size=1, max_size=2), st.randoms(use_true_random=False))
def test_a_verbatim_stream_is_the_very_bytes(texts: list[str], rng: random.Random) -> None:
    raw = stream_of(texts, rng)
    stage = VerbatimEvents(finishes=len(texts))
    assert b"".join(stage.feed(p) for p in pieces_of(raw, rng)) + stage.flush() == raw
    direct = DirectEvents(VerbatimEvents(finishes=len(texts)))
    socket_bytes = framed(raw, rng, by_event=rng.random() < 0.5)
    frames = [direct.feed(piece) for piece in pieces_of(socket_bytes, rng)]
    assert payload_of(b"".join(frames) + direct.flush()) == raw
    for one in frames:  # a heartbeat may follow each of them
        assert not one or payload_of(one).endswith(b"\n\n")


@pytest.mark.parametrize("cut_off", [1, 15, 40])
@pytest.mark.parametrize("is_direct", [True, False])
def test_a_stream_that_is_not_complete_is_a_failure(cut_off: int, is_direct: bool) -> None:
    whole = stream_of(["hello"], random.Random(1))
    raw = whole[: whole.index(b'"finish_reason": "stop"') - cut_off]
    for stage in (VerbatimEvents(1), ScrubbedEvents(DeltaScrubber(), 1)):
        if is_direct:
            direct = DirectEvents(stage)
            direct.feed(frame_of(raw) + b"0\r\n\r\n")
            with pytest.raises(UpstreamFailed):
                direct.flush()
        else:
            stage.feed(raw)
            with pytest.raises(UpstreamFailed):
                stage.flush()


def said(index: int, content: str, finish: str | None = None) -> bytes:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": finish}
    return event({"id": "u", "choices": [choice]}, escaped=True)


@pytest.mark.parametrize("is_direct", [True, False])
@pytest.mark.parametrize(
    ("options", "events", "texts"),
    [
        # A choice that begins after another's block was closed.
        (
            {"mode": "block", "starts_open": True},
            [said(0, "t</think>a"), said(1, "thoughts"), said(0, "x < y"), said(1, "</think>b")],
            ["ax < y", "b"],
        ),
        ({}, [said(0, "a", ""), said(0, "<think>b", ""), said(0, "c", "")], ["abc"]),
    ],
)
@pytest.mark.parametrize("at_once", [1, 4])
def test_what_has_no_opener_is_read_where_more_than_openers_count(
    is_direct: bool, options: Any, events: list[bytes], texts: list[str], at_once: int
) -> None:
    stage = ScrubbedEvents(DeltaScrubber(**options), finishes=0)
    reads = [events[at : at + at_once] for at in range(0, len(events), at_once)]
    if is_direct:
        direct = DirectEvents(stage)
        frames = [direct.feed(b"".join(map(frame_of, read))) for read in reads]
        out = b"".join(map(payload_of, frames)) + stage.flush()
    else:
        out = b"".join(stage.feed(b"".join(read)) for read in reads) + stage.flush()
    assert texts_of(out, len(texts)) == texts
    assert b'"finish_reason":""' not in out.replace(b" ", b"")


def test_what_is_held_at_the_end_comes_in_a_chunk_like_the_last() -> None:
    stage = ScrubbedEvents(DeltaScrubber(), finishes=0)
    assert stage.feed(said(0, "<")) == b""
    (tail,) = SseParser().feed(stage.flush())
    choice = {"index": 0, "delta": {"content": "<"}, "finish_reason": None}
    assert json.loads(tail.data or b"") == {"id": "u", "choices": [choice]}


def test_a_large_event_beside_tags_stays_as_it_is() -> None:
    large = said(0, "é " * 2000)
    frames = [frame_of(each) for each in (said(0, "a"), large, said(0, "<think>"), said(0, "b"))]
    direct = DirectEvents(ScrubbedEvents(DeltaScrubber(), finishes=0))
    assert direct.feed(b"".join(frames)) == b"".join((*frames[:2], frames[3]))


def test_lines_in_a_frame_may_end_in_two_ways() -> None:
    direct = DirectEvents(ScrubbedEvents(DeltaScrubber(), finishes=0))
    held = direct.feed(frame_of(said(0, "a<")))
    end = direct.feed(frame_of(b"data: [DONE]\r\n\n"))
    assert texts_of(payload_of(held + end), 1) == ["a<"]
    assert payload_of(end).endswith(b"data: [DONE]\r\n\n")


def test_a_finish_that_is_cut_within_is_not_taken_for_another() -> None:
    """Some servers write "" for no finish, on every chunk."""
    chunk = {"choices": [{"index": 0, "delta": {"content": "a"}, "finish_reason": ""}]}
    one = frame_of(event(chunk, escaped=True))
    raw = one * 3 + b"0\r\n\r\n"
    for cut in range(len(one) + 1, len(one) * 2):
        direct = DirectEvents(ScrubbedEvents(DeltaScrubber(), finishes=0))
        out = payload_of(direct.feed(raw[:cut]) + direct.feed(raw[cut:]) + direct.flush())
        assert b'"finish_reason":""' not in out.replace(b" ", b"")
        assert out.count(b"null") == 3

    payload = event(chunk, escaped=True)
    for cut in range(1, len(payload)):
        direct = DirectEvents(ScrubbedEvents(DeltaScrubber(), finishes=0))
        in_two = frame_of(payload[:cut]) + frame_of(payload[cut:])
        out = payload_of(direct.feed(in_two) + direct.feed(one + b"0\r\n\r\n") + direct.flush())
        assert out.count(b"null") == 2


@settings(max_examples=300)
@given(st.data(), st.randoms(use_true_random=False))
def test_what_looks_like_a_frames_end_within_one_is_left_where_it_is(
    data: st.DataObject, rng: random.Random
) -> None:
    """Comments may hold anything but line ends of their own; frames are replaced whole or not at all."""
    odd = st.sampled_from([b": x\n\n", b": \r\n\n", b"\r\n\n", b"\n\r\n5\r\n", b": 3\r\nab\n\n"])
    text = data.draw(TEXT)
    blocks = stream_of([text], rng).split(b"\n\n")[:-1]
    parts = []
    for block in blocks:
        extra = data.draw(st.lists(odd, max_size=2).map(b"".join))
        parts.append(extra + block + b"\n\n")
    framed = b"".join(map(frame_of, parts)) + b"0\r\n\r\n"
    direct = DirectEvents(ScrubbedEvents(DeltaScrubber(), finishes=1))
    frames = b"".join(direct.feed(piece) for piece in pieces_of(framed, rng)) + direct.flush()
    assert direct.ended
    assert texts_of(payload_of(frames), 1) == [scrub(text)]


@pytest.mark.parametrize("scrubbed", [False, True])
def test_reads_that_are_cut_within_a_frame_go_on_as_the_very_bytes(scrubbed: bool) -> None:
    """Over a network a read ends anywhere."""
    parts = [said(0, "a"), said(0, "é" * 700), said(0, "b"), said(0, "c", "stop")]
    frames = b"".join(map(frame_of, parts))
    raw = frames + b"0\r\n\r\n"
    for first in range(1, len(frames)):
        for second in {first + 1, first + 40, len(frames), len(frames) + 2, len(raw)}:
            stage = ScrubbedEvents(DeltaScrubber(), 1) if scrubbed else VerbatimEvents(1)
            direct = DirectEvents(stage)
            reads = [raw[:first], raw[first:second], raw[second:]]
            out = b"".join(direct.feed(read) for read in reads if read)
            assert direct.ended_cleanly
            assert (out if direct.has_last else out + b"0\r\n\r\n") == raw
            assert direct.flush() == b""


def calls_of(work: Callable[[], object]) -> int:
    """How many functions are called, Python's and C's."""
    calls = 0

    def count(_frame: object, kind: str, _arg: object) -> None:
        nonlocal calls
        calls += kind in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("scrubbed", [False, True])
def test_a_read_that_is_cut_costs_no_more_for_each_of_its_events(scrubbed: bool) -> None:
    def cost(events: int) -> int:
        frames = frame_of(said(0, "a")) * events
        stage = ScrubbedEvents(DeltaScrubber(), 1) if scrubbed else VerbatimEvents(1)
        direct = DirectEvents(stage)
        return calls_of(
            lambda: [direct.feed(frames[:-60]), direct.feed(frames[-60:] + frames[:-9])]
        )

    assert cost(500) == cost(5)


def test_an_event_in_which_nothing_changes_stays_as_it_is_though_it_was_read() -> None:
    plain = b'id: 7\nevent: chunk\ndata: { "choices" : [{"index": 0,\ndata: "delta": {"content": "x &lt; y"}}]}\n\n'
    assert ScrubbedEvents(DeltaScrubber(), 0).feed(plain) == plain
    direct = DirectEvents(ScrubbedEvents(DeltaScrubber(), 0))
    assert direct.feed(frame_of(plain)) == frame_of(plain)


@settings(max_examples=300)
@given(TEXT, st.sampled_from(["tags", "block", "reasoning"]), st.randoms(use_true_random=False))
def test_more_blank_lines_than_are_needed_change_nothing(
    text: str, mode: Mode, rng: random.Random
) -> None:
    blocks = stream_of([text], rng).split(b"\n\n")[:-1]
    parts = [block + b"\n" * rng.randint(2, 5) for block in blocks]
    raw = b"".join(parts)
    wanted = scrub(text, mode=mode)
    stage = ScrubbedEvents(DeltaScrubber(mode), finishes=1)
    pieces = parts if rng.random() < 0.5 else pieces_of(raw, rng)
    out = b"".join(stage.feed(piece) for piece in pieces) + stage.flush()
    assert texts_of(out, 1) == [wanted]
    framed_bytes = b"".join(map(frame_of, pieces)) + b"0\r\n\r\n"
    reads = [framed_bytes] if rng.random() < 0.5 else pieces_of(framed_bytes, rng)
    direct = DirectEvents(ScrubbedEvents(DeltaScrubber(mode), finishes=1))
    frames = b"".join(direct.feed(read) for read in reads) + direct.flush()
    assert texts_of(payload_of(frames.removesuffix(b"0\r\n\r\n")), 1) == [wanted]


class FakeTransport(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: Any) -> None:
        self.written.append(data)


class Tapped:
    """A verbatim stage with its tap; what the tap leaves is fed, and then written too."""

    def __init__(self, finishes: int = 1) -> None:
        self.direct = DirectEvents(VerbatimEvents(finishes))
        self.transport = FakeTransport()
        self.left: list[bytes] = []
        self.manies = 0
        self.read = self.direct.tap(self.transport, self._on_many, self._on_data)

    def _on_many(self) -> None:
        self.manies += 1

    def _on_data(self, data: bytes) -> None:
        self.left.append(data)
        if frames := self.direct.feed(data):
            self.transport.write(frames)


@settings(max_examples=300)
@given(
    st.lists(TEXT, min_size=1, max_size=2),
    st.sampled_from(["%x", "%X"]),
    st.randoms(use_true_random=False),
)
def test_what_a_tap_writes_are_the_very_bytes_however_they_are_cut(
    texts: list[str], size: str, rng: random.Random
) -> None:
    raw = stream_of(texts, rng)
    blocks = [block + b"\n\n" for block in raw.split(b"\n\n")[:-1]]
    frames = [(size % len(one)).encode() + b"\r\n" + one + b"\r\n" for one in blocks]
    reads: list[bytes] = []
    for frame in [*frames, b"0\r\n\r\n"]:
        # Whole frames, frames that are cut, and frames that come with those before them.
        parts = pieces_of(frame, rng) if rng.random() < 0.3 else [frame]
        if reads and rng.random() < 0.3:
            reads[-1] += parts.pop(0)
        reads += parts
    tapped = Tapped(len(texts))
    for read in reads:
        tapped.read(read)
    assert tapped.direct.ended
    written = tapped.transport.written
    assert payload_of(b"".join(written) + tapped.direct.flush()) == raw
    for one in written:  # a heartbeat may follow each of them, unless it is the end
        assert payload_of(one).endswith(b"\n\n")
    assert tapped.direct.has_last == written[-1].endswith(b"\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"8\r\ndata: x\n\n\r\n",
        b"a\r\ndata: x\n\n\r\n",
        b"9\r\ndata: x\n\r\r\n",
        b"9\r\ndata: x\n\n\n\n",
        b"9\n\rdata: x\n\n\r\n",
        b"09\r\ndata: x\n\n\r\n",
        b"9;a\r\ndata: x\n\n\r\n",
        b"3ff\r\n" + b"x" * 0x3FD + b"\n\n\r",
        b"400\r\n" + b"x" * 0x3FE + b"\n\n\r\n",
        b"0\r\n\r\n",
    ],
)
def test_what_is_not_one_whole_event_goes_the_long_way(data: bytes) -> None:
    left: list[bytes] = []
    transport = FakeTransport()
    read = DirectEvents(VerbatimEvents()).tap(transport, lambda: None, left.append)
    read(data)
    assert left == [data]
    assert not transport.written


def test_a_tap_writes_nothing_once_it_is_closed_or_its_client_is_gone() -> None:
    one = frame_of(b"data: x\n\n")
    tapped = Tapped()
    tapped.read(one)
    assert not tapped.left
    tapped.transport.closing = True
    tapped.read(one)
    assert tapped.left == [one]
    tapped.transport.closing = False
    tapped.direct.close()
    tapped.read(one)
    assert tapped.left == [one] * 2


def test_events_that_were_tapped_count_for_the_end() -> None:
    done = frame_of(said(0, "a", "stop"))
    for finishes, before in ((1, 0), (1, MANY_SMALL), (1, MANY_SMALL + 3), (2, 5)):
        tapped = Tapped(finishes)
        for _ in range(before):
            tapped.read(frame_of(said(0, "a")))
        tapped.read(done)
        if finishes == 2:
            tapped.read(frame_of(said(1, "a", "stop")))
        tapped.read(b"0\r\n\r\n")
        assert tapped.left == [b"0\r\n\r\n"]
        assert tapped.manies == before // MANY_SMALL
        assert tapped.direct.flush() == b""
    cut = Tapped()
    for _ in range(MANY_SMALL * 2 + 1):
        cut.read(frame_of(said(0, "a")))
    cut.read(b"0\r\n\r\n")
    with pytest.raises(UpstreamFailed):
        cut.direct.flush()


def test_a_clean_read_goes_on_as_the_very_object_with_its_last_frame() -> None:
    whole = frame_of(said(0, "a", "stop")) * 3 + b"0\r\n\r\n"
    direct = DirectEvents(VerbatimEvents(1))
    assert direct.feed(whole) is whole
    assert direct.ended
    assert direct.has_last
    assert direct.flush() == b""
    direct.feed(b"x")
    with pytest.raises(UpstreamFailed):
        direct.flush()
