"""The tolerant codec: lone surrogates in and out, depth refused, ASCII only."""

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.json_codec import decode_json, decode_typed, encode_json


class Point(msgspec.Struct):
    name: str
    more: Any = None


POINT = msgspec.json.Decoder(Point)
NO_JSON = [b"", b"{nope", b"\xff\xfe", b'{"name":"\xff"}', b'"a', b"\xed\xa0\xbd"]
DEEP = [b"[" * depth + b"]" * depth for depth in (2_000, 100_000)]


def test_halves_of_characters_are_taken_and_given() -> None:
    assert decode_json(b'["\\ud83d"]') == ["\ud83d"]
    assert decode_json(b'["\\ud83d\\ude00"]') == ["😀"]
    assert decode_typed(POINT, b'{"name":"\\ud83d"}') == Point("\ud83d")
    assert encode_json(["\ud83d", "é"]) == b'["\\ud83d","\\u00e9"]'


@pytest.mark.parametrize("data", [*NO_JSON, *DEEP], ids=lambda data: repr(data[:12]))
def test_what_cannot_be_read_is_a_value_error_and_nothing_else(data: bytes) -> None:
    with pytest.raises(ValueError, match="JSON that cannot be read"):
        decode_json(data)
    with pytest.raises(ValueError, match=r"."):
        decode_typed(POINT, b'{"name":"x","more":' + data + b"}")


@pytest.mark.parametrize("data", [b"[1]", b"null", b'{"name":5}', b"{}", b'{"name":["\\ud83d"]}'])
def test_another_shape_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode_typed(POINT, data)


def test_line_separators_are_escaped() -> None:
    assert encode_json({"a": "\u2028\u0085é😀"}) == b'{"a":"\\u2028\\u0085\\u00e9\\ud83d\\ude00"}'
    assert encode_json({"a": "\x0b\x0c<"}) in (b'{"a":"\\u000b\\f<"}', b'{"a":"\\u000b\\u000c<"}')


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(VALUES)
def test_what_is_encoded_is_one_ascii_line_and_comes_back(value: Any) -> None:
    encoded = encode_json(value)
    assert encoded.isascii()
    assert len(encoded.decode().splitlines()) == 1
    assert decode_json(encoded) == json.loads(encoded) == value


@given(st.binary(max_size=40))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    with suppress(ValueError):
        decode_json(data)
