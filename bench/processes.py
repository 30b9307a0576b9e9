"""Starts what a benchmark measures: real server processes, ended when it is over."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def process_saying(pattern: str, *command: str, **environment: str) -> Iterator[tuple[int, str]]:
    """Run `python -m command…`; yields its pid and what `pattern` finds in its first lines."""
    with subprocess.Popen(
        [sys.executable, "-m", *command],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(pattern, line):
                    yield process.pid, found[1]
                    return
            raise RuntimeError(f"{' '.join(command)} ended with {process.wait()}")
        finally:
            process.kill()


@contextmanager
def gateway(**environment: str) -> Iterator[tuple[int, str]]:
    """A gateway process; yields its pid and its base URL."""
    command = ("server", "--port", "0")
    with process_saying(r"listening on (http\S+)", *command, **environment) as started:
        yield started
