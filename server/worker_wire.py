"""What a worker and its parent say to each other, over a socket pair.

In: messages. Out: frames of four bytes of length and msgpack, and back. Both ends are ours and of one
version or two neighbouring ones (a rolling restart), so fields are only ever added, with defaults.
"""

import asyncio
import struct
from typing import Literal

import msgspec

_LENGTH = struct.Struct("!I")


class Message(msgspec.Struct, frozen=True, tag=True):
    """Base of all; the class's name goes along."""


class Welcome(Message, frozen=True):
    """To a worker, first: where it is to take joining requests, and where the embedded model is."""

    join_path: str
    embedded_base: str | None = None


class Serving(Message, frozen=True):
    """From a worker: it listens."""


class Retire(Message, frozen=True):
    """To a worker: another has taken your place; finish what you have."""


class Ask(Message, frozen=True):
    """From a worker: a place for a run, if its key has fewer than so many (0: no limit)."""

    run_id: str
    key: str
    max_of_key: int = 0


class Pause(Message, frozen=True):
    """From a worker: others may have the run's place; it still counts for its key."""

    run_id: str


class Resume(Message, frozen=True):
    """From a worker: a place for a run that has paused, ahead of those that have not begun."""

    run_id: str


class GiveBack(Message, frozen=True):
    """From a worker: the run is over, or waits no more."""

    run_id: str


class Granted(Message, frozen=True):
    run_id: str


class Refused(Message, frozen=True):
    """To a worker: no place, and why (`queue_full`, `key_limit`)."""

    run_id: str
    code: str


class Totals(Message, frozen=True):
    """To all workers: how many runs have a place, wait for one, or have paused, everywhere."""

    running: int
    queued: int
    paused: int = 0


class EmbeddedState(Message, frozen=True):
    """To all workers: why the embedded model cannot be called, or None when it can."""

    reason: str | None


class Inquiry(Message, frozen=True):
    """From a worker, and on to all others: the runs of a key, who knows the tool call `id`, or metrics."""

    number: int
    wish: Literal["list", "get", "cancel", "tool_call", "metrics"]
    key: str = ""
    id: str = ""


class Findings(Message, frozen=True):
    """The answer: runs as JSON objects, join paths, or metrics as text; one or none of each worker,
    but for lists.
    """

    number: int
    found: list[bytes]


class KeyUse(Message, frozen=True):
    """From a worker, and on to all others: what was used of a key just now."""

    key: str
    requests: int = 0
    tokens: int = 0


class Counts(Message, frozen=True):
    """From a worker, now and then and last of all: its metrics, which outlive it."""

    metrics: bytes


class Claim(Message, frozen=True):
    """From a worker: whose are the runs of this wish? Mine, if nobody has it, or `instead_of` has."""

    number: int
    wish: bytes
    instead_of: str | None = None
    by_force: bool = False


class Claimed(Message, frozen=True):
    """To a worker: the join path of the wish's owner, or None: it is yours."""

    number: int
    owner: str | None


ToWorker = (
    Welcome
    | Retire
    | Granted
    | Refused
    | Totals
    | EmbeddedState
    | KeyUse
    | Inquiry
    | Findings
    | Claimed
)
FromWorker = (
    Serving | Ask | Pause | Resume | GiveBack | KeyUse | Inquiry | Findings | Counts | Claim
)


def write_message(writer: asyncio.StreamWriter, message: Message) -> None:
    """Send one message; it goes out without waiting, and is lost where the other end is gone."""
    data = msgspec.msgpack.encode(message)
    writer.write(_LENGTH.pack(len(data)) + data)


async def read_frame(reader: asyncio.StreamReader) -> bytes | None:
    """The next frame's msgpack, or None when the other end is gone."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
