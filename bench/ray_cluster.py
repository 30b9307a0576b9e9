"""A real Ray cluster on a loopback of its own, for tests and benchmarks, gone with them whatever happens."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.ray_nodes import PORT, SHORT_PLACE

ROOT = Path(__file__).parent.parent
TOKEN = "a-token-of-the-tests-0123456789abcdef"
# Both nodes are on one machine, so what they have is but a number.
CPUS = 30


class RayCluster:
    """Two nodes: `head` and `other`."""

    def __init__(self, keeper: "subprocess.Popen[str]") -> None:
        self._keeper = keeper

    @property
    def enter(self) -> tuple[str, ...]:
        """What a command is started with, to be where the nodes are."""
        pid = self._keeper.pid
        (first,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        user = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
        return ("nsenter", "--target", first, *user, "--net", "--pid", "--mount")

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "ray_address": f"127.0.0.1:{PORT}",
            "ray_auth_token": TOKEN,
            "ray_options": {"*": {"num_cpus": 1}},
        }

    def start(self, name: str) -> None:
        options = {"head": name == "head", "cpus": CPUS, "resources": {name: CPUS}}
        self._ask(f"start {name} {json.dumps(options)}")

    def kill(self, name: str) -> int:
        """SIGKILL to every process of a node, as if its machine had lost power."""
        count: int = self._ask(f"kill {name}")
        return count

    def workers(self) -> dict[str, list[int]]:
        """By node, the processes that carry out a run."""
        found: dict[str, list[int]] = self._ask("workers")
        return found

    def _ask(self, command: str) -> Any:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.write(command + "\n")
        self._keeper.stdin.flush()
        answer = json.loads(self._keeper.stdout.readline() or '{"error": "it has ended"}')
        if isinstance(answer, dict) and "error" in answer:
            raise RuntimeError(answer["error"])
        return answer


class NoNamespaces(Exception):
    """This machine does not allow them."""


@contextmanager
def open_ray_cluster() -> Iterator[RayCluster]:
    """A cluster of two nodes. Raises NoNamespaces."""
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    unshare = ("unshare", *user, "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
    if subprocess.run((*unshare, "true"), capture_output=True, check=False).returncode:
        raise NoNamespaces("Ray is started in namespaces of its own, which this machine forbids")
    folder = tempfile.mkdtemp(prefix="ray-", dir=SHORT_PLACE)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": TOKEN,
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    keeper = subprocess.Popen(
        (*unshare, sys.executable, "-m", "bench.ray_nodes", folder),
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        cluster = RayCluster(keeper)
        for name in ("head", "other"):
            cluster.start(name)
        yield cluster
    finally:
        keeper.kill()  # and with it, by --kill-child, all that is in there
        keeper.communicate()
        shutil.rmtree(folder, ignore_errors=True)
