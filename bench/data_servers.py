"""PostgreSQL and Redis for tests and benchmarks: real servers, each with a folder of its own, on unix sockets.

In: nothing; Debian's packages, installed where root may. Out: a running server's address as STORE takes it; it ends with
the context.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.debian_packages import Unavailable, program_path

START_SECONDS = 60.0


@contextmanager
def postgres_server() -> Iterator[str]:
    """A fresh cluster. Raises Unavailable."""
    program_path("psql", "postgresql")
    binaries = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not binaries:
        raise Unavailable("postgresql is installed, and its initdb is not found")
    folder = binaries[-1].parent
    with tempfile.TemporaryDirectory(prefix="pg-", dir="/tmp") as home:
        user = _user_for(home, "postgres")
        data = f"{home}/data"
        initialise = [f"{folder}/initdb", "-D", data, "-U", "smolgate", "-A", "trust", "-N"]
        subprocess.run(
            [*user, *initialise, "--no-instructions"], check=True, capture_output=True, cwd=home
        )
        command = [f"{folder}/postgres", "-D", data, "-k", home, "-c", "listen_addresses="]
        with _server([*user, *command], f"{home}/log", home) as process:
            _await(process, Path(home, ".s.PGSQL.5432"), home)
            url = f"postgresql://smolgate@/postgres?host={home}"
            _until_it_answers([f"{folder}/pg_isready", "-q", "-h", home], process, home)
            yield url


@contextmanager
def redis_server() -> Iterator[str]:
    """An empty one, which writes every command to its file before it answers. Raises Unavailable."""
    binary = program_path("redis-server", "redis-server")
    with tempfile.TemporaryDirectory(prefix="redis-", dir="/tmp") as home:
        path = f"{home}/redis.sock"
        command = [binary, "--port", "0", "--unixsocket", path, "--dir", home, "--save", ""]
        durable = ["--appendonly", "yes", "--appendfsync", "everysec", "--daemonize", "no"]
        with _server([*command, *durable], f"{home}/log", home) as process:
            _await(process, Path(path), home)
            yield f"unix://{path}"


def _user_for(home: str, name: str) -> list[str]:
    """How to run as this user, whose the folder is then; root alone may, and must."""
    if os.geteuid() != 0:
        return []
    user = pwd.getpwnam(name)
    os.chown(home, user.pw_uid, user.pw_gid)
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise Unavailable("setpriv is not installed, and PostgreSQL does not run as root")
    return [setpriv, f"--reuid={name}", f"--regid={user.pw_gid}", "--clear-groups"]


@contextmanager
def _server(command: list[str], log: str, home: str) -> Iterator["subprocess.Popen[bytes]"]:
    with (
        open(log, "wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, cwd=home) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()  # to PostgreSQL: wait for clients, which a test may have lost
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


def _await(process: "subprocess.Popen[bytes]", path: Path, home: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not path.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(f"it does not start: {Path(home, 'log').read_text()[-500:]}")
        time.sleep(0.01)


def _until_it_answers(command: list[str], process: "subprocess.Popen[bytes]", home: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run(command, check=False).returncode:
        if process.poll() is not None or time.monotonic() > deadline:
            raise Unavailable(f"it does not start: {Path(home, 'log').read_text()[-500:]}")
        time.sleep(0.02)
