"""Between the server and the process that is its Ray driver: frames of msgpack, descriptors beside them.

Both ends are this project's own code, of one release.
"""

import msgspec

from streaming.runners.run_wire import MOST_FRAME_BYTES as MOST_FRAME_BYTES
from streaming.runners.run_wire import frame_of


class DriverSettings(msgspec.Struct, frozen=True):
    """`loader` makes factories of `agents`; `listen` is where workers call, host (None: that of Ray) and
    port. `options` are Ray's own, by agent; those of "*" are everybody's."""

    address: str
    loader: str
    agents: dict[str, str]
    options: dict[str, dict[str, object]]
    listen_host: str | None = None
    listen_port: int = 0
    lost_seconds: float = 20.0


class _Message(msgspec.Struct, array_like=True):
    """Arrays on the wire: the tag, then the fields in order."""


class Submit(_Message, tag="submit"):
    """Start a run of `agent`; the worker that has it calls with `token`."""

    job: int
    agent: str
    token: str


class Taken(_Message, tag="taken"):
    """The run's last batch has found room: send the next."""

    job: int


class End(_Message, tag="end"):
    """End a run by force, or take it back before it began."""

    job: int


class ClusterState(_Message, tag="cluster"):
    """How the cluster is, about once a second. `trouble` says what is wrong with it, in a few words;
    while it is `joined`, runs are sent there all the same, and wait."""

    trouble: str | None = None
    joined: bool = True
    nodes: int = 0
    cpus: float = 0.0
    cpus_free: float = 0.0
    gpus: float = 0.0
    gpus_free: float = 0.0


class Called(_Message, tag="called"):
    """A worker has begun with a run; its connection comes along."""

    job: int
    node: str


class Batch(_Message, tag="batch"):
    job: int
    events: bytes


class Over(_Message, tag="over"):
    """The run's task has ended, for Ray; `reason` is None where it ended by itself."""

    job: int
    reason: str | None


ToDriver = Submit | Taken | End
FromDriver = ClusterState | Called | Batch | Over

to_driver = msgspec.msgpack.Decoder(ToDriver)
from_driver = msgspec.msgpack.Decoder(FromDriver)


def encode(message: ToDriver | FromDriver) -> bytes:
    return frame_of(message)
