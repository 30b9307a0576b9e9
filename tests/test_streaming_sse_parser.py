"""The event parser: whole, byte by byte, and cut anywhere, the same events and the very same bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.sse_parser import EventTooLarge, SseEvent, SseParser

CASES = [
    (b"data: a\n\n", [b"a"]),
    (b"data:a\n\ndata:  b\n\n", [b"a", b" b"]),
    (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
    (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    (b"data: a\ndata: b\ndata\n\n", [b"a\nb\n"]),
    (b": comment\n\nid: 1\nevent: x\nretry: 5\ndata: a\n\n", [None, b"a"]),
    (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    (b"data: last", [b"last"]),
    (b"data: a\r\n\ndata: b\n\r\n", [b"a", b"b"]),
    ("data: é\u2028\u0085x\n\n".encode(), ["é\u2028\u0085x".encode()]),
    (b"", []),
]


def parse(pieces: list[bytes]) -> list[SseEvent]:
    parser = SseParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events + parser.flush()


@pytest.mark.parametrize(("raw", "data"), CASES)
def test_every_cut_gives_the_same_events(raw: bytes, data: list[bytes | None]) -> None:
    cuts = [[raw], [raw[i : i + 1] for i in range(len(raw))]]
    cuts += [[raw[:at], raw[at:]] for at in range(len(raw))]
    for pieces in cuts:
        events = parse(pieces)
        assert [event.data for event in events] == data
        assert b"".join(event.raw for event in events) == raw


@given(
    st.lists(st.sampled_from([b"data: a", b"data:", b":", b"\n", b"\r", b"\r\n", b"x", b"\n\n"])),
    st.lists(st.integers(0, 60)),
)
def test_nothing_depends_on_the_cuts_and_no_byte_is_lost(parts: list[bytes], at: list[int]) -> None:
    raw = b"".join(parts)
    cuts = sorted({min(position, len(raw)) for position in at})
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    events = parse(pieces)
    assert b"".join(event.raw for event in events) == raw
    assert [e.data for e in events if e.data is not None] == [
        e.data for e in parse([raw]) if e.data is not None
    ]


def test_an_event_without_end_is_given_up() -> None:
    parser = SseParser(max_event_bytes=1000)
    for _ in range(10):
        parser.feed(b"x" * 100)
    with pytest.raises(EventTooLarge):
        parser.feed(b"x")
