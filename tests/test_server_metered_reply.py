"""A reply's tokens are counted alike however it is cut."""

from hypothesis import given
from hypothesis import strategies as st

from server.metered_reply import TAIL_BYTES, TokenMeter

USAGE = b'data: {"usage": {"total_tokens": 77}}\n\n'
EVENT = b'data: {"x": 1}\n\n'


@given(
    st.lists(st.sampled_from([EVENT, b": " + b"x" * 5000 + b"\n\n"]), max_size=20),
    st.integers(0, 3),
    st.lists(st.integers(0, 60_000), max_size=10),
)
def test_what_the_upstream_says_near_the_end_counts_however_it_is_cut(
    before: list[bytes], behind: int, cuts: list[int]
) -> None:
    reply = b"".join(before) + USAGE + EVENT * behind
    meter = TokenMeter(asked_bytes=8)
    ends = sorted({min(cut, len(reply)) for cut in cuts} | {len(reply)})
    for begin, end in zip([0, *ends], ends, strict=False):
        meter.feed(reply[begin:end])
    assert meter.tokens == 77


def test_what_is_said_long_before_the_end_is_not_kept() -> None:
    meter = TokenMeter(asked_bytes=8)
    events = TAIL_BYTES // len(EVENT) + 1
    for event in (USAGE, *[EVENT] * events):
        meter.feed(event)
    assert meter.tokens == events + 1 + 2
