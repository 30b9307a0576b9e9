"""One worker as its parent sees it: a process, its line, and whether it serves.

In: sockets to listen on and the command line of the server. Out: a process that is told to retire or to
stop, and whose end is noticed.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

import msgspec

from server.worker_desk import Caller, WorkerDesk
from server.worker_wire import (
    EmbeddedState,
    FromWorker,
    Message,
    Retire,
    Serving,
    Welcome,
    read_frame,
    write_message,
)

log = logging.getLogger("server")

# With its parent's path: a folder `server` where the parent was started is not to stand in our place.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); "
    "from server.worker import main; sys.exit(main())"
)


class WorkerProcess:
    """Made with `await WorkerProcess.start(...)`. `ended` resolves with its exit code."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        desk: WorkerDesk,
        welcome: Welcome,
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer
        self._desk = desk
        self._caller = Caller(welcome.join_path, self._send)
        self.serving = asyncio.Event()
        self._send(welcome)
        desk.enter(self._caller)
        self.ended: asyncio.Task[int] = asyncio.get_running_loop().create_task(self._attend())

    @classmethod
    async def start(
        cls,
        arguments: Sequence[str],
        sockets: Sequence[socket.socket],
        desk: WorkerDesk,
        welcome: Welcome,
        embedded: EmbeddedState | None,
    ) -> "WorkerProcess":
        """Spawn it. Raises OSError where there is no process to be had."""
        ours, theirs = socket.socketpair()
        with theirs:
            fds = [each.fileno() for each in (*sockets, theirs)]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _START, json.dumps(sys.path)),
                ",".join(map(str, fds)),
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=fds,
                start_new_session=True,  # a Ctrl-C is for the parent, which then stops us in order
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        worker = cls(process, reader, writer, desk, welcome)
        if embedded is not None:
            worker._send(embedded)
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    def retire(self) -> None:
        """Another has taken its place: it finishes what it has, and ends."""
        self._send(Retire())

    def stop(self) -> None:
        """SIGTERM: it drains, and ends; a second one ends it at once."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _send(self, message: Message) -> None:
        if not self._writer.is_closing():
            write_message(self._writer, message)

    async def _attend(self) -> int:
        """Serve the worker's line until the process is gone."""
        decoder = msgspec.msgpack.Decoder(FromWorker)
        try:
            while (frame := await read_frame(self._reader)) is not None:
                message = decoder.decode(frame)
                if isinstance(message, Serving):
                    self.serving.set()
                else:
                    self._desk.take(self._caller, message)
        except Exception:
            log.exception("worker %d is not understood", self.pid)
            self.kill()
        finally:
            self._desk.leave(self._caller)
            self._writer.close()
        code = await self._process.wait()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._caller.join_path)
        return code
