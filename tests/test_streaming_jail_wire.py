import math
import struct
import sys
import time
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta, timezone
from datetime import time as clock
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from smolagents.agent_types import AgentText

from streaming.interpreters.confinement import JailLimits
from streaming.interpreters.jail_wire import (
    Failed,
    Finished,
    FrameBuffer,
    FromJail,
    Printed,
    Ready,
    Setup,
    ToolCalled,
    WireBroken,
    decode_from_jail,
    decode_to_jail,
    encode_frame,
    most_bytes_from_jail,
)
from streaming.interpreters.value_reader import decode_value
from streaming.interpreters.value_writer import ValueRefused, encode_value, text_of

MEGABYTE = 1 << 20

texts = st.text(st.characters(exclude_categories=["Cs"]))
zones = st.sampled_from([None, UTC, timezone(timedelta(hours=5, minutes=30))])
keys = st.one_of(st.none(), st.booleans(), st.integers(), texts, st.binary(), st.dates())
leaves = st.one_of(
    keys,
    st.integers(-(10**60), 10**60),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.datetimes(timezones=zones),
    st.times(),
    st.timedeltas(),
    st.decimals(allow_nan=False),
    st.fractions(),
    texts.filter(lambda text: "\0" not in text).map(Path),
)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner),
        st.lists(inner).map(tuple),
        st.dictionaries(keys, inner),
        st.dictionaries(st.tuples(keys, keys), inner),
        st.sets(keys),
        st.frozensets(keys),
        st.lists(st.floats(allow_nan=False), min_size=16),
        st.lists(st.integers(-(2**70), 2**70), min_size=16),
    ),
    max_leaves=20,
)


def there_and_back(value: object) -> Any:
    return decode_value(encode_value(value, most_bytes=MEGABYTE))


@settings(deadline=None)
@given(values)
def test_a_value_comes_back_equal_and_of_its_type(value: object) -> None:
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


def test_not_a_number_comes_back() -> None:
    assert math.isnan(there_and_back(math.nan))


def test_subclasses_arrive_as_what_they_are_of() -> None:
    class Colour(IntEnum):
        RED = 1

    class Point(NamedTuple):
        x: int

    assert there_and_back([Colour.RED, Point(2), AgentText("t"), True]) == [1, (2,), "t", True]
    assert [type(item) for item in there_and_back([Colour.RED, Point(2), AgentText("t")])] == [
        *(int, tuple, str)
    ]


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "I", "F"])
def test_images_come_back(mode: str) -> None:
    image = Image.new(mode, (4, 3))
    assert there_and_back(image).convert("RGBA").tobytes() == image.convert("RGBA").tobytes()


def test_arrays_come_back_and_object_arrays_do_not() -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(6, dtype="f4").reshape(2, 3)
    back = there_and_back(array)
    assert back.dtype == array.dtype
    assert back.tolist() == array.tolist()
    assert there_and_back(numpy.float64(0.5)) == 0.5
    assert isinstance(there_and_back(numpy.array([object()])), str)


def test_anything_else_arrives_as_its_text() -> None:
    assert there_and_back([range(3), len]) == ["range(0, 3)", "<built-in function len>"]


def test_a_value_that_holds_itself_arrives_as_its_text() -> None:
    loop: list[object] = []
    loop.append(loop)
    assert there_and_back(loop) == "[[...]]"


def test_text_of_survives_any_repr() -> None:
    class Rude:
        def __repr__(self) -> str:
            raise RuntimeError

    assert text_of(Rude()) == "<Rude whose repr raised RuntimeError>"
    assert len(text_of("x" * MEGABYTE)) < 21_000


def test_lone_surrogates_become_question_marks() -> None:
    assert there_and_back("a\ud800b") == "a?b"


@pytest.mark.parametrize("value", [[1.5] * 200_000, ["x"] * 300_000, b"x" * 2 * MEGABYTE])
def test_more_than_the_limit_arrives_as_text(value: object) -> None:
    assert isinstance(there_and_back(value), str)


honest = values.map(lambda value: encode_value(value, most_bytes=MEGABYTE))


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.binary(), st.binary(max_size=40).map(lambda tail: b"l\2\0\0\0" + tail)))
@example(b"l\xff\xff\xff\xff")
@example(b"d\xff\xff\xff\xff")
@example(b"Q\x07\0\0\0\0\0\0\0\0\0\0")
@example(b"S\1\0\0\0l\0\0\0\0")
@example(b"m\x04\0\0\0sNaN")
@example(b"r\1\0\0\0\1\1\0\0\0\0")
@example(b"E" + b"\xff\xff\xff\x7f" * 3)
@example(b"D\x04\0\0\x002026")
@example(b"I\3\0\0\0RGB\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0")
@example(b"I\3\0\0\0XYZ\1\0\0\0\1\0\0\0\0\0\0\0")
@example(b"a\2\0\0\0|O\1\0\0\0\1\0\0\0\0\0\0\0")
@example(b"l\1\0\0\0" * 100_000)
def test_the_reader_raises_one_error_whatever_it_is_fed(data: bytes) -> None:
    with suppress(ValueRefused):
        decode_value(data)


@settings(max_examples=300, deadline=None)
@given(honest, st.data())
def test_an_honest_value_with_bytes_changed_raises_one_error(
    data: bytes, draw: st.DataObject
) -> None:
    changed = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        changed[draw.draw(st.integers(0, len(changed) - 1))] = draw.draw(st.integers(0, 255))
    with suppress(ValueRefused):
        decode_value(bytes(changed))


@settings(deadline=None)
@given(honest)
def test_a_value_cut_anywhere_is_refused(data: bytes) -> None:
    for end in range(len(data)):
        with pytest.raises(ValueRefused):
            decode_value(data[:end])


def test_keys_that_collide_are_refused_before_they_cost_time() -> None:
    """Multiples of the modulus all hash to 0; a set of them would take minutes."""
    numbers = [n * sys.hash_info.modulus for n in range(1, 100_000)]
    body = b"".join(encode_value(number, most_bytes=MEGABYTE) for number in numbers)
    for letter in (b"S", b"Z"):
        began = time.monotonic()
        with pytest.raises(ValueRefused, match="collide"):
            decode_value(letter + struct.pack("<I", len(numbers)) + body)
        assert time.monotonic() - began < 5


def test_a_long_fraction_or_decimal_is_refused() -> None:
    number = b"\x01" * 5000
    long = struct.pack("<I", len(number)) + number
    for data in (b"r" + long + long, b"m" + long, b"D" + long):
        with pytest.raises(ValueRefused, match="too long"):
            decode_value(data)


MESSAGES: list[FromJail] = [
    Ready(),
    Printed("é\n"),
    ToolCalled("search", b"\1"),
    Finished(b"N", False),
    Failed("no"),
]


def test_messages_come_back() -> None:
    for message in MESSAGES:
        assert decode_from_jail(encode_frame(message)[4:]) == message
    setup = Setup(["json"], [], JailLimits(cpu_seconds=5))
    assert decode_to_jail(encode_frame(setup)[4:]) == setup


@settings(deadline=None)
@given(st.lists(st.integers(0, 60)))
def test_frames_do_not_depend_on_where_the_bytes_were_cut(cuts: list[int]) -> None:
    stream = b"".join(map(encode_frame, MESSAGES))
    frames = FrameBuffer(1000)
    got = []
    edges = [0, *sorted(cuts), len(stream)]
    for begin, end in pairwise(edges):
        frames.feed(stream[begin:end])
        while (frame := frames.next_frame()) is not None:
            got.append(decode_from_jail(frame))
    assert got == MESSAGES


def test_a_frame_over_the_limit_is_refused_at_its_header() -> None:
    frames = FrameBuffer(10)
    frames.feed(struct.pack(">I", 11))
    with pytest.raises(WireBroken):
        frames.next_frame()


def test_many_small_frames_take_linear_time() -> None:
    frames = FrameBuffer(10)
    frames.feed(encode_frame(Ready()) * 200_000)
    began = time.monotonic()
    while frames.next_frame() is not None:
        pass
    assert time.monotonic() - began < 5


def test_the_longest_frame_holds_the_longest_value_and_print() -> None:
    limits = JailLimits()
    call = ToolCalled("name", bytes(limits.value_bytes))
    assert len(encode_frame(call)) - 4 <= most_bytes_from_jail(limits)


shapes = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=9)
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
)
tags = st.sampled_from(["ready", "printed", "called", "finished", "failed", "setup"])


@settings(max_examples=500, deadline=None)
@given(
    st.binary()
    | shapes.map(msgspec.msgpack.encode)
    | st.tuples(tags, st.lists(shapes)).map(lambda it: msgspec.msgpack.encode([it[0], *it[1]]))
)
@example(b"\xdd\xff\xff\xff\xff")
@example(b"\xdf\xff\xff\xff\xff")
@example(b"\xc6\xff\xff\xff\xff")
@example(b"\x91" * 100_000)
@example(b"\x92\xa7printed\xa1\xff")
def test_a_frame_of_anything_is_a_message_or_one_error(data: bytes) -> None:
    try:
        message = decode_from_jail(data)
    except WireBroken:
        return
    assert isinstance(message, FromJail)


def test_dates_are_told_from_datetimes() -> None:
    assert [
        type(value) for value in there_and_back([date(1, 1, 1), datetime(1, 1, 1), clock()])
    ] == [*(date, datetime, clock)]


def test_exact_numbers_stay_exact() -> None:
    assert there_and_back([Decimal("1.10"), Fraction(-1, 3), 2**63, -(2**63)]) == [
        *(Decimal("1.10"), Fraction(-1, 3), 2**63, -(2**63))
    ]
