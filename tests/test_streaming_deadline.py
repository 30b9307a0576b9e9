"""A deadline counts the time that is spent, and not the pauses."""

import asyncio

from conftest import until

from streaming.deadline import Deadline


async def test_it_calls_back_once_its_time_is_spent() -> None:
    calls: list[int] = []
    deadline = Deadline(0.01, lambda: calls.append(1))
    await until(lambda: calls)
    deadline.cancel()
    assert calls == [1]


async def test_a_pause_does_not_count_however_long_and_however_often() -> None:
    loop = asyncio.get_running_loop()
    calls: list[float] = []
    began = loop.time()
    deadline = Deadline(0.2, lambda: calls.append(loop.time()))
    deadline.pause()
    deadline.pause()
    await asyncio.sleep(0.4)
    assert not calls
    deadline.resume()
    deadline.resume()
    await until(lambda: calls)
    assert calls[0] - began >= 0.59
    assert len(calls) == 1


async def test_a_cancelled_one_never_calls() -> None:
    calls: list[int] = []
    Deadline(0.01, lambda: calls.append(1)).cancel()
    await asyncio.sleep(0.05)
    assert not calls
