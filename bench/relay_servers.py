"""The servers that the relay benchmark compares: nginx as a plain proxy, and the gateway.

In: the upstream's port. Out: `Server`s with their pid, port, CPU and memory; each ends with its `with`.
"""

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from bench.debian_packages import Unavailable, nginx_path
from bench.processes import process_saying
from bench.relay_work import KEY, MODEL

START_SECONDS = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")
_NGINX = """
daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile {files};
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections {files}; }}
http {{
    access_log off;
    tcp_nodelay on;
    keepalive_timeout 3600s;
    keepalive_requests 1000000000;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream up {{
        server 127.0.0.1:{upstream};
        keepalive 4096;
        keepalive_requests 1000000000;
    }}
    {upstreams}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        {locations}
        location / {{
            proxy_pass http://{first};
            {headers}
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffering off;
            # A burst in one read: 65 µs rather than 105. The other two only have to agree with it.
            proxy_buffer_size 64k;
            proxy_buffers 8 64k;
            proxy_busy_buffers_size 64k;
            proxy_read_timeout 3600s;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Server:
    """One server, of one process or more: `also` are the others."""

    name: str
    pid: int
    port: int
    also: tuple[int, ...] = ()

    def cpu_seconds(self) -> float:
        """User and system time of the processes, all their threads, none of their children."""
        ticks = 0
        for pid in (self.pid, *self.also):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / _TICKS

    def resident_kib(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1])
        raise RuntimeError(f"{self.name} is gone")


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Each another."""
    with ExitStack() as stack:
        sockets = [
            stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)
        ]
        return [listening.getsockname()[1] for listening in sockets]


def pin(pid: int, core: int) -> None:
    """Keep a process on one core: the load has the other."""
    if (os.cpu_count() or 1) < 2:
        return
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):
            os.sched_setaffinity(int(task.name), {core})


def await_port(port: int, seconds: float = START_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@contextmanager
def gateway_server(
    upstream_port: int,
    name: str = "gateway",
    module: str = "server",
    *,
    bare: bool = False,
    under: Sequence[str] = (),
    **more: str,
) -> Iterator[Server]:
    """The gateway, as `python -m MODULE`: keys with limits, metrics, and its access log into a pipe, as
    under systemd. `bare`: without keys, and silent. `under` is a command that runs it, `more` are settings of
    its environment.
    """
    port = free_port()
    environment = {
        "UPSTREAM_OPENAI_BASE": f"http://127.0.0.1:{upstream_port}/v1",
        "AGENT_MODEL": MODEL,
        "JAIL": "off",
        "LOG_LEVEL": "WARNING" if bare else "INFO",
        "HF_TOKEN": "",
        "HUGGINGFACEHUB_API_TOKEN": "",
        "API_TOKEN": "",
        "API_KEYS": "",
    } | more
    # At level WARNING its first words are that there is no token.
    command = (module, "--port", str(port))
    with ExitStack() as stack:
        if not bare:
            environment["API_KEYS_FILE"] = stack.enter_context(keys_file())
        pid, _ = stack.enter_context(
            process_saying(r"(HF_TOKEN is not set)", *command, under=under, **environment)
        )
        await_port(port)
        pin(pid, (os.cpu_count() or 1) - 1)
        yield Server(name, pid, port)


@contextmanager
def keys_file() -> Iterator[str]:
    """A hundred keys, every one with limits; yields the path."""
    limits = {
        "requests_per_minute": 1_000_000_000,
        "concurrent_runs": 8,
        "models": [MODEL, f"{MODEL}-nothink", "code-*"],
    }
    keys = [*(f"sg-somebody-elses-{number}" for number in range(99)), KEY]
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump([{"key": key, "name": key[-6:]} | limits for key in keys], file)
        file.flush()
        yield file.name


@contextmanager
def nginx_server(
    upstream_port: int,
    name: str = "nginx",
    *,
    first: str = "up",
    upstreams: str = "",
    locations: str = "",
    headers: str = "",
    also: tuple[int, ...] = (),
    under: Sequence[str] = (),
) -> Iterator[Server]:
    """nginx, one process, streaming through. Raises Unavailable.

    Requests go to the upstream named `first`, with further `headers`; the rest goes into its configuration.
    `under` is a command that runs it.
    """
    binary = nginx_path()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as folder:
        config = Path(folder, "nginx.conf")
        config.write_text(
            _NGINX.format(
                folder=folder,
                upstream=upstream_port,
                port=port,
                files=8192,
                first=first,
                upstreams=upstreams,
                locations=locations,
                headers=headers,
            )
        )
        command = [*under, binary, "-p", folder, "-c", str(config), "-e", f"{folder}/error.log"]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            try:
                try:
                    await_port(port)
                except OSError:
                    process.kill()
                    assert process.stderr is not None
                    said = process.stderr.read().decode()[-300:]
                    raise Unavailable(f"nginx does not start: {said}") from None
                pin(process.pid, (os.cpu_count() or 1) - 1)
                yield Server(name, process.pid, port, also)
            finally:
                process.kill()
