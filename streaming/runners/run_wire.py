"""What crosses between the server and a run that lives outside of it: frames of msgpack, never pickle.

    the worker says   Hello (over a network), Happened, Asked, Left
    the server says   Begin, then Stop, Answered, Refused

A frame is a 4-byte big-endian length and that many bytes. Events travel encoded by themselves, so that
they may also take another way. Text that has no UTF-8 arrives with `?` in its place.
"""

import struct
from collections.abc import Sequence
from typing import Annotated, Any, Union

import msgspec

from streaming import failures
from streaming.events import Event
from streaming.failures import AgentFailed, SmolgateError, UpstreamRefused
from streaming.interpreters.confinement import JailLimits
from streaming.run_spec import CalledTool, RunSpec

# A worker of another release must not be taken for one of this.
WIRE_VERSION = 2
# A request may hold MAX_BODY_BYTES of pictures, and a model call all of them again as base64.
MOST_FRAME_BYTES = 512 << 20

_HEADER = struct.Struct(">I")


class RunSetup(msgspec.Struct, frozen=True, kw_only=True):
    """What the server knows and a run needs, besides its spec. No credentials.

    `jail`: "server" lends its own, "own" (with `jail_required`) has the worker open some, "off" has none.
    """

    model: str
    embedded: bool
    think_tags: tuple[str, ...]
    think_starts_open: bool
    jail: str
    jail_required: bool
    jail_limits: JailLimits
    step_seconds: float
    code_imports: tuple[str, ...] = ()


class _Message(msgspec.Struct, array_like=True):
    """Arrays on the wire: the tag, then the fields in order."""


class Hello(_Message, tag="hello"):
    """Who calls: `token` is that of one run, and good once."""

    token: str
    version: int


class Begin(_Message, tag="begin"):
    spec: RunSpec
    setup: RunSetup


class Stop(_Message, tag="stop"):
    reason: str


class Happened(_Message, tag="happened"):
    """`events` is the work of `encode_events`."""

    events: bytes


class Asked(_Message, tag="asked"):
    """A question to the server, who answers it once it has seen the first `after` events."""

    id: int
    kind: str
    value: Any
    after: int


class Left(_Message, tag="left"):
    """The worker's last message where events take another way: all of them are on it."""


class Answered(_Message, tag="answered"):
    """`fds` descriptors came along with it."""

    id: int
    value: Any
    fds: int = 0


class Refused(_Message, tag="refused"):
    """The other answer: an error of `streaming.failures`, by the name of its class."""

    id: int
    name: str
    message: str
    code: str | None
    param: str | None
    retry_after: float | None
    upstream_status: int


class ModelReply(msgspec.Struct, frozen=True):
    """A model's answer; a tool call is its id, its name and its arguments."""

    content: str
    tool_calls: tuple[tuple[str, str, str], ...]
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str | None = None


class ClientCall(msgspec.Struct, frozen=True):
    """A call of a tool that the client executes; `together` calls are made at once, this one among them."""

    call: CalledTool
    together: Annotated[int, msgspec.Meta(ge=1)]


FromServer = Begin | Stop | Answered | Refused
FromWorker = Hello | Happened | Asked | Left

_encoder = msgspec.msgpack.Encoder()
_from_server = msgspec.msgpack.Decoder(FromServer)
_from_worker = msgspec.msgpack.Decoder(FromWorker)
_events: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(
    list[Union[tuple(Event.__subclasses__())]]  # type: ignore[misc]  # noqa: UP007
)


def frame_of(message: msgspec.Struct) -> bytes:
    body = _encode(message)
    return _HEADER.pack(len(body)) + body


def encode_frame(message: FromServer | FromWorker) -> bytes:
    return frame_of(message)


def decode_from_server(frame: bytes) -> FromServer:
    message: FromServer = _from_server.decode(frame)
    return message


def decode_from_worker(frame: bytes) -> FromWorker:
    """Raises msgspec.MsgspecError for what is no such message."""
    message: FromWorker = _from_worker.decode(frame)
    return message


def encode_events(events: Sequence[Event]) -> bytes:
    return _encode(list(events))


def decode_events(data: bytes) -> list[Event]:
    """Raises msgspec.MsgspecError for what are no events."""
    events: list[Event] = _events.decode(data)
    return events


def refusal(id: int, error: Exception) -> Refused:
    """An error to be raised at the other end. One that is not ours keeps its text to itself."""
    if not isinstance(error, SmolgateError):
        error = AgentFailed(f"The server could not answer: {type(error).__name__}.")
    return Refused(
        id,
        type(error).__name__,
        error.message,
        error.code,
        error.param,
        error.retry_after,
        error.upstream_status if isinstance(error, UpstreamRefused) else 0,
    )


def error_of(refused: Refused) -> SmolgateError:
    """What `refusal` told."""
    if refused.name == UpstreamRefused.__name__:
        error: SmolgateError = UpstreamRefused(
            refused.message, upstream_status=refused.upstream_status
        )
    else:
        kind = getattr(failures, refused.name, AgentFailed)
        error = kind(refused.message)
    error.code, error.param, error.retry_after = refused.code, refused.param, refused.retry_after
    return error


def _encode(value: Any) -> bytes:
    try:
        return _encoder.encode(value)
    except UnicodeEncodeError:  # half a character, as tokenizers and careless code make them
        return _encoder.encode(_mended(msgspec.to_builtins(value, builtin_types=(bytes,))))


def _mended(value: Any) -> Any:
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {_mended(name): _mended(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_mended(inner) for inner in value]
        case _:
            return value
