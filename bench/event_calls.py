"""How many functions an agent's event calls, from the channel to the bytes of its chunk, seen one by one, as a reader
that keeps up sees them.

In a process of its own: a profiler of CPython 3.11 never returns once an exception is pending for a thread that does
not run, which tests of runs that do not stop leave behind.
"""

import asyncio
import cProfile

from server.chat_wire import ChatWire
from streaming.channel import Channel
from streaming.events import Print
from streaming.transcript import Transcript

EVENTS = 1000


async def calls_of_an_event() -> float:
    """Measured after the first."""
    channel, transcript = Channel(), Transcript()
    wire = ChatWire(run_id="chatcmpl-1", created=1, model="m", include_usage=True)

    async def pass_on(number: int) -> bytes:
        await channel.send_on_loop(Print(f"row {number}\n"))
        text = "".join(map(transcript.feed, await channel.receive_many()))
        return b"".join(wire.reasoning(text))

    await pass_on(0)
    profile = cProfile.Profile()
    profile.enable()
    for number in range(EVENTS):
        data = await pass_on(number)
    profile.disable()
    if b"row 999" not in data:
        raise RuntimeError(f"the last event is not there: {data!r}")
    return sum(entry.callcount for entry in profile.getstats()) / EVENTS


if __name__ == "__main__":
    print(asyncio.run(calls_of_an_event()))
