"""Frames and descriptors over a socket, on the event loop."""

import asyncio
import os
import socket

import pytest

from streaming.interpreters.jail_wire import WireBroken
from streaming.runners.frame_socket import FrameSocket
from streaming.runners.run_wire import Stop, encode_frame

MOST = 1 << 24


async def test_frames_of_any_size_arrive_whole_and_in_order_while_the_other_end_is_slow() -> None:
    ours, theirs = (FrameSocket(link, MOST) for link in socket.socketpair())
    frames = [encode_frame(Stop("x" * size)) for size in (0, 1, 70_000, 4_000_000, 2)]
    sending = asyncio.gather(*(ours.send(frame) for frame in frames))
    received = [await theirs.receive() for _ in frames]
    await sending
    assert received == [frame[4:] for frame in frames]
    ours.close()
    assert await theirs.receive() is None
    theirs.close()


async def test_descriptors_come_with_their_frame_even_where_the_socket_is_full() -> None:
    ours, theirs = (FrameSocket(link, MOST) for link in socket.socketpair())
    large, small = encode_frame(Stop("x" * 4_000_000)), encode_frame(Stop("with"))
    reading, writing = os.pipe()
    sending = asyncio.gather(ours.send(large), ours.send(small, [reading]))
    assert await theirs.receive() == large[4:]
    assert await theirs.receive() == small[4:]
    await sending
    (passed,) = theirs.fds
    os.write(writing, b"through")
    assert os.read(passed, 7) == b"through"
    theirs.close()  # takes those with it that nobody took
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(passed)
    ours.close()
    os.close(reading)
    os.close(writing)


async def test_a_frame_past_the_limit_is_refused() -> None:
    link, theirs = socket.socketpair()
    receiver = FrameSocket(theirs, 100)
    link.sendall((101).to_bytes(4, "big"))
    with pytest.raises(WireBroken):
        await receiver.receive()
    receiver.close()
    link.close()
