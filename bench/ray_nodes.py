"""A Ray cluster in namespaces of its own: first process there, one command a line in, one answer out.

Started by `ray_cluster.py` with `unshare --net --pid`: the network has just `lo`, so that Ray has no
other address to take, and all processes end with this one, which ends with its standard input.

    start NAME {"head": …, "cpus": …, "resources": …}     →  how long it took
    kill NAME         SIGKILL to all processes of a node    →  how many there were
    workers           →  by node, the ids of processes that run tasks
"""

import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

PORT = 6390
_SIOCSIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8914, 0x1, 0x40
_START_SECONDS = 90.0
# Where its folder is to be made: Ray's sockets are in it, 71 characters below, and a socket's path has at most 107.
SHORT_PLACE = "/tmp"
_COMMON = (
    *("--node-ip-address", "127.0.0.1", "--num-gpus", "0", "--object-store-memory", "100000000"),
    *("--disable-usage-stats", "--include-log-monitor", "false", "--block"),
)


class Nodes:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._nodes: dict[str, subprocess.Popen[bytes]] = {}
        self._clusters = count()

    def start(self, name: str, wanted: str) -> float:
        options = json.loads(wanted)
        # A head that comes again is another cluster.
        place = ("--temp-dir", str(self._folder / str(next(self._clusters))))
        where: tuple[str, ...] = ("--address", f"127.0.0.1:{PORT}")
        if options["head"]:
            where = ("--head", "--port", str(PORT), "--include-dashboard", "false", *place)
        given = (
            "--num-cpus",
            str(options["cpus"]),
            "--resources",
            json.dumps(options["resources"]),
        )
        began = time.monotonic()
        log_path = self._folder / f"{name}.log"
        with log_path.open("wb") as log:
            command = (sys.executable, "-m", "ray.scripts.scripts", "start")
            self._nodes[name] = node = subprocess.Popen(
                (*command, *where, *given, *_COMMON), stdout=log, stderr=subprocess.STDOUT
            )
        while b"Ray runtime started" not in log_path.read_bytes():
            if node.poll() is not None or time.monotonic() > began + _START_SECONDS:
                raise RuntimeError(log_path.read_text()[-2000:])
            time.sleep(0.05)
        return time.monotonic() - began

    def kill(self, name: str) -> int:
        node = self._nodes.pop(name)
        killed: set[int] = set()
        while pids := {node.pid, *below(node.pid)} - killed:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            killed |= pids
        node.wait()
        return len(killed)

    def workers(self) -> dict[str, list[int]]:
        """Ray names a worker's process after the task that it runs."""
        return {
            name: [pid for pid in below(node.pid) if "ray::smolgate" in command_of(pid)]
            for name, node in self._nodes.items()
        }


def below(pid: int) -> set[int]:
    """All processes that descend from one, by their ids."""
    found: set[int] = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found |= {child, *below(child)}
    return found


def command_of(pid: int) -> str:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sh14x", b"lo", _IFF_UP | _IFF_RUNNING)
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, request)


def main() -> None:
    bring_loopback_up()
    nodes = Nodes(Path(sys.argv[1]))
    for line in sys.stdin:
        command, _, rest = line.strip().partition(" ")
        name, _, wanted = rest.partition(" ")
        answer: Any
        try:
            match command:
                case "start":
                    answer = nodes.start(name, wanted)
                case "kill":
                    answer = nodes.kill(name)
                case _:
                    answer = nodes.workers()
        except Exception as error:  # noqa: BLE001  the test gets it
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
