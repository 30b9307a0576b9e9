"""A command in a terminal of its own, for tests: a pseudo-terminal whose other end is a person's hands and eyes."""

import asyncio
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from server_process import ROOT, environment

CTRL_C, CTRL_D, ENTER = "\x03", "\x04", "\r"
SEQUENCE = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)", re.DOTALL)


class Terminal:
    """`screen` is all that was written; `text` is the same without escape sequences."""

    def __init__(self, process: subprocess.Popen[bytes], fd: int) -> None:
        self.process = process
        self.screen = ""
        self._fd = fd
        self._raw = b""
        self._changed = asyncio.Event()
        self._looked = 0
        self._is_over = False
        asyncio.get_running_loop().add_reader(fd, self._read)

    @property
    def text(self) -> str:
        return SEQUENCE.sub("", self.screen)

    def type(self, keys: str) -> None:
        os.write(self._fd, keys.encode())

    async def see(self, text: str, seconds: float = 30) -> None:
        """Wait until this is written, after what was seen before."""
        try:
            async with asyncio.timeout(seconds):
                while (at := self.text.find(text, self._looked)) == -1:
                    assert not self._is_over, f"it ended: {self.screen[-3000:]}"
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"{text!r} is not in {self.screen[-3000:]!r}") from None
        self._looked = at + len(text)

    async def ended(self, seconds: float = 30) -> int:
        """Its exit code."""
        return await asyncio.to_thread(self.process.wait, seconds)

    async def left_at_its_prompt(self) -> int:
        """Press Ctrl-C, and again after a while as a person would: between the prompt's drawing and its waiting for
        keys, CPython's readline sees no signal before the next key. The exit code.
        """
        for _ in range(10):
            self.type(CTRL_C)
            with suppress(subprocess.TimeoutExpired):
                return await self.ended(3)
        raise AssertionError(f"it goes on: {self.screen[-3000:]!r}")

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _read(self) -> None:
        with suppress(OSError):  # EIO: nobody holds the other end any more
            if data := os.read(self._fd, 65536):
                self._raw += data
                self.screen = self._raw.decode(errors="replace")
                self._changed.set()
                return
        self._is_over = True
        self._changed.set()
        asyncio.get_running_loop().remove_reader(self._fd)


@asynccontextmanager
async def terminal(*command: str, columns: int = 80, **values: str) -> AsyncIterator[Terminal]:
    """`python -m server COMMAND…` in a terminal; killed if it is still there in the end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = _start(command, theirs, {"TERM": "xterm-256color", "LANG": "C.UTF-8"} | values)
    os.close(theirs)
    shown = Terminal(process, ours)
    try:
        yield shown
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait(30)
        shown.close()


def _start(command: Sequence[str], fd: int, values: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "server", *command],
        cwd=ROOT,
        env=environment(**values),
        stdin=fd,
        stdout=fd,
        stderr=fd,
        start_new_session=True,
        preexec_fn=_take_terminal,  # noqa: PLW1509 - one ioctl
    )


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
