"""A connected socket on the event loop that carries frames, and descriptors beside them.

In: a frame to send, with the descriptors that go with its first byte. Out: frames as they come; the
descriptors that came along wait in `fds`, in order. A frame is a 4-byte big-endian length and its bytes.
"""

import array
import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

from streaming.interpreters.jail_wire import FrameBuffer

READ_BYTES = 1 << 16
_FD = array.array("i")
_FDS_BYTES = socket.CMSG_SPACE(8 * _FD.itemsize)


class FrameSocket:
    """One task may receive, any number may send. Owns the socket."""

    def __init__(self, link: socket.socket, most_frame_bytes: int) -> None:
        link.setblocking(False)
        self._link = link
        self._frames = FrameBuffer(most_frame_bytes)
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()
        self.fds: deque[int] = deque()

    async def receive(self) -> bytes | None:
        """The next frame; None at the end. Raises OSError, and WireBroken for one too large."""
        while (frame := self._frames.next_frame()) is None:
            try:
                data = receive_with_fds(self._link, READ_BYTES, self.fds)
            except BlockingIOError:
                await self._wait(self._loop.add_reader, self._loop.remove_reader)
                continue
            if not data:
                return None
            self._frames.feed(data)
        return frame

    async def send(self, frame: bytes, fds: Sequence[int] = ()) -> None:
        """Raises OSError where the other end is gone."""
        rest = memoryview(frame)
        async with self._sending:
            while rest:
                try:
                    if fds:
                        sent = socket.send_fds(self._link, [rest], list(fds))
                    else:
                        sent = self._link.send(rest)
                except BlockingIOError:
                    await self._wait(self._loop.add_writer, self._loop.remove_writer)
                    continue
                fds = ()
                rest = rest[sent:]

    def close(self) -> None:
        """Idempotent."""
        self._link.close()
        while self.fds:
            os.close(self.fds.popleft())

    async def _wait(self, add: Callable[..., object], remove: Callable[[int], object]) -> None:
        ready = asyncio.Event()
        fd = self._link.fileno()
        add(fd, ready.set)
        try:
            await ready.wait()
        finally:
            remove(fd)


def receive_with_fds(link: socket.socket, most_bytes: int, fds: deque[int]) -> bytes:
    """What `recv` returns; descriptors that came along are put at the end of `fds`."""
    data, ancillary, _, _ = link.recvmsg(most_bytes, _FDS_BYTES)
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found = array.array("i")
            found.frombytes(content[: len(content) - len(content) % _FD.itemsize])
            fds.extend(found)
    return data
