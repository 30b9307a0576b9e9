"""What tools and libraries print, told apart by run, without touching what other threads print.

In: anything written to `sys.stdout` or `sys.stderr`. Out: the sink of the run whose context the writer
is in, else the real stream. One proxy is installed once; the run is found by a context variable, so a
thread that a tool starts by itself writes to the server's own output.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

Sink = Callable[[str], None]

_sink: ContextVar[Sink | None] = ContextVar("smolgate_stdout_sink", default=None)


class RunOutput:
    """Stands for a standard stream; `write` goes to the current run's sink, all else to the stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        sink = _sink.get()
        if sink is None:
            return self._stream.write(text)
        if text:
            sink(text)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def capture_installed() -> Iterator[None]:
    """While inside, `sys.stdout` and `sys.stderr` know the runs; once a process is enough."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = RunOutput(sys.stdout), RunOutput(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def captured(sink: Sink) -> Iterator[None]:
    """While inside, what this context writes goes to `sink`, piece by piece as it is written."""
    token = _sink.set(sink)
    try:
        yield
    finally:
        _sink.reset(token)
