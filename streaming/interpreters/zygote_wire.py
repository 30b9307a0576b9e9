"""The zygote's control socket: what the server asks of it and what it answers.

Datagrams of msgpack, with descriptors beside them. Both ends are this project's own code.
"""

import msgspec


class ZygoteSettings(msgspec.Struct, frozen=True):
    """`layers`: those to try. `preload`: modules to import before forking."""

    layers: tuple[str, ...]
    preload: tuple[str, ...]
    readable: tuple[str, ...]
    disk_bytes: int


class _Message(msgspec.Struct, array_like=True):
    """Datagrams of msgpack on the control socket."""


class Spawn(_Message, tag="spawn"):
    """Comes with one file descriptor, the child's socket. `entry` is a key of _ENTRIES."""

    job: int
    entry: str


class Kill(_Message, tag="kill"):
    """End a child and all that it started. No answer but its Exited."""

    job: int


class ZygoteReady(_Message, tag="ready"):
    """`refused` says of each layer that is off why. `folder` holds workspaces, if they are on disk."""

    layers: tuple[str, ...]
    refused: dict[str, str]
    folder: str | None


class Spawned(_Message, tag="spawned"):
    """Comes with the child's pidfd."""

    job: int
    pid: int


class Exited(_Message, tag="exited"):
    """`status` is that of waitpid; `over_disk` says that the zygote killed it for its files."""

    job: int
    status: int
    cpu_seconds: float
    peak_bytes: int
    over_disk: bool


ToZygote = Spawn | Kill
FromZygote = ZygoteReady | Spawned | Exited
