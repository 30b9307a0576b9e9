"""The jail's socket: messages in, frames out, and back.

A frame is a 4-byte big-endian length and that many bytes of msgpack: one of the structs below.
Values inside them are bytes of value_writer. The server's side reads what a process that an
attacker may own has written: frames are bounded before they are kept, and msgspec checks every
shape against the structs.
"""

import struct

import msgspec

from streaming.interpreters.confinement import JailLimits
from streaming.interpreters.kept_variables import MOST_KEPT_BYTES, KeptVariables

_HEADER = struct.Struct(">I")
# A message that holds a value is this much larger than the value, at most.
ENVELOPE_BYTES = 64 << 10
# Of kept variables: three lists of 1000 names, of 200 characters each.
_MOST_NAMES_BYTES = 4 << 20
# What comes from the server is trusted; the bound only catches a broken stream.
MOST_BYTES_TO_JAIL = 512 << 20
# What a print costs besides its text, so that empty prints are not free: cf. print_bytes.
PRINT_OVERHEAD_BYTES = 16


class WireBroken(Exception):
    """What arrived is not what the protocol allows."""


class _Message(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """Arrays on the wire: the tag, then the fields in order."""


class Setup(_Message, tag="setup"):
    """First message to a jail. `functions` override smolagents' base tools, as `tools` do not."""

    authorized_imports: list[str]
    functions: list[str]
    limits: JailLimits


class SetTools(_Message, tag="tools"):
    names: list[str]


class SetVariables(_Message, tag="variables"):
    """Names and encoded values."""

    variables: dict[str, bytes]


class RunCode(_Message, tag="run"):
    code: str


class KeepVariables(_Message, tag="keep"):
    """Answered with Kept."""


class Returned(_Message, tag="returned"):
    """The answer to ToolCalled."""

    value: bytes


class Raised(_Message, tag="raised"):
    """The other answer to ToolCalled."""

    type_name: str
    text: str


class Ready(_Message, tag="ready"):
    """First message of a jail: it is confined."""


class Printed(_Message, tag="printed"):
    text: str


class ToolCalled(_Message, tag="called"):
    """`arguments` is a tuple (args, kwargs), encoded. The jail waits for Returned or Raised."""

    name: str
    arguments: bytes


class Finished(_Message, tag="finished"):
    """The code ran to its end; `output` is its value, encoded."""

    output: bytes
    is_final_answer: bool


class Failed(_Message, tag="failed"):
    """The code raised; `text` is for the model."""

    text: str


class Kept(_Message, tag="kept"):
    """What the variables leave behind."""

    variables: KeptVariables


ToJail = Setup | SetTools | SetVariables | RunCode | KeepVariables | Returned | Raised
FromJail = Ready | Printed | ToolCalled | Finished | Failed | Kept

_encoder = msgspec.msgpack.Encoder()
_to_jail = msgspec.msgpack.Decoder(ToJail)
_from_jail = msgspec.msgpack.Decoder(FromJail)


def encode_frame(message: ToJail | FromJail) -> bytes:
    body = _encoder.encode(message)
    return _HEADER.pack(len(body)) + body


def decode_to_jail(frame: bytes) -> ToJail:
    message: ToJail = _to_jail.decode(frame)
    return message


def decode_from_jail(frame: bytes) -> FromJail:
    """Raises WireBroken, and nothing else."""
    try:
        message: FromJail = _from_jail.decode(frame)
    except (msgspec.MsgspecError, ValueError, RecursionError, MemoryError):
        raise WireBroken("a message of no known shape") from None
    return message


def most_bytes_from_jail(limits: JailLimits) -> int:
    """The longest frame that a jail under these limits has reason to send."""
    return (
        max(limits.value_bytes, limits.print_bytes, MOST_KEPT_BYTES + _MOST_NAMES_BYTES)
        + ENVELOPE_BYTES
    )


class FrameBuffer:
    """Bytes in, frames out. Holds at most one frame of `most_bytes` and what was fed with its end."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._data = bytearray()
        self._start = 0

    def feed(self, data: bytes) -> None:
        self._data += data

    def next_frame(self) -> bytes | None:
        """The next whole frame, or None until more is fed. Raises WireBroken."""
        if len(self._data) - self._start < _HEADER.size:
            self._drop_taken()
            return None
        (length,) = _HEADER.unpack_from(self._data, self._start)
        if length > self.most_bytes:
            raise WireBroken(f"a frame of {length} bytes")
        begin = self._start + _HEADER.size
        end = begin + length
        if len(self._data) < end:
            self._drop_taken()
            return None
        frame = bytes(self._data[begin:end])
        self._start = end
        return frame

    def _drop_taken(self) -> None:
        """Once per feed and not once per frame: many small frames stay linear."""
        del self._data[: self._start]
        self._start = 0
