"""Chunked coding: however a body is framed and cut, the payload is the same; what is not it is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.chunk_framing import (
    ChunkedFrames,
    FramingError,
    frame_of,
    payload_of,
    run_end,
)

LAST = b"0\r\n\r\n"
# What could be taken for framing, as payload.
PIECES = st.sampled_from(
    [
        b"\n\n",
        b"\r\n",
        b"5\r\n",
        LAST,
        b"data: x\n\n",
        b"x" * 300,
        b"\n\n\r\n3\r\n",
        b"a",
        b"\r\n\r\n",
    ]
)
PAYLOADS = st.lists(st.lists(PIECES, min_size=1, max_size=4).map(b"".join), max_size=8)


def frames() -> ChunkedFrames:
    return ChunkedFrames(max_held_bytes=1 << 16)


def aligned_by(walker: ChunkedFrames, data: bytes) -> tuple[bytes, bytes]:
    end = run_end(data, 0, len(data))
    return (data[:end], b"") if walker.ends(data, end) else walker.feed_aligned(data)


def cut(data: bytes, at: list[int]) -> list[bytes]:
    ends = sorted({min(position, len(data)) for position in at})
    return [data[a:b] for a, b in zip([0, *ends], [*ends, len(data)], strict=True)]


@given(PAYLOADS, st.lists(st.integers(0, 3000), max_size=6), st.booleans())
def test_the_payload_does_not_depend_on_the_cuts(
    payloads: list[bytes], at: list[int], has_trailers: bool
) -> None:
    raw = b"".join(map(frame_of, payloads)) + (b"0\r\nX-T: 1\r\n\r\n" if has_trailers else LAST)
    walker = frames()
    payload = b"".join(walker.feed(piece) for piece in cut(raw, at) if piece)
    assert payload == b"".join(payloads)
    assert walker.ended


@given(PAYLOADS, st.booleans())
def test_frames_go_on_as_they_are_up_to_the_last_that_ends_with_an_event(
    payloads: list[bytes], ends: bool
) -> None:
    raw = b"".join(map(frame_of, payloads))
    walker = frames()
    whole = raw + LAST if ends else raw
    aligned, rest = aligned_by(walker, whole)
    assert aligned + (rest or whole[len(raw) :]) == whole
    assert not aligned or aligned.endswith((b"\n\n\r\n", b"\r\n\r\n\r\n"))
    assert payload_of(aligned) + (walker.feed(rest) if rest else b"") == b"".join(payloads)
    assert walker.ended == ends
    last = max(
        (n for n, one in enumerate(payloads) if one.endswith((b"\n\n", b"\r\n\r\n"))), default=-1
    )
    assert aligned == b"".join(map(frame_of, payloads[: last + 1]))


def test_extensions_and_any_case_of_digits_are_read() -> None:
    walker = frames()
    assert walker.feed(b'A;name="x"\r\n0123456789\r\n00b \r\n01234567890\r\n0;last\r\n\r\n') == (
        b"012345678901234567890"
    )
    assert walker.ended


@pytest.mark.parametrize(
    "raw",
    [
        b"x\r\nabc\r\n",
        b"0x3\r\nabc\r\n",
        b"3;a\nb\r\nabc\r\n",
        b"3;a\rb\r\nabc\r\n",
        b"-3\r\nabc\r\n",
        b"+3\r\nabc\r\n",
        b"3_0\r\nabc\r\n",
        b"\r\nabc",
        b"3\r\nabcd\r\n",
        b"3\r\nabc\n\n3\r\n",
        b"f" * 300,
        b"ffffffffffffffffff\r\n",
    ],
)
def test_what_is_no_chunked_coding_is_refused(raw: bytes) -> None:
    with pytest.raises(FramingError):
        frames().feed(raw)
    with pytest.raises(FramingError):
        aligned_by(frames(), raw)


def test_what_comes_behind_the_end_is_no_part_of_the_body() -> None:
    raw = frame_of(b"data: x\n\n") + LAST
    for behind in (b"", b"H", b"HTTP/1.1 200 OK\r\n\r\n", LAST):
        walker = frames()
        assert walker.feed(raw + behind) == b"data: x\n\n"
        assert (walker.ended, walker.is_overrun) == (True, bool(behind))
        walker = frames()
        assert aligned_by(walker, raw + behind) == (raw.removesuffix(LAST), b"")
        assert (walker.ended, walker.is_overrun) == (True, bool(behind))


def test_what_came_before_what_is_no_frame_is_told() -> None:
    walker = frames()
    walker.feed(b"1\r\na\r\n2\r\n")
    with pytest.raises(FramingError) as raised:
        walker.feed(b"bc\r\nx\r\n")
    assert raised.value.before == b"bc"


def test_no_byte_may_follow_the_end_and_no_chunk_may_be_endless() -> None:
    walker = frames()
    walker.feed(LAST)
    with pytest.raises(FramingError):
        walker.feed(b"1\r\na\r\n")
    endless = frames()
    endless.feed(b"fffffff\r\n")
    for _ in range(6):
        endless.feed(b"x" * 10_000)
    with pytest.raises(FramingError, match="more than"):
        endless.feed(b"x" * 10_000)
