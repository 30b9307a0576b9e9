"""Values in through the jail's wall: an untrusted sender's bytes in, plain data out.

smolagents' SafeSerializer has no pickle in it, but trusts its sender all the same: it opens images
with PIL's decoders, takes any numpy dtype, recurses without a bound and knows no int beyond JSON's
nor a Fraction. Here every length is checked against the bytes that are there, values and nesting
are counted, and what would take long to build (colliding keys, huge fractions) is refused, so that
the server can read values from a process that an attacker owns.
"""

import math
import struct
from array import array
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

from streaming.interpreters.value_writer import (
    COMPLEX,
    DELTA,
    DOUBLE,
    DTYPE,
    LENGTH,
    MOST_NESTING,
    MOST_SLOW_NUMBER_BYTES,
    PIXEL_BYTES,
    SEQUENCES,
    ValueRefused,
)

# Keys with one hash make a dict quadratic; honest data has -1 and -2, which share one.
_MOST_EQUAL_HASHES = 32


def decode_value(data: bytes, *, most_values: int = 200_000) -> Any:
    """Decode one value from an untrusted sender. Raises ValueRefused, and nothing else."""
    decoder = _Decoder(data, most_values)
    try:
        value = decoder.value(0)
    except (
        ArithmeticError, AttributeError, KeyError, LookupError, MemoryError, TypeError, ValueError,
        ImportError, struct.error,
    ) as error:  # fmt: skip
        raise ValueRefused(f"{type(error).__name__} in a value") from None
    if decoder.at != len(data):
        raise ValueRefused("bytes after a value")
    return value


class _Decoder:
    def __init__(self, data: bytes, most_values: int) -> None:
        self._data = data
        self._values_left = most_values
        self.at = 0

    def _take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self._data):
            raise ValueRefused("a value cut short")
        taken = self._data[self.at : end]
        self.at = end
        return taken

    def _count(self) -> int:
        count: int = LENGTH.unpack(self._take(4))[0]
        return count

    def _sized(self, most: int = 1 << 32) -> bytes:
        size = self._count()
        if size > most:
            raise ValueRefused("a number too long")
        return self._take(size)

    def _text(self) -> str:
        return self._sized().decode("utf-8", "replace")

    def value(self, depth: int) -> Any:
        self._values_left -= 1
        if self._values_left < 0 or depth > MOST_NESTING:
            raise ValueRefused("too many values, or too deep")
        letter = self._take(1)
        if letter in _SEQUENCE_OF:
            kind = _SEQUENCE_OF[letter]
            items = [self.value(depth + 1) for _ in range(self._count())]
            return items if kind is list else kind(_hashable(items) if letter in b"SZ" else items)
        if letter == b"d":
            size = self._count()
            pairs = [(self.value(depth + 1), self.value(depth + 1)) for _ in range(size)]
            _hashable([key for key, _ in pairs])
            return dict(pairs)
        return _READERS[letter](self)

    def int_(self, most: int = 1 << 32) -> int:
        return int.from_bytes(self._sized(most), "little", signed=True)

    def packed(self, code: str) -> list[Any]:
        numbers: array[Any] = array(code)
        numbers.frombytes(self._sized())
        return numbers.tolist()

    def fraction(self) -> Fraction:
        numerator = self.int_(MOST_SLOW_NUMBER_BYTES)
        return Fraction(numerator, self.int_(MOST_SLOW_NUMBER_BYTES))

    def array_(self) -> Any:
        import numpy  # type: ignore[import-not-found,unused-ignore]  # only when one arrives

        kind = self._text()
        if not DTYPE.fullmatch(kind):
            raise ValueRefused("a dtype that is not plain")
        dtype = numpy.dtype(kind)
        shape = tuple(self._count() for _ in range(min(self._count(), MOST_NESTING)))
        data = self._sized()
        if len(data) != math.prod(shape) * dtype.itemsize:
            raise ValueRefused("an array of another size than it says")
        return numpy.ndarray(shape, dtype, bytearray(data))

    def image(self) -> Any:
        from PIL import Image

        mode, width, height = self._text(), self._count(), self._count()
        data = self._sized()
        if len(data) != width * height * PIXEL_BYTES[mode]:
            raise ValueRefused("an image of another size than it says")
        return Image.frombytes(mode, (width, height), data)

    def slow_text(self) -> str:
        return self._sized(MOST_SLOW_NUMBER_BYTES).decode("utf-8", "replace")


def _hashable(keys: list[Any]) -> list[Any]:
    if len(keys) > _MOST_EQUAL_HASHES:
        [(_, most)] = Counter(map(hash, keys)).most_common(1)
        if most > _MOST_EQUAL_HASHES:
            raise ValueRefused("keys made to collide")
    return keys


_SEQUENCE_OF: dict[bytes, Callable[..., Any]] = {letter: kind for kind, letter in SEQUENCES.items()}
_READERS: dict[bytes, Callable[[_Decoder], Any]] = {
    b"N": lambda _: None,
    b"T": lambda _: True,
    b"F": lambda _: False,
    b"s": _Decoder._text,
    b"i": _Decoder.int_,
    b"f": lambda it: DOUBLE.unpack(it._take(8))[0],
    b"c": lambda it: complex(*COMPLEX.unpack(it._take(16))),
    b"b": _Decoder._sized,
    b"Q": lambda it: it.packed("q"),
    b"O": lambda it: it.packed("d"),
    b"D": lambda it: datetime.fromisoformat(it.slow_text()),
    b"A": lambda it: date.fromisoformat(it.slow_text()),
    b"M": lambda it: time.fromisoformat(it.slow_text()),
    b"E": lambda it: timedelta(*DELTA.unpack(it._take(12))),
    b"m": lambda it: Decimal(it.slow_text()),
    b"r": _Decoder.fraction,
    b"p": lambda it: Path(it._text()),
    b"a": _Decoder.array_,
    b"I": _Decoder.image,
}
