"""The server's end of its Ray driver: started, listened to, started again when it ends.

In: messages for it. Out: its messages, with the descriptors that came along, and word of its end.
"""

import asyncio
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

import msgspec

from streaming.interpreters.zygote_link import code_paths
from streaming.runners.frame_socket import FrameSocket
from streaming.runners.ray_wire import (
    MOST_FRAME_BYTES,
    Called,
    DriverSettings,
    FromDriver,
    ToDriver,
    encode,
    from_driver,
)

log = logging.getLogger(__name__)

# What the driver is started with, before its module's name.
COMMAND = (sys.executable, "-P", "-m")
_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 0.5, 10.0
# A driver that held this long was not broken from the start.
_STABLE_SECONDS = 30.0


class RayLink:
    """Use it as a task: `run` goes on until it is cancelled, and then ends the driver."""

    def __init__(
        self,
        settings: DriverSettings,
        *,
        environment: Mapping[str, str],
        on_message: Callable[[FromDriver, int | None], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._settings = msgspec.json.encode(settings).decode()
        self._environment = {**code_paths(), **environment}
        self._on_message = on_message
        self._on_gone = on_gone
        self._driver: FrameSocket | None = None
        self._outbox: asyncio.Queue[ToDriver] = asyncio.Queue()
        self.restarts = 0

    def send(self, message: ToDriver) -> None:
        """What is sent while there is no driver is lost; `on_gone` has told its runs already."""
        if self._driver is not None:
            self._outbox.put_nowait(message)

    async def run(self) -> None:
        backoff_seconds = _FIRST_BACKOFF_SECONDS
        while True:
            since = time.monotonic()
            await self._one_driver()
            if time.monotonic() - since > _STABLE_SECONDS:
                backoff_seconds = _FIRST_BACKOFF_SECONDS
            log.warning("the Ray driver ended; a new one in %.1f s", backoff_seconds)
            self.restarts += 1
            await asyncio.sleep(backoff_seconds)
            backoff_seconds = min(backoff_seconds * 2, _LONGEST_BACKOFF_SECONDS)

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                (*COMMAND, "streaming.runners.ray_driver", str(theirs.fileno()), self._settings),
                env=self._environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        return process, ours

    async def _one_driver(self) -> None:
        process, link = self._start()
        self._driver = driver = FrameSocket(link, MOST_FRAME_BYTES)
        self._outbox = asyncio.Queue()
        sending = asyncio.ensure_future(self._send_all(driver))
        try:
            with suppress(OSError):
                while (frame := await driver.receive()) is not None:
                    message = from_driver.decode(frame)
                    # Descriptors may have come with the bytes of an earlier frame.
                    fd = driver.fds.popleft() if isinstance(message, Called) else None
                    self._on_message(message, fd)
        except Exception:
            log.exception("the Ray driver could not be understood")
        finally:
            self._driver = None
            process.kill()
            process.wait()
            self._on_gone()
            sending.cancel()
            try:
                await asyncio.gather(sending, return_exceptions=True)
            finally:  # whoever cancels may do it twice
                driver.close()

    async def _send_all(self, driver: FrameSocket) -> None:
        with suppress(OSError):  # its end comes to the reader
            while True:
                await driver.send(encode(await self._outbox.get()))
