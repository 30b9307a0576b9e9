"""The event loop's end of the zygote: started, listened to, restarted when it dies, ended.

Requests to spawn and kill go in; its messages, with the descriptors that came along, come out of
callbacks. The program is a module that takes the control socket's number and its settings.
"""

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from streaming.interpreters.zygote_wire import FromZygote, Kill, Spawn, ToZygote

_logger = logging.getLogger(__name__)

_FIRST_BACKOFF_SECONDS, _LONGEST_BACKOFF_SECONDS = 0.1, 10.0
# A zygote that held this long was not broken from the start.
_STABLE_SECONDS = 30.0
_CLOSE_SECONDS = 2.0
_MOST_MESSAGE_BYTES = 16_384
# Threads do not survive a fork, and the libraries that preloading starts them for break.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class ZygoteLink:
    """`on_gone` gets a sentence when the zygote died; a new one is then on its way.

    `purpose` is what it starts, in the plural. It sees of the server's environment what is in `environment`, and works
    in `folder`.
    """

    def __init__(
        self,
        module: str,
        settings: msgspec.Struct,
        *,
        purpose: str,
        environment: Mapping[str, str],
        folder: str = "/",
        on_message: Callable[[FromZygote, list[int]], None],
        on_gone: Callable[[str], None],
    ) -> None:
        self._command = (sys.executable, "-P", "-m", module)
        self._settings = msgspec.json.encode(settings).decode()
        self._purpose = purpose
        self._folder = folder
        self._environment = {**_ONE_THREAD, **code_paths(), **environment}
        self._on_message = on_message
        self._on_gone = on_gone
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._since = 0.0
        self._backoff_seconds = _FIRST_BACKOFF_SECONDS
        self._restart: asyncio.TimerHandle | None = None
        self.restarts = 0

    def start(self) -> None:
        """Start the process and return at once; its first message says that it is ready."""
        self._restart = None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                (*self._command, str(theirs.fileno()), self._settings),
                cwd=self._folder,
                env=self._environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._control = ours
        self._since = time.monotonic()
        asyncio.get_running_loop().add_reader(ours.fileno(), self._on_readable)

    def spawn(self, job: int, entry: str, link: socket.socket) -> bool:
        """Ask for a child that holds the other end of `link`. False: not now, ask again."""
        return self._send(Spawn(job, entry), link.fileno())

    def kill(self, job: int) -> bool:
        """Ask for a child's end. False: not now, ask again."""
        return self._send(Kill(job))

    def _send(self, message: ToZygote, *fds: int) -> bool:
        if self._control is None:
            return False
        try:
            socket.send_fds(self._control, [msgspec.msgpack.encode(message)], fds)
        except OSError:  # full or broken: its next message, or its end, comes first
            return False
        return True

    async def close(self) -> None:
        """End the process and all its children, and wait for it. Idempotent."""
        if self._restart is not None:
            self._restart.cancel()
        self._hang_up()
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            await _gone(process)

    def _hang_up(self) -> None:
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    def _on_readable(self) -> None:
        while self._control is not None:
            try:
                data, fds, _, _ = socket.recv_fds(self._control, _MOST_MESSAGE_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            if not data:
                self._on_end()
                return
            self._on_message(msgspec.msgpack.decode(data, type=FromZygote), fds)

    def _on_end(self) -> None:
        self._hang_up()
        assert self._process is not None
        self._process.kill()
        status = self._process.wait()
        if time.monotonic() - self._since > _STABLE_SECONDS:
            self._backoff_seconds = _FIRST_BACKOFF_SECONDS
        _logger.error(
            "the process that starts %s died with %d; a new one in %.1f s",
            *(self._purpose, status, self._backoff_seconds),
        )
        self.restarts += 1
        loop = asyncio.get_running_loop()
        self._restart = loop.call_later(self._backoff_seconds, self.start)
        self._backoff_seconds = min(self._backoff_seconds * 2, _LONGEST_BACKOFF_SECONDS)
        self._on_gone(f"the process that starts {self._purpose} died and is being restarted")


def code_paths() -> dict[str, str]:
    """Where code lies, for a Python that gets nothing else of this one's environment."""
    package_root = str(Path(__file__).parents[2])
    paths = [path for path in sys.path if path and os.path.isdir(path)]
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([*paths, package_root])),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LANG": "C.UTF-8",
    }


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def _gone(process: subprocess.Popen[bytes]) -> None:
    """Wait for a process that is about to end by itself; kill it if it does not."""
    loop = asyncio.get_running_loop()
    pidfd = os.pidfd_open(process.pid)
    ended: asyncio.Future[None] = loop.create_future()
    loop.add_reader(pidfd, _finish, ended)
    try:
        await asyncio.wait_for(asyncio.shield(ended), _CLOSE_SECONDS)
    except TimeoutError:
        process.kill()
        await ended
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        process.wait()
