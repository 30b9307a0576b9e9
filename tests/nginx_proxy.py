"""A real nginx in front of a server, with little patience."""

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.relay_servers import Unavailable, free_port, nginx_path

_CONFIG = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {upstream};
            proxy_read_timeout {read_timeout};
            {more}
        }}
    }}
}}
"""


@contextmanager
def nginx_before(upstream: str, *, read_timeout: str, more: str = "") -> Iterator[str]:
    """nginx, proxying to this address; yields its own. `more` goes into its location."""
    binary = _nginx()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="nginx-") as folder:
        config = Path(folder, "nginx.conf")
        config.write_text(
            _CONFIG.format(
                folder=folder, port=port, upstream=upstream, read_timeout=read_timeout, more=more
            )
        )
        command = [binary, "-p", folder, "-c", str(config), "-e", f"{folder}/error.log"]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
            try:
                _await_port(port)
                yield f"http://127.0.0.1:{port}"
            finally:
                process.kill()


def _nginx() -> str:
    try:
        return nginx_path()
    except Unavailable as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return
