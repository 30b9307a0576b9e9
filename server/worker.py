"""One of many workers, as its parent starts it (worker_process.py): `… FDS FLAGS…`.

In: file descriptors of the sockets to listen on, the last of the line to the parent, then the server's own flags. Out: the same
server as `python -m server`, which asks its parent for what is true of all workers together.
"""

import socket
import sys

from server.__main__ import run


def main() -> int:
    """Serve until told to stop or to retire; returns the exit code."""
    *sockets, line = (_socket(int(fd)) for fd in sys.argv[1].split(","))
    return run(sys.argv[2:], sockets, line)


def _socket(fd: int) -> socket.socket:
    inherited = socket.socket(fileno=fd)
    inherited.set_inheritable(False)
    return inherited
