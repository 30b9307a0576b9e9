"""`python -m server` as a process of its own, for tests: started, talked to, looked into, ended."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent
# What most tests want: an upstream that does not answer, and no jail.
DEFAULTS = {"UPSTREAM_OPENAI_BASE": "http://127.0.0.1:1/v1", "JAIL": "off"}


def environment(**values: str) -> dict[str, str]:
    """Little of ours, and these; `PYTHONPATH` adds to where modules are found."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    folders = str(ROOT), str(ROOT / "tests"), values.get("PYTHONPATH", "")
    return kept | values | {"PYTHONPATH": os.pathsep.join(filter(None, folders))}


class ServerProcess:
    """`base` is its address without `/v1`; `lines` grows with what it writes to stderr."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.base = ""
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    def line_with(self, text: str, seconds: float = 60) -> str:
        """The first line that holds `text`, as soon as there is one."""
        return self.wait_for(
            lambda: next((line for line in self.lines if text in line), ""), seconds
        )

    def wait_for(self, condition: Callable[[], str], seconds: float = 60) -> str:
        deadline = time.monotonic() + seconds
        with self._changed:
            while not (found := condition()):
                left = deadline - time.monotonic()
                assert left > 0, self.log
                assert self.reading.is_alive(), "it ended: " + self.log
                self._changed.wait(min(left, 0.5))
        return found

    def stop(self) -> int:
        """SIGTERM; returns the exit code once all it wrote has been read."""
        self.process.terminate()
        code = self.process.wait(30)
        self.reading.join(30)
        return code

    def sockets(self) -> list[Path]:
        """Where its workers take requests of each other, by their number."""
        found = self.folder.glob("smolgate-workers-*/*.sock")
        return sorted(found, key=lambda path: int(path.stem))

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        return [pid for pid in children(self.process.pid) if "server.worker" in command_of(pid)]

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()


@contextmanager
def server_process(
    *flags: str, command: Sequence[str] = (), cwd: Path = ROOT, **values: str
) -> Iterator[ServerProcess]:
    """A server that listens on a free port; its folder for temporary files is its own.

    `command` in place of `python -m server` finds its modules by itself.
    """
    with tempfile.TemporaryDirectory() as folder:
        variables = environment(**DEFAULTS | {"TMPDIR": folder, "XDG_STATE_HOME": folder} | values)
        if command:
            variables["PYTHONPATH"] = values.get("PYTHONPATH", "")
        with subprocess.Popen(
            [*(command or (sys.executable, "-m", "server")), "--port", "0", *flags],
            env=variables,
            cwd=cwd,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            server = ServerProcess(process, Path(folder))
            try:
                line = server.line_with("listening on ")
                found = re.search(r"listening on (http://[^/\s]+|unix:\S+)", line)
                assert found is not None, line
                server.base = found[1]
                yield server
            finally:
                # Workers hold its stderr open, and may take a while to end without it.
                family = [process.pid, *descendants(process.pid)]
                for pid in family:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                server.reading.join(60)


def status_of(url: str, *, key: str, body: object = None) -> int:
    """The status of a GET, or of a POST of JSON, with a key."""
    request = urllib.request.Request(
        url,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


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
