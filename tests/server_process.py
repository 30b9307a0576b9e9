"""`python -m server` as a process of its own, for tests: started, talked to, looked into, ended."""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def environment(**values: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT)} | values


@dataclass
class ServerProcess:
    """A server that listens at `base`; `lines` is what it logged so far."""

    process: subprocess.Popen[str]
    folder: Path
    lines: list[str] = field(default_factory=list)
    base: str = ""

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def sockets(self) -> list[Path]:
        """Where its workers take requests of each other, by their number."""
        found = self.folder.glob("smolgate-workers-*/*.sock")
        return sorted(found, key=lambda path: int(path.stem))

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        return [pid for pid in children(self.process.pid) if "server.worker" in command_of(pid)]


@contextmanager
def server_process(
    *flags: str, command: Sequence[str] = (), cwd: Path = ROOT, **values: str
) -> Iterator[ServerProcess]:
    """A server on a free port; its folder for temporary files is its own."""
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [*(command or (sys.executable, "-m", "server")), "--port", "0", *flags],
            env=environment(**{"TMPDIR": folder} | values),
            cwd=cwd,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        server = ServerProcess(process, Path(folder))
        listening = threading.Event()
        reader = threading.Thread(target=_read, args=(server, listening), daemon=True)
        reader.start()
        try:
            if not listening.wait(60) or not server.base:
                process.kill()
                pytest.fail(f"the server ended with {process.wait()}: {server.log}")
            yield server
        finally:
            process.kill()
            reader.join(10)


def _read(server: ServerProcess, listening: threading.Event) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        server.lines.append(line)
        if not server.base and (found := re.search(r"listening on (http\S+|unix:\S+)", line)):
            server.base = found[1]
            listening.set()
    listening.set()


def wait_for(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait for what no event announces."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    with suppress(OSError):
        threads = Path(f"/proc/{pid}/task").iterdir()
        return [int(child) for task in threads for child in _words(task / "children")]
    return []


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]


def zygotes_of(pid: int) -> list[int]:
    """Its jails' zygotes: a test's process may have other children, too."""
    return [child for child in children(pid) if "jail_zygote" in command_of(child)]


def command_of(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def alive(pid: int) -> bool:
    """It lives, and is no zombie."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def _words(path: Path) -> list[str]:
    with suppress(OSError):
        return path.read_text().split()
    return []
