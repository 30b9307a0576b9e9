"""Log records → lines on a stream, many in one write.

In: records. Out: their lines, in order. Those below WARNING that the event loop logs wait for up to
HELD_SECONDS and are formatted and written together: a line costs a request a fifth of what it costs at once.
Anything that matters, any other thread, and the end of the process write what waits.
"""

import asyncio
import contextlib
import logging
from threading import get_ident
from typing import TextIO

HELD_SECONDS = 0.1
# More than this are not held.
MAX_HELD = 1000


class LineHandler(logging.StreamHandler[TextIO]):
    """A StreamHandler that gathers lines while an event loop runs."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._held: list[logging.LogRecord] = []
        self._due_in: int | None = None  # the thread whose event loop will flush
        self._loop: asyncio.AbstractEventLoop | None = None  # which may end first

    def emit(self, record: logging.LogRecord) -> None:
        """Needs no lock: what is appended while another thread writes stays for the next time."""
        self._held.append(record)
        if record.levelno < logging.WARNING and len(self._held) < MAX_HELD and self._is_due():
            return
        self.flush()

    def _is_due(self) -> bool:
        """Whether this thread's event loop will flush. Asked of asyncio once a batch: that is a system call."""
        if self._due_in is None or self._loop is None or self._loop.is_closed():
            try:
                self._loop = asyncio.get_running_loop()
            except RuntimeError:
                return False
            self._due_in = get_ident()
            self._loop.call_later(HELD_SECONDS, self.flush)
        return self._due_in == get_ident()

    def flush(self) -> None:
        """Write what waits."""
        self.acquire()
        try:
            self._due_in = None
            # After `_due_in`: what comes from here on has itself a flush to come.
            held = self._held[:]
            del self._held[: len(held)]
            lines = [self._line(record) for record in held]
            # A disk that is full, or a pipe that nobody reads, must not fail whoever logs, nor the event loop.
            with contextlib.suppress(OSError, ValueError):
                if lines:
                    self.stream.write("".join(lines))
                super().flush()
        finally:
            self.release()

    def _line(self, record: logging.LogRecord) -> str:
        """Or one that says that it cannot be made: logging's own report shows all it has, secrets too."""
        try:
            return f"{self.format(record)}{self.terminator}"
        except Exception as error:  # noqa: BLE001 - as logging does: what cannot be logged must not fail the server
            if record.name == __name__:
                return ""
            told = record.name, type(error).__name__, getattr(record, "msg", "")
            text = "a line of %s cannot be made: %s: %s"
            return self._line(logging.LogRecord(__name__, logging.ERROR, "", 0, text, told, None))
