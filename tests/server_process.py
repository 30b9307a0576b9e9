"""The real server in a process of its own, and what it logs."""

import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parent.parent


class ServerProcess:
    """`base` is its address without `/v1`; `lines` grows with what it writes to stderr."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.base = ""
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

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
                assert left > 0, "\n".join(self.lines)
                assert self._reading.is_alive(), "it ended: " + "\n".join(self.lines)
                self._changed.wait(min(left, 0.5))
        return found

    def stop(self) -> int:
        """SIGTERM; returns the exit code once all it wrote has been read."""
        self.process.terminate()
        code = self.process.wait(30)
        self._reading.join(30)
        return code

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()


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


@contextmanager
def server_process(*flags: str, **environment: str) -> Iterator[ServerProcess]:
    """`python -m server`, listening; without an upstream that answers unless one is given.

    `PYTHONPATH` adds to where it finds its agents' modules.
    """
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    defaults = {"UPSTREAM_OPENAI_BASE": "http://127.0.0.1:1/v1", "JAIL": "off"}
    folders = str(ROOT), str(ROOT / "tests"), environment.pop("PYTHONPATH", "")
    modules = os.pathsep.join(filter(None, folders))
    with subprocess.Popen(
        [sys.executable, "-m", "server", "--port", "0", *flags],
        env=kept | {"PYTHONPATH": modules} | defaults | environment,
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        server = ServerProcess(process)
        try:
            line = server.line_with("listening on ")
            found = re.search(r"listening on (http://[^/\s]+)", line)
            assert found is not None, line
            server.base = found[1]
            yield server
        finally:
            process.kill()
