"""The channel: back-pressure, merging, closing, and nothing lost or out of order across threads."""

import asyncio
import threading

import anyio
import pytest

from streaming.cancellation import RunCancelled
from streaming.channel import MERGE_ABOVE, Channel
from streaming.events import Event, Final, ModelDelta, Note, Print


async def receive_all(channel: Channel) -> list[Event]:
    events: list[Event] = []
    while True:
        try:
            events += await channel.receive_many()
        except anyio.EndOfStream:
            return events


def announce_waits_of(channel: Channel, blocking: threading.Event) -> None:
    """Set the event when a sender waits for room. It is set under the channel's lock, which nobody
    else gets before the sender really waits."""
    wait = channel._room.wait

    def announced(timeout: float | None = None) -> bool:
        blocking.set()
        return wait(timeout)

    channel._room.wait = announced  # type: ignore[method-assign]


async def test_events_of_a_thread_arrive_in_order_and_then_the_end() -> None:
    channel = Channel(max_events=8)

    def work() -> None:
        for number in range(5000):
            channel.send(Note(str(number)))
        channel.finish(Final("done"))

    thread = asyncio.get_running_loop().run_in_executor(None, work)
    events = await receive_all(channel)
    await thread
    assert events == [*(Note(str(number)) for number in range(5000)), Final("done")]


async def test_a_full_channel_blocks_the_sender_until_it_is_read() -> None:
    channel = Channel(max_events=2)
    sent = []
    blocking = threading.Event()
    announce_waits_of(channel, blocking)

    def work() -> None:
        for number in range(3):
            channel.send(Note(str(number)))
            sent.append(number)

    thread = asyncio.get_running_loop().run_in_executor(None, work)
    assert await asyncio.to_thread(blocking.wait, 10)
    assert sent == [0, 1]
    assert len(await channel.receive_many()) == 2
    await thread
    assert sent == [0, 1, 2]


async def test_texts_merge_behind_a_slow_reader_and_lose_nothing() -> None:
    channel = Channel()
    for number in range(1000):
        await channel.send_on_loop(ModelDelta(f"{number},"))
    await channel.send_on_loop(ModelDelta("a thought", thinking=True))
    for number in range(1000):
        await channel.send_on_loop(Print(f"{number}\n"))
    events = await channel.receive_many()
    texts = [e.text for e in events if isinstance(e, ModelDelta) and not e.thinking]
    assert "".join(texts) == "".join(f"{n}," for n in range(1000))
    prints = [event.text for event in events if isinstance(event, Print)]
    assert "".join(prints) == "".join(f"{n}\n" for n in range(1000))
    assert len(prints) < 10


async def test_events_keep_their_identity_while_the_reader_keeps_up() -> None:
    channel = Channel()
    for number in range(MERGE_ABOVE):
        await channel.send_on_loop(ModelDelta(str(number)))
    assert len(await channel.receive_many()) == MERGE_ABOVE


async def test_memory_is_bounded_in_bytes_too() -> None:
    channel = Channel(max_bytes=100_000)
    text = "x" * 20_000
    sending = asyncio.ensure_future(send_many(channel, text, 50))
    await asyncio.sleep(0)
    assert not sending.done()
    assert channel.statistics().bytes < 150_000
    total = 0
    while total < 50:
        total += len(await channel.receive_many())
    await sending


async def send_many(channel: Channel, text: str, count: int) -> None:
    for _ in range(count):
        await channel.send_on_loop(Note(text))


async def test_a_blocked_sender_is_released_by_close_and_by_finish() -> None:
    for release in ("close", "finish"):
        channel = Channel(max_events=1)
        blocking = threading.Event()
        announce_waits_of(channel, blocking)

        def work(channel: Channel = channel) -> str:
            channel.send(Note("fits"))
            try:
                channel.send(Note("does not"))
            except RunCancelled:
                return "cancelled"
            return "sent"

        thread = asyncio.get_running_loop().run_in_executor(None, work)
        assert await asyncio.to_thread(blocking.wait, 10)
        if release == "close":
            channel.close()
            with pytest.raises(anyio.ClosedResourceError):
                await channel.receive_many()
        else:
            assert channel.finish(Final("first"))
            assert not channel.finish(Final("second"))
            assert await receive_all(channel) == [Note("fits"), Final("first")]
        assert await thread == "cancelled"


async def test_a_waiting_loop_sender_is_released_too() -> None:
    channel = Channel(max_events=1)
    await channel.send_on_loop(Note("fits"))
    waiting = asyncio.ensure_future(channel.send_on_loop(Note("does not")))
    await asyncio.sleep(0)
    channel.finish(Final(None))
    with pytest.raises(RunCancelled):
        await waiting


async def test_sending_on_the_loop_the_blocking_way_is_a_mistake() -> None:
    with pytest.raises(RuntimeError, match="send_on_loop"):
        Channel().send(Note("x"))


async def test_a_cancelled_receive_loses_nothing() -> None:
    channel = Channel()
    receiving = asyncio.ensure_future(channel.receive_many())
    await asyncio.sleep(0)
    receiving.cancel()
    await channel.send_on_loop(Note("kept"))
    assert await channel.receive_many() == [Note("kept")]


async def test_several_may_wait_at_once_and_one_that_leaves_takes_nobody_with_it() -> None:
    channel = Channel()
    leaving, staying, other = channel.more(), channel.more(), channel.more()
    leaving.cancel()
    await channel.send_on_loop(Note("here"))
    await asyncio.wait_for(asyncio.gather(staying, other), 10)
    assert channel.receive_now() == [Note("here")]
    assert channel.receive_now() == []
