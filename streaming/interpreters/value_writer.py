"""Values out through the jail's wall: plain data in, bytes out, for value_reader.

No code, class or file name crosses: a value is type letters, lengths and bytes. Numbers in bulk go
packed. Subclasses arrive as the plain type they are of, and what is none of the known types as its
repr text.
"""

import re
import struct
import sys
from array import array
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

MOST_NESTING = 64
_MOST_TEXT_OF_AN_OBJECT = 20_000
# A Fraction reduces itself and a Decimal reads digits in worse than linear time.
MOST_SLOW_NUMBER_BYTES = 4096
_PACKED_FROM = 16
LENGTH = struct.Struct("<I")
DOUBLE = struct.Struct("<d")
COMPLEX = struct.Struct("<dd")
DELTA = struct.Struct("<iii")
# No object arrays: bool, integers, floats, complex, times and fixed-width text and bytes.
DTYPE = re.compile(r"[<>|=]?[biufcSUmM]\d{0,6}(\[\d{0,4}[A-Za-z]{1,2}\])?")
PIXEL_BYTES = {"L": 1, "P": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4, "YCbCr": 3, "I": 4, "F": 4}
_ISO: dict[type, bytes] = {datetime: b"D", date: b"A", time: b"M"}
_FAITHFUL = frozenset({bytes, complex, timedelta, Decimal, Fraction})
_PACKED = {"d": b"O", "q": b"Q"}
SEQUENCES: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"S", frozenset: b"Z"}


class ValueRefused(Exception):
    """Bytes that no honest encoder writes, or a value over its limit."""


def encode_value(value: object, *, most_bytes: int, most_values: int = 200_000) -> bytes:
    """Encode one value; one over a limit, or whose own code fails, becomes its bounded repr text."""
    try:
        return _Encoder(most_bytes, most_values).encoded(value)
    except Exception:  # noqa: BLE001  a subclass's methods and a broken image's decoder run here
        return _Encoder(1 << 20, 1).encoded(text_of(value))


def encode_faithfully(
    value: object, *, most_bytes: int, most_values: int = 200_000
) -> bytes | None:
    """Encode one value that will arrive as what it is; None for one over a limit, or of any other type."""
    try:
        return _Encoder(most_bytes, most_values, faithful=True).encoded(value)
    except Exception:  # noqa: BLE001  as above
        return None


def text_of(value: object) -> str:
    """The object's repr, cut to a bound; never raises an Exception, whatever its __repr__ does."""
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001  the object's own code runs here
        text = f"<{type(value).__name__} whose repr raised {type(error).__name__}>"
    if len(text) > _MOST_TEXT_OF_AN_OBJECT:
        text = text[:_MOST_TEXT_OF_AN_OBJECT] + "… (cut)"
    return text


def error_text(error: BaseException) -> str:
    """str(error), or its repr where an exception class of somebody's own fails at that."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  the class's own __str__
        return text_of(error)


class _Encoder:
    def __init__(self, most_bytes: int, most_values: int, *, faithful: bool = False) -> None:
        self._bytes_left = most_bytes
        self._values_left = most_values
        self._faithful = faithful
        self._parts: list[bytes] = []

    def encoded(self, value: object) -> bytes:
        self._value(value, 0)
        return b"".join(self._parts)

    def _put(self, *parts: bytes) -> None:
        self._bytes_left -= sum(map(len, parts))
        if self._bytes_left < 0:
            raise ValueRefused("too many bytes")
        self._parts += parts

    def _sized(self, letter: bytes, data: bytes) -> None:
        self._put(letter, LENGTH.pack(len(data)), data)

    def _text(self, letter: bytes, text: str) -> None:
        self._sized(letter, text.encode("utf-8", "replace"))

    def _int(self, letter: bytes, value: int) -> None:
        data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
        self._sized(letter, data)

    def _value(self, value: Any, depth: int) -> None:
        self._values_left -= 1
        if self._values_left < 0 or depth > MOST_NESTING:
            raise ValueRefused("too many values, or too deep")
        kind = type(value)
        if value is None or kind is bool:
            self._put(b"N" if value is None else b"T" if value else b"F")
        elif kind is str:
            self._text(b"s", value)
        elif kind is int:
            self._int(b"i", value)
        elif kind is float:
            self._put(b"f", DOUBLE.pack(value))
        elif kind in SEQUENCES:
            self._sequence(value, depth)
        elif kind is dict:
            self._put(b"d", LENGTH.pack(len(value)))
            for part in chain.from_iterable(value.items()):
                self._value(part, depth + 1)
        elif kind in _ISO:
            self._text(_ISO[kind], value.isoformat())
        else:
            self._rarer(value, depth)

    def _sequence(self, value: Any, depth: int) -> None:
        if type(value) is list and len(value) >= _PACKED_FROM:
            kinds = set(map(type, value))
            code = "d" if kinds == {float} else "q" if kinds == {int} else ""
            packed = _packed(code, value)
            if packed is not None:
                self._sized(_PACKED[code], packed)
                return
        self._put(SEQUENCES[type(value)], LENGTH.pack(len(value)))
        for item in value:
            self._value(item, depth + 1)

    def _rarer(self, value: Any, depth: int) -> None:
        if self._faithful and not _arrives_as_it_is(value):
            raise ValueRefused("not a plain value")
        if isinstance(value, bytes | bytearray | memoryview):
            self._sized(b"b", bytes(value))
        elif isinstance(value, complex):
            self._put(b"c", COMPLEX.pack(value.real, value.imag))
        elif isinstance(value, timedelta):
            self._put(b"E", DELTA.pack(value.days, value.seconds, value.microseconds))
        elif isinstance(value, Decimal):
            self._text(b"m", _not_slow(str(value)))
        elif isinstance(value, Fraction):
            self._int(b"r", _not_slow(value.numerator))
            self._int(b"", _not_slow(value.denominator))
        elif isinstance(value, Path):
            self._text(b"p", str(value))
        elif (plain := _plain(value)) is not value:
            self._value(plain, depth + 1)
        elif not (self._array(value) or self._image(value)):
            self._text(b"s", text_of(value))

    def _array(self, value: Any) -> bool:
        numpy = sys.modules.get("numpy")
        if numpy is None or type(value) is not numpy.ndarray or value.dtype.hasobject:
            return False
        if not DTYPE.fullmatch(value.dtype.str):
            return False
        self._text(b"a", value.dtype.str)
        self._put(LENGTH.pack(value.ndim), *map(LENGTH.pack, value.shape))
        self._sized(b"", numpy.ascontiguousarray(value).tobytes())
        return True

    def _image(self, value: Any) -> bool:
        images = sys.modules.get("PIL.Image")
        if images is None or not isinstance(value, images.Image):
            return False
        if value.mode not in PIXEL_BYTES or value.mode == "P":
            value = value.convert("RGBA")
        self._text(b"I", value.mode)
        self._put(LENGTH.pack(value.width), LENGTH.pack(value.height))
        self._sized(b"", value.tobytes())
        return True


def _arrives_as_it_is(value: Any) -> bool:
    if type(value) in _FAITHFUL or isinstance(value, Path):
        return True
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic | numpy.ndarray):
        return type(value) is not numpy.void and not value.dtype.hasobject
    images = sys.modules.get("PIL.Image")
    return images is not None and isinstance(value, images.Image)


def _not_slow(number: Any) -> Any:
    size = number.bit_length() // 8 + 1 if isinstance(number, int) else len(number)
    if size > MOST_SLOW_NUMBER_BYTES:
        raise ValueRefused("a number too long")
    return number


def _packed(code: str, value: list[Any]) -> bytes | None:
    try:
        return array(code, value).tobytes() if code else None
    except OverflowError:
        return None  # an int over 64 bits among them: one by one


def _plain(value: Any) -> Any:
    """Subclasses of plain types, numpy scalars and smolagents' wrappers as what they stand for."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        item = value.item()
        return item if not isinstance(item, numpy.generic) else value
    wrappers = sys.modules.get("smolagents.agent_types")
    if wrappers is not None and isinstance(value, wrappers.AgentType):
        return value.to_raw()
    for kind in (int, float, str, list, tuple, set, frozenset, dict, datetime, date, time):
        if isinstance(value, kind):
            return _base_value(kind, value)
    return value


def _base_value(kind: type, value: Any) -> Any:
    """The value as exactly `kind`, without calling what a subclass overrides."""
    if kind is datetime:
        return datetime.combine(value.date(), value.timetz())
    if kind is date:
        return date(value.year, value.month, value.day)
    if kind is time:
        return time.fromisoformat(time.isoformat(value))
    if kind is str:
        return str.__str__(value)
    if kind is int:
        return int.__index__(value)
    return float.__float__(value) if kind is float else kind(value)
