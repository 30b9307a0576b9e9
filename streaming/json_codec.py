"""JSON in and out, tolerant in, ASCII out.

In: what servers send, lone surrogates among it (a tokenizer cuts an emoji in two). Out: compact ASCII:
line readers also split at U+2028 and its like, and a lone surrogate has no UTF-8.
"""

import json
from contextlib import suppress
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def decode_json(data: bytes) -> Any:
    """Raises ValueError for what is no JSON, or is nested too deep to be any use."""
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:
        return _decode_slowly(data)
    except (RecursionError, UnicodeDecodeError):
        raise ValueError("JSON that cannot be read") from None


def decode_typed(decoder: msgspec.json.Decoder[T], data: bytes) -> T:
    """`decode_json` into the decoder's type. Raises ValueError for another shape, too."""
    try:
        return decoder.decode(data)
    except msgspec.ValidationError:
        raise
    except msgspec.DecodeError:
        return msgspec.convert(_decode_slowly(data), decoder.type)
    except (RecursionError, UnicodeDecodeError):
        raise ValueError("JSON that cannot be read") from None


def encode_json(value: Any) -> bytes:
    """Compact ASCII. Raises TypeError or ValueError for what JSON cannot say."""
    with suppress(UnicodeEncodeError):
        encoded = msgspec.json.encode(value)
        if encoded.isascii():
            return encoded
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _decode_slowly(data: bytes) -> Any:
    """The standard library takes lone surrogates, which msgspec does not."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("JSON that cannot be read") from None
