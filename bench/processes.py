"""Starts what a benchmark measures: real server processes, ended when it is over."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


@contextmanager
def process_saying(
    pattern: str, *command: str, under: Sequence[str] = (), **environment: str
) -> Iterator[tuple[int, str]]:
    """Run `python -m command…`, `under` another command; yields its pid and what `pattern` finds in its first
    lines.
    """
    with subprocess.Popen(
        [*under, sys.executable, "-m", *command],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(pattern, line):
                    break
            else:
                raise RuntimeError(f"{' '.join(command)} ended with {process.wait()}")
            # Somebody has to read on, or its log would fill the pipe.
            threading.Thread(target=process.stdout.read, daemon=True).start()
            yield process.pid, found[1]
        finally:
            process.kill()


@contextmanager
def gateway(**environment: str) -> Iterator[tuple[int, str]]:
    """A gateway process; yields its pid and its base URL."""
    command = ("server", "--port", "0")
    with process_saying(r"listening on (http\S+)", *command, **environment) as started:
        yield started


@contextmanager
def measured_gateway(
    *flags: str, under: Sequence[str] = (), **environment: str
) -> Iterator[tuple[int, str]]:
    """A gateway that also answers `/measure`, `under` another command."""
    command = ("bench.measured_gateway", "--port", "0", *flags)
    started = process_saying(r"listening on (http\S+)", *command, under=under, **environment)
    with started as found:
        yield found


@contextmanager
def scripted_upstream() -> Iterator[int]:
    """An upstream that does what it is told; yields its port."""
    with process_saying(r"^(\d+)$", "bench.scripted_upstream") as (_, port):
        yield int(port)
