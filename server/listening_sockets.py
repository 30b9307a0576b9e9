"""The sockets of many workers: bound once by their parent, and never closed while it lives.

In: the settings and a number of workers. Out: for each worker the sockets that it listens on. On TCP each
has its own on the same port (SO_REUSEPORT), so that the kernel spreads connections evenly; a unix socket is
shared. Whoever takes a worker's place takes its sockets, so a connection that waits to be accepted is
neither refused nor lost.
"""

import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass

from server.settings import Settings

BACKLOG = 1024
# For its owner and its group, which is the proxy's; nobody else may connect.
UNIX_SOCKET_MODE = 0o660


@dataclass(frozen=True)
class ListeningSockets:
    """`of_worker[i]` is what worker i listens on; `address` is for the log."""

    address: str
    of_worker: Sequence[Sequence[socket.socket]]
    unix_path: str | None = None

    def close(self) -> None:
        for sockets in self.of_worker:
            for each in sockets:
                each.close()
        if self.unix_path is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.unix_path)


def open_listening_sockets(settings: Settings, workers: int) -> ListeningSockets:
    """Raises OSError where an address is taken or cannot be had."""
    if settings.unix_socket is not None:
        shared = _unix_socket(settings.unix_socket)
        address = f"unix:{settings.unix_socket}"
        return ListeningSockets(address, [[shared]] * workers, settings.unix_socket)
    found = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    addresses = list(dict.fromkeys((family, place) for family, _, _, _, place in found))
    of_worker: list[list[socket.socket]] = [[] for _ in range(workers)]
    port = settings.port
    for family, (host, *_) in addresses:
        # Without SO_REUSEPORT, so that it fails where another server has the port already.
        with socket.create_server((str(host), port), family=family) as probe:
            port = probe.getsockname()[1]
        for sockets in of_worker:
            sockets.append(
                socket.create_server(
                    (str(host), port), family=family, backlog=BACKLOG, reuse_port=True
                )
            )
    host = str(addresses[0][1][0])
    shown = f"[{host}]" if ":" in host else host
    return ListeningSockets(f"http://{shown}:{port}/v1", of_worker)


def _unix_socket(path: str) -> socket.socket:
    """Takes the place of a socket that a server left behind, of nothing else."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            os.unlink(path)
    made = socket.socket(socket.AF_UNIX)
    made.bind(path)
    os.chmod(path, UNIX_SOCKET_MODE)
    made.listen(BACKLOG)
    return made


def is_loopback(host: str) -> bool:
    """Only this machine reaches what listens there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
