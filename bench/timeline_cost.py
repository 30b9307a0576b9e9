"""What a run's timeline costs: `python -m bench.timeline_cost`.

Prints the time that the tap takes for a model's delta and for a tool's call, and their share of what the channel takes
for them in all.
"""

import asyncio
import time
from collections.abc import Callable

from streaming.channel import Channel
from streaming.events import Began, Event, ModelDelta, ToolRan
from streaming.run import Run
from streaming.run_spec import RunSpec

ROUNDS = 7
TIMES = 100_000


def seconds_each(work: Callable[[], None]) -> float:
    """The best of some rounds."""

    def once() -> float:
        began = time.perf_counter()
        for _ in range(TIMES):
            work()
        return (time.perf_counter() - began) / TIMES

    return min(once() for _ in range(ROUNDS))


async def send_all(events: tuple[Event, ...], run: Run | None) -> float:
    """Seconds a round of these events takes through a channel, read as it fills."""
    channel = Channel(tap=run._count if run is not None else None)
    count = 20_000

    async def send() -> None:
        for _ in range(count):
            for event in events:
                await channel.send_on_loop(event)
        channel.finish(ToolRan("end", 0.0))

    began = time.perf_counter()
    sending = asyncio.create_task(send())
    while not sending.done():
        await channel.receive_many()
    return (time.perf_counter() - began) / count


async def main() -> None:
    delta = ModelDelta("word ")
    call = (Began("tool", "search"), ToolRan("search", 0.001))
    run = Run(RunSpec(run_id="r", agent="a", task="t"), key="")
    run._count(delta)
    of_delta = seconds_each(lambda: run._count(delta))

    def note_call() -> None:
        for event in call:
            run.timeline.note(event)

    of_call = seconds_each(note_call)
    print(
        f"timeline of a tool's call: {of_call * 1e6:.2f} us; the tap of a delta: {of_delta * 1e9:.0f} ns"
    )
    for name, events in (("delta", (delta,)), ("tool's call", call)):
        bare = min([await send_all(events, None) for _ in range(5)])
        tapped = min([await send_all(events, run) for _ in range(5)])
        print(
            f"{name}: {tapped * 1e6:.2f} us through the channel, {tapped / bare:.2f} times that without tap"
        )


if __name__ == "__main__":
    asyncio.run(main())
